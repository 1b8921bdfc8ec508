"""Training and evaluation data of heads: embeddings of clips and windows, in batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from kenya_birds.data.decoded_recordings import DecodedRecordings
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.training.batches import ClipDraw
from kenya_birds.training.window_sampler import SpeciesDraws, wrong_number


class EmbeddedRows(torch.utils.data.Dataset):
    """Embedded clips or windows to evaluate on.

    Args:
        inputs: Inputs of the head, float32 of shape `(rows, size)`.
        targets: Targets of the rows, as in `FeatureClips` and `EvaluationWindows`.
    """

    def __init__(self, inputs: np.ndarray, targets: torch.Tensor) -> None:
        self.inputs = torch.from_numpy(inputs)
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch: `head_input` of shape `(batch, size)`, and `labels`."""
        rows = list(indices)
        return {"head_input": self.inputs[rows], "labels": self.targets[rows]}


class EmbeddedTraining(torch.utils.data.Dataset):
    """Embedded clips or windows to train on, each in one or several versions.

    Args:
        versions: Inputs of the head, float32 of shape `(rows, size)` for each version.
        labels: Targets of the rows of each version; shape `(rows,)`, or `(rows, classes)`.
        weights: Weight of each row in the loss, shape `(rows,)`; None: all are 1.
    """

    def __init__(
        self, versions: Sequence[np.ndarray], labels: Sequence[torch.Tensor], weights: np.ndarray | None = None
    ) -> None:
        self.versions = len(versions)
        self.inputs = torch.from_numpy(np.concatenate(versions))
        self.rows = self.length = len(versions[0])
        self._labels = torch.cat(list(labels))
        self._weights = None if weights is None else weights.astype(np.float32)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, draws: Sequence[ClipDraw]) -> dict[str, torch.Tensor]:
        """A batch: `head_input` of shape `(batch, size)`, `labels`, and `weight` if rows have weights.

        The first random number draws the version.
        """
        rows = torch.tensor([draw.clip + int(draw.chance[0] * self.versions) * self.rows for draw in draws])
        batch = {"head_input": self.inputs[rows], "labels": self._labels[rows]}
        weights = self.weights(draws)
        if weights is not None:
            batch["weight"] = torch.from_numpy(weights)
        return batch

    def weights(self, draws: Sequence[ClipDraw]) -> np.ndarray | None:
        """The weights of a batch in the loss, shape `(batch,)`; None: all are 1."""
        return None if self._weights is None else self._weights[[draw.clip for draw in draws]]


class EmbeddedWindows(EmbeddedTraining):
    """Embedded windows of whole recordings.

    Args:
        versions: See `EmbeddedTraining`.
        labels: 1, 0 or -100 of each window, shape `(windows, classes)`; the same in each version.
        decoded: The training recordings.
        targets: The annotations of the same recordings.
        length: Windows of an epoch.
        weights: Weight of each window in the loss, shape `(windows,)`; None: all are 1.
    """

    def __init__(
        self,
        versions: Sequence[np.ndarray],
        labels: np.ndarray,
        *,
        decoded: DecodedRecordings,
        targets: WindowTargets,
        length: int,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__(versions, [torch.from_numpy(labels).float()] * len(versions), weights)
        self.decoded, self.targets, self.length = decoded, targets, length
        self._targets_of_rows = labels

    def labels(self, draws: Sequence[ClipDraw]) -> np.ndarray:
        """The labels of a batch: 1, 0 or -100, int64 of shape `(batch, classes)`."""
        return self._targets_of_rows[[draw.clip for draw in draws]]


class EmbeddedWindowSampler(Sampler[ClipDraw]):
    """Draws an epoch of embedded windows of recordings: some with a call, some without, the others anywhere.

    As in `WindowSampler`, draws depend on the seed and the epoch only. A window with a call: a species is drawn with a
    weight of `n ** (1 - species_power)`, with `n` its number of calls, then one of the recordings with it, then one of
    the windows there that contain it.

    Args:
        targets: 1, 0 or -100 of each window, shape `(windows, classes)`.
        recording: Index of each window's recording, shape `(windows,)`.
        is_empty: Whether nothing is annotated in a window or near its edges, shape `(windows,)`.
        is_partial: Whether a window is of a recording with weak annotations or checked detections, shape `(windows,)`.
            It is then drawn if it holds a call, or if a detection in it was wrong, as in `WindowSampler`.
        calls: Number of calls of each class, shape `(classes,)`.
        length: Windows of an epoch.
        windows_per_step: Windows of one optimiser step, over all processes and accumulated batches. An incomplete last
            step is left out.
        seed: Seed of the draws.
        call_share: Share of the windows with a call.
        empty_share: Share of the windows without a call.
        species_power: 0: species are as frequent as their calls; 1: all species are equally frequent.

    Raises:
        UserError: If no window is known to contain a call, or none of those that are drawn anywhere can be drawn.
    """

    def __init__(
        self,
        targets: np.ndarray,
        recording: np.ndarray,
        is_empty: np.ndarray,
        is_partial: np.ndarray,
        calls: np.ndarray,
        *,
        length: int,
        windows_per_step: int,
        seed: int,
        call_share: float,
        empty_share: float,
        species_power: float,
    ) -> None:
        self.length = length - length % windows_per_step if length >= windows_per_step else length
        self.seed, self.epoch, self._anywhere = seed, 0, np.flatnonzero(~is_partial)
        self._empty = np.flatnonzero(is_empty)
        row, label = np.nonzero(targets == 1)
        if not len(row):
            raise UserError(
                "no window of the training recordings is known to contain a call: choose a smaller --embedding_hop_s, "
                "or train on clips"
            )
        self._row, self._draws = row, SpeciesDraws(label, recording[row], species_power, calls)
        with_call, empty = round(call_share * self.length), round(empty_share * self.length)
        empty = empty if len(self._empty) else 0
        # Windows of weak labels have a class that is present, or are unknown.
        self._wrong = np.flatnonzero(is_partial & (targets == 0).any(axis=1) & ~(targets == 1).any(axis=1))
        wrong = wrong_number(with_call, len(row), len(self._wrong), self.length)
        empty = round(empty * (1 - wrong / max(self.length - with_call, 1)))
        self._numbers = with_call, wrong, empty, self.length - with_call - wrong - empty
        if self._numbers[-1] and not len(self._anywhere):
            raise UserError(
                "no training recording with all its calls annotated has a window of sound: choose a lower clip_s, or "
                "train on clips"
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's draws; called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[ClipDraw]:
        generator = np.random.default_rng([self.seed, self.epoch])
        with_call, wrong, empty, anywhere = self._numbers
        drawn = [
            self._row[self._draws.draw(generator, with_call)],
            self._anywhere[generator.integers(len(self._anywhere), size=anywhere)],
        ]
        if wrong:
            drawn.append(self._wrong[generator.integers(len(self._wrong), size=wrong)])
        if empty:
            drawn.append(self._empty[generator.integers(len(self._empty), size=empty)])
        rows = generator.permutation(np.concatenate(drawn)).tolist()
        yield from map(ClipDraw, rows, rows, generator.random((self.length, 1)))
