"""All settings of a training run, their record in the model's folder, and the training summary."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
from transformers import TrainingArguments

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.weak_recordings import WEAK_LABELS
from kenya_birds.defaults import MIN_ANNOTATIONS
from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.fingerprints import library_versions
from kenya_birds.training.arguments import AugmentationArguments, DataArguments, FeatureArguments, ModelArguments
from kenya_birds.training.run_folder import SETTINGS_FILE, SUMMARY_FILE
from kenya_birds.training.teacher_arguments import TeacherArguments
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments
from kenya_birds.training.transformers_arguments import defaults
from kenya_birds.values import Channel, Kind

logger = logging.getLogger(__name__)

# The training arguments that decide which model is the result.
DECIDING_ARGUMENTS = (
    *("seed", "data_seed", "full_determinism", "num_train_epochs", "max_steps", "early_stopping_patience"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("loss_weight_power", "sampler_weight_power", "label_smoothing_factor", "focal_gamma"),
    *("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "average_epochs"),
)
# Clips per step: the product of the arguments for processes, batches and accumulation.
CLIPS_PER_STEP = "clips_per_step"
# Paths, settings of the machine, the number of runs, and a name that stands for other settings.
NOT_RECORDED = ("data_dir", "splits_file", "cache_dir", "num_proc", "folds", "final_fit", "front_end_from")
# Training arguments that may contain private paths, names or addresses, or only affect what is shown.
PRIVATE_ARGUMENTS = (
    *("output_dir", "resume_from_checkpoint", "run_name", "project", "report_to", "disable_tqdm"),
    *("do_train", "do_eval", "do_predict", "label_names", "local_rank"),
    *("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"),
)
PRIVATE_PREFIXES = ("hub_", "push_to_hub", "trackio_", "log_", "logging_")


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
        data: The archive, its clips and its splits.
        model: The backbone and its initial weights.
        features: The feature extractor.
        augmentation: The augmentation of training clips.
        training: The training arguments.
        teacher: The first stage of training.
    """

    data: DataArguments
    model: ModelArguments
    features: FeatureArguments
    augmentation: AugmentationArguments
    training: KenyaBirdsTrainingArguments
    teacher: TeacherArguments = dataclasses.field(default_factory=TeacherArguments)

    def changed(self, **changes: Any) -> "Settings":
        """A copy of the settings with other values of some fields, of any group.

        Raises:
            KeyError: If no group has such a field.
        """
        groups = {group.name: getattr(self, group.name) for group in dataclasses.fields(self)}
        for name, group in groups.items():
            own = {field.name for field in dataclasses.fields(group)} & changes.keys()
            groups[name] = dataclasses.replace(group, **{field: changes.pop(field) for field in own})
        if changes:
            raise KeyError(f"there is no setting {', '.join(changes)}")
        return Settings(**groups)

    def not_usual(self) -> list[str]:
        """Names of the settings that do not have their default, by the names of flags."""
        names = []
        for group in dataclasses.fields(self):
            usual = defaults(group.type)
            names += [name for name, value in vars(getattr(self, group.name)).items() if value != usual.get(name)]
        return names

    def record(self) -> dict[str, Any]:
        """The settings for JSON, without local paths and secrets.

        Returns:
            Values by the names of flags: the data, model, feature and augmentation arguments; the training arguments
            that decide which model is the result, and others without their default value; and `clips_per_step`, the
            clips per step over all processes and accumulated batches.
        """
        args = self.training
        usual = defaults(args)
        training = {
            name: value
            for name, value in args.to_dict().items()
            if name in DECIDING_ARGUMENTS
            or not (_is_private(name) or value == usual[name] or not (value or usual[name]))
        }
        recorded = {
            **dataclasses.asdict(self.data),
            **dataclasses.asdict(self.model),
            **dataclasses.asdict(self.features),
            **dataclasses.asdict(self.augmentation),
            **self.teacher.record(),
            **training,
            CLIPS_PER_STEP: args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        }
        for name in ("init_from", "backbone"):
            if Path(recorded[name]).exists():
                recorded[name] = Path(recorded[name]).name  # without its folder
        return json.loads(json.dumps({name: value for name, value in recorded.items() if name not in NOT_RECORDED}))

    def deciding(self) -> dict[str, Any]:
        """The settings of the record that decide which model is the result."""
        other = {field.name for field in dataclasses.fields(self.training)} - set(DECIDING_ARGUMENTS)
        return {name: value for name, value in self.record().items() if name not in other}


