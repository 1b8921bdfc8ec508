"""Post-processing of the scores of consecutive windows into detections, as a stream."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kenya_birds.errors import UserError
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.finding_settings import FindingSettings


@dataclass
class _Run:
    """Current sequence of merged windows of one species."""

    species: int
    start: int
    end: int
    total: float
    highest: float
    windows: int
    novelty: float


class DetectionFinder:
    """Finder of the detections of one recording; the result does not depend on how windows are divided among calls.

    Detections are returned in the order of their start, then from high to low score, then by code. While a merged
    detection is open, later detections wait for its end. Only these and the windows needed for smoothing are kept in
    memory.

    Args:
        recording: Path or URL of the recording.
        classes: eBird codes by class id.
        thresholds: Decision thresholds, shape `(classes,)`; infinite: never reported.
        settings: Settings of detections.
        sample_rate_hz: Sampling rate in which samples are counted.

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
        self._by_code = np.argsort(np.argsort(np.array(classes)))  # rank of each class in the order of codes
        self._gap = round(settings.merge_gap_s * sample_rate_hz) if settings.merge else 0
        self._half = settings.smoothing // 2
        # Windows that smoothing still needs; the first `_behind` of them are finished.
        self._starts = np.zeros(0, dtype=np.int64)
        self._ends = np.zeros(0, dtype=np.int64)
        self._scores = np.zeros((0, len(classes)), dtype=np.float64)
        self._novelty = np.zeros(0)
        self._behind = 0
        self._runs: dict[int, _Run] = {}
        self._waiting: list[tuple[int, float, int, Detection]] = []  # a heap in the order of output

    def add(
        self, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, novelty: np.ndarray | None = None
    ) -> list[Detection]:
        """Adds the next windows.

        Args:
            starts: First samples, int64 of shape `(windows,)`, ascending, above those of earlier calls.
            ends: The samples after the last ones, int64 of shape `(windows,)`, never past the recording's end.
            scores: Calibrated probabilities, float32 of shape `(windows, classes)`.
            novelty: Novelty of the windows, shape `(windows,)`; None: not computed.

        Returns:
            The detections that later windows cannot change or precede.

        Raises:
            ValueError: If the shapes do not match, or windows are out of order.
        """
        novelty = np.full(len(starts), np.nan) if novelty is None else novelty
        if not len(starts) == len(ends) == len(scores) == len(novelty) or scores.shape[1:] != (len(self.classes),):
            raise ValueError(f"{len(starts)} starts, {len(ends)} ends and scores of the shape {scores.shape}")
        # Consecutive windows may have the same end (that of the recording).
        starts, ends = np.concatenate([self._starts, starts]), np.concatenate([self._ends, ends])
        if (np.diff(starts) <= 0).any() or (np.diff(ends) < 0).any() or (ends <= starts).any():
            raise ValueError("windows are empty or out of order")
        self._starts, self._ends = starts, ends
        self._scores = np.concatenate([self._scores, scores.astype(np.float64)])
        self._novelty = np.concatenate([self._novelty, novelty])
        return self._advance(len(starts) - self._half)

    def finish(self) -> list[Detection]:
        """Returns the detections that are open at the recording's end."""
        found = self._advance(len(self._starts))
        for run in self._runs.values():
            self._close(run)
        self._runs.clear()
        return found + [heapq.heappop(self._waiting)[-1] for _ in range(len(self._waiting))]

    def _advance(self, until: int) -> list[Detection]:
        """Processes the stored windows before `until`, and drops windows that are no longer needed."""
        if until <= self._behind:
            return []
        window = slice(self._behind, until)
        scores = self._smoothed(window)
        for at, row, hits in self._hits(window, scores):
            for label in hits:
                self._extend(int(label), at, float(row[label]))
        last = int(self._starts[until - 1])
        # At least one window remains, for the check of the order.
        dropped = max(until - max(self._half, 1), 0)
        self._behind = until - dropped
        self._starts, self._ends, self._scores = self._starts[dropped:], self._ends[dropped:], self._scores[dropped:]
        self._novelty = self._novelty[dropped:]
        return list(self._ready(last))

    def _smoothed(self, window: slice) -> np.ndarray:
        """Returns the moving average of scores, shape `(windows, classes)`."""
        if not self._half:
            return self._scores[window]
        # Windows are not averaged across gaps.
        parts = np.concatenate([[0], np.cumsum(self._starts[1:] > self._ends[:-1])])
        total = np.zeros_like(self._scores[window])
        number = np.zeros((len(total), 1))
        at = np.arange(window.start, window.stop)
        # The fixed order of additions makes the sum independent of the calls.
        for shift in range(-self._half, self._half + 1):
            other = np.clip(at + shift, 0, len(parts) - 1)
            counts = ((other == at + shift) & (parts[other] == parts[at]))[:, None]
            total += np.where(counts, self._scores[other], 0.0)
            number += counts
        return total / number

    def _hits(self, window: slice, scores: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields index, scores and reported class ids of windows with detections."""
        reported = scores >= self._least
        for i in np.flatnonzero(reported.any(axis=1)):
            hits = np.flatnonzero(reported[i])
            if self.settings.top_k is not None:
                hits = hits[np.lexsort((self._by_code[hits], -scores[i, hits]))][: self.settings.top_k]
            yield window.start + int(i), scores[i], hits

    def _extend(self, label: int, at: int, score: float) -> None:
        start, end, novelty = int(self._starts[at]), int(self._ends[at]), float(self._novelty[at])
        run = self._runs.get(label)
        if run is not None and self.settings.merge and start - run.end <= self._gap:
            run.end = end
            run.total += score
            if score > run.highest:
                run.highest, run.novelty = score, novelty
            run.windows += 1
            return
        if run is not None:
            self._close(run)
        self._runs[label] = _Run(label, start, end, score, score, 1, novelty)

    def _close(self, run: _Run) -> None:
        score = run.highest if self.settings.merge_score == "max" else run.total / run.windows
        code = self.classes[run.species]
        novelty = None if np.isnan(run.novelty) else run.novelty
        found = Detection(self.recording, run.start, run.end, self.sample_rate_hz, code, score, novelty)
        heapq.heappush(self._waiting, (run.start, -score, int(self._by_code[run.species]), found))

    def _ready(self, last: int) -> Iterator[Detection]:
        """Yields the detections that no detection after a window at `last` can precede."""
        for label, run in list(self._runs.items()):
            if not self.settings.merge or last - run.end > self._gap:
                self._close(run)
                del self._runs[label]
        first_open = min((run.start for run in self._runs.values()), default=last + 1)
        while self._waiting and self._waiting[0][0] < first_open:
            yield heapq.heappop(self._waiting)[-1]


def _least_scores(classes: list[str], thresholds: np.ndarray, settings: FindingSettings) -> np.ndarray:
    """Returns the lowest reported score of each class, shape `(classes,)`; infinite: never reported."""
    least = np.array(thresholds, dtype=np.float64)
    if settings.threshold is not None:
        least[:] = settings.threshold
    least = np.maximum(least, settings.min_confidence)
    if settings.species is not None:
        chosen = set(settings.species)
        unknown = sorted(chosen - set(classes))
        if unknown:
            raise UserError(f"the model has no species {', '.join(unknown)}: give eBird codes of its species")
        least[[code not in chosen for code in classes]] = np.inf
    return least
