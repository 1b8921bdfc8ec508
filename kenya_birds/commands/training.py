"""Commands to train, evaluate and describe models: info, estimate, evaluate, score, probe, tune."""

import argparse
from pathlib import Path
from typing import Annotated, Any, Literal

from kenya_birds.commands.common import MODEL, RUN_AGAIN, add_archive, log_loading
from kenya_birds.parsing import add_general, add_option, new_command
from kenya_birds.values import (
    Count,
    Device,
    Duration,
    Folds,
    NotNegative,
    Positive,
    Range,
    Seconds,
    Seed,
    Share,
    SignedSeconds,
    Whole,
)

PROBLEM_TYPES = Literal["single_label_classification", "multi_label_classification"]


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_info, _add_estimate, _add_evaluate, _add_score, _add_probe, _add_tune):
        add(commands)


def _add_info(commands: Any) -> None:
    command = new_command(
        commands,
        "info",
        "show a model's species, decision thresholds, data and metrics",
        "Shows a trained model: its species with their decision thresholds and F1, its training data, and its metrics "
        "on the test split.",
        "kenya-birds info birds",
    )
    add_option(command, "model", str, help=MODEL)
    output = command.add_argument_group("Output")
    add_option(output, "--json", bool, False, help="print JSON")
    add_general(command)
    command.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> None:
    import json

    from kenya_birds.model_info import describe_model, format_model
    from kenya_birds.saved_models import check_ours, find_model

    saved = find_model(options.model)
    check_ours(saved)
    about = describe_model(saved)
    print(json.dumps(about, indent=2, ensure_ascii=False) if options.json else format_model(about))


def _add_estimate(commands: Any) -> None:
    command = new_command(
        commands,
        "estimate",
        "estimate the cost of training and running a model",
        "Estimates parameters, FLOPs and memory of a model without running it. It needs no GPU, no weights and little "
        "memory.",
        "kenya-birds estimate --backbone convnext_tiny --batch_size 64 --clips 6000",
    )
    model = command.add_argument_group("Model")
    add_option(
        model, "--backbone", str, "convnext_tiny.in12k_ft_in1k", metavar="NAME", help="name of a timm image model"
    )
    add_option(model, "--batch_size", Count, 64, help="clips per batch, on one device")
    add_option(model, "--num_labels", Count, 176, help="number of classes")
    add_option(model, "--bands", Count | None, help="bands of the features; by default the feature extractor's")
    add_option(
        model,
        "--frames",
        Count | None,
        help="frames of the features: clip_s * sampling_rate / hop_length + 1; by default the feature extractor's",
    )
    run = command.add_argument_group("Training run")
    add_option(run, "--clips", Count | None, help="number of training clips: adds the cost of an epoch and of the run")
    add_option(run, "--epochs", Positive, 30.0, help="number of epochs of the run")
    add_option(
        run,
        "--device_tflops",
        Positive | None,
        help="sustained speed of the device in 10^12 FLOPs/s: adds the hours (needs --clips)",
    )
    output = command.add_argument_group("Output")
    add_option(output, "--json", bool, False, help="print JSON, with sizes in bytes")
    add_general(command)
    command.set_defaults(run=_estimate)


