"""The `kenya-birds` command: a thin door to the rooms of the package."""

import argparse
import sys
from pathlib import Path
from typing import Any

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # What stands behind `tune ... --` are flags of train_hf.py.
    end = words.index("--") if words[:1] == ["tune"] and "--" in words else len(words)
    options = _parser().parse_args(words[:end])
    options.train_flags = words[end + 1 :]
    show_log()
    with one_line_errors(f"kenya-birds {options.command}"):
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kenya-birds", description="Bird classifiers from annotated soundscapes.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_synthesize,
        _add_download,
        _add_check,
        _add_report,
        _add_split,
        _add_estimate,
        _add_evaluate,
        _add_tune,
        _add_push_clips,
    ):
        add(commands)
    return parser


def _add_synthesize(commands: Any) -> None:
    command = _command(
        commands,
        "synthesize",
        "make an archive of invented birds in the Kenyan format",
        "Makes an archive of invented birds in the Kenyan format: recordings, annotations, species.",
    )
    command.add_argument("data_dir", type=Path, help="folder to make; new or empty")
    command.add_argument("--recordings", type=int, default=12, help="number of recordings")
    command.add_argument("--duration_s", type=float, default=60.0, help="length of a recording in seconds")
    command.add_argument("--species", type=int, default=8, help="number of species")
    command.add_argument("--annotations", type=int, help="number of calls; by default in keep with the length")
    command.add_argument("--seed", type=int, default=0, help="same seed, same archive")
    command.set_defaults(run=_synthesize)


def _synthesize(options: argparse.Namespace) -> None:
    from kenya_birds.data.synthetic import synthesize_archive

    synthesize_archive(
        options.data_dir,
        recordings=options.recordings,
        duration_s=options.duration_s,
        species=options.species,
        annotations=options.annotations,
        seed=options.seed,
    )
    print(f"The archive is in {options.data_dir}")


def _add_download(commands: Any) -> None:
    command = _command(
        commands,
        "download",
        "fetch the Kenyan soundscapes from Zenodo",
        "Fetches an archive of soundscapes from Zenodo and unpacks it; goes on where it was stopped.",
    )
    command.add_argument("data_dir", type=Path, help="folder of the archive; a run that was stopped goes on there")
    command.add_argument("--record", type=int, default=10943500, help="number of the Zenodo record")
    command.add_argument("--keep_zip", action="store_true", help="keep soundscape_data.zip when it is unpacked")
    command.add_argument("--api_url", default="https://zenodo.org/api/records", help=argparse.SUPPRESS)
    command.set_defaults(run=_download)


def _download(options: argparse.Namespace) -> None:
    from kenya_birds.data.download import download_record

    download_record(options.data_dir, options.record, api_url=options.api_url, keep_zip=options.keep_zip)
    print(f"The archive is in {options.data_dir}")


