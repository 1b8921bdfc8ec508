"""The trainer's arguments: transformers' `TrainingArguments` with this project's own and its defaults."""

import os
from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from kenya_birds.errors import UserError
from kenya_birds.training.arguments import TrainerArguments
from kenya_birds.training.inherited_arguments import check_inherited, defaults


@dataclass
class KenyaBirdsTrainingArguments(TrainerArguments, TrainingArguments):
    """`TrainingArguments` with this project's defaults, and the weights of its loss and sampler."""

    def __post_init__(self) -> None:
        """Chooses mixed precision and checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        self.check()
        check_inherited(vars(self), defaults(type(self)))
        # `accelerate launch` says "no" where its user said nothing.
        chosen = self.bf16 or self.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
        if self.auto_mixed_precision and not chosen and not self.use_cpu and torch.cuda.is_available():
            self.bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
            self.fp16 = not self.bf16
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(str(error)) from None
        check_inherited(vars(self), defaults(type(self)))  # what accelerate's launcher asks for came only now
        if getattr(self.accelerator_config, "dispatch_batches", None):
            # accelerate would join and cut batches along their first dimension, which is not the same for all that is
            # in them.
            raise UserError("dispatch_batches must stay off: every process loads batches of its own")
        if getattr(self.accelerator_config, "split_batches", None):
            raise UserError("split_batches must stay off: it would change the number of clips of a step")
