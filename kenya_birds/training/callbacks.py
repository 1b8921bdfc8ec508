"""What watches over training: where it ends, how long it took, and which checkpoint is the best."""

import logging
import time
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from kenya_birds.training.run_folder import best_checkpoint

logger = logging.getLogger(__name__)


class StopAt(TrainerCallback):
    """Ends training after so many epochs, whatever number the learning rate's schedule is made for.

    Args:
        epochs: How many; parts of an epoch are rounded up to steps.
    """

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs

    def is_reached(self, state: TrainerState) -> bool:
        """Whether training has come there."""
        return (state.epoch or 0) >= self.epochs - 1e-6

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Asks for the end at the right step."""
        if self.is_reached(state):
            control.should_training_stop = True
        return control


class TrainingClock(TrainerCallback, ExportableState):
    """Adds up the time of training over all starts of a run; checkpoints keep it.

    Attributes:
        before_s: Seconds of training before this start.
    """

    def __init__(self) -> None:
        self.before_s = 0.0
        self._started_s: float | None = None

    @property
    def total_s(self) -> float:
        """Seconds of training so far."""
        return self.before_s + (0.0 if self._started_s is None else time.monotonic() - self._started_s)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._started_s = time.monotonic()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Stops the clock."""
        self.before_s, self._started_s = self.total_s, None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"before_s": self.total_s}}


class BestCheckpoint(TrainerCallback):
    """Has the trainer find a resumed run's best checkpoint in its folder, wherever that was when it was saved."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the path right.

        Raises:
            UserError: If the checkpoint is not there.
        """
        find_best(args, state)
        if state.best_model_checkpoint is not None:
            logger.info("The best checkpoint so far is %s", state.best_model_checkpoint)


def find_best(args: TrainingArguments, state: TrainerState) -> None:
    """Sets a state's path of the best checkpoint, where the trainer is to end with it.

    Raises:
        UserError: If the checkpoint is not there.
    """
    state.best_model_checkpoint = None
    if args.load_best_model_at_end and state.best_global_step is not None:
        state.best_model_checkpoint = str(best_checkpoint(Path(args.output_dir), state.best_global_step))


def has_ended(callbacks: list[TrainerCallback], state: TrainerState) -> bool:
    """Whether training had come to its end when a checkpoint was saved.

    Args:
        callbacks: Those of the trainer.
        state: The checkpoint's.
    """
    patient = [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
    stored = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    waited = stored.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return (
        state.global_step >= state.max_steps
        or any(callback.is_reached(state) for callback in callbacks if isinstance(callback, StopAt))
        or any(waited >= callback.early_stopping_patience for callback in patient)
    )