def _add_check(commands: Any) -> None:
    command = _command(
        commands,
        "check",
        "read a whole archive and list what is wrong",
        "Reads every recording to its last frame and every row of the tables. The exit code is 0 if training can use "
        "everything, 1 if not.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, default=Path("check.csv"), help="CSV to write")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    command.add_argument("--num_proc", type=int, default=1, help="processes that read recordings")
    command.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> None:
    from kenya_birds.data.check import check_archive, format_check, write_check
    from kenya_birds.data.splits import check_output

    check_output(options.output, options.overwrite)
    check = check_archive(options.data_dir, num_proc=options.num_proc)
    write_check(check, options.output, overwrite=options.overwrite)
    print(format_check(check))
    print(f"The table is in {options.output}")
    raise SystemExit(0 if check.is_usable else 1)


def _add_report(commands: Any) -> None:
    command = _command(
        commands,
        "report",
        "describe an archive on one HTML page",
        "Describes an archive on one HTML page: species, sound, overlaps, activity, split, tables.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, default=Path("report.html"), help="HTML file to write")
    command.add_argument("--min_annotations", type=int, default=10, help="rarer species are left out of the split")
    command.add_argument("--seed", type=int, default=0, help="chooses the call whose spectrograms are shown")
    command.add_argument("--balanced", action="store_true", help="describe the balanced split too (up to a minute)")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from kenya_birds.exploration.report import write_report

    output = write_report(
        options.data_dir,
        options.output,
        min_annotations=options.min_annotations,
        seed=options.seed,
        balanced=options.balanced,
        overwrite=options.overwrite,
    )
    print(f"The report is in {output}")


def _add_split(commands: Any) -> None:
    command = _command(
        commands,
        "split",
        "divide an archive's recordings into train, validation and test, or into folds",
        "Divides an archive's recordings into train, validation and test, or into folds, and says how good that is.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, required=True, help="CSV to write: recording,split or recording,fold")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    command.add_argument("--strategy", choices=("seed", "balanced"), default="balanced", help="how to divide")
    command.add_argument("--folds", type=int, help="number of folds; by default there are three splits")
    command.add_argument("--min_annotations", type=int, default=10, help="species with fewer are left out")
    command.add_argument("--test_size", type=float, default=0.2, help="share of the test split")
    command.add_argument("--validation_size", type=float, default=0.2, help="share of the validation split")
    command.add_argument("--seed", type=int, default=42, help="seed of the seed strategy")
    command.add_argument("--time_limit_s", type=float, default=60.0, help="when the balanced strategy stops looking")
    command.set_defaults(run=_split)


def _split(options: argparse.Namespace) -> None:
    from kenya_birds.data.archive import read_archive, select_classes
    from kenya_birds.data.balanced_split import make_splits
    from kenya_birds.data.split_audit import audit_split, format_audit
    from kenya_birds.data.splits import check_output, write_splits

    check_output(options.output, options.overwrite)
    annotations = read_archive(options.data_dir).annotations
    annotations = annotations[annotations["species"].isin(select_classes(annotations, options.min_annotations))]
    table = make_splits(
        annotations,
        options.strategy,
        folds=options.folds,
        test_size=options.test_size,
        validation_size=options.validation_size,
        seed=options.seed,
        time_limit_s=options.time_limit_s,
    )
    write_splits(table, options.output, overwrite=options.overwrite)
    train_size = 1 - options.test_size - options.validation_size
    targets = {"train": train_size, "validation": options.validation_size, "test": options.test_size}
    print(format_audit(audit_split(annotations, table, targets=targets)))
    print(f"The {'folds' if options.folds else 'splits'} are in {options.output}")


def _add_estimate(commands: Any) -> None:
    command = _command(
        commands,
        "estimate",
        "say what a model will cost to train and to serve",
        "Counts parameters, FLOPs and memory of a model on its graph; needs no GPU, no weights and hardly any memory.",
    )
    command.add_argument("--backbone", default="convnext_tiny.in12k_ft_in1k", help="name of a timm image model")
    command.add_argument("--batch_size", type=int, default=64, help="clips of a batch, on one device")
    command.add_argument("--num_labels", type=int, default=176, help="number of classes")
    command.add_argument("--bands", type=int, help="bands of the features; by default the feature extractor's")
    command.add_argument("--frames", type=int, help="frames: clip_s * sampling_rate / hop_length + 1; likewise")
    command.add_argument("--clips", type=int, help="training clips: tells the cost of an epoch and of the run")
    command.add_argument("--epochs", type=float, default=30.0, help="epochs of the run")
    command.add_argument("--device_tflops", type=float, help="speed that the device sustains: tells the hours")
    command.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    command.set_defaults(run=_estimate)


def _estimate(options: argparse.Namespace) -> None:
    from kenya_birds.training.estimate import estimate, format_estimate, run_cost, to_json

    if options.device_tflops is not None and options.clips is None:
        raise UserError("--device_tflops tells the hours of a run: say how many --clips it has, or leave it out")
    result = estimate(
        options.backbone,
        batch_size=options.batch_size,
        num_labels=options.num_labels,
        bands=options.bands,
        frames=options.frames,
    )
    cost = None
    if options.clips is not None:
        cost = run_cost(result, clips=options.clips, epochs=options.epochs, device_tflops=options.device_tflops)
    print(to_json(result, cost) if options.json else format_estimate(result, cost))


def _add_evaluate(commands: Any) -> None:
    command = _command(
        commands,
        "evaluate",
        "evaluate a trained model on an archive",
        "Evaluates a model of this package: metrics with 95%% intervals from a bootstrap over recordings, a table of "
        "species, predictions and pictures.",
    )
    command.add_argument("model", help="the model's folder, or OWNER/NAME[@REVISION] on the Hub")
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, help="folder to write; new or empty (default: evaluation_SPLIT)")
    command.add_argument("--split", choices=("train", "validation", "test"), default="test", help="what to evaluate")
    command.add_argument("--splits_file", type=Path, help="splits or folds; by default the model's splits.csv")
    command.add_argument("--fold", type=int, default=0, help="which fold of a table of folds is the test split")
    command.add_argument("--common_classes", action="store_true", help="evaluate the classes that both have")
    command.add_argument("--min_annotations", type=int, help="drop rarer species; by default as in training")
    command.add_argument("--context_s", type=float, help="sound kept on both sides of a clip; by default training's")
    command.add_argument("--edge_tolerance_s", type=float, default=0.0, help="as in training")
    command.add_argument("--test_time_shifts", type=int, default=1, help="average over so many shifted crops")
    command.add_argument("--batch_size", type=int, default=64, help="clips at a time")
    command.add_argument("--cache_dir", type=Path, help="where cut clips are kept (datasets' cache)")
    command.add_argument("--num_proc", type=int, help="processes that cut clips")
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from kenya_birds.evaluation.report import format_metrics
    from kenya_birds.reevaluation import evaluate_model

    output = options.output or Path(f"evaluation_{options.split}")
    metrics = evaluate_model(
        options.model,
        options.data_dir,
        output,
        split=options.split,
        splits_file=options.splits_file,
        fold=options.fold,
        common_classes=options.common_classes,
        min_annotations=options.min_annotations,
        context_s=options.context_s,
        edge_tolerance_s=options.edge_tolerance_s,
        time_shifts=options.test_time_shifts,
        batch_size=options.batch_size,
        cache_dir=options.cache_dir,
        num_proc=options.num_proc,
        seed=options.seed,
    )
    print(format_metrics(metrics))
    print(f"Metrics, tables, predictions and pictures are in {output}")


def _add_tune(commands: Any) -> None:
    command = _command(
        commands,
        "tune",
        "search for good settings of training",
        "Searches with Optuna for the settings with the best macro F1, averaged over folds of recordings; the test "
        "split takes no part. The same command goes on with a study that was stopped. Behind -- stand flags of "
        "train_hf.py for what is not searched.",
    )
    command.usage = "kenya-birds tune data_dir --trials N [options] [-- flags of train_hf.py]"
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--trials", type=int, required=True, help="finished trials of the whole study")
    command.add_argument("--timeout_s", type=float, help="no trial starts later (s)")
    command.add_argument("--folds", type=int, default=3, help="number of folds")
    command.add_argument("--storage", default="sqlite:///study.db", help="the study's data base, an SQLAlchemy URL")
    command.add_argument("--study_name", default="kenya_birds", help="name of the study in it")
    command.add_argument("--output", type=Path, default=Path("tuning"), help="folder to write; new or this study's")
    command.add_argument(
        "--backbones", nargs="+", default=[], help="timm models to choose from; by default training's"
    )
    command.set_defaults(run=_tune)


def _tune(options: argparse.Namespace) -> None:
    try:
        from kenya_birds.training.tuning import tune
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("tuning needs Optuna: pip install 'kenya_birds[optuna]'") from None

    tune(
        options.data_dir,
        options.output,
        trials=options.trials,
        timeout_s=options.timeout_s,
        folds=options.folds,
        storage=options.storage,
        study_name=options.study_name,
        backbones=options.backbones,
        flags=options.train_flags,
    )
    print(f"The best settings (for train_hf.py --params), history and pictures are in {options.output}")


def _add_push_clips(commands: Any) -> None:
    command = _command(
        commands,
        "push-clips",
        "put an archive's clips on the Hugging Face Hub, as Parquet",
        "Cuts an archive's clips and puts them on the Hugging Face Hub as a data set that load_dataset reads. The "
        "token is the one of `hf auth login` or of the HF_TOKEN variable.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--repo_id", required=True, help="OWNER/NAME, or NAME under the account logged in")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="only save there; needs no network")
    command.add_argument("--title", help="title of the card; by default the repository's name")
    command.add_argument("--source", help="whom to cite: a text for the card, or `kenya` for Zenodo 10943500")
    command.add_argument("--license", default="cc-by-4.0", help="licence of the clips, as the Hub spells it")
    command.add_argument("--min_annotations", type=int, default=10, help="drop species with fewer annotations")
    command.add_argument("--context_s", type=float, default=0.0, help="sound to keep on both sides of a clip")
    command.add_argument("--num_proc", type=int, help="processes that cut")
    command.set_defaults(run=_push_clips)


def _push_clips(options: argparse.Namespace) -> None:
    from kenya_birds.data.builders import ClipsConfig
    from kenya_birds.data.dataset import build_clips, clips_builder
    from kenya_birds.publishing.clips import push_clips, save_clips
    from kenya_birds.publishing.clips_card import KENYAN_SOURCE
    from kenya_birds.publishing.hub import check_repo_id

    check_repo_id(options.repo_id, "dataset")
    builder = clips_builder(options.data_dir, min_annotations=options.min_annotations, context_s=options.context_s)
    clips = build_clips(builder, options.num_proc)
    card = {
        "title": options.title or options.repo_id.rpartition("/")[2],
        "source": KENYAN_SOURCE if options.source == "kenya" else options.source,
        "license": options.license,
        # The fields of its own: those of datasets.BuilderConfig name folders of this machine.
        "settings": {name: getattr(builder.config, name) for name in ClipsConfig.__annotations__ if name != "splits"},
        "species": builder.archive.species_names(builder.classes),
    }
    if options.output is None:
        print(push_clips(clips, options.repo_id, private=options.private, **card))
    else:
        folder = save_clips(clips, options.output, repo_id=options.repo_id, **card)
        print(f"The clips are in {folder}; nothing was sent.")


def _command(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
