"""Commands that measure the quality of models: evaluate, score, probe."""

import argparse
from pathlib import Path
from typing import Any, Literal

from kenya_birds.commands.common import (
    MODEL,
    RUN_AGAIN,
    add_archive,
    add_cutting,
    add_device,
    log_loading,
)
from kenya_birds.defaults import CLIPS_PER_BATCH
from kenya_birds.experiments.probe_settings import ProbeSettings
from kenya_birds.parsing import add_field, add_general, add_option, new_command, read_fields
from kenya_birds.values import Count, Duration, Seconds, Seed, Share, SignedSeconds, Whole

BOOTSTRAP_SEED = "random seed of the bootstrap"
EDGE_TOLERANCE = "count a call as in a clip if its centre is up to this far outside it; by default as in training"


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_evaluate, _add_score, _add_probe):
        add(commands)


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
    add_archive(command, several=True)
    output = command.add_argument_group("Output")
    add_option(
        output,
        "--output",
        Path | None,
        metavar="FOLDER",
        help="output folder: new or empty; by default evaluation_SPLIT",
    )
    _add_evaluated_clips(command)
    _add_processing(command.add_argument_group("Speed"))
    seed_help = f"{BOOTSTRAP_SEED}; by default that of the model's training"
    add_option(command.add_argument_group("Intervals"), "--seed", Seed | None, help=seed_help)
    add_general(command)
    command.set_defaults(run=_evaluate, after_stop=RUN_AGAIN)


def _add_evaluated_clips(command: Any) -> None:
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
    add_option(
        data,
        "--weak_labels",
        Literal["train", "every_split", "leave_out"] | None,
        help="recordings of folders of species, as in train_hf.py --weak_labels; by default as in training",
    )
    add_option(
        data,
        "--choose_thresholds",
        bool,
        False,
        help="also write thresholds.json, chosen on these recordings, for detect --thresholds",
    )
    clips = command.add_argument_group("Clips")
    add_option(
        clips, "--context_s", Seconds | None, help="extra sound on each side of a clip; by default as in training"
    )
    add_option(
        clips,
        "--edge_tolerance_s",
        SignedSeconds | None,
        help=EDGE_TOLERANCE,
    )
    add_option(
        clips, "--test_time_shifts", Count, 1, help="number of shifted crops of each clip, whose scores are averaged"
    )


def _evaluate(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_file, check_layouts
    from kenya_birds.folders import check_new_folder
    from kenya_birds.saved_models import check_model

    output = options.output or Path(f"evaluation_{options.split}")
    check_model(options.model, ours=True)
    check_layouts(options.data_dirs)
    check_file(options.splits_file, "a table of splits or folds")
    check_new_folder(output)
    log_loading(options.model)
    from kenya_birds.data.joined_archive import one_archive
    from kenya_birds.evaluation.evaluation_report import WHOLE_RECORDINGS, format_metrics, format_recordings
    from kenya_birds.experiments.evaluate import evaluate_model

    metrics = evaluate_model(
        options.model,
        one_archive(options.data_dirs, options.cache_dir),
        output,
        split=options.split,
        splits_file=options.splits_file,
        fold=options.fold,
        common_classes=options.common_classes,
        choose_thresholds=options.choose_thresholds,
        min_annotations=options.min_annotations,
        context_s=options.context_s,
        edge_tolerance_s=options.edge_tolerance_s,
        weak_labels=options.weak_labels,
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
    add_option(command.add_argument_group("Intervals"), "--seed", Seed, 0, help=BOOTSTRAP_SEED)
    add_general(command)
    command.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_file, check_layout
    from kenya_birds.folders import check_new_folder

    for table in (options.table, options.beside):
        if table is not None and not table.is_dir():
            check_file(table, "a table of detections, or a folder of tables")
    check_layout(options.data_dir)
    check_file(options.splits_file, "a table of splits")
    if options.output is not None:
        check_new_folder(options.output)
    from kenya_birds.data.splits import read_splits, recordings_in
    from kenya_birds.experiments.score import ScoreSettings, format_scores, score_tables

    recordings = None
    if options.splits_file is not None:
        recordings = tuple(recordings_in(read_splits(options.splits_file, 0), options.split))
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
        "Fits a classifier on the embeddings of a frozen model (of this package or an audio model of transformers), "
        "and evaluates it with the splits, metrics and files of training. Remote code of the model is not run.",
        "kenya-birds probe birds archive --folds 5 --output probe",
    )
    add_option(command, "model", str, help=MODEL)
    add_archive(command, several=True)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, Path("probe"), metavar="FOLDER", help="output folder: new or empty")
    add_option(
        output,
        "--beside",
        Path | None,
        metavar="FOLDER",
        help="output folder of train_hf.py to compare with; its splits or folds are used",
    )
    _add_classifier(command)
    _add_probed_clips(command)
    speed = command.add_argument_group("Speed")
    add_device(speed)
    _add_processing(speed)
    add_field(command.add_argument_group("Intervals"), ProbeSettings, "seed", help=BOOTSTRAP_SEED)
    add_general(command)
    command.set_defaults(run=_probe, after_stop="delete the output folder and run the same command again")


