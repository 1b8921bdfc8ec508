"""Adjacent windows of recordings: what is annotated and what is detected in each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.planning import least_overlap
from kenya_birds.evaluation.intervals import weighted_ranking_by_class
from kenya_birds.evaluation.metrics import MASKED

# Differences of decimal times are rounded: 3.3 s - 1.8 s is less than 1.5 s.
ROUNDING_S = 1e-9
SPAN = ("recording", "start_s", "end_s")


@dataclass(frozen=True)
class Truth:
    """Annotations of the recordings on which detections are scored.

    Attributes:
        durations_s: Length in seconds of every scored recording, by name.
        classes: Codes of the scored species.
        calls: `recording`, `species`, `start_s`, `end_s`; a call is a point in time where both are equal.
        unknown: `recording`, `start_s`, `end_s` of unidentified birds.
    """

    durations_s: dict[str, float]
    classes: list[str]
    calls: pd.DataFrame
    unknown: pd.DataFrame


class EventWindows:
    """Adjacent windows of all recordings: the annotations in each, and the highest score of each class.

    Args:
        detections: `recording`, `species`, `start_s`, `end_s`, `score`; recordings and species are those of `truth`.
        truth: The annotations.
        window_s: Length of a window in seconds; a remainder of a recording that is shorter is no window.
        tolerance_s: A window whose edge is this near to a call is not scored.
    """

    def __init__(self, detections: pd.DataFrame, truth: Truth, window_s: float, tolerance_s: float) -> None:
        labels = {code: number for number, code in enumerate(truth.classes)}
        counts = [int(duration_s / window_s + 1e-9) for duration_s in truth.durations_s.values()]
        self._group = np.repeat(np.arange(len(counts)), counts)
        first = dict(zip(truth.durations_s, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
        number = dict(zip(truth.durations_s, counts, strict=True))

        def scores() -> Iterator[tuple[int, int, float]]:
            for recording, start_s, end_s, species, score in _rows(detections, *SPAN, "species", "score"):
                for window in _overlapped(start_s, end_s, window_s, number[recording]):
                    yield labels[species], first[recording] + window, score

        def targets() -> Iterator[tuple[int, int, float]]:
            for recording, start_s, end_s, species in _rows(truth.calls, *SPAN, "species"):
                inside, near = _holding(start_s, end_s, window_s, number[recording], tolerance_s)
                for windows, target in ((inside, 1), (near, MASKED)):
                    yield from ((labels[species], first[recording] + window, target) for window in windows)

        self._scores, self._targets = _Cells(scores(), len(labels)), _Cells(targets(), len(labels))
        self._unknown = np.zeros(sum(counts), dtype=np.int8)
        for recording, start_s, end_s in _rows(truth.unknown, *SPAN):
            inside, near = _holding(start_s, end_s, window_s, number[recording], tolerance_s)
            self._unknown[first[recording] + np.concatenate([inside, near])] = MASKED
        is_empty, is_named = self._unknown == 0, np.zeros(sum(counts), dtype=bool)
        is_empty[self._targets.windows], is_named[self._scores.windows] = False, True
        self._empty = np.bincount(self._group[is_empty], minlength=len(counts))
        self._named = np.bincount(self._group[is_empty & is_named], minlength=len(counts))

    def ranking(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision and AUROC of each class, both of shape `(resamples, classes)`."""

        def column(label: int) -> tuple[np.ndarray, np.ndarray]:
            none = np.zeros(len(self._group), dtype=np.float32)
            return self._scores.written_to(none, label), self._targets.written_to(self._unknown.copy(), label)

        with np.errstate(invalid="ignore", divide="ignore"):
            return weighted_ranking_by_class(column, self._scores.classes, self._group, weights.astype(np.float64))

    def named_empty(self, weights: np.ndarray) -> np.ndarray:
        """Share of the windows without a call in which something is detected, shape `(resamples,)`."""
        return (weights @ self._named) / (weights @ self._empty)


class _Cells:
    """Values of some windows and classes; of several values the highest counts. All pairs may need too much memory.

    Args:
        cells: Class, window and value.
        classes: Number of classes.

    Attributes:
        classes: Number of classes.
        windows: Window of each value.
    """

    def __init__(self, cells: Iterable[tuple[int, int, float]], classes: int) -> None:
        table = np.fromiter(cells, dtype=[("label", np.int32), ("window", np.int64), ("value", np.float32)])
        table = table[np.lexsort((table["value"], table["label"]))]
        self.classes = classes
        self.windows, self._values = table["window"].copy(), table["value"].copy()
        self._first = np.searchsorted(table["label"], np.arange(classes + 1))

    def written_to(self, column: np.ndarray, label: int) -> np.ndarray:
        """Returns the column, which has an element for each window, with the values of a class."""
        rows = slice(self._first[label], self._first[label + 1])
        column[self.windows[rows]] = self._values[rows]
        return column


def _rows(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    return table[list(columns)].itertuples(index=False, name=None)


def _overlapped(start_s: float, end_s: float, window_s: float, windows: int) -> list[int]:
    """Windows that overlap a detection by half of the shorter of the two."""
    found = []
    for window in range(max(int(start_s / window_s), 0), min(int(end_s / window_s) + 1, windows)):
        overlap_s = min(end_s, (window + 1) * window_s) - max(start_s, window * window_s)
        if overlap_s > 0 and overlap_s >= least_overlap(end_s - start_s, window_s) - ROUNDING_S:
            found.append(window)
    return found


def _holding(
    start_s: float, end_s: float, window_s: float, windows: int, tolerance_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Windows that contain a call, and windows near it for which this is uncertain."""
    around = range(int((start_s - tolerance_s) / window_s) - 1, int((end_s + tolerance_s) / window_s) + 2)
    if end_s > start_s:
        inside = _overlapped(start_s, end_s, window_s, windows)
    else:
        inside = [window for window in (int(start_s / window_s),) if 0 <= window < windows]
    touched = [
        window
        for window in around
        if 0 <= window < windows
        and window not in inside
        and start_s < (window + 1) * window_s + tolerance_s
        and end_s > window * window_s - tolerance_s
    ]
    return np.array(inside, dtype=int), np.array(touched, dtype=int)
