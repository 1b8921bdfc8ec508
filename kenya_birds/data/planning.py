"""Plans of clips and no-call windows: sample positions and labels, without reading audio."""

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive

PLAN_COLUMNS = ["recording", "center_s", "start", "species", "label", "labels", "unknown", "weak"]


# A box is in a window if they overlap by this share of the shorter of the two.
MIN_OVERLAP = 0.5
NO_ROWS = np.zeros(0, dtype=np.intp)


def least_overlap(length: np.ndarray | float, window: np.ndarray | float, min_overlap: int = 0) -> np.ndarray:
    """Returns the shortest overlap with which a box is in a window.

    Args:
        length: Length of each box.
        window: Length of the window, or of each one.
        min_overlap: Wanted overlap, or the whole box if it is shorter; 0: half of the shorter of box and window.
    """
    return np.minimum(length, min_overlap) if min_overlap else MIN_OVERLAP * np.minimum(length, window)


def plan_clips(
    archive: Archive,
    classes: list[str],
    sampling_rate: int,
    clip_s: float,
    edge_tolerance_s: float = 0.0,
    min_overlap_s: float = 0.0,
) -> pd.DataFrame:
    """Plans one window around each annotation, and several side by side in a call of two windows or more.

    An annotation with equal start and end is a point, and is in a window if the point is. Other annotations are boxes,
    and are in a window if they overlap enough. The annotation of the window itself always counts.

    Args:
        archive: The archive.
        classes: eBird codes; the index is the class id. Annotations of other species are skipped.
        sampling_rate: Sampling rate in Hz of the positions.
        clip_s: Length of a window in seconds.
        edge_tolerance_s: Points up to this many seconds outside the window count as inside; negative values exclude
            points near the edges.
        min_overlap_s: Shortest overlap in seconds of a box and a window, or the whole box if it is shorter; 0: half of
            the shorter of the two.

    Returns:
        Sorted by `recording` and `center_s`: `recording`, `center_s` (of the annotation, or of a part of a long call),
        `start` (first sample, may be negative), `species` (eBird code), `label` (class id), `labels` (sorted class ids
        of all annotations in the window), `unknown` (whether an unknown bird may be in it, as in every recording with
        checked detections), `weak` (whether the annotations of its recording are).
    """
    class_id = {code: index for index, code in enumerate(classes)}
    calls = archive.annotations[archive.annotations["species"].isin(class_id)]
    clips = _parts_of_long_calls(calls, clip_s)
    clips = clips.sort_values(["recording", "center_s"], kind="stable").reset_index(drop=True)
    samples, tolerance = round(clip_s * sampling_rate), round(edge_tolerance_s * sampling_rate)
    center = _samples(clips["center_s"], sampling_rate)
    clips = clips.assign(start=center - samples // 2, label=clips["species"].map(class_id))
    calls_of, unknown_of = calls.groupby("recording"), archive.unknown.groupby("recording")
    overlap = round(min_overlap_s * sampling_rate)
    labels: list[list[int]] = []
    unknown: list[bool] = []
    for recording, rows in clips.groupby("recording"):
        first = rows["start"].to_numpy()
        there = _Annotated(calls_of.get_group(recording), sampling_rate)
        ids = calls_of.get_group(recording)["species"].map(class_id).to_numpy()
        # The call may be anywhere in the box of a checked detection: the window must hold all of it.
        needed = samples if recording in archive.verified else overlap
        inside = there.in_windows(first, samples, tolerance, needed)
        own = rows["label"].to_numpy()
        labels += [sorted({*ids[found].tolist(), int(label)}) for found, label in zip(inside, own, strict=True)]
        if recording in archive.verified:
            unknown += [True] * len(rows)
        elif recording in unknown_of.groups:
            birds = _Annotated(unknown_of.get_group(recording), sampling_rate)
            unknown += [len(found) > 0 for found in birds.in_windows(first, samples, tolerance, 1)]
        else:
            unknown += [False] * len(rows)
    clips["labels"] = pd.Series(labels, dtype=object)
    clips["unknown"] = pd.Series(unknown, dtype=bool)
    clips["weak"] = clips["recording"].isin(archive.weak)
    return clips[PLAN_COLUMNS]


def _parts_of_long_calls(calls: pd.DataFrame, clip_s: float) -> pd.DataFrame:
    """Returns the calls with the centre of each window: those of two windows or more are repeated."""
    duration_s = (calls["end_s"] - calls["start_s"]).to_numpy()
    # A part of a call is never shorter than a window.
    number = np.maximum(np.floor(duration_s / clip_s + 1e-9).astype(int), 1)
    if (number == 1).all():
        return calls
    repeated = calls.loc[calls.index.repeat(number)]
    part = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    of_parts = repeated["start_s"] + (part + 0.5) * np.repeat(duration_s / number, number)
    return repeated.assign(center_s=repeated["center_s"].where(np.repeat(number == 1, number), of_parts))


class _Annotated:
    """Annotations of one recording, in samples.

    Args:
        rows: `start_s`, `end_s` and `center_s`.
        sampling_rate: In Hz.
    """

    def __init__(self, rows: pd.DataFrame, sampling_rate: int) -> None:
        self._begin, self._end, self._center = (
            _samples(rows[name], sampling_rate) for name in ("start_s", "end_s", "center_s")
        )
        self._is_point = (rows["start_s"] == rows["end_s"]).to_numpy()
        self._points = np.flatnonzero(self._is_point)
        self._points = self._points[self._center[self._points].argsort(kind="stable")]
        self._boxes = np.flatnonzero(~self._is_point)
        self._boxes = self._boxes[self._begin[self._boxes].argsort(kind="stable")]
        self._longest = int((self._end - self._begin).max(initial=0))

    def in_windows(self, first: np.ndarray, samples: int, tolerance: int, overlap: int) -> list[np.ndarray]:
        """Returns the rows in each window.

        Args:
            first: First sample of each window.
            samples: Length of a window.
            tolerance: Distance from a window up to which points count.
            overlap: Shortest overlap of a box; 0: half of the shorter of box and window.
        """
        at, begin = self._center[self._points], self._begin[self._boxes]
        low, high = at.searchsorted(first - tolerance), at.searchsorted(first + samples + tolerance)
        from_, until = begin.searchsorted(first - self._longest), begin.searchsorted(first + samples)
        return [
            np.concatenate([self._points[i:j], self._overlapping(self._boxes[k:m], start, samples, overlap)])
            for start, i, j, k, m in zip(first, low, high, from_, until, strict=True)
        ]

    def _overlapping(self, boxes: np.ndarray, first: int, samples: int, overlap: int) -> np.ndarray:
        begin, end = self._begin[boxes], self._end[boxes]
        shared = np.minimum(end, first + samples) - np.maximum(begin, first)
        return boxes[(shared > 0) & (shared >= least_overlap(end - begin, samples, overlap))]


class AnnotatedTimes:
    """Begin and end of all annotations, by recording.

    Args:
        archive: The archive.
    """

    def __init__(self, archive: Archive) -> None:
        columns = ["recording", "start_s", "end_s", "center_s"]
        every = pd.concat([archive.annotations[columns], archive.unknown[columns]])
        is_point = every["start_s"] == every["end_s"]
        times = {name: every[name].where(~is_point, every["center_s"]) for name in ("start_s", "end_s")}
        self._every = every.assign(**times)
        self._rows = every.groupby("recording").indices

    def of(self, recording: str) -> pd.DataFrame:
        """Returns `start_s` and `end_s` of the annotations of a recording, in order of their start."""
        return self._every.iloc[self._rows.get(recording, NO_ROWS)].sort_values("start_s", kind="stable")


def plan_no_call(
    archive: Archive,
    recordings: list[str],
    sampling_rate: int,
    clip_s: float,
    margin_s: float,
    annotated: AnnotatedTimes | None = None,
) -> pd.DataFrame:
    """Plans windows without annotations: as many as fit side by side, in the middle of each gap.

    A gap is the time between two neighbouring annotations, or between an annotation and an end of the recording,
    without a margin of `margin_s` at each annotation. A box lasts from its start to its end. Annotations of rare
    species and unknown birds count too.

    Args:
        archive: The archive.
        recordings: File names of the recordings; those with weak annotations or checked detections have none.
        sampling_rate: Sampling rate in Hz of the positions.
        clip_s: Length of a window in seconds.
        margin_s: Smallest time between a window and any annotation, in seconds.
        annotated: Of the archive; for many calls of this function.

    Returns:
        The columns of `plan_clips`, in order of time; `species` is empty, `label` is -1 and `labels` is empty.
    """
    samples, margin = round(clip_s * sampling_rate), round(margin_s * sampling_rate)
    annotated = annotated or AnnotatedTimes(archive)
    rows = []
    for recording in sorted(set(recordings) - archive.partial):
        end = int(archive.headers[recording].duration_s * sampling_rate)
        there = annotated.of(recording)
        ends = np.maximum.accumulate(_samples(there["end_s"], sampling_rate))
        first = np.concatenate([[0], ends + margin])
        last = np.concatenate([_samples(there["start_s"], sampling_rate) - margin, [end]])
        for begin, until in zip(first, last, strict=True):
            number = max(until - begin, 0) // samples
            offset = begin + (until - begin - number * samples) // 2
            rows += [(recording, offset + index * samples) for index in range(number)]
    windows = pd.DataFrame(rows, columns=["recording", "start"]).astype({"start": "int64"})
    windows = windows.assign(
        center_s=(windows["start"] + samples // 2) / sampling_rate, species="", label=-1, unknown=False, weak=False
    )
    windows["labels"] = pd.Series([[] for _ in rows], dtype=object)
    return windows[PLAN_COLUMNS]


def _samples(times_s: pd.Series, sampling_rate: int) -> np.ndarray:
    return (times_s * sampling_rate).round().astype("int64").to_numpy()