def usual_settings() -> dict[str, Any]:
    """The defaults of all settings with a default, in the form of JSON, by the names of flags."""
    usual: dict[str, Any] = {}
    for group in dataclasses.fields(Settings):
        usual |= defaults(group.type)
    return usual


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences between the recorded and the current settings of a run.

    Args:
        then: A record. A setting that it lacks, because another version wrote it, had its default.
        now: The current `Settings.deciding`.

    Returns:
        `NAME was VALUE and is VALUE now` for each difference.
    """
    usual = usual_settings()
    found = []
    for name, value in now.items():
        before = then.get(name, usual.get(name, value))
        if before != value:
            found.append(f"{name} was {before} and is {value} now")
    return found


def _is_private(name: str) -> bool:
    return name in PRIVATE_ARGUMENTS or name.startswith(PRIVATE_PREFIXES)


FRONT_END_FILE = "preprocessor_config.json"
# Defaults of training, which are assumed for models without a record.
USUAL_CLIPS = {"context_s": 0.0, "edge_tolerance_s": 0.0, "min_overlap_s": 0.0, "min_annotations": MIN_ANNOTATIONS}


def read_settings(folder: Path) -> dict[str, Any]:
    """The training settings of a model, by the names of the flags of `train_hf.py`.

    Args:
        folder: The folder of a model, a checkpoint, a cross-validation or one of its folds.

    Returns:
        The settings (see `Settings.record`). Empty if there is no record, as for other packages and older versions of
        this one.

    Raises:
        UserError: If the record cannot be read.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return {}
    settings = read_json(path).get("settings")
    if not isinstance(settings, dict):
        raise UserError(f"{path} has no object 'settings': expected the file that training wrote")
    return settings


def clip_settings(folder: Path, **given: float | None) -> dict[str, Any]:
    """The settings of a model's training clips: all settings that decide the sound and the labels of a clip.

    Args:
        folder: The folder of a model of this package.
        **given: Settings of the user, which replace those of the model; None: not given.

    Returns:
        Arguments of `clips_builder`: `sampling_rate` and `clip_s` of the feature extractor, and `context_s`,
        `edge_tolerance_s`, `min_overlap_s`, `min_annotations`, `channel` and `weak_labels` of the record. For
        a model without a record, `min_annotations` comes from the training summary; other unknown settings have the
        default of training, which is logged.

    Raises:
        UserError: If a file of the folder cannot be read, or a setting in it is not a number.
    """
    front_end, known = read_json(folder / FRONT_END_FILE), read_settings(folder)
    if not known:
        if (folder / SUMMARY_FILE).is_file():
            known = {**read_json(folder / SUMMARY_FILE).get("archive", {})}
        assumed = [name for name in USUAL_CLIPS if name not in known and given.get(name) is None]
        if assumed:
            logger.warning(
                "%s has no %s, because an older version trained it or it was not trained here: %s",
                folder,
                SETTINGS_FILE,
                ", ".join(f"{name} is assumed to be {USUAL_CLIPS[name]:g}" for name in assumed),
            )
    found = {
        **{name: front_end.get(name) for name in ("sampling_rate", "clip_s")},
        **{name: known.get(name, usual) for name, usual in USUAL_CLIPS.items()},
        **{name: value for name, value in given.items() if value is not None},
    }
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{folder} says that {name} is {value!r}: expected a number")
    channel, weak_labels = known.get("channel"), known.get("weak_labels", "train")
    Kind.of(Channel | None).check(f"{folder} has a channel that", channel)
    if weak_labels not in WEAK_LABELS:
        raise UserError(f"{folder} says that weak_labels is {weak_labels!r}: expected one of {', '.join(WEAK_LABELS)}")
    return {**found, "channel": channel, "weak_labels": weak_labels}


