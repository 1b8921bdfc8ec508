"""Commands about models in the making: estimate, evaluate, probe, tune."""

import argparse
from pathlib import Path
from typing import Any

from kenya_birds.commands.parsing import new_command
from kenya_birds.errors import UserError


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_estimate, _add_evaluate, _add_probe, _add_tune):
        add(commands)


def _add_estimate(commands: Any) -> None:
    command = new_command(
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
    command = new_command(
        commands,
        "evaluate",
        "evaluate a trained model on an archive",
        "Evaluates a model of this package: metrics with 95%% intervals from a bootstrap over recordings, a table of "
        "species, predictions and pictures.",
    )
    command.add_argument("model", help="the model's folder, or OWNER/NAME[@REVISION] on the Hub")
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--output", type=Path, help="folder to write; new or empty (default: evaluation_SPLIT)")
    command.add_argument(
        "--split", choices=("train", "validation", "test", "all"), default="test", help="what to evaluate"
    )
    command.add_argument("--splits_file", type=Path, help="splits or folds; by default the model's splits.csv")
    command.add_argument("--fold", type=int, default=0, help="which fold of a table of folds is the test split")
    command.add_argument("--common_classes", action="store_true", help="evaluate the classes that both have")
    command.add_argument("--min_annotations", type=int, help="drop rarer species; by default as in training")
    command.add_argument(
        "--context_s", type=float, help="sound kept on each side of a clip (s); by default as in training"
    )
    command.add_argument("--edge_tolerance_s", type=float, help="see train_hf.py; by default as in training")
    command.add_argument("--test_time_shifts", type=int, default=1, help="average over so many shifted crops")
    command.add_argument("--batch_size", type=int, default=64, help="clips at a time")
    command.add_argument("--cache_dir", type=Path, help="where cut clips are kept (datasets' cache)")
    command.add_argument("--num_proc", type=int, help="processes that cut clips")
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from kenya_birds.evaluation.report import format_metrics
    from kenya_birds.experiments.reevaluation import evaluate_model

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


def _add_probe(commands: Any) -> None:
    command = new_command(
        commands,
        "probe",
        "see how far a frozen model tells an archive's species apart",
        "Fits a classifier on the embeddings of a frozen model, of this package or any audio model of transformers, "
        "and evaluates it over the splits or folds, with the metrics and files, of training.",
    )
    command.add_argument("model", help="the model's folder, or OWNER/NAME[@REVISION] on the Hub; its code is not run")
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--method", choices=("linear", "knn"), default="linear", help="classifier")
    command.add_argument("--splits_file", type=Path, help="table of splits, or of folds: every fold is then tested")
    command.add_argument("--folds", type=int, help="make so many folds instead, as train_hf.py --folds does")
    command.add_argument("--split_seed", type=int, default=42, help="seed of splits or folds that are made")
    command.add_argument(
        "--beside", type=Path, metavar="RUN_DIR", help="output of train_hf.py to compare with, on its splits or folds"
    )
    command.add_argument("--output", type=Path, default=Path("probe"), help="folder to write; new or empty")
    command.add_argument(
        "--problem_type",
        choices=("single_label_classification", "multi_label_classification"),
        help="by default that of the run or of the model",
    )
    command.add_argument("--min_annotations", type=int, help="drop species with fewer annotations; default likewise")
    command.add_argument("--edge_tolerance_s", type=float, help="see train_hf.py; default likewise")
    command.add_argument("--loss_weight_power", type=float, default=0.5, help="class weights n^-power (linear)")
    command.add_argument("--clip_s", type=float, help="length of a clip (s); ours have their own, by default 3")
    command.add_argument("--batch_size", type=int, default=64, help="clips embedded at a time")
    command.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU where there is one")
    command.add_argument("--cache_dir", type=Path, help="where clips and embeddings are kept (datasets' cache)")
    command.add_argument("--num_proc", type=int, help="processes that cut clips")
    command.add_argument("--seed", type=int, default=42, help="seed of the bootstrap")
    command.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> None:
    import dataclasses

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
