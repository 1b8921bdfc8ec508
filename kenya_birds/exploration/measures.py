"""Measurements and tables for an archive's report."""

from collections.abc import Hashable, Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.archive import ANNOTATION_COLUMNS, ANNOTATIONS_FILE, BOX_COLUMNS, Archive
from kenya_birds.data.csv_table import read_table
from kenya_birds.data.recording_name import DAY_H, recorded_by_hour
from kenya_birds.data.recording_time import TimeAndPlace

MIN_DBFS = -120.0
MAX_BINS = 120


def frequency_thresholds(counts: pd.Series) -> tuple[int, int]:
    """Least number of annotations of the most frequent 1 % of species, and greatest number of the rarest 10 %.

    Args:
        counts: Annotations by species, not empty.
    """
    return int(counts.quantile(0.99, interpolation="higher")), int(counts.quantile(0.1, interpolation="lower"))


def spectral_range(sound: np.ndarray, sampling_rate: int) -> tuple[float, float, float]:
    """Spectral centroid and range of a short sound.

    Centroid and bandwidth are the mean and standard deviation of frequency, weighted by the magnitude of the spectrum
    (Hann window).

    Args:
        sound: Samples, shape `(samples,)`.
        sampling_rate: In Hz.

    Returns:
        Centroid minus half the bandwidth (at least 0), centroid, centroid plus half the bandwidth, in Hz; NaN if the
        sound is silent.
    """
    sound = sound.astype(np.float64)
    magnitude = np.abs(np.fft.rfft((sound - sound.mean()) * np.hanning(len(sound))))
    total = magnitude.sum()
    if total < 1e-9:
        return (np.nan, np.nan, np.nan)
    frequency_hz = np.fft.rfftfreq(len(sound), 1 / sampling_rate)
    centroid = float(magnitude @ frequency_hz / total)
    bandwidth = float(np.sqrt(magnitude @ np.square(frequency_hz - centroid) / total))
    return (max(centroid - bandwidth / 2, 0.0), centroid, centroid + bandwidth / 2)


def block_levels(sound: np.ndarray, block_samples: int) -> np.ndarray:
    """RMS level of each complete block of a sound, without its mean, in dBFS; at least -120.

    Args:
        sound: float samples, full scale at -1 and 1, shape `(samples,)`.
        block_samples: Samples per block; a shorter remainder is skipped.

    Returns:
        Shape `(samples // block_samples,)`.
    """
    blocks = len(sound) // block_samples
    values = sound[: blocks * block_samples].reshape(blocks, block_samples).astype(np.float64)
    power = values.var(axis=1)
    return np.maximum(10 * np.log10(np.maximum(power, 1e-30)), MIN_DBFS)


def overlaps(annotations: pd.DataFrame, window_s: float) -> pd.DataFrame:
    """Numbers of annotations and species in the window that is centred on each annotation.

    Args:
        annotations: `recording`, `center_s`, `species`.
        window_s: Length of the window in seconds; it includes its start and excludes its end.

    Returns:
        One row per annotation: `annotations` and `species`, the numbers of both with their centre in the window.
    """
    rows: list[tuple[int, int]] = []
    for _, group in annotations.groupby("recording"):
        group = group.sort_values("center_s")
        centers, species = group["center_s"].to_numpy(), group["species"].to_numpy()
        first, last = centers.searchsorted(centers - window_s / 2), centers.searchsorted(centers + window_s / 2)
        rows += [(int(j - i), len(set(species[i:j]))) for i, j in zip(first, last, strict=True)]
    return pd.DataFrame(rows, columns=["annotations", "species"])


