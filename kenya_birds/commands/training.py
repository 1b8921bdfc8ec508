"""Commands about models in the making: info, estimate, evaluate, score, probe, tune."""

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
        "show a model's species, decision thresholds, data and figures",
        "Shows what a trained model is: its species with their decision thresholds and F1, the data that it was "
        "trained on, and its figures on the test split.",
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
        "estimate what a model costs to train and to run",
        "Counts parameters, FLOPs and memory of a model on its graph. It needs no GPU, no weights and little memory.",
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
    add_option(run, "--clips", Count | None, help="training clips: adds the cost of an epoch and of the run")
    add_option(run, "--epochs", Positive, 30.0, help="epochs of the run")
    add_option(
        run,
        "--device_tflops",
        Positive | None,
        help="speed that the device sustains, in 10^12 FLOPs/s: adds the hours",
    )
    output = command.add_argument_group("Output")
    add_option(output, "--json", bool, False, help="print JSON, sizes in bytes")
    add_general(command)
    command.set_defaults(run=_estimate)


def _estimate(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError

    if options.device_tflops is not None and options.clips is None:
        raise UserError("--device_tflops gives the hours of a run: say how many --clips it has, or leave it out")
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
        "Evaluates a model of this package: metrics with 95% intervals from a bootstrap over recordings, a table of "
        "species, predictions and pictures.",
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
        help="folder to write: new or empty; by default evaluation_SPLIT",
    )
    data = command.add_argument_group("Recordings and species")
    add_option(
        data,
        "--split",
        Literal["train", "validation", "test", "all"],
        "test",
        help="what to evaluate; all: every recording of an archive that the model was not trained on",
    )
    add_option(
        data,
        "--splits_file",
        Path | None,
        metavar="FILE",
        help="CSV with splits or folds; by default the model's own splits.csv",
    )
    add_option(data, "--fold", Whole, 0, help="which fold of a table of folds is the test split")
    add_option(
        data,
        "--common_classes",
        bool,
        False,
        help="evaluate the species that both model and archive have, if they differ",
    )
    add_option(data, "--min_annotations", Count | None, help="ignore rarer species; by default as in training")
    clips = command.add_argument_group("Clips")
    add_option(
        clips, "--context_s", Seconds | None, help="sound kept on each side of a clip; by default as in training"
    )
    add_option(
        clips,
        "--edge_tolerance_s",
        SignedSeconds | None,
        help="how far outside a clip the centre of a call may be and still count as in it; by default as in training",
    )
    add_option(clips, "--test_time_shifts", Count, 1, help="average the scores of this many shifted crops of a clip")
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
    print(f"Metrics, tables, predictions and pictures are in {output}")


