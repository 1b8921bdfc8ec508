"""Commands for training: info, estimate, tune, combine."""

import argparse
import os
from pathlib import Path
from typing import Any

from kenya_birds.commands.common import MODEL, add_archive, add_cutting, log_loading
from kenya_birds.defaults import BACKBONE, CLIPS_PER_BATCH, EPOCHS
from kenya_birds.parsing import add_field, add_general, add_option, new_command, read_fields
from kenya_birds.training.tuning_settings import TuningSettings
from kenya_birds.values import Count, Positive


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_info, _add_estimate, _add_tune, _add_combine):
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
    add_option(model, "--backbone", str, BACKBONE, metavar="NAME", help="name of a timm image model")
    add_option(model, "--batch_size", Count, CLIPS_PER_BATCH, help="clips per batch, on one device")
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
    add_option(run, "--epochs", Positive, EPOCHS, help="number of epochs of the run")
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


def _add_tune(commands: Any) -> None:
    command = new_command(
        commands,
        "tune",
        "search for good training settings",
        "Searches with Optuna for the training settings with the best mean average precision over windows (with "
        "--train_on clips: the best macro F1), averaged over folds of recordings. "
        "The test split is not used. An interrupted study resumes when the same command is run again. Flags of "
        "train_hf.py follow after --; settings that are given there are not searched. Needs optuna.",
        "kenya-birds tune archive --trials 30 --output tuning -- --num_train_epochs 20",
    )
    command.usage = "kenya-birds tune ARCHIVE --trials N [options] [-- flags of train_hf.py]"
    command.unknown_flags = "give the flags of train_hf.py after --"
    add_archive(command, several=True)
    study = command.add_argument_group("Study")
    add_field(
        study,
        TuningSettings,
        "trials",
        required=True,
        help="number of trials of the whole study, including those of earlier runs",
    )
    add_field(study, TuningSettings, "timeout_s", help="start no new trial after this many seconds")
    add_field(study, TuningSettings, "folds", help="number of folds")
    add_field(
        study,
        TuningSettings,
        "backbones",
        metavar="NAME",
        help="timm models to choose from; by default only the --backbone of the flags of train_hf.py",
    )
    output = command.add_argument_group("Output")
    add_option(
        output, "--output", Path, Path("tuning"), metavar="FOLDER", help="output folder: new, empty, or of this study"
    )
    add_field(output, TuningSettings, "storage", metavar="URL", help="database of the study, as a URL of SQLAlchemy")
    add_field(output, TuningSettings, "study_name", metavar="NAME", help="name of the study in the database")
    add_general(command)
    command.set_defaults(run=_tune, after_stop="run the same command again to resume the study")


def _tune(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.extras import check_extra
    from kenya_birds.files import check_layouts
    from kenya_birds.training.flags import tuning_flags

    flags = tuning_flags(options.data_dirs[0], options.output, options.train_flags)
    if options.backbones and "backbone" in flags.stated:
        raise UserError("--backbones and, after --, --backbone were given: expected one of the two")
    check_layouts(options.data_dirs)
    check_extra("optuna", "tuning")
    from kenya_birds.data.joined_archive import one_archive
    from kenya_birds.training.tuning import tune
    from kenya_birds.training.tuning_report import BEST_FILE

    settings = read_fields(options, TuningSettings)
    archive = one_archive(options.data_dirs, flags.data.cache_dir)
    tune(archive, options.output, settings, options.train_flags)
    best = "best settings (for train_hf.py --params), " if (options.output / BEST_FILE).is_file() else ""
    print(f"The {best}history and figures are in {options.output}")


def _add_combine(commands: Any) -> None:
    command = new_command(
        commands,
        "combine",
        "make one model of several",
        "Makes one model of several that were trained with different seeds: its logits are the mean of theirs. Its "
        "network takes as much time as all of theirs. Calibration and thresholds are chosen on the validation "
        "recordings, and it is evaluated on the test recordings, as in training. The models need the same features, "
        "network, species and splits.",
        "kenya-birds combine birds-0 birds-1 birds-2 --data_dir archive --output_dir birds",
    )
    add_option(command, "models", Path, help="output folders of train_hf.py, two or more", metavar="model", nargs="+")
    data = command.add_argument_group("Archive")
    add_option(
        data,
        "--data_dir",
        list[Path],
        required=True,
        metavar="ARCHIVE",
        help="the archive of their training, or several",
    )
    output = command.add_argument_group("Output")
    add_option(output, "--output_dir", Path, required=True, metavar="FOLDER", help="output folder: new or empty")
    speed = command.add_argument_group("Speed")
    add_option(speed, "--use_cpu", bool, False, help="do not use a GPU, even if there is one")
    add_cutting(speed)
    add_general(command)
    command.set_defaults(run=_combine, after_stop="delete the output folder and run the same command again")


def _combine(options: argparse.Namespace) -> None:
    from kenya_birds.files import check_layouts
    from kenya_birds.folders import check_new_folder
    from kenya_birds.training.member_models import check_members

    # Training refuses several GPUs with one process.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    check_members(options.models)
    check_layouts(options.data_dir)
    check_new_folder(options.output_dir, "--output_dir")
    log_loading(f"{options.models[0]} and {len(options.models) - 1} more")
    from kenya_birds.data.joined_archive import one_archive
    from kenya_birds.experiments.combined_model import combine
    from kenya_birds.publishing.model_card import write_card

    combine(
        options.models,
        one_archive(options.data_dir, options.cache_dir),
        options.output_dir,
        cache_dir=options.cache_dir,
        num_proc=options.num_proc,
        use_cpu=options.use_cpu,
    )
    write_card(options.output_dir)
