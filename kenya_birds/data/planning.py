"""Plans which windows are cut from an archive, by sample index and with which labels; no audio is read."""

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive

PLAN_COLUMNS = ["recording", "center_s", "start", "species", "label", "labels", "unknown"]


def plan_clips(
    archive: Archive, classes: list[str], sampling_rate: int, clip_s: float, edge_tolerance_s: float = 0.0
) -> pd.DataFrame:
    """Plans one window round each annotation.

    Args:
        archive: The archive.
        classes: eBird codes; the index is the class id. Annotations of other species are left out.
        sampling_rate: Rate in Hz of the grid on which windows lie.
        clip_s: Length of a window in seconds.
        edge_tolerance_s: How far outside the window a centre may lie and still count as in it; negative values leave
            out those near its edges. The annotation that the window is cut for always counts.

    Returns:
        Sorted by `recording` and `center_s`: `recording`, `center_s`, `start` (first sample, may be negative),
        `species` (eBird code), `label` (class id), `labels` (sorted class ids of what is centred in the window),
        `unknown` (whether an unknown bird is centred in it).
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
    """Plans windows in which nothing is annotated: as many as fit side by side, in the middle of each gap.

    A gap lies between neighbouring annotations, of species of any number and of unknown birds, `margin_s` away from
    both; or between one of them and an end of the recording.

    Args:
        archive: The archive.
        recordings: File names of the recordings to look in.
        sampling_rate: Rate in Hz of the grid on which windows lie.
        clip_s: Length of a window in seconds.
        margin_s: Least time between a window and any annotation.

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
