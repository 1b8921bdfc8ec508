"""Plans of clips and no-call windows: sample positions and labels, without reading audio."""

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive

PLAN_COLUMNS = ["recording", "center_s", "start", "species", "label", "labels", "unknown"]


def plan_clips(
    archive: Archive, classes: list[str], sampling_rate: int, clip_s: float, edge_tolerance_s: float = 0.0
) -> pd.DataFrame:
    """Plans one window around each annotation.

    Args:
        archive: The archive.
        classes: eBird codes; the index is the class id. Annotations of other species are skipped.
        sampling_rate: Sampling rate in Hz of the positions.
        clip_s: Length of a window in seconds.
        edge_tolerance_s: Annotations with their centre up to this many seconds outside the window count as inside;
            negative values exclude centres near the edges. The annotation of the window itself always counts.

    Returns:
        Sorted by `recording` and `center_s`: `recording`, `center_s`, `start` (first sample, may be negative),
        `species` (eBird code), `label` (class id), `labels` (sorted class ids of all annotations with their centre in
        the window), `unknown` (whether the centre of an unknown bird is in it).
    """
    class_id = {code: index for index, code in enumerate(classes)}
    clips = archive.annotations[archive.annotations["species"].isin(class_id)]
    clips = clips.sort_values(["recording", "center_s"], kind="stable").reset_index(drop=True)
    samples, tolerance = round(clip_s * sampling_rate), round(edge_tolerance_s * sampling_rate)
    center = _samples(clips["center_s"], sampling_rate)
    clips = clips.assign(start=center - samples // 2, label=clips["species"].map(class_id), center=center)
    unknown_centers = archive.unknown.groupby("recording")["center_s"]
    labels: list[list[int]] = []
    unknown: list[bool] = []
    for recording, rows in clips.groupby("recording"):
        first, last = rows["start"].to_numpy() - tolerance, rows["start"].to_numpy() + samples + tolerance
        centers, ids = rows["center"].to_numpy(), rows["label"].to_numpy()
        between = zip(centers.searchsorted(first), centers.searchsorted(last), ids, strict=True)
        labels += [sorted({int(label) for label in ids[i:j]} | {int(own)}) for i, j, own in between]
        if recording in unknown_centers.groups:
            others = np.sort(_samples(unknown_centers.get_group(recording), sampling_rate))
            unknown += (others.searchsorted(last) > others.searchsorted(first)).tolist()
        else:
            unknown += [False] * len(rows)
    clips["labels"] = pd.Series(labels, dtype=object)
    clips["unknown"] = pd.Series(unknown, dtype=bool)
    return clips[PLAN_COLUMNS]


def plan_no_call(
    archive: Archive, recordings: list[str], sampling_rate: int, clip_s: float, margin_s: float
) -> pd.DataFrame:
    """Plans windows without annotations: as many as fit side by side, in the middle of each gap.

    A gap is the time between two neighbouring annotations, or between an annotation and an end of the recording,
    without a margin of `margin_s` at each annotation. Annotations of rare species and unknown birds count too.

    Args:
        archive: The archive.
        recordings: File names of the recordings.
        sampling_rate: Sampling rate in Hz of the positions.
        clip_s: Length of a window in seconds.
        margin_s: Smallest time between a window and any annotation, in seconds.

    Returns:
        The columns of `plan_clips`, in order of time; `species` is empty, `label` is -1 and `labels` is empty.
    """
    samples, margin = round(clip_s * sampling_rate), round(margin_s * sampling_rate)
    every = pd.concat([archive.annotations[["recording", "center_s"]], archive.unknown])
    rows = []
    for recording in sorted(recordings):
        end = int(archive.headers[recording].duration_s * sampling_rate)
        centers = np.sort(_samples(every.loc[every["recording"] == recording, "center_s"], sampling_rate))
        first = np.concatenate([[0], centers + margin])
        last = np.concatenate([centers - margin, [end]])
        for begin, until in zip(first, last, strict=True):
            number = max(until - begin, 0) // samples
            offset = begin + (until - begin - number * samples) // 2
            rows += [(recording, offset + index * samples) for index in range(number)]
    windows = pd.DataFrame(rows, columns=["recording", "start"]).astype({"start": "int64"})
    windows = windows.assign(
        center_s=(windows["start"] + samples // 2) / sampling_rate, species="", label=-1, unknown=False
    )
    windows["labels"] = pd.Series([[] for _ in rows], dtype=object)
    return windows[PLAN_COLUMNS]


def _samples(times_s: pd.Series, sampling_rate: int) -> np.ndarray:
    return (times_s * sampling_rate).round().astype("int64").to_numpy()