def _estimate(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError

    if options.device_tflops is not None and options.clips is None:
        raise UserError("--device_tflops needs the number of clips: add --clips, or omit --device_tflops")
    from kenya_birds.training.estimate import estimate, format_estimate, run_cost, to_json

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
    command = new_command(
        commands,
        "evaluate",
        "evaluate a trained model on an archive",
        "Evaluates a model of this package on an archive. It writes metrics with 95% intervals from a bootstrap over "
        "recordings, a table of species, predictions and figures.",
        "kenya-birds evaluate birds archive --output again",
    )
    add_option(command, "model", str, help=MODEL)
    add_archive(command)
    output = command.add_argument_group("Output")
    add_option(
        output,
        "--output",
        Path | None,
        metavar="FOLDER",
        help="output folder: new or empty; by default evaluation_SPLIT",
    )
    data = command.add_argument_group("Recordings and species")
    add_option(
        data,
        "--split",
        Literal["train", "validation", "test", "all"],
        "test",
        help="recordings to evaluate; all: the whole archive, if the model was not trained on it",
    )
    add_option(
        data,
        "--splits_file",
        Path | None,
        metavar="FILE",
        help="CSV file with splits or folds; by default the model's own splits.csv",
    )
    add_option(data, "--fold", Whole, 0, help="number of the fold that is the test split, if --splits_file has folds")
    add_option(
        data,
        "--common_classes",
        bool,
        False,
        help="evaluate only the species that are in both the model and the archive",
    )
    add_option(
        data,
        "--min_annotations",
        Count | None,
        help="drop species with fewer annotations; by default as in training",
    )
    clips = command.add_argument_group("Clips")
    add_option(
        clips, "--context_s", Seconds | None, help="extra sound on each side of a clip; by default as in training"
    )
    add_option(
        clips,
        "--edge_tolerance_s",
        SignedSeconds | None,
        help="count a call as in a clip if its centre is up to this far outside it; by default as in training",
    )
    add_option(
        clips, "--test_time_shifts", Count, 1, help="number of shifted crops of each clip, whose scores are averaged"
    )
    _add_processing(command.add_argument_group("Speed"), "clips per batch")
    _add_seed(command)
    add_general(command)
    command.set_defaults(run=_evaluate, after_stop=RUN_AGAIN)


def _evaluate(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_file, check_layout, check_new_folder
    from kenya_birds.saved_models import check_model

    output = options.output or Path(f"evaluation_{options.split}")
    check_model(options.model, ours=True)
    check_layout(options.data_dir)
    check_file(options.splits_file, "a table of splits or folds")
    check_new_folder(output)
    log_loading(options.model)
    from kenya_birds.evaluation.evaluation_report import WHOLE_RECORDINGS, format_metrics, format_recordings
    from kenya_birds.experiments.evaluate import evaluate_model

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
    if WHOLE_RECORDINGS in metrics:
        print(format_recordings(metrics[WHOLE_RECORDINGS]))
    print(format_metrics(metrics))
    print(f"Metrics, tables, predictions and figures are in {output}")


def _add_score(commands: Any) -> None:
    command = new_command(
        commands,
        "score",
        "compare a table of detections with the annotations of an archive",
        "Scores the detections of any program against the annotations of whole recordings. It prints precision, "
        "recall and F1 of events, false detections per hour and average precision over windows, each with a 95% "
        "interval from a bootstrap over recordings. It reads tables of this package, BirdNET-Analyzer, Raven, "
        "Audacity and Kaleidoscope, and plain CSV files. With --beside, it compares two programs on the same "
        "recordings.",
        "kenya-birds score found/detections.csv archive --beside birdnet/BirdNET_CombinedTable.csv --output scores",
    )
    add_option(command, "table", Path, help="table of detections, or a folder of such tables")
    add_archive(command)
    output = command.add_argument_group("Output")
    add_option(
        output,
        "--output",
        Path | None,
        metavar="FOLDER",
        help="output folder for tables: new or empty; by default results are only printed",
    )
    what = command.add_argument_group("Detections and recordings")
    add_option(what, "--beside", Path | None, metavar="TABLE", help="table of detections of another program")
    add_option(
        what,
        "--splits_file",
        Path | None,
        metavar="FILE",
        help="CSV file with splits: score only the recordings of --split; by default the recordings of the table",
    )
    add_option(what, "--split", Literal["train", "validation", "test"], "test", help="split of --splits_file to score")
    add_option(what, "--min_score", Share, 0.0, help="drop detections with a lower score")
    how = command.add_argument_group("Matching")
    add_option(
        how,
        "--tolerance_s",
        Seconds,
        0.0,
        help="match a detection with a point annotation that is up to this far outside it",
    )
    add_option(how, "--window_s", Duration, 3.0, help="length of the windows for average precision and empty windows")
    _add_seed(command)
    add_general(command)
    command.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_file, check_layout, check_new_folder

    for table in (options.table, options.beside):
        if table is not None and not table.is_dir():
            check_file(table, "a table of detections, or a folder of tables")
    check_layout(options.data_dir)
    check_file(options.splits_file, "a table of splits")
    if options.output is not None:
        check_new_folder(options.output)
    from kenya_birds.data.splits import read_splits
    from kenya_birds.experiments.score import ScoreSettings, format_scores, score_tables

    recordings = None
    if options.splits_file is not None:
        splits = read_splits(options.splits_file, 0)
        recordings = tuple(splits.loc[splits["split"] == options.split, "recording"])
        if not recordings:
            raise UserError(f"{options.splits_file} has no recording in the split '{options.split}'")
    settings = ScoreSettings(
        min_score=options.min_score,
        tolerance_s=options.tolerance_s,
        window_s=options.window_s,
        recordings=recordings,
        seed=options.seed,
    )
    content = score_tables(
        options.table, options.data_dir, beside=options.beside, output_dir=options.output, settings=settings
    )
    print(format_scores(content))
    if options.output is not None:
        print(f"metrics.json, and tables of species, recordings, detections and calls, are in {options.output}")


def _add_probe(commands: Any) -> None:
    command = new_command(
        commands,
        "probe",
        "measure how well a frozen model separates an archive's species",
        "Fits a classifier on the embeddings of a frozen model (of this package or any audio model of transformers), "
        "and evaluates it with the splits, metrics and files of training. Remote code of the model is not run.",
        "kenya-birds probe birds archive --folds 5 --output probe",
    )
    add_option(command, "model", str, help=MODEL)
    add_archive(command)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path("probe"), metavar="FOLDER", help="output folder: new or empty")
    add_option(
        output,
        "--beside",
        Path | None,
        metavar="FOLDER",
        help="output folder of train_hf.py to compare with; its splits or folds are used",
    )
    classifier = command.add_argument_group("Classifier")
    add_option(
        classifier,
        "--method",
        Literal["linear", "knn"],
        "linear",
        help="linear: logistic regression; knn: nearest neighbours",
    )
    add_option(
        classifier,
        "--problem_type",
        PROBLEM_TYPES | None,
        help="type of the labels; by default that of the run or of the model",
        metavar="NAME",
    )
    add_option(
        classifier,
        "--loss_weight_power",
        NotNegative,
        0.5,
        help="weight each class by n^-X, with n its number of clips (linear only)",
    )
    data = command.add_argument_group("Recordings, species and clips")
    add_option(
        data,
        "--splits_file",
        Path | None,
        metavar="FILE",
        help="CSV file with splits, or with folds: each fold is then tested once",
    )
    add_option(data, "--folds", Folds | None, help="number of folds to make, as in train_hf.py --folds")
    add_option(data, "--split_seed", Seed, 42, help="random seed of new splits or folds")
    add_option(
        data,
        "--min_annotations",
        Count | None,
        help="drop species with fewer annotations; by default as in the training of the run or of the model",
    )
    add_option(
        data,
        "--edge_tolerance_s",
        SignedSeconds | None,
        help="count a call as in a clip if its centre is up to this far outside it; by default as in training",
    )
    add_option(
        data,
        "--clip_s",
        Duration | None,
        help="length of a clip, for transformers models (default: 3); models of this package have their own length",
    )
    speed = command.add_argument_group("Speed")
    add_option(speed, "--device", Device, help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
    _add_processing(speed, "clips per batch")
    _add_seed(command, 42)
    add_general(command)
    command.set_defaults(run=_probe, after_stop="delete the output folder and run the same command again")


def _probe(options: argparse.Namespace) -> None:
    import dataclasses

    from kenya_birds.files import check_file, check_layout, check_new_folder
    from kenya_birds.saved_models import check_model

    check_model(options.model)
    check_layout(options.data_dir)
    check_file(options.splits_file, "a table of splits or folds")
    if options.beside is not None:
        check_file(options.beside / "metrics.json", "the output folder of train_hf.py (--beside)")
    check_new_folder(options.output)
    log_loading(options.model)
    from kenya_birds.experiments.probe import ProbeSettings, probe

    names = [field.name for field in dataclasses.fields(ProbeSettings)]
    table = probe(
        options.model,
        options.data_dir,
        options.output,
        ProbeSettings(**{name: getattr(options, name) for name in names}),
        beside=options.beside,
        batch_size=options.batch_size,
        device=options.device,
        cache_dir=options.cache_dir,
        num_proc=options.num_proc,
    )
    print(table)
    print(f"Metrics, tables, predictions and figures are in {options.output}")


def _add_tune(commands: Any) -> None:
    command = new_command(
        commands,
        "tune",
        "search for good training settings",
        "Searches with Optuna for the training settings with the best macro F1, averaged over folds of recordings. "
        "The test split is not used. An interrupted study resumes when the same command is run again. Flags of "
        "train_hf.py for settings that are not searched follow after --. Needs optuna.",
        "kenya-birds tune archive --trials 30 --output tuning -- --num_train_epochs 20",
    )
    command.usage = "kenya-birds tune data_dir --trials N [options] [-- flags of train_hf.py]"
    add_archive(command)
    study = command.add_argument_group("Study")
    add_option(
        study,
        "--trials",
        Count,
        required=True,
        help="number of trials of the whole study, including those of earlier runs",
    )
    add_option(study, "--timeout_s", Duration | None, help="start no new trial after this many seconds")
    add_option(study, "--folds", Annotated[int, Range(2)], 3, help="number of folds")
    add_option(
        study,
        "--backbones",
        str,
        nargs="+",
        default=(),
        metavar="NAME",
        help="timm models to choose from; by default only the --backbone of the flags of train_hf.py",
    )
    output = command.add_argument_group("Output")
    add_option(
        output, "--output", Path, Path("tuning"), metavar="FOLDER", help="output folder: new, empty, or of this study"
    )
    add_option(
        output,
        "--storage",
        str,
        "sqlite:///study.db",
        metavar="URL",
        help="database of the study, as a URL of SQLAlchemy",
    )
    add_option(output, "--study_name", str, "kenya_birds", metavar="NAME", help="name of the study in the database")
    add_general(command)
    command.set_defaults(run=_tune, after_stop="run the same command again to resume the study")


def _tune(options: argparse.Namespace) -> None:
    from kenya_birds.extras import check_extra
    from kenya_birds.training.flags import tuning_flags

    tuning_flags(options.data_dir, options.output, options.train_flags)
    check_extra("optuna", "tuning")
    from kenya_birds.training.tuning import tune

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
    print(f"The best settings (for train_hf.py --params), history and figures are in {options.output}")


def _add_processing(group: Any, batch: str) -> None:
    add_option(group, "--batch_size", Count, 64, help=batch)
    add_option(group, "--num_proc", Count | None, help="processes that cut clips; by default 1")
    add_option(
        group,
        "--cache_dir",
        Path | None,
        metavar="FOLDER",
        help="folder for cached clips; by default the cache of the datasets library",
    )


def _add_seed(command: Any, default: int = 0) -> None:
    group = command.add_argument_group("Intervals")
    add_option(group, "--seed", Seed, default, help="random seed of the bootstrap")
