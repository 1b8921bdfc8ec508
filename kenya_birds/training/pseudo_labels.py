"""Pseudo-labels: certain predictions of a model in recordings without annotations, to train on."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from kenya_birds.data.decoded_recordings import DecodedRecordings
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.model.modeling_kenya_birds import MASKED
from kenya_birds.training.augmentation import Augmentation
from kenya_birds.training.recording_windows import RecordingWindows
from kenya_birds.training.window_sampler import SpeciesDraws, WindowDraw, WindowSampler
from kenya_birds.training.window_training import WindowPlan

logger = logging.getLogger(__name__)

# A species is present above the first probability, absent below the second, and unknown between.
PRESENT, ABSENT = 0.9, 0.1
# Share of the windows of an epoch that have pseudo-labels.
SHARE = 0.25


@dataclass(frozen=True)
class PseudoLabels:
    """Windows in which a model is sure that a species calls, or that none does.

    Attributes:
        decoded: The recordings.
        recording: Index of each window's recording, shape `(windows,)`.
        start: First sample of each window.
        labels: 1, 0 or -100, int64 of shape `(windows, classes)`.
    """

    decoded: DecodedRecordings
    recording: np.ndarray
    start: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, grid: RecordingWindowGrid, probabilities: np.ndarray) -> "PseudoLabels":
        """Takes the sure windows from all.

        Args:
            grid: All windows of the recordings.
            probabilities: Of the model, shape `(windows, classes)`.
        """
        is_present, is_absent = probabilities >= PRESENT, probabilities <= ABSENT
        is_whole = grid.end - grid.start == grid.window
        rows = np.flatnonzero(is_whole & (is_present.any(axis=1) | is_absent.all(axis=1)))
        labels = np.where(is_present, 1, np.where(is_absent, 0, MASKED))[rows]
        return cls(grid.decoded, grid.recording[rows], grid.start[rows], labels)

    @property
    def calls(self) -> np.ndarray:
        """Rows of the windows with a species."""
        return np.flatnonzero((self.labels == 1).any(axis=1))

    @property
    def empty(self) -> np.ndarray:
        """Rows of the windows without a call."""
        return np.flatnonzero((self.labels == 0).all(axis=1))


class PseudoLabelledWindows(RecordingWindows):
    """Windows of the training recordings, followed by windows with pseudo-labels.

    Args:
        plan: The training recordings.
        pseudo: The other windows; their recordings have the indices after those of the training recordings.
        augmentation: Random changes.
    """

    def __init__(self, plan: WindowPlan, pseudo: PseudoLabels, augmentation: Augmentation) -> None:
        joined = DecodedRecordings([*plan.decoded.recordings, *pseudo.decoded.recordings], plan.decoded.sampling_rate)
        weights = plan.weights
        if weights is not None:
            weights = np.concatenate([weights, np.ones(len(pseudo.decoded.recordings), dtype=weights.dtype)])
        super().__init__(joined, plan.targets, augmentation, plan.length, weights)
        self._first = len(plan.decoded.recordings)
        places = zip((pseudo.recording + self._first).tolist(), pseudo.start.tolist(), strict=True)
        self._row = {place: row for row, place in enumerate(places)}
        self._pseudo = pseudo

    def targets_of(self, recording: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Labels of windows; pseudo-labels in recordings without annotations."""
        is_pseudo = recording >= self._first
        found = np.empty((len(recording), len(self.targets.classes)), dtype=np.int64)
        found[~is_pseudo] = self.targets(recording[~is_pseudo], start[~is_pseudo])
        places = zip(recording[is_pseudo].tolist(), start[is_pseudo].tolist(), strict=True)
        found[is_pseudo] = self._pseudo.labels[[self._row[place] for place in places]]
        return found


class PseudoLabelSampler(Sampler[WindowDraw]):
    """Draws an epoch of a `WindowSampler`, with windows with pseudo-labels spread evenly over it.

    The share with a call is that of windows around calls in the other sampler, so that calls are about as frequent as
    the correction of training counts on. If no window is surely empty, there are fewer windows with pseudo-labels.
    Draws depend on the seed and the epoch only.

    Args:
        windows: Draws the windows of the training recordings.
        pseudo: The windows with pseudo-labels.
        recordings: Number of training recordings.
        call_share: Share of windows with a call among those with pseudo-labels.
        windows_per_step: Windows of one optimiser step, over all processes and accumulated batches.
        species_power: See `WindowSampler`.
        share: Share of the windows with pseudo-labels.
    """

    def __init__(
        self,
        windows: WindowSampler,
        pseudo: PseudoLabels,
        recordings: int,
        *,
        call_share: float,
        windows_per_step: int,
        species_power: float,
        share: float = SHARE,
    ) -> None:
        if not len(pseudo.empty):
            share *= call_share
        self._windows, self._pseudo, self._recordings, self._share = windows, pseudo, recordings, share
        length = round(len(windows) / (1 - share))
        self.length = length - length % windows_per_step if length >= windows_per_step else length
        calls = pseudo.calls
        self._empty = pseudo.empty
        self._call_share = call_share if len(self._empty) else 1.0
        if not len(calls):
            self._call_share = 0.0
        self._row_of_item, self._draws = np.zeros(0, dtype=np.int64), None
        if len(calls):
            row, label = np.nonzero(pseudo.labels[calls] == 1)
            self._row_of_item = calls[row]
            self._draws = SpeciesDraws(label, pseudo.recording[self._row_of_item], species_power)

    @property
    def epoch(self) -> int:
        """The epoch that is drawn."""
        return self._windows.epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's draws; called by the trainer."""
        self._windows.set_epoch(epoch)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[WindowDraw]:
        generator = np.random.default_rng([self._windows.seed, self._windows.epoch, 2])
        places = np.floor(np.arange(self.length + 1) * self._share)
        is_pseudo = np.diff(places) > 0
        drawn = self._draw(generator, int(is_pseudo.sum()))
        partners = generator.permutation(drawn)
        chance = generator.random((len(drawn), self._windows.numbers))
        pseudo = iter(zip(drawn, partners, chance, strict=True))
        windows = iter(self._windows)
        for takes_pseudo in is_pseudo.tolist():
            if not takes_pseudo:
                draw = next(windows, None)
                if draw is None:
                    return
                yield draw
                continue
            row, partner, numbers = next(pseudo)
            yield WindowDraw(*self._place(row), *self._place(partner), numbers)

    def _draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        calls = round(self._call_share * number)
        rows = [np.zeros(0, dtype=np.int64)]
        if calls and self._draws is not None:
            rows.append(self._row_of_item[self._draws.draw(generator, calls)])
        if number > calls:
            rows.append(generator.choice(self._empty, number - calls))
        return generator.permutation(np.concatenate(rows))

    def _place(self, row: int) -> tuple[int, int]:
        return int(self._pseudo.recording[row]) + self._recordings, int(self._pseudo.start[row])


def count_sure(pseudo: PseudoLabels, classes: Sequence[str]) -> dict[str, int]:
    """Number of windows with each species, by eBird code, without those that are in none."""
    counts = (pseudo.labels == 1).sum(axis=0)
    return {code: int(count) for code, count in zip(classes, counts, strict=True) if count}