def activity_along(annotations: pd.DataFrame, duration_s: Mapping[str, float], bin_s: float = 60.0) -> pd.DataFrame:
    """Annotations by time from the start of the recordings.

    Args:
        annotations: `recording` and `center_s`.
        duration_s: Length of each recording in seconds.
        bin_s: Length of a bin in seconds; it is multiplied if there would be more than 120 bins. The last bin ends
            with the longest recording: it has half to one and a half times this length.

    Returns:
        One row per bin: `start_s`, `end_s`, `annotations`, `recorded_s` (of all recordings together) and
        `per_minute` (annotations per recorded minute).
    """
    longest_s = max(duration_s.values())
    bin_s *= int(np.ceil(longest_s / bin_s / MAX_BINS))
    bins = max(1, int(longest_s / bin_s + 0.5))
    start_s = bin_s * np.arange(bins)
    end_s = np.append(start_s[1:], longest_s)
    durations = np.array(list(duration_s.values()))
    recorded_s = np.clip(durations[:, None] - start_s, 0, end_s - start_s).sum(axis=0)
    bin_of = np.minimum(annotations["center_s"] // bin_s, bins - 1).astype(int)
    number = np.bincount(bin_of, minlength=bins)
    table = pd.DataFrame({"start_s": start_s, "end_s": end_s, "annotations": number})
    return table.assign(recorded_s=recorded_s, per_minute=60 * number / recorded_s)


def activity_by_hour(
    annotations: pd.DataFrame, duration_s: Mapping[str, float], begins: Mapping[str, datetime]
) -> pd.DataFrame:
    """Annotations by hour of the day.

    Args:
        annotations: `recording` and `center_s`.
        duration_s: Length of each recording in seconds.
        begins: Start time of each recording; other recordings are skipped.

    Returns:
        24 rows, by hour: `annotations`, `recorded_s` and `per_minute` (NaN for hours without recordings).
    """
    recorded_s = recorded_by_hour((begin, duration_s[recording]) for recording, begin in begins.items())
    annotated = np.zeros(DAY_H, dtype=int)
    centers_s = annotations.groupby("recording")["center_s"]
    for recording, begin in begins.items():
        begin_s = begin.hour * 3600 + begin.minute * 60 + begin.second
        if recording in centers_s.groups:
            hour = (begin_s + centers_s.get_group(recording)) // 3600 % DAY_H
            annotated += np.bincount(hour.astype(int), minlength=DAY_H)
    per_minute = np.divide(60 * annotated, recorded_s, out=np.full(DAY_H, np.nan), where=recorded_s > 0)
    return pd.DataFrame({"annotations": annotated, "recorded_s": recorded_s, "per_minute": per_minute})


def summarize_spectral_ranges(ranges: pd.DataFrame, most: int) -> pd.DataFrame:
    """Spectral range of the most frequent species.

    Args:
        ranges: One row per call: `species`, `low_hz`, `centroid_hz`, `high_hz` (see `spectral_range`).
        most: Maximum number of species.

    Returns:
        By species, from low to high centroid: `calls`; `low_hz`, `centroid_hz` and `high_hz`, medians over its calls;
        `least_hz` and `greatest_hz`, the 10th percentile of `low_hz` and the 90th of `high_hz`.
    """
    ranges = ranges.dropna()
    kept = ranges["species"].value_counts().sort_index().sort_values(ascending=False, kind="stable").index[:most]
    groups = ranges[ranges["species"].isin(kept)].groupby("species")
    table = groups[["low_hz", "centroid_hz", "high_hz"]].median()
    table = table.assign(
        calls=groups.size(), least_hz=groups["low_hz"].quantile(0.1), greatest_hz=groups["high_hz"].quantile(0.9)
    )
    return table.sort_values("centroid_hz")


def recording_rows(archive: Archive, levels: pd.DataFrame, places: Mapping[str, TimeAndPlace]) -> list[dict[str, Any]]:
    """Rows of the table of recordings: header, start time, annotations, and level if it was measured."""
    groups = archive.annotations.groupby("recording")["species"]
    annotations, species = groups.size(), groups.nunique()
    rows = []
    for name, header in sorted(archive.headers.items()):
        rows.append(
            {
                "name": name,
                "begins": _begin(places[name]),
                "header": header,
                "annotations": int(annotations.get(name, 0)),
                "species": int(species.get(name, 0)),
                "level": levels.loc[name] if name in levels.index else None,
            }
        )
    return rows


def _begin(place: TimeAndPlace) -> str:
    local, utc = place.times(timedelta(0))
    if local is not None:
        return f"{local:%Y-%m-%d %H:%M}"
    return "" if utc is None else f"{utc:%Y-%m-%d %H:%M} UTC"


def species_rows(archive: Archive, counts: pd.Series) -> list[dict[Hashable, Any]]:
    """Rows of the table of species, including species without annotations.

    `low_hz` and `high_hz` are medians of the annotated frequencies, NaN if there are none.
    """
    groups = archive.annotations.groupby("species")
    table = archive.species.assign(
        annotations=counts.reindex(archive.species.index, fill_value=0),
        recordings=groups["recording"].nunique().reindex(archive.species.index, fill_value=0),
        **{name: groups[name].median().reindex(archive.species.index) for name in BOX_COLUMNS.values()},
    )
    table = table.sort_index().sort_values("annotations", ascending=False, kind="stable")
    return table.reset_index(names="code").to_dict("records")


def set_aside_rows(archive: Archive) -> list[dict[str, Any]]:
    """The reasons why annotations are not used, each with its lines in the table of annotations."""
    return [
        {"reason": reason, "rows": rows["row"].tolist(), "recordings": rows["recording"].nunique()}
        for reason, rows in archive.set_aside.groupby("reason")
    ]


def rows_that_last(archive: Archive) -> tuple[int, pd.DataFrame]:
    """Finds all annotations, usable or not, with different start and end.

    Returns:
        The number of annotations with equal start and end, and a table of the others: `row` (line in the file),
        `recording`, `start_s`, `duration_s` and `species`, longest first. Durations are negative if the end is before
        the start.
    """
    table = read_table(archive.data_dir / ANNOTATIONS_FILE, ANNOTATION_COLUMNS)
    start_s, end_s = table["start_s"].astype(float), table["end_s"].astype(float)
    table = table.assign(start_s=start_s, duration_s=(end_s - start_s).round(6))
    lasting = table[table["duration_s"] != 0].sort_values("duration_s", ascending=False, kind="stable")
    return len(table) - len(lasting), lasting
