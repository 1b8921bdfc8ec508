"""Callbacks of the trainer: stopping, training time, the best checkpoint, the log of epochs, TensorBoard."""

import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState

from kenya_birds.training.run_folder import best_checkpoint

logger = logging.getLogger(__name__)

# Names of the metrics that the line of an epoch shows.
SHOWN = {"macro_f1": "macro F1", "cmap": "mean average precision"}


class StopAt(TrainerCallback):
    """Stops training after a number of epochs that is independent of the learning rate's schedule.

    Args:
        epochs: Number of epochs; parts of an epoch are rounded up to steps.
    """

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs

    def is_reached(self, state: TrainerState) -> bool:
        """Whether training has reached this number of epochs."""
        return (state.epoch or 0) >= self.epochs - 1e-6

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stops training at the right step."""
        if self.is_reached(state):
            control.should_training_stop = True
        return control


class TrainingClock(TrainerCallback, ExportableState):
    """Sums the training time over all starts of a run; it is saved in checkpoints.

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
        """The state for a checkpoint."""
        return {"args": {}, "attributes": {"before_s": self.total_s}}


class BestCheckpoint(TrainerCallback):
    """Corrects the path of the best checkpoint of a resumed run, whose folder may have been moved."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Corrects the path.

        Raises:
            UserError: If the checkpoint does not exist.
        """
        find_best(args, state)
        if state.best_model_checkpoint is not None:
            logger.info("The best checkpoint so far is %s", state.best_model_checkpoint)


def find_best(args: TrainingArguments, state: TrainerState) -> None:
    """Corrects the path of the best checkpoint in a trainer's state, if training ends with the best model.

    Raises:
        UserError: If the checkpoint does not exist.
    """
    state.best_model_checkpoint = None
    if args.load_best_model_at_end and state.best_global_step is not None:
        state.best_model_checkpoint = str(best_checkpoint(Path(args.output_dir), state.best_global_step))


