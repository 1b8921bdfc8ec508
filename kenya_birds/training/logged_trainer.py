"""What all trainers of this package share: one log line per epoch, the clips of a step, and the time of training."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import TrainOutput

from kenya_birds.private_interfaces import TrainerHooks
from kenya_birds.training.callbacks import EpochLog, StepLosses, TrainingClock
from kenya_birds.training.run_folder import writing_run


class LoggedTrainer(TrainerHooks, Trainer):
    """A trainer on data sets that return whole batches. It logs one line per epoch, with the mean loss of its steps.

    Args:
        **settings: Arguments of `Trainer`, without a collator.

    Attributes:
        epoch_log: The log.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(data_collator=_as_it_is, **settings)
        self._losses = StepLosses(self.accelerator)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.epoch_log = EpochLog(self._losses)
        self.add_callback(self.epoch_log)
        self.add_callback(TrainingClock())

    @property
    def clips_per_step(self) -> int:
        """Clips of one optimiser step, over all processes and accumulated batches."""
        return self.clips_per_batch * self.args.world_size * self.args.gradient_accumulation_steps

    @property
    def trained_s(self) -> float:
        """Seconds of training so far, including those before the run was resumed."""
        # A resumed run has another callback object than the one that was added to it.
        return next(one.total_s for one in self.callback_handler.callbacks if isinstance(one, TrainingClock))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains (see `Trainer.train`).

        Raises:
            WriteError: If a checkpoint cannot be saved.
        """
        with writing_run(Path(self.args.output_dir)):
            return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward pass of a batch; its loss is kept for the epoch's line."""
        loss = super().training_step(*args, **kwargs)
        self._losses.add(loss.detach(), is_step=self.accelerator.sync_gradients)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns zero, because Trainer's estimate is for text models."""
        return 0


def lay_out(model: nn.Module, device: torch.device) -> nn.Module:
    """Gives a model's weights the memory format in which the device trains it fastest.

    Args:
        model: The model.
        device: The device.

    Returns:
        The same model.
    """
    # In this format, PyTorch's batch normalisation trains wrong or crashes on Apple's GPUs (pytorch issue 175189).
    if device.type == "mps":
        return model
    # On a CPU, depthwise convolutions with batch normalisation take half the time in it.
    to_format: Any = model.to
    to_format(memory_format=torch.channels_last)
    return model


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Collator for data sets that return whole batches; a function, so that it can be sent to another process."""
    return batch
