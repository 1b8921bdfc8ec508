"""Arguments of the trainer, besides those of transformers. They import nothing heavy, for the command line."""

import functools
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from kenya_birds.defaults import CLIPS_PER_BATCH, EPOCHS
from kenya_birds.errors import UserError
from kenya_birds.values import Count, Kind, NotNegative, Positive, Range, Seed, Whole, kinds_of

# Libraries that transformers can log to, and modules of which one has to be installed.
TRACKERS = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": ("kubeflow",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
LogLevel = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]
# Ranges of arguments whose defaults are transformers'.
TRANSFORMERS_RANGES: dict[str, Any] = {
    "adam_beta1": Annotated[float, Range(0, 1, below=True)],
    "adam_beta2": Annotated[float, Range(0, 1, below=True)],
    "adam_epsilon": Positive,
    "data_seed": Seed | None,
    "dataloader_num_workers": Whole,
    "eval_delay": NotNegative,
    "eval_steps": Positive | None,
    "gradient_accumulation_steps": Count,
    "label_smoothing_factor": Annotated[float, Range(0, 1, below=True)],
    "log_level": LogLevel,
    "log_level_replica": LogLevel,
    "max_grad_norm": NotNegative,
    "max_steps": Annotated[int, Range(-1)],
    "save_steps": Positive,
    "seed": Seed,
}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass
class TrainerArguments:
    """Additional arguments of the trainer, and other defaults for some of transformers' `TrainingArguments`."""

    loss_weight_power: NotNegative = field(
        default=0.5,
        metadata={
            "help": "weight each class by n^-X in the loss, with n its number of clips; 1: inverse frequency; 0: equal"
        },
    )
    sampler_weight_power: NotNegative = field(
        default=0.0,
        metadata={"help": "draw clips in proportion to n^-X, with n as above; 0: each clip once per epoch"},
    )
    focal_gamma: NotNegative = field(
        default=0.0,
        metadata={
            "help": "multi-label training: weight the loss by (1 - p)^X, with p the probability of the correct label; "
            "0: binary cross-entropy"
        },
    )
    clips_on_device: Literal["auto", "yes", "no"] = field(
        default="auto",
        metadata={
            "help": "--train_on clips: keep all training clips on the GPU; auto: if they fit in a quarter of its free "
            "memory"
        },
    )
    early_stopping_patience: Whole = field(
        default=10,
        metadata={"help": "stop after this many evaluations on validation without improvement; 0: never stop early"},
    )
    auto_mixed_precision: bool = field(
        default=True, metadata={"help": "without --bf16 or --fp16, use bf16 if the GPU supports it, otherwise fp16"}
    )

    bf16: bool = field(default=False, metadata={"help": "bfloat16 mixed precision"})
    fp16: bool = field(default=False, metadata={"help": "float16 mixed precision"})
    per_device_train_batch_size: Count = field(
        default=CLIPS_PER_BATCH, metadata={"help": "training clips per device and batch"}
    )
    per_device_eval_batch_size: Count = field(
        default=CLIPS_PER_BATCH, metadata={"help": "evaluation clips per device and batch"}
    )
    num_train_epochs: Positive = field(default=EPOCHS, metadata={"help": "largest number of epochs"})
    learning_rate: Positive = field(default=5e-4, metadata={"help": "AdamW's learning rate after warm-up"})
    weight_decay: NotNegative = field(default=0.05, metadata={"help": "AdamW's weight decay"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule after warm-up"})
    warmup_steps: NotNegative = field(
        default=0.1, metadata={"help": "warm-up: a number of steps, or below 1 a share of all steps"}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "when to evaluate on validation"})
    save_strategy: str = field(default="epoch", metadata={"help": "when to save a checkpoint"})
    save_total_limit: Count | None = field(
        default=2, metadata={"help": "number of checkpoints that are kept, including the best one"}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "end with the best checkpoint"})
    metric_for_best_model: str | None = field(
        default="macro_f1", metadata={"help": "metric that determines the best epoch"}
    )
    average_epochs: Count = field(
        default=1,
        metadata={
            "help": "the trained model has the mean of the weights of this many best epochs, at most a third of all; "
            "1: the weights of the best one"
        },
    )
    logging_steps: Positive = field(default=10, metadata={"help": "log the loss after this many steps"})
    # The filter waits for the GPU at every step, and it hides losses that are NaN.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "log an average instead of a loss that is NaN or infinite"}
    )
    report_to: str = field(
        default="tensorboard",
        metadata={"help": f"programs to which metrics are logged: none, all, {', '.join(sorted(TRACKERS))}"},
    )
    # The collator reads the columns that the model's forward does not name.
    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay off"})
    # Trainer would drop clips of the evaluation too.
    dataloader_drop_last: bool = field(
        default=False, metadata={"help": "must stay off: training drops incomplete steps in any case"}
    )
    dataloader_pin_memory: bool = field(
        default_factory=_has_gpu, metadata={"help": "pin batches in memory; by default if there is a GPU"}
    )
    # The next batch is moved while the device computes.
    accelerator_config: dict | str | None = field(
        default_factory=lambda: {"non_blocking": _has_gpu()},
        metadata={"help": "accelerate's configuration (JSON); by default non_blocking if there is a GPU"},
    )
    # Early stopping counts the evaluations without improvement.
    restore_callback_states_from_checkpoint: bool = field(default=True, metadata={"help": "must stay on"})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "look for unused parameters in each step; there are none"}
    )

    def check(self) -> None:
        """Checks the values that can be checked without torch.

        Raises:
            UserError: If a value is out of range or must stay as it is, or a tracker is not installed.
        """
        for name, kind in trainer_kinds().items():
            if hasattr(self, name):
                kind.check(name, getattr(self, name))
        if self.remove_unused_columns:
            raise UserError(
                "remove_unused_columns must stay off: clips reach the model through columns it does not name"
            )
        if self.dataloader_drop_last:
            raise UserError(
                "dataloader_drop_last must stay off: it would drop clips of the evaluation, and training drops "
                "incomplete steps in any case"
            )
        check_trackers(self.report_to)


@functools.cache
def trainer_kinds() -> dict[str, Kind]:
    """The types and ranges of the trainer's arguments that this package states, by name."""
    transformers = {name: Kind.of(hint) for name, hint in TRANSFORMERS_RANGES.items()}
    return {**transformers, **kinds_of(TrainerArguments)}


def check_trackers(report_to: str | list[str]) -> None:
    """Raises `UserError` unless the libraries to log to are known and installed.

    Args:
        report_to: One or several of `TRACKERS`, `none` or `all`.
    """
    for name in [report_to] if isinstance(report_to, str) else report_to:
        Kind(str, choices=("none", "all", *TRACKERS)).check("report_to", name)
        if name in TRACKERS and not any(find_spec(module) for module in TRACKERS[name]):
            raise UserError(
                f"report_to is {name!r}, which is not installed: run pip install {TRACKERS[name][0]}, or choose "
                "tensorboard or none"
            )
