"""Arguments of training: those of transformers and of `TrainerArguments` together."""

import os
from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.training.trainer_arguments import TrainerArguments
from kenya_birds.training.transformers_arguments import check_inherited, defaults


@dataclass
class KenyaBirdsTrainingArguments(TrainerArguments, TrainingArguments):
    """`TrainingArguments` with the additional arguments and the defaults of `TrainerArguments`."""

    def __post_init__(self) -> None:
        """Chooses mixed precision and checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        self.check()
        check_inherited(vars(self), defaults(type(self)))
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
    """The processes that train together; transformers connects them when the device is read."""
    assert args.device is not None
    return Team()