def _add_score(commands: Any) -> None:
    command = new_command(
        commands,
        "score",
        "compare a table of detections with the annotations of an archive",
        "Compares the detections of any program with the annotations of whole recordings: precision, recall and F1 of "
        "events, false detections per hour, average precision over windows, each with a 95% interval from a bootstrap "
        "over recordings. Reads tables of this package, BirdNET-Analyzer, Raven, Audacity and Kaleidoscope, and plain "
        "CSV files. With --beside, two programs are compared on the same recordings.",
        "kenya-birds score found/detections.csv archive --beside birdnet/BirdNET_CombinedTable.csv --output scores",
    )
    add_option(command, "table", Path, help="table of detections, or a folder of such tables")
    add_archive(command)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path | None, metavar="FOLDER", help="folder to write: new or empty")
    what = command.add_argument_group("What is compared")
    add_option(what, "--beside", Path | None, metavar="TABLE", help="table of detections of another program")
    add_option(
        what,
        "--splits_file",
        Path | None,
        metavar="FILE",
        help="CSV with splits: only the recordings of --split count; by default those that a table names",
    )
    add_option(what, "--split", Literal["train", "validation", "test"], "test", help="recordings of --splits_file")
    add_option(what, "--min_score", Share, 0.0, help="drop detections with a lower score")
    how = command.add_argument_group("How a call is found")
    add_option(how, "--tolerance_s", Seconds, 0.0, help="how far outside a detection the point of a call may be")
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
        "Fits a classifier on the embeddings of a frozen model, of this package or any audio model of transformers, "
        "and evaluates it on the splits or folds of training, with its metrics and files. Its code is not run.",
        "kenya-birds probe birds archive --folds 5 --output probe",
    )
    add_option(command, "model", str, help=MODEL)
    add_archive(command)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path("probe"), metavar="FOLDER", help="folder to write: new or empty")
    add_option(
        output,
        "--beside",
        Path | None,
        metavar="FOLDER",
        help="output of train_hf.py to compare with, on its splits or folds",
    )
    classifier = command.add_argument_group("Classifier")
    add_option(
        classifier, "--method", Literal["linear", "knn"], "linear", help="logistic regression or nearest neighbours"
    )
    add_option(
        classifier,
        "--problem_type",
        PROBLEM_TYPES | None,
        help="by default that of the run or of the model",
        metavar="NAME",
    )
    add_option(classifier, "--loss_weight_power", NotNegative, 0.5, help="weight classes by n^-power (linear only)")
    data = command.add_argument_group("Recordings, species and clips")
    add_option(
        data, "--splits_file", Path | None, metavar="FILE", help="CSV with splits, or folds: then each is tested"
    )
    add_option(data, "--folds", Folds | None, help="make this many folds, as train_hf.py --folds does")
    add_option(data, "--split_seed", Seed, 42, help="random seed of splits or folds that are made")
    add_option(
        data,
        "--min_annotations",
        Count | None,
        help="drop species with fewer annotations; by default as in the run or the model's training",
    )
    add_option(
        data,
        "--edge_tolerance_s",
        SignedSeconds | None,
        help="how far outside a clip the centre of a call may be and still count as in it; by default as in training",
    )
    add_option(
        data,
        "--clip_s",
        Duration | None,
        help="length of a clip; by default 3, and always that of training for models of this package",
    )
    speed = command.add_argument_group("Speed")
    add_option(speed, "--device", Device, help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
    _add_processing(speed, "clips embedded at a time")
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
    print(f"Metrics, tables, predictions and pictures are in {options.output}")


def _add_tune(commands: Any) -> None:
    command = new_command(
        commands,
        "tune",
        "search for good training settings",
        "Searches with Optuna for the settings with the best macro F1, averaged over folds of recordings. The test "
        "split is not used. An interrupted study resumes when the same command is run again. After -- come flags of "
        "train_hf.py for what is not searched. Needs optuna.",
        "kenya-birds tune archive --trials 30 --output tuning -- --num_train_epochs 20",
    )
    command.usage = "kenya-birds tune data_dir --trials N [options] [-- flags of train_hf.py]"
    add_archive(command)
    study = command.add_argument_group("Study")
    add_option(study, "--trials", Count, required=True, help="finished trials of the whole study")
    add_option(study, "--timeout_s", Duration | None, help="start no new trial after this many seconds")
    add_option(study, "--folds", Annotated[int, Range(2)], 3, help="number of folds")
    add_option(
        study,
        "--backbones",
        str,
        nargs="+",
        default=(),
        metavar="NAME",
        help="timm models to choose from; by default one",
    )
    output = command.add_argument_group("Output")
    add_option(
        output, "--output", Path, Path("tuning"), metavar="FOLDER", help="folder to write: new, empty or this study's"
    )
    add_option(
        output, "--storage", str, "sqlite:///study.db", metavar="URL", help="the study's database, for SQLAlchemy"
    )
    add_option(output, "--study_name", str, "kenya_birds", metavar="NAME", help="name of the study in it")
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
    print(f"The best settings (for train_hf.py --params), history and pictures are in {options.output}")


def _add_processing(group: Any, batch: str) -> None:
    add_option(group, "--batch_size", Count, 64, help=batch)
    add_option(group, "--num_proc", Count | None, help="processes that cut clips; by default 1")
    add_option(
        group,
        "--cache_dir",
        Path | None,
        metavar="FOLDER",
        help="where clips are stored; by default the cache of the datasets library",
    )


def _add_seed(command: Any, default: int = 0) -> None:
    group = command.add_argument_group("Intervals")
    add_option(group, "--seed", Seed, default, help="random seed of the bootstrap")
