"""Arguments of training: those of transformers and of `TrainerArguments` together."""

import logging
import os
from dataclasses import dataclass

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from kenya_birds.defaults import CLIPS_PER_BATCH
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.training.trainer_arguments import TrainerArguments
from kenya_birds.training.transformers_arguments import check_inherited, defaults

logger = logging.getLogger(__name__)


@dataclass
class KenyaBirdsTrainingArguments(TrainerArguments, TrainingArguments):
    """`TrainingArguments` with the additional arguments and the defaults of `TrainerArguments`."""

    def __post_init__(self) -> None:
        """Chooses the device and mixed precision, and checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        self.check()
        check_inherited(vars(self), defaults(type(self)))
        # With `accelerate launch --cpu`, transformers would leave the model on the CPU, and move batches to a GPU.
        if parse_flag_from_env("ACCELERATE_USE_CPU"):
            self.use_cpu = True
        # `accelerate launch` sets "no" by default.
        chosen = self.bf16 or self.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
        if self.auto_mixed_precision and not chosen and not self.use_cpu and torch.cuda.is_available():
            self.bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
            self.fp16 = not self.bf16
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(str(error)) from None
        check_inherited(vars(self), defaults(type(self)))  # now with the settings of accelerate's launcher
        if getattr(self.accelerator_config, "dispatch_batches", None):
            # accelerate would join and cut batches along their first dimension, which differs among their tensors.
            raise UserError("dispatch_batches must stay off: every process loads its own batches")
        if getattr(self.accelerator_config, "split_batches", None):
            raise UserError("split_batches must stay off: it would change the number of clips of a step")


def training_team(args: KenyaBirdsTrainingArguments) -> Team:
    """The processes that train together; transformers connects them when the device is read.

    Raises:
        UserError: If one process has several GPUs, or the processes cannot connect.
    """
    assert args.device is not None
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} GPUs but one process: start with `accelerate launch --multi_gpu train_hf.py ...`, or show "
            "one GPU only (CUDA_VISIBLE_DEVICES=0)"
        )
    return Team()


def check_fits(
    args: KenyaBirdsTrainingArguments, multi_label: bool, on_recordings: bool, *, has_softmax: bool
) -> None:
    """Raises `UserError` if the arguments do not fit the targets; warns of doubled weights.

    Args:
        args: The arguments.
        multi_label: Whether clips have several labels.
        on_recordings: Whether training is on windows of whole recordings.
        has_softmax: Whether the classes and "no call" share a softmax.
    """
    if multi_label and args.label_smoothing_factor:
        raise UserError("label_smoothing_factor is for single-label training: leave it out where multi-label")
    if has_softmax and args.focal_gamma:
        raise UserError("focal_gamma weighs binary losses, and this model has a softmax: leave it out")
    if on_recordings and not multi_label:
        raise UserError("training on recordings is multi-label: set problem_type multi_label_classification")
    clips_per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    if args.world_size > 1 and clips_per_step > CLIPS_PER_BATCH and args.learning_rate == type(args).learning_rate:
        logger.warning(
            "Each step has %d clips, from %d processes, and the default learning rate is for %d: give a smaller "
            "--per_device_train_batch_size, or another --learning_rate",
            clips_per_step,
            args.world_size,
            CLIPS_PER_BATCH,
        )
    if args.loss_weight_power + args.sampler_weight_power > 1:
        logger.warning(
            "loss_weight_power %.2g and sampler_weight_power %.2g together weigh rare classes by more than their "
            "inverse frequency",
            args.loss_weight_power,
            args.sampler_weight_power,
        )
