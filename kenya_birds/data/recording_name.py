"""Reads where and when a recording was made out of its file name; at which hours of the day recordings were made."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

DAY_H = 24
_PATTERN = re.compile(
    r"(?P<collection>[A-Za-z]+)_(?P<number>[0-9]+)(?:_(?P<site>S[0-9]+))?"
    r"_(?P<start>[0-9]{8}_[0-9]{6})(?P<utc>Z?)(?:\.[A-Za-z0-9]+)?"
)


class RecordingName(NamedTuple):
    """What a recording's file name tells.

    Attributes:
        site: The collection and its site, such as "KEN_001" or "UHH_S01". Where a name has no site of its own, the
            number after the collection stands for it; some collections (SSW, HSN) only count their recordings there,
            so that each is a site to itself.
        start: When the recording begins: in UTC where the name says so with a Z, otherwise without a time zone, in
            the site's local time.
    """

    site: str
    start: datetime


def parse_recording_name(name: str) -> RecordingName | None:
    """Parses names such as `KEN_001_20211207_153852.flac` or `UHH_001_S01_20161121_150000.flac`.

    Args:
        name: File name of a recording: collection, number, site (optional), date, time and Z for UTC (optional).

    Returns:
        Its site and start, or None where the name is of another form or its date or time does not exist.
    """
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    try:
        start = datetime.strptime(match["start"], "%Y%m%d_%H%M%S")
    except ValueError:
        return None
    if match["utc"]:
        start = start.replace(tzinfo=UTC)
    return RecordingName(f"{match['collection']}_{match['site'] or match['number']}", start)


def recorded_by_hour(recordings: Iterable[tuple[datetime, float]]) -> np.ndarray:
    """How much was recorded at each hour of the day.

    Args:
        recordings: Begin of each recording, and its length in seconds.

    Returns:
        Seconds, shape `(24,)`.
    """
    recorded_s = np.zeros(DAY_H)
    for begin, duration_s in recordings:
        begin_s = begin.hour * 3600 + begin.minute * 60 + begin.second
        edges_s = 3600 * np.arange(begin_s // 3600, (begin_s + duration_s) // 3600 + 2)
        lasting_s = np.diff(np.clip(edges_s, begin_s, begin_s + duration_s))
        np.add.at(recorded_s, (edges_s[:-1] // 3600 % DAY_H).astype(int), lasting_s)
    return recorded_s