# Arguments that are always in the model card, and others that are in it only if they are set.
TOLD_ARGUMENTS = (
    "seed",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "loss_weight_power",
    "sampler_weight_power",
    "label_smoothing_factor",
    "average_epochs",
    "bf16",
    "fp16",
)
TOLD_VERSIONS = ("kenya_birds", "torch", "timm", "transformers", "datasets")


def training_summary(
    builder: KenyaBirds,
    splits: pd.DataFrame,
    clips: datasets.DatasetDict,
    args: TrainingArguments,
    augmentation: AugmentationArguments,
    starting_point: str,
    train_on: str = "clips",
) -> dict[str, Any]:
    """Describes data and settings of a run, without local paths.

    Args:
        builder: The builder of the clips.
        splits: `recording` and `split`.
        clips: The clips by split.
        args: The training arguments.
        augmentation: The augmentation of training clips.
        starting_point: Origin of the initial weights (see `starting_points.initialize`).
        train_on: `clips` or `recordings`.
    """
    archive, classes = builder.archive, builder.classes
    counts = archive.annotations["species"].value_counts()
    per_split = {split: Counter(clips[split]["label"]) for split in clips}
    return {
        "archive": {
            "name": archive.data_dir.name,
            "recordings": len(archive.headers),
            # Recognised by recording names, because the folder of Zenodo record 10943500 may have any name.
            "is_kenyan": all(name.startswith("KEN_") for name in archive.headers),
            "hours": sum(header.duration_s for header in archive.headers.values()) / 3600,
            "annotations": len(archive.annotations) + len(archive.set_aside),
            "annotations_set_aside": Counter(archive.set_aside["reason"]),
            "weak_recordings": len(archive.weak),
            "checked_recordings": len(archive.verified),
            "species": len(counts),
            "min_annotations": builder.config.min_annotations,
            "dropped_species": {code: int(n) for code, n in sorted(counts.items()) if code not in classes},
        },
        "recordings_per_split": splits["split"].value_counts().to_dict(),
        "clips_per_split": {split: len(clips[split]) for split in clips},
        "clips_per_species": {
            code: {split: per_split[split][label] for split in clips} for label, code in enumerate(classes)
        },
        "train_on": train_on,
        "starting_point": starting_point,
        "arguments": _arguments(args),
        # Windows of recordings lie anywhere, and are not shifted.
        "augmentation": {
            name: value
            for name, value in asdict(augmentation).items()
            if train_on == "clips" or not name.startswith("shift_")
        },
        "processes": args.world_size,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "versions": library_versions(TOLD_VERSIONS),
    }


def train_counts(summary: Mapping[str, Any], classes: Sequence[str]) -> list[int]:
    """Number of training clips that were cut around calls of each class; 0 for classes that a run did not have.

    Args:
        summary: The summary of the run (see `training_summary`).
        classes: eBird codes.
    """
    counts = summary["clips_per_species"]
    return [int(counts.get(code, {}).get("train", 0)) for code in classes]


def _arguments(args: TrainingArguments) -> dict[str, Any]:
    values, usual = args.to_dict(), defaults(type(args))
    set_too = [name for name in DECIDING_ARGUMENTS if values[name] not in (None, usual[name])]
    # transformers derives it from the metric.
    return {name: values[name] for name in (*TOLD_ARGUMENTS, *set_too) if name != "greater_is_better"}