def _add_classifier(command: Any) -> None:
    classifier = command.add_argument_group("Classifier")
    add_field(classifier, ProbeSettings, "method", help="linear: logistic regression; knn: nearest neighbours")
    add_field(
        classifier,
        ProbeSettings,
        "problem_type",
        metavar="NAME",
        help="type of the labels; by default that of the run or of the model",
    )
    add_field(
        classifier,
        ProbeSettings,
        "loss_weight_power",
        help="weight each class by n^-X, with n its number of clips (linear only)",
    )


def _add_probed_clips(command: Any) -> None:
    data = command.add_argument_group("Recordings, species and clips")
    add_field(
        data,
        ProbeSettings,
        "splits_file",
        metavar="FILE",
        help="CSV file with splits, or with folds: each fold is then tested once",
    )
    add_field(data, ProbeSettings, "folds", help="number of folds to make, as in train_hf.py --folds")
    add_field(data, ProbeSettings, "split_seed", help="random seed of new splits or folds")
    add_field(
        data,
        ProbeSettings,
        "min_annotations",
        help="drop species with fewer annotations; by default as in the training of the run or of the model",
    )
    add_field(data, ProbeSettings, "edge_tolerance_s", help=EDGE_TOLERANCE)
    add_field(
        data,
        ProbeSettings,
        "min_overlap_s",
        help="count a call with start and end as in a clip if they overlap by this much; by default as in training",
    )
    add_field(
        data,
        ProbeSettings,
        "weak_labels",
        help="recordings of folders of species, as in train_hf.py --weak_labels; by default as in training",
    )
    add_field(
        data,
        ProbeSettings,
        "channel",
        help="channel of recordings with several: its number from 0, mix or best; by default as in training",
    )
    add_field(
        data,
        ProbeSettings,
        "clip_s",
        help="length of a clip, for transformers models (default: 3); models of this package have their own length",
    )


def _probe(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_file, check_layouts
    from kenya_birds.folders import check_new_folder
    from kenya_birds.saved_models import check_model

    check_model(options.model)
    check_layouts(options.data_dirs)
    check_file(options.splits_file, "a table of splits or folds")
    if options.beside is not None:
        check_file(options.beside / "metrics.json", "the output folder of train_hf.py (--beside)")
    check_new_folder(options.output)
    log_loading(options.model)
    from kenya_birds.data.joined_archive import one_archive
    from kenya_birds.experiments.probe import probe

    table = probe(
        options.model,
        one_archive(options.data_dirs, options.cache_dir),
        options.output,
        read_fields(options, ProbeSettings),
        beside=options.beside,
        batch_size=options.batch_size,
        device=options.device,
        cache_dir=options.cache_dir,
        num_proc=options.num_proc,
    )
    print(table)
    print(f"Metrics, tables, predictions and figures are in {options.output}")


def _add_processing(group: Any) -> None:
    add_option(group, "--batch_size", Count, CLIPS_PER_BATCH, help="clips per batch")
    add_cutting(group)
