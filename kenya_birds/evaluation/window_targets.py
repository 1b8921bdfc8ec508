"""Multi-label targets of windows at any position in annotated recordings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kenya_birds.data.archive import ABSENT_COLUMNS
from kenya_birds.data.planning import least_overlap
from kenya_birds.evaluation.metrics import MASKED

DEFAULT_EDGE_MARGIN_S = 0.25


@dataclass(frozen=True)
class WindowTargets:
    """Computes the multi-label targets of windows. All times are in samples, so that comparisons are exact.

    A call that is a point in time is present in a window if the point is inside and at least `margin` away from both
    edges. It is absent if the point is outside and at least `margin` away. Otherwise it is unknown. A call with a
    start and an end is present if it overlaps the window by `min_overlap` or is wholly inside (with 0: by half of the
    shorter of call and window), absent if they do not overlap, and otherwise unknown. If an unidentified bird is in a
    window or near its edge, every class that is not present is unknown. In a recording with weak annotations, which
    are only where it has signal, every class is unknown in a window without a class that is present.

    In a recording with checked detections, the call may lie anywhere in the box of a detection, and nothing else is
    known. A class is present in a window that overlaps the box of a right detection by all but `margin` of the shorter
    of the two. It is absent if boxes of wrong detections, joined where they meet, cover all but `margin` of the window
    and no box of a right one touches it. Otherwise it is unknown.

    Attributes:
        recordings: Names; windows are given by the index.
        classes: eBird codes; the index is the class id.
        window: Length of a window in samples.
        margin: Edge margin in samples.
        sampling_rate: In Hz.
        offset: Position of each recording on a common axis, on which recordings are far apart.
        start: First sample of each annotation on that axis, sorted.
        end: The sample of its end, equal to `start` for a point in time.
        label: Class id; `OTHER` for a species that is not a class, `UNKNOWN` for an unidentified bird.
        longest: Length of the longest annotation in samples.
        min_overlap: Shortest overlap of a call with start and end and a window in samples; 0: half of the shorter.
        weak: Whether the annotations of each recording are weak, shape `(recordings,)`; None: no recording has such.
        verified: Whether each recording has checked detections, same shape; None: none has.
        absent: Spans of wrong detections of each class, joined: `(class id, first sample, end)` on the common axis,
            sorted, shape `(spans, 3)`.
    """

    recordings: tuple[str, ...]
    classes: tuple[str, ...]
    window: int
    margin: int
    sampling_rate: int
    offset: np.ndarray
    start: np.ndarray
    end: np.ndarray
    label: np.ndarray
    longest: int
    min_overlap: int = 0
    weak: np.ndarray | None = None
    verified: np.ndarray | None = None
    absent: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))

    OTHER = -1
    UNKNOWN = -2

    @classmethod
    def of(
        cls,
        calls: pd.DataFrame,
        unknown: pd.DataFrame,
        lengths: Mapping[str, int],
        classes: Sequence[str],
        *,
        sampling_rate: int,
        window: int,
        margin_s: float = DEFAULT_EDGE_MARGIN_S,
        min_overlap_s: float = 0.0,
        weak: Collection[str] = (),
        verified: Collection[str] = (),
        absent: pd.DataFrame | None = None,
    ) -> "WindowTargets":
        """Sorts the annotations of some recordings.

        Args:
            calls: `recording`, `species`, `start_s` and `end_s`; a call is a point in time where both are equal.
            unknown: `recording`, `start_s` and `end_s` of unidentified birds.
            lengths: Length of each recording in samples; annotations of other recordings are not used.
            classes: eBird codes. Calls of other species are absent classes, but their windows are not empty.
            sampling_rate: In Hz.
            window: Length of a window in samples.
            margin_s: Edge margin in seconds.
            min_overlap_s: `min_overlap` in seconds.
            weak: Recordings with weak annotations.
            verified: Recordings with checked detections.
            absent: `recording`, `species`, `start_s` and `end_s` of their wrong detections.

        Raises:
            ValueError: If the margin is negative, or twice the margin is not shorter than a window.
        """
        margin = round(margin_s * sampling_rate)
        if not 0 <= 2 * margin < window:
            raise ValueError(f"margin_s is {margin_s}: expected 0 or more, and less than half a window")
        class_id = {code: index for index, code in enumerate(classes)}
        label = [class_id.get(code, cls.OTHER) for code in calls["species"]] + [cls.UNKNOWN] * len(unknown)
        columns = ["recording", "start_s", "end_s"]
        every = pd.concat([calls[columns], unknown[columns]], ignore_index=True).assign(label=label)
        every = every[every["recording"].isin(lengths)]
        start, end = (
            (every[name] * sampling_rate).round().astype("int64").to_numpy() for name in ("start_s", "end_s")
        )
        longest = int((end - start).max(initial=0))
        absent = pd.DataFrame(columns=ABSENT_COLUMNS) if absent is None else absent
        absent = absent[absent["recording"].isin(lengths) & absent["species"].isin(class_id)]
        spaced = np.array(list(lengths.values()), dtype=np.int64) + 2 * (window + margin + longest + 1)
        offset = np.concatenate([[0], np.cumsum(spaced)[:-1]]) if len(spaced) else np.zeros(0, dtype=np.int64)
        number = {name: index for index, name in enumerate(lengths)}
        place = offset[[number[name] for name in every["recording"]]] if len(every) else start
        order = np.argsort(place + start, kind="stable")
        return cls(
            tuple(lengths),
            tuple(classes),
            window,
            margin,
            sampling_rate,
            offset.astype(np.int64),
            (place + start)[order],
            (place + end)[order],
            every["label"].to_numpy(dtype=np.int64)[order],
            longest,
            round(min_overlap_s * sampling_rate),
            np.array([name in weak for name in lengths], dtype=bool) if weak else None,
            np.array([name in verified for name in lengths], dtype=bool) if verified else None,
            _joined(
                absent["species"].map(class_id).to_numpy(dtype=np.int64),
                offset[[number[name] for name in absent["recording"]]] if len(absent) else np.zeros(0, dtype=np.int64),
                (absent[["start_s", "end_s"]].astype(float) * sampling_rate).round().to_numpy(dtype=np.int64),
            ),
        )

    def __call__(self, recording: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Targets of windows.

        Args:
            recording: Index of each window's recording, shape `(windows,)`.
            start: First sample of each window, shape `(windows,)`.

        Returns:
            int64 of shape `(windows, classes)`: 1 present, 0 absent, -100 unknown.
        """
        targets = np.zeros((len(start), len(self.classes)), dtype=np.int64)
        window, event, is_present = self._touching(recording, start)
        label = self.label[event]
        targets[window[label == self.UNKNOWN]] = MASKED
        for state, rows in ((MASKED, ~is_present & (label >= 0)), (1, is_present & (label >= 0))):
            targets[window[rows], label[rows]] = state
        if self.weak is not None:
            targets[self.weak[recording] & ~(targets == 1).any(axis=1)] = MASKED
        if self.verified is not None:
            rows = np.flatnonzero(self.verified[recording])
            is_unknown = (targets[rows] == 0) & ~self._is_absent(recording[rows], np.asarray(start)[rows])
            targets[rows] = np.where(is_unknown, MASKED, targets[rows])
        return targets

    def _is_absent(self, recording: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Whether wrong detections cover all but the margin of windows, shape `(windows, classes)`."""
        found = np.zeros((len(start), len(self.classes)), dtype=bool)
        first = np.asarray(start, dtype=np.int64) + self.offset[recording]
        for label in np.unique(self.absent[:, 0]):
            begin, end = self.absent[self.absent[:, 0] == label, 1:].T
            # Spans are apart, so a span that covers the window is the last one that begins before this.
            span = begin.searchsorted(first + self.margin, side="right") - 1
            covered = np.minimum(end[span], first + self.window) - np.maximum(begin[span], first)
            found[:, label] = (span >= 0) & (covered >= self.window - self.margin)
        return found

    def is_empty(self, recording: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Whether it is known that nothing is in a window or within the margin of its edges, shape `(windows,)`."""
        empty = np.ones(len(start), dtype=bool)
        empty[self._touching(recording, start)[0]] = False
        return empty & ~self._partial[recording]

    def has_other(self, recording: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Whether a species that is not a class calls in windows, shape `(windows,)`."""
        found = np.zeros(len(start), dtype=bool)
        window, event, is_present = self._touching(recording, start)
        found[window[is_present & (self.label[event] == self.OTHER)]] = True
        return found

    def is_partial(self, place: np.ndarray) -> np.ndarray:
        """Whether positions on the common axis are in recordings with weak annotations or checked detections.

        Args:
            place: The positions.

        Returns:
            Same shape.
        """
        return self._partial[self.offset.searchsorted(place, side="right") - 1]

    @property
    def _partial(self) -> np.ndarray:
        none = np.zeros(len(self.recordings), dtype=bool)
        return none | (none if self.weak is None else self.weak) | (none if self.verified is None else self.verified)

    def _touching(self, recording: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of a window and an annotation that is not absent from it, and whether it is present."""
        first = np.asarray(start, dtype=np.int64) + self.offset[recording]
        last = first + self.window
        low = self.start.searchsorted(first - self.margin - self.longest, side="left")
        high = self.start.searchsorted(last + self.margin, side="left")
        number = np.maximum(high - low, 0)
        window = np.repeat(np.arange(len(first)), number)
        event = np.arange(number.sum()) + np.repeat(low - np.concatenate([[0], np.cumsum(number)[:-1]]), number)
        begin, end = self.start[event], self.end[event]
        length, first, last = end - begin, first[window], last[window]
        is_point = length == 0
        overlap = np.minimum(end, last) - np.maximum(begin, first)
        touches = np.where(is_point, (begin >= first - self.margin) & (begin < last + self.margin), overlap > 0)
        needed = least_overlap(length, self.window, self.min_overlap)
        if self.verified is not None:
            whole = np.minimum(length, self.window) - self.margin
            needed = np.where(self.verified[recording[window]], whole, needed)
        inside = np.where(is_point, (begin >= first + self.margin) & (begin < last - self.margin), overlap >= needed)
        return window[touches], event[touches], (inside & touches)[touches]


def _joined(label: np.ndarray, offset: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Spans on the common axis, those of a class joined where they meet: `(class id, first sample, end)`, sorted."""
    found: list[list[int]] = []
    rows = np.column_stack([label, spans + offset[:, None]])
    for one, begin, end in rows[np.lexsort((rows[:, 1], rows[:, 0]))].tolist():
        if found and found[-1][0] == one and begin <= found[-1][2]:
            found[-1][2] = max(found[-1][2], end)
        else:
            found.append([one, begin, end])
    return np.array(found, dtype=np.int64).reshape(-1, 3)
