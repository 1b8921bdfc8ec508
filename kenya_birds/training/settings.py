"""What a run is told: the groups of settings, and what of them is recorded."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kenya_birds.training.arguments import AugmentationArguments, DataArguments, FeatureArguments, ModelArguments
from kenya_birds.training.inherited_arguments import defaults
from kenya_birds.training.trainer_arguments import KenyaBirdsTrainingArguments

# What of the training arguments decides which model comes out.
DECIDING_ARGUMENTS = (
    *("seed", "data_seed", "full_determinism", "num_train_epochs", "max_steps", "early_stopping_patience"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("loss_weight_power", "sampler_weight_power", "label_smoothing_factor"),
    *("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
)
# Clips of a step: the product of the arguments that say how they are spread over processes and batches.
CLIPS_PER_STEP = "clips_per_step"
# Paths, what belongs to the machine, and how many runs are made.
NOT_RECORDED = ("data_dir", "splits_file", "cache_dir", "num_proc", "folds", "final_fit")
# Training arguments that may hold paths, names or addresses of the user's own, or only say what is shown.
PRIVATE_ARGUMENTS = (
    *("output_dir", "resume_from_checkpoint", "run_name", "project", "report_to", "disable_tqdm"),
    *("do_train", "do_eval", "do_predict", "label_names", "local_rank"),
    *("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"),
)
PRIVATE_PREFIXES = ("hub_", "push_to_hub", "trackio_", "log_", "logging_")


@dataclass(frozen=True)
class Settings:
    """All that a run can be told.

    Attributes:
        data: The archive, and how it is cut and split.
        model: The backbone and its weights.
        features: The front end.
        augmentation: What chance changes.
        training: Everything else.
    """

    data: DataArguments
    model: ModelArguments
    features: FeatureArguments
    augmentation: AugmentationArguments
    training: KenyaBirdsTrainingArguments

    def changed(self, **changes: Any) -> "Settings":
        """Settings with other values of some fields, whichever group each is in.

        Raises:
            KeyError: If no group has such a field.
        """
        groups = {group.name: getattr(self, group.name) for group in dataclasses.fields(self)}
        for name, group in groups.items():
            own = {field.name for field in dataclasses.fields(group)} & changes.keys()
            groups[name] = dataclasses.replace(group, **{field: changes.pop(field) for field in own})
        if changes:
            raise KeyError(f"no setting is called {', '.join(changes)}")
        return Settings(**groups)

    def record(self) -> dict[str, Any]:
        """The settings as JSON holds them, without paths of this machine and without secrets.

        Returns:
            By the names of flags: the data, model, feature and augmentation arguments; of the training arguments those
            that decide which model comes out, and every other one that does not have its default value. And
            `clips_per_step`: the clips of a step, over all processes and accumulated batches.
        """
        args = self.training
        usual = defaults(args)
        training = {
            name: value
            for name, value in args.to_dict().items()
            if name in DECIDING_ARGUMENTS
            or not (_is_private(name) or value == usual[name] or not (value or usual[name]))
        }
        told = {
            **dataclasses.asdict(self.data),
            **dataclasses.asdict(self.model),
            **dataclasses.asdict(self.features),
            **dataclasses.asdict(self.augmentation),
            **training,
            CLIPS_PER_STEP: args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        }
        if Path(self.model.init_from).exists():
            told["init_from"] = Path(self.model.init_from).name  # and not where it lies
        return json.loads(json.dumps({name: value for name, value in told.items() if name not in NOT_RECORDED}))

    def deciding(self) -> dict[str, Any]:
        """Those settings of the record that decide which model comes out."""
        other = {field.name for field in dataclasses.fields(self.training)} - set(DECIDING_ARGUMENTS)
        return {name: value for name, value in self.record().items() if name not in other}


def usual_settings() -> dict[str, Any]:
    """The defaults of all settings that have one, as JSON holds them, by the names of flags."""
    usual: dict[str, Any] = {}
    for group in dataclasses.fields(Settings):
        usual |= defaults(group.type)
    return usual


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the recorded settings of a run and those of now.

    Args:
        then: A record; of another version of the package it may lack a setting, which then had its default.
        now: `Settings.deciding`.

    Returns:
        `NAME was VALUE and is VALUE now` for each difference.
    """
    usual = usual_settings()
    told = []
    for name, value in now.items():
        before = then.get(name, usual.get(name, value))
        if before != value:
            told.append(f"{name} was {before} and is {value} now")
    return told


def _is_private(name: str) -> bool:
    return name in PRIVATE_ARGUMENTS or name.startswith(PRIVATE_PREFIXES)
