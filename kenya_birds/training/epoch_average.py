"""Mean of the weights of the best epochs, as the trained model.

As ESPnet does by default, and after M. Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models
improves accuracy without increasing inference time", ICML 2022. Models of one training are averaged here.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kenya_birds.errors import UserError
from kenya_birds.files import whole_file
from kenya_birds.training.run_folder import (
    EPOCHS_FOLDER,
    checkpoint_step,
    checkpoints,
    epoch_weights,
    epoch_weights_path,
)

# Early epochs of a short training are far from the last ones: their mean with these would be a bad model.
EPOCHS_PER_AVERAGED = 3
# The epoch of a trainer's state is a sum of fractions.
ROUNDING = 1e-6


class EpochAverage(TrainerCallback):
    """Keeps the weights of the best epochs during training, for their mean.

    If training does not end with the best model, the last epochs take their place. The weights are files in a folder
    of the output folder. Those that a checkpoint needs are kept as long as the checkpoint.

    Args:
        largest: Largest number of epochs whose weights are averaged. At most a third of all epochs are, or of those of
            the schedule if the last epochs are averaged.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self._is_training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks that a resumed training has its weights.

        Raises:
            UserError: If some are missing.
        """
        self._is_training = True
        _existing(args, state, min(self.largest, _epochs(args, state)))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the weights of a whole epoch if the last ones are averaged: before the checkpoint that needs them."""
        if not args.load_best_model_at_end and abs((state.epoch or 0) - round(state.epoch or 0)) < ROUNDING:
            self._keep(args, state, model)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the weights if they are among the best so far."""
        if self._is_training and args.load_best_model_at_end and state.global_step:
            self._keep(args, state, model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Later evaluations are of the trained model."""
        self._is_training = False

    def steps(self, args: TrainingArguments, state: TrainerState) -> list[int]:
        """The steps of the epochs that are averaged after training, in order; empty if there are fewer than two.

        Raises:
            UserError: If weights are missing.
        """
        # A final fit stops early in its schedule, after as many epochs as were best for its folds.
        epochs = _epochs(args, state)
        of = epochs if args.load_best_model_at_end else state.num_train_epochs
        count = min(self.largest, of // EPOCHS_PER_AVERAGED, epochs)
        return sorted(_existing(args, state, count)) if count > 1 else []

    def average(self, output_dir: Path, steps: list[int], model: torch.nn.Module) -> None:
        """Gives a trained model the mean of the weights, and of its buffers of floating-point numbers.

        Args:
            output_dir: The output folder of training.
            steps: The steps of the averaged epochs.
            model: The model.

        Raises:
            UserError: If weights cannot be read.
        """
        target = _averaged_tensors(model)
        sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in target.items()}
        for step in steps:
            weights = _read(epoch_weights_path(output_dir, step), target)
            for name, total in sums.items():
                total += weights[name]
        with torch.no_grad():
            for name, tensor in target.items():
                tensor.copy_(sums[name] / len(steps))

    def _keep(self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module | None) -> None:
        if not args.should_save:
            return
        assert model is not None
        output_dir, now = Path(args.output_dir), state.global_step
        if args.load_best_model_at_end and now not in _ranked(args, state, now)[: self.largest]:
            return
        path = epoch_weights_path(output_dir, now)
        path.parent.mkdir(exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in _averaged_tensors(model).items()}
        with whole_file(path) as partial:
            save_file(tensors, partial)
        resumable = [now, *map(checkpoint_step, checkpoints(output_dir))]
        needed = {step for last in resumable for step in _ranked(args, state, last)[: self.largest]}
        for step, old in epoch_weights(output_dir).items():
            # Later weights are those of later checkpoints, if training resumed from an earlier one.
            if step < now and step not in needed:
                with suppress(OSError):  # on Windows, another program may have it open
                    old.unlink()


def metric_name(args: TrainingArguments) -> str:
    """The name, in an evaluation, of the metric by which the best epoch is chosen."""
    assert args.metric_for_best_model is not None  # transformers sets it if training ends with the best model
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def _existing(args: TrainingArguments, state: TrainerState, count: int) -> list[int]:
    """The steps of the best (or last) epochs; raises `UserError` if the weights of one are missing."""
    steps = _ranked(args, state, state.global_step)[:count]
    missing = count - len(epoch_weights(Path(args.output_dir)).keys() & set(steps))
    if missing:
        raise UserError(
            f"{Path(args.output_dir) / EPOCHS_FOLDER} lacks the weights of {missing} of the {count} "
            f"{'best' if args.load_best_model_at_end else 'last'} epochs: restore the folder, resume from another "
            "checkpoint, or start a new run"
        )
    return steps


def _ranked(args: TrainingArguments, state: TrainerState, until: int) -> list[int]:
    """The steps of epochs until a step: the best first, and the earlier of two that are as good; or the last first."""
    if args.load_best_model_at_end:
        scores = {step: score for step, score in _scores(args, state).items() if step <= until}
        return sorted(scores, key=lambda step: (-scores[step], step))
    return sorted((step for step in epoch_weights(Path(args.output_dir)) if step <= until), reverse=True)


def _epochs(args: TrainingArguments, state: TrainerState) -> int:
    """The number of epochs so far; if the best are chosen, those with a metric."""
    return len(_scores(args, state)) if args.load_best_model_at_end else int((state.epoch or 0) + ROUNDING)


def _scores(args: TrainingArguments, state: TrainerState) -> dict[int, float]:
    """The metric of each evaluated step, higher is better; steps without a number are skipped."""
    name = metric_name(args)
    sign = 1 if args.greater_is_better else -1
    found = {entry["step"]: sign * entry[name] for entry in state.log_history if entry["step"] and name in entry}
    return {step: score for step, score in found.items() if not math.isnan(score)}


def _averaged_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights, and the buffers of floating-point numbers, by name. They share memory with the model."""
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return trained | {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def _read(path: Path, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}, the weights of an epoch, cannot be read ({error}): restore the file, or start a new run"
        ) from None
    if {name: tensor.shape for name, tensor in weights.items()} != {name: one.shape for name, one in expected.items()}:
        raise UserError(f"{path} has other weights than the model: restore the file, or start a new run")
    return weights
