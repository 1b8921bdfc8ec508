"""The command line of `train_hf.py`: parsed and checked before torch and transformers are imported."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kenya_birds.errors import UserError
from kenya_birds.files import check_file, check_layouts, read_json
from kenya_birds.folders import check_can_make
from kenya_birds.parsing import Parser, add_general, add_option
from kenya_birds.saved_models import NO_START, check_model, check_trained
from kenya_birds.training.arguments import (
    NAMED_STARTS,
    AugmentationArguments,
    DataArguments,
    FeatureArguments,
    ModelArguments,
)
from kenya_birds.training.front_ends import find_front_end
from kenya_birds.training.run_folder import CROSS_VALIDATION_FILE, check_folds_start, find_start, last_whole_checkpoint
from kenya_birds.training.setting_rules import check_division, check_schedule, check_train_on, check_used
from kenya_birds.training.teacher_arguments import TeacherArguments, check_teacher
from kenya_birds.training.trainer_arguments import TrainerArguments, trainer_kinds
from kenya_birds.training.transformers_arguments import (
    USUAL_FLAGS,
    TransformersField,
    check_inherited,
    refused_arguments,
    transformers_fields,
)
from kenya_birds.values import Kind, kinds_of

if TYPE_CHECKING:
    from kenya_birds.training.settings import Settings

# In the order of `Settings`; the last one's values go to `KenyaBirdsTrainingArguments`.
GROUPS = (DataArguments, ModelArguments, FeatureArguments, AugmentationArguments, TeacherArguments, TrainerArguments)
PARAMS_KEY = "flags"
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
# The titles of the help, most used first. What is in no group is shown by --help_all.
TITLES = {
    "Most used": (
        *(
            "data_dir",
            "output_dir",
            "backbone",
            "init_from",
            "front_end_from",
            "backbone_variant",
            "problem_type",
            "num_train_epochs",
        ),
        *("per_device_train_batch_size", "learning_rate", "params", "resume_from_checkpoint"),
    ),
    "Species, clips and splits": (
        *(
            "archive_weights",
            "weak_labels",
            "weak_weight",
            "min_annotations",
            "channel",
            "context_s",
            "edge_tolerance_s",
            "min_overlap_s",
        ),
        *("splits_file", "test_size", "validation_size", "fold", "split_seed", "no_call_windows"),
    ),
    "Training on whole recordings": (
        *("train_on", "call_windows", "empty_windows", "hard_windows", "rescore_epochs", "scored_windows"),
        *("edge_margin_s", "windows_per_epoch", "validation_windows"),
        *("overlap_s", "window_loss", "focal_gamma"),
    ),
    "Head on a frozen backbone": (
        *(
            "freeze_backbone",
            "backbone_preset",
            "backbone_embedding",
            "head",
            "head_hidden_size",
            "network_scores",
            "embedded_versions",
        ),
        *("embedding_hop_s", "bundle_backbone"),
    ),
    "Teacher": tuple(field.name for field in dataclasses.fields(TeacherArguments)),
    "Cross-validation": ("folds", "final_fit"),
    "Loss, sampling and regularisation": (
        *("loss_weight_power", "sampler_weight_power", "label_smoothing_factor", "drop_rate", "drop_path_rate"),
        "weight_decay",
    ),
    "Schedule": (
        *("early_stopping_patience", "lr_scheduler_type", "warmup_steps", "gradient_accumulation_steps", "seed"),
        *("eval_strategy", "save_strategy", "save_total_limit", "load_best_model_at_end", "metric_for_best_model"),
        "average_epochs",
    ),
    "Augmentation of training clips": tuple(field.name for field in dataclasses.fields(AugmentationArguments)),
    "Feature extractor": tuple(field.name for field in dataclasses.fields(FeatureArguments)),
    "Machine and speed": (
        *("use_cpu", "per_device_eval_batch_size", "num_proc", "cache_dir", "clips_on_device"),
        *("auto_mixed_precision", "bf16", "fp16", "dataloader_num_workers", "dataloader_pin_memory"),
        *("accelerator_config", "ddp_find_unused_parameters"),
    ),
    "Logs": ("report_to", "logging_steps", "logging_nan_inf_filter", "disable_tqdm"),
}
# transformers' own texts are about models in general.
HELP = {
    "output_dir": "folder to write: new or empty, or that of a run to resume",
    "resume_from_checkpoint": "true: resume the run in --output_dir; or the folder of a checkpoint",
    "params": "best.json of kenya-birds tune: use its settings where no flag is given",
    "label_smoothing_factor": "--train_on clips: label smoothing, in single-label training",
    "gradient_accumulation_steps": "batches whose gradients are added up before each step",
    "seed": "random seed of training",
    "use_cpu": "train on the CPU although there is a GPU",
    "dataloader_num_workers": "processes that load batches; 0: the main process does",
    "disable_tqdm": "show no progress bars",
}
# The default on recordings (docs/measurements.md, "The mean of several epochs").
AVERAGED_EPOCHS = 5
# Defaults that depend on other flags (see `parse_train_flags`).
SHOWN_DEFAULTS = {
    "metric_for_best_model": "cmap; with --train_on clips: macro_f1",
    "average_epochs": f"{AVERAGED_EPOCHS}; with --train_on clips, or a frozen backbone: 1",
}
METAVARS = {
    **dict.fromkeys(("data_dir", "output_dir", "cache_dir", "unlabelled"), "FOLDER"),
    **dict.fromkeys(("splits_file", "params"), "FILE"),
    **dict.fromkeys(("backbone", "init_from", "front_end_from", "teacher", "report_to"), "NAME"),
    "resume_from_checkpoint": "true|FOLDER",
    "accelerator_config": "JSON",
}
EXAMPLES = {
    "train_hf.py": "accelerate launch train_hf.py --data_dir archive --output_dir birds\n"
    "accelerate launch train_hf.py --data_dir archive --output_dir birds --resume_from_checkpoint true",
    "kenya-birds train": "kenya-birds train --data_dir archive --output_dir birds\n"
    "accelerate launch -m kenya_birds train --data_dir archive --output_dir birds --resume_from_checkpoint true",
}


@dataclass(frozen=True)
class TrainFlags:
    """What a command line says, checked as far as it can be without torch.

    Attributes:
        data: The archive, and how it is cut and split.
        model: The backbone and its weights.
        features: The feature extractor.
        augmentation: Random changes of training clips.
        training: Arguments of `KenyaBirdsTrainingArguments` that are given.
        params: The best.json that gave some of the values.
        more_archives: Archives besides that of `data`; all of them are joined.
        teacher: A first stage of training.
        stated: Names of the options on the command line; those of `params` are not among them.
    """

    data: DataArguments
    model: ModelArguments
    features: FeatureArguments
    augmentation: AugmentationArguments
    training: dict[str, Any]
    params: Path | None = None
    more_archives: tuple[str, ...] = ()
    teacher: TeacherArguments = dataclasses.field(default_factory=TeacherArguments)
    stated: tuple[str, ...] = ()

    def settings(self) -> "Settings":
        """The settings of a run, whose archive is one: several are joined in the cache. Imports torch.

        Raises:
            UserError: If transformers refuses an argument, or the archives cannot be joined.
        """
        from kenya_birds.training.settings import Settings
        from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments

        training = KenyaBirdsTrainingArguments(**self.training)
        data = self.data
        if self.more_archives:
            from kenya_birds.data.joined_archive import one_archive

            joined = one_archive([data.data_dir, *self.more_archives], data.cache_dir)
            data = dataclasses.replace(data, data_dir=str(joined))
        return Settings(data, self.model, self.features, self.augmentation, training, self.teacher)


def parse_train_flags(words: Sequence[str], program: str = "train_hf.py", *, new_output: bool = True) -> TrainFlags:
    """Parses a command line.

    Args:
        words: The command line.
        program: What the user called.
        new_output: Whether `output_dir` has to be new or empty, unless a run in it is resumed.

    Raises:
        UserError: If there is a mistake in it that can be seen without torch: an unknown flag, a value out of range,
            a file that is not there, a tracker that is not installed.
    """
    given = vars(train_parser(program).parse_args(list(words)))
    # It needs numpy, which --help does not.
    from kenya_birds.training import frozen_backbones as frozen

    params = given.pop("params", None)
    on_line = tuple(given)
    given = {**_read_params(params), **given}
    stated = tuple(given)
    given["data_dir"], *more_archives = given["data_dir"]
    parts = []
    for group in GROUPS:
        names = {field.name for field in dataclasses.fields(group)}
        parts.append({name: given.pop(name) for name in names & given.keys()})
    *light, own = parts
    if light[1].get("front_end_from") is not None:
        front_end = find_front_end(light[1]["front_end_from"])
        light[1] = {"backbone": front_end.backbone, "backbone_variant": front_end.variant, **light[1]}
        light[2] = {**front_end.features, **light[2]}
    # Some defaults ask torch for a GPU.
    TrainerArguments(**{"dataloader_pin_memory": False, "accelerator_config": None, **own}).check()
    usual = {name: field.default for name, field in transformers_fields().items()}
    for field in dataclasses.fields(TrainerArguments):
        if field.default is not dataclasses.MISSING:
            usual[field.name] = field.default
    check_inherited({**own, **given}, usual)
    if light[0].get("train_on") == "clips":
        light[1] = {"problem_type": "single_label_classification", "window_loss": "bce", **light[1]}
    else:
        own = {"metric_for_best_model": "cmap", **own}
        if own.get("focal_gamma"):
            light[1] = {"window_loss": "bce", **light[1]}
    data, model = DataArguments(**light[0]), ModelArguments(**light[1])
    check_used(stated, data, model)
    # Tuning divides with the seed what --splits_file leaves.
    check_division(on_line if new_output else set(on_line) - {"split_seed"}, data)
    backbone = frozen.find_backbone(model, light[2])
    features, changes = frozen.frozen_values(backbone, *light[1:4])
    augmentation = AugmentationArguments(**(changes if frozen.is_frozen(model) else light[3]))
    frozen.check_frozen(data, model, features, augmentation)
    if frozen.is_frozen(model):
        own = {**frozen.HEAD_DEFAULTS, **own}
    elif data.train_on == "recordings":
        own = {"average_epochs": AVERAGED_EPOCHS, **own}
    check_train_on(data, model, features)
    if model.window_loss == "softmax" and own.get("focal_gamma"):
        raise UserError("focal_gamma weighs binary losses: leave it out, or use --window_loss bce")
    flags = TrainFlags(
        data,
        model,
        features,
        augmentation,
        training={**own, **given},
        params=params,
        more_archives=tuple(more_archives),
        teacher=TeacherArguments(**light[4]),
        stated=on_line,
    )
    check_teacher(flags.teacher, flags.model, flags.data)
    check_schedule(own.get("lr_scheduler_type"), data, flags.teacher)
    _check_inputs(flags)
    _check_output(flags, new_output)
    return flags


# What to do if the device has too little memory for training; such a run can be resumed.
SMALLER_BATCHES = (
    "give half the --per_device_train_batch_size and twice the --gradient_accumulation_steps, so that each step has "
    "as many clips as before (in the evaluation, half the --per_device_eval_batch_size); or end other programs that "
    "use it"
)


def after_stop(output_dir: str | Path) -> str:
    """What to do after training was stopped by Ctrl+C or a full disk.

    Args:
        output_dir: The run's output folder.
    """
    output_dir = Path(output_dir)
    if last_whole_checkpoint(output_dir) is not None or (output_dir / CROSS_VALIDATION_FILE).is_file():
        return "resume with the same command and --resume_from_checkpoint true"
    return "no checkpoint was saved yet; run the same command again"


def tuning_flags(data_dir: str | Path, output: str | Path, flags: Sequence[str]) -> TrainFlags:
    """Parses the flags behind the `--` of `kenya-birds tune`.

    Args:
        data_dir: The archive.
        output: Output folder of the tuning.
        flags: Flags of `train_hf.py`.

    Raises:
        UserError: See `parse_train_flags`; or if a flag is tuning's own.
    """
    for flag in flags:
        if flag.partition("=")[0].replace("-", "_") in ("__data_dir", "__output_dir", "__folds", "__final_fit"):
            raise UserError(
                f"{flag} is among the flags of train_hf.py: the archive, --output and --folds stand before the --, "
                "and a final fit comes after tuning"
            )
    words = ["--data_dir", str(data_dir), "--output_dir", str(output), *flags]
    parsed = parse_train_flags(words, "kenya-birds tune", new_output=False)
    from kenya_birds.training.frozen_backbones import is_frozen

    if is_frozen(parsed.model):
        raise UserError(
            "tuning searches settings of backbones that are trained, and this one is frozen: compare heads with "
            "train_hf.py --folds, which takes seconds once the embeddings are in the cache"
        )
    if parsed.teacher.teacher is not None or parsed.teacher.self_training:
        raise UserError(
            "tuning would repeat the stages of --teacher and --self_training in each trial: tune without them, and "
            "train with them afterwards"
        )
    return parsed


def train_parser(program: str = "train_hf.py", *, show_all: bool = False) -> Parser:
    """The parser; what is not given is not in its result.

    Args:
        program: What the user calls.
        show_all: Whether the help lists transformers' arguments too.
    """
    parser = Parser(
        prog=program,
        description="Trains a bird classifier on an annotated archive: cuts clips, splits whole recordings "
        "into train, validation and test, fine-tunes a timm backbone, calibrates and evaluates it, and writes a "
        "model folder.",
        example=EXAMPLES.get(program, ""),
        argument_default=argparse.SUPPRESS,
    )
    refused = refused_arguments()
    parser.usual_flags, parser.unsuggested = USUAL_FLAGS, refused | {f"no_{name}" for name in refused}
    fields = transformers_fields()
    own = {field.name: field for group in GROUPS for field in dataclasses.fields(group)}
    titled = {name for names in TITLES.values() for name in names}
    rest = [name for name in [*own, *fields] if name not in titled]
    for title, names in {**TITLES, "Further arguments of transformers": dict.fromkeys(rest)}.items():
        group = parser.add_argument_group(title)
        for name in names:
            kind, default, text = _described(name, own.get(name), fields.get(name))
            is_shown = show_all or name not in rest
            add_option(
                group,
                f"--{name}",
                kind,
                argparse.SUPPRESS,
                shown_default=SHOWN_DEFAULTS.get(name, default),
                metavar=METAVARS.get(name),
                help=text if is_shown else argparse.SUPPRESS,
                required=name in ("data_dir", "output_dir"),
                **({"nargs": "?"} if kind.base is bool else {"nargs": "+"} if name == "data_dir" else {}),
            )
    general = add_general(parser)
    general.add_argument("--help_all", action=_HelpAll, nargs=0, help="show the flags of transformers too, and exit")
    return parser


def _described(
    name: str, own: "dataclasses.Field[Any] | None", field: TransformersField | None
) -> tuple[Kind, Any, str]:
    """Type, default and help of a flag."""
    if name == "params":
        return Kind(Path), None, HELP[name]
    kind = trainer_kinds().get(name) or next((kinds_of(g)[name] for g in GROUPS if name in kinds_of(g)), None)
    if kind is None or (kind.base is object) or (field is not None and field.kind.choices):
        assert field is not None
        kind = field.kind
    if own is None:
        assert field is not None
        return kind, field.default, HELP.get(name, field.help)
    default = None if own.default is dataclasses.MISSING else own.default
    return kind, default, own.metadata["help"]


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        train_parser(parser.prog, show_all=True).print_help()
        parser.exit()


def _read_params(path: Path | None) -> dict[str, Any]:
    """The values of a `--params` file.

    Raises:
        UserError: If the file cannot be read, or names something that is no flag.
    """
    if path is None:
        return {}
    values = read_json(path).get(PARAMS_KEY)
    if not isinstance(values, dict):
        raise UserError(f"{path} has no object '{PARAMS_KEY}': expected a best.json that kenya-birds tune wrote")
    known = {field.name for group in GROUPS for field in dataclasses.fields(group)} | transformers_fields().keys()
    unknown = sorted(values.keys() - known)
    if unknown:
        raise UserError(f"{path} names {', '.join(unknown)} among its flags: train_hf.py has no such flag")
    return values


def _check_inputs(flags: TrainFlags) -> None:
    """Raises `UserError` unless what is to be read is there."""
    check_layouts([flags.data.data_dir, *flags.more_archives])
    check_file(flags.data.splits_file, "a table of splits or folds (--splits_file)")
    start = flags.model.init_from
    if flags.training.get("resume_from_checkpoint"):
        return  # a checkpoint goes before a starting point
    if start.endswith(PICKLED):
        raise UserError(
            f"--init_from is '{start}': pickled weights are not loaded, because they can run code. Convert a file "
            "that you trust: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
        )
    if start.endswith(".safetensors"):
        check_file(start, "a safetensors file with weights (--init_from)")
    elif start not in NAMED_STARTS:
        saved = check_model(start)
        if saved is not None:
            check_trained(saved, NO_START)


def _check_output(flags: TrainFlags, new_output: bool) -> None:
    """Raises `UserError` unless the output folder can be used, and a run in it resumed if that is asked for."""
    output_dir, resume = Path(flags.training["output_dir"]), flags.training.get("resume_from_checkpoint")
    if new_output and (flags.data.folds is not None or flags.data.final_fit):
        if not resume:  # otherwise only the first process has to see what is in it
            check_folds_start(output_dir, resume)
    elif new_output:
        find_start(output_dir, resume)
    check_can_make(output_dir)
