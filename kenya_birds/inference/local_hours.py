"""Hours of the clock in recordings, also if clocks are set forward or back while one lasts."""

import bisect
import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pandas as pd

from kenya_birds.data.recording_time import TimeAndPlace
from kenya_birds.inference.merged_detections import middles_s, spread_rows


class ClockChange(NamedTuple):
    """A change of local clocks in a recording.

    Attributes:
        at_s: Its time from the start of the recording.
        by_s: Seconds by which clocks are set forward; negative: back.
    """

    at_s: float
    by_s: float


NO_CHANGE = ClockChange(math.inf, 0.0)


def find_clock_change(place: TimeAndPlace, duration_s: float) -> ClockChange:
    """Finds the change of local clocks in a recording.

    Args:
        place: Its time and place.
        duration_s: Its length, at most a few weeks.

    Returns:
        The change; `NO_CHANGE` if there is none, or local time is unknown.
    """
    end_s = math.ceil(duration_s)
    by_s = _ahead_s(place, end_s)
    if not by_s:
        return NO_CHANGE
    return ClockChange(bisect.bisect(range(end_s), 0, key=lambda time_s: abs(_ahead_s(place, time_s))), by_s)


def _ahead_s(place: TimeAndPlace, after_s: int) -> int:
    """Returns by how many seconds local clocks were set forward since the start of a recording."""
    (begin, _), (local, _) = place.times(timedelta(0)), place.times(timedelta(seconds=after_s))
    return 0 if begin is None or local is None else round((local - begin).total_seconds()) - after_s


def hours_of(
    detections: pd.DataFrame, begins: Mapping[str, datetime], changes: Mapping[str, ClockChange]
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the hours that each detection is in.

    Args:
        detections: `recording`, `start_s` and `end_s`.
        begins: Start of each recording.
        changes: Change of clocks in each recording.

    Returns:
        The row of each hour, and the hour since the midnight before the recording's start.
    """
    recordings = detections["recording"]
    begin_s = recordings.map({path: _second_of_day(begin) for path, begin in begins.items()}).to_numpy(dtype=float)
    at_s, by_s = (recordings.map({path: change[n] for path, change in changes.items()}).to_numpy() for n in (0, 1))
    first_s, last_s = middles_s(detections)
    # A detection that lasts until the change is in the hour before it, however the sums are rounded.
    last_before = np.where(last_s < at_s, np.floor((begin_s + last_s) / 3600), np.ceil((begin_s + at_s) / 3600) - 1)
    before = first_s < at_s, (begin_s + first_s) / 3600, last_before
    after = last_s >= at_s, (begin_s + by_s + np.maximum(first_s, at_s)) / 3600, (begin_s + by_s + last_s) / 3600
    found = []
    for is_there, first, last in (before, after):
        kept = np.flatnonzero(is_there)
        row, hour = spread_rows(np.floor(first[kept]).astype(int), np.floor(last[kept]).astype(int))
        found.append((kept[row], hour))
    rows, hours = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(hours)


def even_parts(
    begin: datetime, stretch_s: tuple[float, float], change: ClockChange
) -> Iterator[tuple[datetime, float]]:
    """Splits a stretch of a recording at the change of clocks.

    Args:
        begin: Start of the recording.
        stretch_s: Start and end of the stretch in seconds.
        change: See `find_clock_change`.

    Yields:
        Start of each part by the clock, and its length in seconds.
    """
    start_s, end_s = stretch_s
    if start_s < change.at_s:
        yield begin + timedelta(seconds=start_s), min(end_s, change.at_s) - start_s
    if end_s > change.at_s:
        start_s = max(start_s, change.at_s)
        yield begin + timedelta(seconds=start_s + change.by_s), end_s - start_s


def _second_of_day(time: datetime) -> int:
    return time.hour * 3600 + time.minute * 60 + time.second
