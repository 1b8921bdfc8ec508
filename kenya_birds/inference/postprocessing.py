"""From the scores of consecutive windows to detections, as a stream."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from kenya_birds.errors import UserError
from kenya_birds.inference.detections import Detection
from kenya_birds.values import Count, Odd, Range, Seconds, Share, check_fields


@dataclass(frozen=True)
class FindingSettings:
    """What counts as a detection.

    Attributes:
        threshold: From what score on a species is reported; None: from its own threshold on, which the model brings,
            and not at all where the model abstains.
        min_confidence: Least score besides; what is below it is not reported whatever its threshold.
        top_k: Of those that would be reported in one window, at most so many, the highest scores; None: all.
        species: eBird codes; no other is reported. None: all.
        merge: Whether detections of a species that touch or overlap are joined to one.
        merge_gap_s: They are joined across so many seconds too.
        merge_score: Score of what was joined: `mean` or `max` of its windows'.
        smoothing: Scores are averaged over so many windows (odd), the window in their middle; fewer at a recording's
            ends and where windows do not follow on each other.

    Raises:
        UserError: If a value is out of range.
    """

    threshold: Share | None = None
    min_confidence: Share = 0.0
    top_k: Count | None = None
    species: tuple[str, ...] | None = None
    merge: bool = False
    merge_gap_s: Seconds = 0.0
    merge_score: Literal["mean", "max"] = "mean"
    smoothing: Annotated[int, Range(1), Odd()] = 1

    def __post_init__(self) -> None:
        """Checks the values."""
        check_fields(self)
        if self.species is not None and not self.species:
            raise UserError("species is empty: expected one or more, or None for all")
        if self.merge_gap_s and not self.merge:
            raise UserError(
                f"merge_gap_s is {self.merge_gap_s}, but nothing is joined: set merge too, or leave it out"
            )


@dataclass
class _Run:
    """Windows of one species that belong together so far."""

    species: int
    start: int
    end: int
    total: float
    highest: float
    windows: int


class DetectionFinder:
    """Finds the detections of one recording. How its windows are divided among calls never changes the result.

    Detections come in the order of their start, then from high to low score, then of their codes. So while a species
    goes on without a pause, joined detections that begin after it wait for its end; nothing else is kept but the
    windows that smoothing looks ahead.

    Args:
        recording: The recording, as it was found.
        classes: eBird codes by class id.
        thresholds: Shape `(classes,)`; infinite: abstain.
        settings: What counts as a detection.
        sample_rate_hz: Rate at which samples are counted.

    Raises:
        UserError: If `settings.species` has a code that is not one of the classes.
    """

    def __init__(
        self,
        recording: str,
        classes: list[str],
        thresholds: np.ndarray,
        settings: FindingSettings,
        sample_rate_hz: int,
    ) -> None:
        if np.shape(thresholds) != (len(classes),):
            raise ValueError(f"thresholds have the shape {np.shape(thresholds)}: expected ({len(classes)},)")
        self.recording = recording
        self.classes = classes
        self.settings = settings
        self.sample_rate_hz = sample_rate_hz
        self._least = _least_scores(classes, thresholds, settings)
        self._by_code = np.argsort(np.argsort(np.array(classes)))  # a class's place in the order of codes
        self._gap = round(settings.merge_gap_s * sample_rate_hz) if settings.merge else 0
        self._half = settings.smoothing // 2
        # Windows that smoothing still needs, and how many of them, at the front, are behind it already.
        self._starts = np.zeros(0, dtype=np.int64)
        self._ends = np.zeros(0, dtype=np.int64)
        self._scores = np.zeros((0, len(classes)), dtype=np.float64)
        self._behind = 0
        self._runs: dict[int, _Run] = {}
        self._waiting: list[tuple[int, float, int, Detection]] = []  # a heap in the order of output

    def add(self, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray) -> list[Detection]:
        """Takes the windows that follow.

        Args:
            starts: First samples, int64 of shape `(windows,)`, ascending, above those of earlier calls.
            ends: The samples after the last, int64 of shape `(windows,)`, never past the recording's end.
            scores: Calibrated probabilities, float32 of shape `(windows, classes)`.

        Returns:
            The detections that no later window can change or precede.

        Raises:
            ValueError: If the shapes do not fit, or windows are out of order.
        """
        if not len(starts) == len(ends) == len(scores) or scores.shape[1:] != (len(self.classes),):
            raise ValueError(f"{len(starts)} starts, {len(ends)} ends and scores of the shape {scores.shape}")
        # A window's end may stay where it is (the recording's), never go back.
        starts, ends = np.concatenate([self._starts, starts]), np.concatenate([self._ends, ends])
        if (np.diff(starts) <= 0).any() or (np.diff(ends) < 0).any() or (ends <= starts).any():
            raise ValueError("windows are empty or do not follow on each other in time")
        self._starts, self._ends = starts, ends
        self._scores = np.concatenate([self._scores, scores.astype(np.float64)])
        return self._advance(len(starts) - self._half)

    def finish(self) -> list[Detection]:
        """The detections that were still open at the recording's end."""
        found = self._advance(len(self._starts))
        for run in self._runs.values():
            self._close(run)
        self._runs.clear()
        return found + [heapq.heappop(self._waiting)[-1] for _ in range(len(self._waiting))]

    def _advance(self, until: int) -> list[Detection]:
        """Looks at the kept windows up to the one before `until`, and drops what is not needed any more."""
        if until <= self._behind:
            return []
        window = slice(self._behind, until)
        scores = self._smoothed(window)
        for start, end, row, hits in self._hits(window, scores):
            for label in hits:
                self._extend(label, start, end, float(row[label]))
        last = int(self._starts[until - 1])
        # One window stays at least: it is what the next ones are checked to follow on.
        dropped = max(until - max(self._half, 1), 0)
        self._behind = until - dropped
        self._starts, self._ends, self._scores = self._starts[dropped:], self._ends[dropped:], self._scores[dropped:]
        return list(self._ready(last))

    def _smoothed(self, window: slice) -> np.ndarray:
        """Mean scores of windows and those round them, shape `(windows, classes)`."""
        if not self._half:
            return self._scores[window]
        # Windows with sound missing between them are no neighbours.
        parts = np.concatenate([[0], np.cumsum(self._starts[1:] > self._ends[:-1])])
        total = np.zeros_like(self._scores[window])
        number = np.zeros((len(total), 1))
        at = np.arange(window.start, window.stop)
        # Always added in this order, so that the sum's last digits do not depend on the calls.
        for shift in range(-self._half, self._half + 1):
            other = np.clip(at + shift, 0, len(parts) - 1)
            counts = ((other == at + shift) & (parts[other] == parts[at]))[:, None]
            total += np.where(counts, self._scores[other], 0.0)
            number += counts
        return total / number

    def _hits(self, window: slice, scores: np.ndarray) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Start, end, scores and reported class ids of the windows in which something is reported."""
        reported = scores >= self._least
        for i in np.flatnonzero(reported.any(axis=1)):
            hits = np.flatnonzero(reported[i])
            if self.settings.top_k is not None:
                hits = hits[np.lexsort((self._by_code[hits], -scores[i, hits]))][: self.settings.top_k]
            at = window.start + i
            yield int(self._starts[at]), int(self._ends[at]), scores[i], hits

    def _extend(self, label: int, start: int, end: int, score: float) -> None:
        label = int(label)
        run = self._runs.get(label)
        if run is not None and self.settings.merge and start - run.end <= self._gap:
            run.end = end
            run.total += score
            run.highest = max(run.highest, score)
            run.windows += 1
            return
        if run is not None:
            self._close(run)
        self._runs[label] = _Run(label, start, end, score, score, 1)

    def _close(self, run: _Run) -> None:
        score = run.highest if self.settings.merge_score == "max" else run.total / run.windows
        code = self.classes[run.species]
        found = Detection(self.recording, run.start, run.end, self.sample_rate_hz, code, score)
        heapq.heappush(self._waiting, (run.start, -score, int(self._by_code[run.species]), found))

    def _ready(self, last: int) -> Iterator[Detection]:
        """Detections that precede all that may still come after a window that begins at `last`."""
        for label, run in list(self._runs.items()):
            if not self.settings.merge or last - run.end > self._gap:
                self._close(run)
                del self._runs[label]
        first_open = min((run.start for run in self._runs.values()), default=last + 1)
        while self._waiting and self._waiting[0][0] < first_open:
            yield heapq.heappop(self._waiting)[-1]


def _least_scores(classes: list[str], thresholds: np.ndarray, settings: FindingSettings) -> np.ndarray:
    """From what score on each class is reported, shape `(classes,)`; infinite: never."""
    least = np.array(thresholds, dtype=np.float64)
    if settings.threshold is not None:
        least[:] = settings.threshold
    least = np.maximum(least, settings.min_confidence)
    if settings.species is not None:
        unknown = sorted(set(settings.species) - set(classes))
        if unknown:
            raise UserError(f"the model does not know the species {', '.join(unknown)}: give eBird codes that it has")
        least[[code not in settings.species for code in classes]] = np.inf
    return least
