"""The first stage of training with a teacher: the backbone learns what the teacher says of windows of sound.

The student hears augmented windows, the teacher heard the same windows as they are.
"""

import copy
import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kenya_birds.console import user_errors
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.files import read_json, whole_file, write_json
from kenya_birds.fingerprints import DECODERS, MODEL, code_fingerprint, library_versions, weights_sha256
from kenya_birds.locks import LOCK_FILE, shared_lock
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.arguments import AugmentationArguments
from kenya_birds.training.augmentation import DRAWS, Augmentation
from kenya_birds.training.batches import ClipDraw, ClipSampler
from kenya_birds.training.logged_trainer import LoggedTrainer, lay_out
from kenya_birds.training.recording_windows import SoundWindows
from kenya_birds.training.run_folder import (
    STATE_FILE,
    checkpoints,
    is_whole,
    last_whole_checkpoint,
    writing_run,
)
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments

logger = logging.getLogger(__name__)

FOLDER = "kenya_birds_teacher"
BACKBONE_FILE = "backbone.safetensors"
ABOUT_FILE = "about.json"
# Probabilities of the teacher are clipped for the start of the score layer.
LEAST_PROBABILITY = 1e-4
# Arguments of training that decide the result of the first stage.
DECIDING = (
    *("seed", "data_seed", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("bf16", "fp16"),
)


class TaughtWindows(SoundWindows):
    """Batches of windows with the answers of a teacher.

    Args:
        grid: The windows.
        answers: Of the teacher, shape `(windows, size)`.
        augmentation: Random changes of the windows.
    """

    def __init__(self, grid: RecordingWindowGrid, answers: np.ndarray, augmentation: Augmentation) -> None:
        super().__init__(grid.decoded, grid.window, augmentation)
        self._recording, self._start = grid.recording, grid.start
        self._answers = torch.from_numpy(answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __getitems__(self, draws: Sequence[ClipDraw]) -> dict[str, Any]:
        """A batch: `sound` for `waveform`, `amounts` (see `Augmentation.amounts`), and `answers`."""
        rows = np.array([draw.clip for draw in draws])
        amounts = self.augmentation.amounts(np.stack([draw.chance for draw in draws]))
        sound = self.sound(self._recording[rows], self._start[rows])
        return {"sound": sound, "amounts": amounts, "answers": self._answers[torch.from_numpy(rows)]}


class Student(nn.Module):
    """A model, and a linear layer that predicts a teacher's answers from its embedding.

    Args:
        model: The model whose backbone learns.
        answers: All answers of the teacher, shape `(windows, size)`: embeddings are learned relative to their mean,
            and scores start at theirs.
        embedding_size: How many of the numbers are the embedding; the others are probabilities.
        generator: Draws the weights of the layer.
    """

    def __init__(
        self,
        model: KenyaBirdsForAudioClassification,
        answers: np.ndarray,
        embedding_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.model = model
        # Processes that share gradients wait for those of all parameters.
        self.model.classifier.requires_grad_(False)
        self.embedding_size = embedding_size
        self.mean: torch.Tensor
        mean = torch.from_numpy(answers.mean(axis=0, dtype=np.float64).astype(np.float32))
        self.register_buffer("mean", mean[:embedding_size])
        self.projection = nn.Linear(model.embedding_size, answers.shape[1])
        nn.init.trunc_normal_(self.projection.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.projection.bias)
        with torch.no_grad():
            self.projection.bias[embedding_size:] = torch.logit(mean[embedding_size:], eps=LEAST_PROBABILITY)
        # safetensors refuses weights in the format channels_last.
        self.register_state_dict_post_hook(_make_contiguous)

    def forward(self, input_features: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """The loss of a batch: cosine distance of embeddings, plus binary cross-entropy summed over the scores.

        Args:
            input_features: Shape `(batch, bands, frames)`.
            answers: Shape `(batch, size)`.

        Returns:
            A scalar, the mean over the batch.
        """
        predicted, size = self.projection(self.model.embed(input_features)).float(), self.embedding_size
        loss = predicted.new_zeros(len(predicted))
        if size:
            alike = nn.functional.cosine_similarity(predicted[:, :size], answers[:, :size] - self.mean, dim=1)
            loss = loss + 1 - alike
        if predicted.shape[1] > size:
            scores = answers[:, size:].clamp(0, 1)
            each = nn.functional.binary_cross_entropy_with_logits(predicted[:, size:], scores, reduction="none")
            loss = loss + each.sum(dim=1)
        return loss.mean()


def _make_contiguous(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            state[name] = value.contiguous()


class StudentTrainer(LoggedTrainer):
    """Trains a `Student` on `TaughtWindows`.

    Args:
        student: The student.
        args: The arguments of the stage.
        windows: The windows.
    """

    def __init__(self, student: Student, args: KenyaBirdsTrainingArguments, windows: TaughtWindows) -> None:
        super().__init__(model=lay_out(student, args.device), args=args, train_dataset=windows)
        self.model_accepts_loss_kwargs = False

    def train_sampler(self) -> ClipSampler:
        """Each window once per epoch."""
        return ClipSampler(
            len(self.train_dataset),
            self.clips_per_step,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            numbers=len(DRAWS),
        )

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Augments the windows and computes their features."""
        with torch.no_grad():
            features = self.train_dataset.augmentation(self.train_dataset.waveform(inputs), inputs["amounts"])
        return {"input_features": features, "answers": inputs["answers"]}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor:
        """The student's loss."""
        loss: torch.Tensor = model(**inputs)
        return loss


@dataclasses.dataclass(frozen=True)
class Stage:
    """A first stage, whose checkpoints and result are in a folder of the cache.

    Attributes:
        folder: The folder; its name depends on all that decides the result.
        windows: The windows with the teacher's answers.
        embedding_size: How many of the answers are the embedding.
        answers: The teacher's answers, shape `(windows, size)`.
        args: Arguments of training.
        epochs: How often all windows are learned.
    """

    folder: Path
    windows: TaughtWindows
    embedding_size: int
    answers: np.ndarray
    args: KenyaBirdsTrainingArguments
    epochs: int

    def run(self, model: KenyaBirdsForAudioClassification, team: Team) -> dict[str, Any]:
        """Trains the backbone of a model, or loads what an earlier run with the same settings has trained.

        An interrupted stage resumes at its last epoch.

        Args:
            model: The model; its classifier is not changed.
            team: The processes of the run.

        Returns:
            `losses` of the epochs, `train_runtime_s`, and `is_cached`.
        """
        is_cached = team.first_does(self._is_trained)
        if not is_cached:
            with ExitStack() as stack:
                team.first_does(lambda: self._lock(stack))
                # Another run may have trained it in the meantime.
                is_cached = team.first_does(self._is_trained)
                if not is_cached:
                    self._train(model, team)
        if is_cached:
            logger.info("The first stage was trained before with the same settings: its backbone is in the cache")
        # Another machine has a cache of its own.
        state, about = team.first_does(
            lambda: (load_file(self.folder / BACKBONE_FILE), read_json(self.folder / ABOUT_FILE))
        )
        model.backbone.load_state_dict(state)
        return {**about, "is_cached": is_cached}

    def _is_trained(self) -> bool:
        return (self.folder / ABOUT_FILE).is_file()

    def _lock(self, stack: ExitStack) -> None:
        with user_errors(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(shared_lock(self.folder / LOCK_FILE, f"the first stage {self.folder}"))

    def _train(self, model: KenyaBirdsForAudioClassification, team: Team) -> None:
        # A copy: processes that share gradients keep hooks on the parameters.
        generator = torch.Generator().manual_seed(self.args.seed)
        student = Student(copy.deepcopy(model), self.answers, self.embedding_size, generator)
        trainer = StudentTrainer(student, self._stage_args(), self.windows)
        checkpoint = self.find_checkpoint(team)
        trainer.train(None if checkpoint is None else str(checkpoint))

        def write() -> None:
            state = {name: value.cpu().contiguous() for name, value in student.model.backbone.state_dict().items()}
            with writing_run(self.folder), whole_file(self.folder / BACKBONE_FILE) as partial:
                save_file(state, partial)
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            write_json({"losses": losses, "train_runtime_s": round(trainer.trained_s, 1)}, self.folder / ABOUT_FILE)

        team.first_does(write)
        if not team.local_rank:
            # On each machine, which may have a cache of its own. What is left there is never resumed.
            for left in checkpoints(self.folder):
                shutil.rmtree(left, ignore_errors=True)

    def find_checkpoint(self, team: Team) -> Path | None:
        """The last checkpoint to resume from; None if there is none, or if a machine does not have it.

        Args:
            team: The processes of the run.
        """
        last = team.first_does(lambda: last_whole_checkpoint(self.folder))
        if last is None:
            return None
        checkpoint = self.folder / last.name
        # Without --save_on_each_node, transformers saves the states of random numbers alone on other machines.
        steps = team.gather(_step_of(checkpoint))
        if None in steps or len(set(steps)) > 1:
            logger.warning("The first stage starts again: %s is not the same on every machine", checkpoint)
            return None
        return checkpoint

    def _stage_args(self) -> KenyaBirdsTrainingArguments:
        changes: dict[str, Any] = {
            "output_dir": str(self.folder),
            "num_train_epochs": self.epochs,
            "max_steps": -1,
            "eval_strategy": "no",
            "eval_on_start": False,
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "logging_strategy": "epoch",
            "load_best_model_at_end": False,
            "metric_for_best_model": None,
            "resume_from_checkpoint": None,
            "report_to": "none",
        }
        return dataclasses.replace(self.args, **changes)


def _step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint's state; None if it is not complete or cannot be read."""
    with suppress(UserError):
        if is_whole(checkpoint):
            return int(read_json(checkpoint / STATE_FILE)["global_step"])
    return None


def stage_folder(
    cache_dir: str,
    model: KenyaBirdsForAudioClassification,
    args: KenyaBirdsTrainingArguments,
    augmentation: Augmentation,
    answers: np.ndarray,
    epochs: int,
) -> Path:
    """The folder of a first stage in the cache.

    Args:
        cache_dir: Folder of the cache.
        model: The model with its starting weights.
        args: Arguments of training.
        augmentation: Random changes of the windows.
        answers: The teacher's, shape `(windows, size)`.
        epochs: How often all windows are learned.
    """
    learned = hashlib.sha256(np.ascontiguousarray(answers).tobytes()).hexdigest()
    weights = weights_sha256(model.backbone.state_dict())
    extractor = {name: value for name, value in augmentation.extractor.to_dict().items() if name != "auto_map"}
    clips = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    made_from = (
        *(learned, weights, model.config.backbone, model.config.backbone_variant, model.config.drop_path_rate),
        *(sorted((name, repr(value)) for name, value in extractor.items()), dataclasses.astuple(augmentation.args)),
        *([repr(getattr(args, name)) for name in DECIDING], clips, epochs, args.device.type),
        *(code_fingerprint(__name__), sorted(library_versions((*MODEL, *DECODERS, "accelerate")).items())),
    )
    return Path(cache_dir) / FOLDER / hashlib.sha256(repr(made_from).encode()).hexdigest()[:24]


def taught_augmentation(arguments: AugmentationArguments) -> AugmentationArguments:
    """Random changes of the first stage: without those that move calls or bring in other windows."""
    return dataclasses.replace(arguments, shift_probability=0.0, mixup_probability=0.0, background_probability=0.0)