def has_ended(callbacks: list[TrainerCallback], state: TrainerState) -> bool:
    """Whether training was complete when a checkpoint was saved.

    Args:
        callbacks: Callbacks of the trainer.
        state: State of the checkpoint.
    """
    patient = [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
    stored = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    waited = stored.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return (
        state.global_step >= state.max_steps
        or any(callback.is_reached(state) for callback in callbacks if isinstance(callback, StopAt))
        or any(waited >= callback.early_stopping_patience for callback in patient)
    )


RUNS_FOLDER = "runs"
# The logged values of transformers that change during training: others would be flat lines or points.
CURVES = (
    *("loss", "grad_norm", "learning_rate"),
    *("eval_loss", "eval_macro_f1", "eval_weighted_f1", "eval_accuracy", "eval_cmap"),
)


class EpochLog(TrainerCallback):
    """Logs one line per epoch, and shows a progress bar of the steps on a terminal.

    Args:
        losses: The training losses.

    Attributes:
        epochs: Epochs after which training stops, if this is before the end of its schedule.
    """

    def __init__(self, losses: "StepLosses") -> None:
        self.epochs: float | None = None
        self._losses = losses
        self._bar: tqdm | None = None
        self._began_s = self._epoch_began_s = time.perf_counter()
        self._first_step = self._epoch_first_step = 0
        self._loss, self._clips_per_s = float("nan"), 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock and the bar."""
        self._began_s = time.perf_counter()
        self._first_step = state.global_step
        if state.is_world_process_zero:
            is_shown = not args.disable_tqdm and sys.stderr.isatty()
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="Training",
                unit="step",
                leave=False,
                disable=not is_shown,
                dynamic_ncols=True,
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the epoch's clock."""
        self._epoch_began_s, self._epoch_first_step = time.perf_counter(), state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Updates the bar."""
        if self._bar is not None:
            self._bar.update()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stores the epoch's loss and speed; the line is logged after the evaluation, if there is one."""
        self._loss = self._losses.mean()
        steps = state.global_step - self._epoch_first_step
        clips = steps * args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        self._clips_per_s = clips / max(time.perf_counter() - self._epoch_began_s, 1e-9)
        if getattr(args.eval_strategy, "value", args.eval_strategy) == "no":
            self._tell(state, {})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Logs the line; none before training, where an evaluation belongs to no epoch."""
        if state.max_steps and metrics and "eval_macro_f1" in metrics:
            chosen_by = (args.metric_for_best_model or "macro_f1").removeprefix("eval_")
            self._tell(state, metrics, chosen_by if chosen_by == "cmap" else "macro_f1")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self, state: TrainerState, metrics: Mapping[str, float], shown: str = "macro_f1") -> None:
        if not state.is_world_process_zero:
            return
        parts = [f"loss {self._loss:.3g}"]
        if metrics:
            parts += [
                f"validation loss {metrics['eval_loss']:.3g}",
                f"{SHOWN[shown]} {metrics[f'eval_{shown}']:.4f}{_best(state, f'eval_{shown}')}",
            ]
        parts.append(f"{self._clips_per_s:,.0f} clips/s")
        epochs = self.epochs or state.num_train_epochs
        steps = state.max_steps * epochs / state.num_train_epochs
        done, left = state.global_step - self._first_step, steps - state.global_step
        if done and left > 0:
            parts.append(f"{format_time((time.perf_counter() - self._began_s) / done * left)} left")
        if self._bar is not None:
            self._bar.clear()
        logger.info("Epoch %s of %s: %s", f"{state.epoch or 0:.4g}", f"{epochs:g}", ", ".join(parts))
        if self._bar is not None:
            self._bar.refresh()


class StepLosses:
    """Mean training loss of steps; losses stay on the device until the mean is computed.

    Args:
        accelerator: Accelerator of the run, for the mean over its processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._total: Any = None
        self._steps = 0

    def add(self, loss: Any, *, is_step: bool) -> None:
        """Adds the loss of a batch.

        Args:
            loss: The batch's part of the step's loss, a tensor.
            is_step: Whether it is the last batch of its step.
        """
        self._total = loss if self._total is None else self._total + loss
        self._steps += is_step

    def mean(self) -> float:
        """The mean of the steps since the last call, over all processes; all of them have to call it."""
        total, steps = self._total, self._steps
        self._total, self._steps = None, 0
        if total is None or not steps:
            return float("nan")
        return float(self._accelerator.reduce(total, reduction="mean")) / steps


class RunTensorBoard(TensorBoardCallback):
    """Writes curves to `OUTPUT_DIR/runs/NAME`, where NAME is the output folder's name; other values are skipped."""

    logging_dir: str | None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the log; the log of a resumed run continues at its step."""
        if state.is_world_process_zero and self.logging_dir is None:
            from torch.utils.tensorboard import SummaryWriter

            self.logging_dir = str(log_folder(args.output_dir))
            self.tb_writer = SummaryWriter(self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the values of curves."""
        curves = {name: value for name, value in (logs or {}).items() if name in CURVES}
        if curves:
            super().on_log(args, state, control, logs=curves, **kwargs)


def write_results(output_dir: str | Path, step: int, figures: Mapping[str, float | None]) -> None:
    """Adds the test metrics and the figures of a run to its TensorBoard log.

    Args:
        output_dir: The run's output folder.
        step: Training step of the results.
        figures: Metrics on the test split by name.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(log_folder(output_dir))) as writer:
        for name, value in figures.items():
            if isinstance(value, int | float):
                writer.add_scalar(f"test/{name}", value, step)
        for path in sorted(Path(output_dir).glob("*.png")):
            with Image.open(path) as picture:
                writer.add_image(path.stem, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def log_folder(output_dir: str | Path) -> Path:
    """The folder of a run's TensorBoard log; its last part is the name of the run in TensorBoard."""
    output_dir = Path(output_dir).absolute()
    return output_dir / RUNS_FOLDER / output_dir.name


def format_time(seconds: float) -> str:
    """A duration as text, such as `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _best(state: TrainerState, name: str) -> str:
    """Text on the epoch with the highest value of a metric so far."""
    entries = [entry for entry in state.log_history if name in entry]
    scores = {entry["epoch"]: entry[name] for entry in entries if not math.isnan(entry[name])}
    if not scores:
        return ""
    best = max(scores, key=lambda epoch: scores[epoch])
    is_last = best == entries[-1]["epoch"]
    return " (the best so far)" if is_last else f" (best: {scores[best]:.4f} in epoch {best:.4g})"
