"""Reader of `recordings.csv` and `failed.csv` of a detection run: lengths, times, places, and what was analysed."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timezone, tzinfo
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from kenya_birds.data.recording_matching import RecordingFinder
from kenya_birds.data.recording_time import TimeAndPlace, parse_time_zone
from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.formulas import unguarded_text
from kenya_birds.inference.detections import name_in
from kenya_birds.inference.table_formats import FAILED_COLUMNS, FAILED_FILE, RECORDINGS_TABLE, RUN_FILE
from kenya_birds.inference.table_reader import read_cells, to_numbers

NUMBERS = ("duration_s", "latitude", "longitude")
FAILED_TIMES = ("start_s", "end_s")


@dataclass(frozen=True)
class RunRecordings:
    """The recordings of a run.

    Attributes:
        duration_s: Length in seconds by path.
        places: Time and place by path.
        gaps: Stretches that were not analysed, by path, as start and end in seconds; infinite if they reach the
            recording's end.
    """

    duration_s: Mapping[str, float]
    places: Mapping[str, TimeAndPlace]
    gaps: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def place(self, path: str) -> TimeAndPlace | None:
        """Returns time and place of a recording (see `find`); None if there is none, or several of different times.

        Of several with the same time, what differs is left unknown.
        """
        found = [self.places[recording] for recording in self.find(path)]
        if len({place.start for place in found}) != 1:
            return None
        values = {field.name: {getattr(place, field.name) for place in found} for field in fields(TimeAndPlace)}
        return TimeAndPlace(**{name: of.pop() for name, of in values.items() if len(of) == 1})

    def find(self, path: str) -> list[str]:
        """Returns the recordings of `places` that a path means: several if it does not say which one.

        Args:
            path: Path in a table. If it is not in `places`, as in Raven's table, which has absolute paths, it is found
                by its longest end, or by its file name.
        """
        known = path if path in self.places else self._by_absolute.get(os.path.abspath(path))
        if known is not None:
            return [known]
        finder, listed = self._finder
        match = finder.find(_with_slashes(path))
        found = match.others if match.recording is None else (match.recording,)
        return [listed[text] for text in found if name_in(listed[text]) == name_in(path)]

    @cached_property
    def _by_absolute(self) -> dict[str, str]:
        return {os.path.abspath(path): path for path in self.places}

    @cached_property
    def _finder(self) -> tuple[RecordingFinder, dict[str, str]]:
        """Finds paths with `/`; with the paths of `places` by them."""
        listed = {_with_slashes(path): path for path in self.places}
        return RecordingFinder(listed), listed


def _with_slashes(path: str) -> str:
    return path.replace("\\", "/")


def read_recordings(detections: Path, recordings: Iterable[str]) -> RunRecordings | None:
    """Reads `recordings.csv` in the folder of a table of detections, and `failed.csv` of the same run.

    Args:
        detections: The table.
        recordings: Recordings with detections.

    Returns:
        None if `recordings.csv` is missing or from another run. Without `failed.csv`, all sound was analysed.

    Raises:
        UserError: If a file cannot be read.
    """
    path = detections.parent / RECORDINGS_TABLE
    if not path.is_file():
        return None
    try:
        rows = read_cells(path, NUMBERS)
        to_numbers(rows[[name for name in NUMBERS if name in rows]].replace("", "0"))
        durations_s = dict(zip(rows["recording"], to_numbers(rows[["duration_s"]])["duration_s"], strict=True))
        zone = _time_zone(path.with_name(RUN_FILE))
        places = {str(row["recording"]): _place(row, zone) for row in rows.to_dict("records")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): correct it, or move it away") from None
    # Raven's table has absolute paths.
    if not set(map(name_in, recordings)) <= set(map(name_in, durations_s)):
        return None
    return RunRecordings(durations_s, places, _gaps(read_failures(path.with_name(FAILED_FILE))))


def read_failures(path: Path) -> pd.DataFrame:
    """Reads `failed.csv` of a detection run.

    Args:
        path: The file; if it is missing, all sound was analysed.

    Returns:
        `FAILED_COLUMNS`, as texts.

    Raises:
        UserError: If the file cannot be read.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(FAILED_COLUMNS), dtype=str)
    try:
        rows = read_cells(path, FAILED_TIMES)[list(FAILED_COLUMNS)]
        to_numbers(rows[list(FAILED_TIMES)].replace("", "0"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): run kenya-birds detect again") from None
    return rows


def _gaps(failures: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for recording, start_s, end_s in failures[["recording", *FAILED_TIMES]].itertuples(index=False, name=None):
        found.setdefault(recording, []).append((float(start_s or 0), float(end_s or math.inf)))
    return found


def _time_zone(path: Path) -> tzinfo | None:
    """Returns the time zone in `run.json`; None if there is none, or this computer does not know it."""
    try:
        return parse_time_zone(read_json(path).get("time_zone")) if path.is_file() else None
    except (UserError, TypeError):
        return None


def _place(row: Mapping[Any, str], zone: tzinfo | None) -> TimeAndPlace:
    """Returns time and place in a row; raises `ValueError` if a value cannot be parsed."""
    local, utc = (
        datetime.fromisoformat(text) if (text := row.get(name, "")) else None for name in ("local_time", "utc_time")
    )
    start = local if utc is None else utc.astimezone(UTC)
    if local is not None and utc is not None:
        offset = local - utc.astimezone(UTC).replace(tzinfo=None)
        # Without a name, an offset of 0 would be the object UTC, which stands for an unknown local time.
        start = local.replace(tzinfo=timezone(offset) if offset else timezone(offset, "UTC+00:00"))
        if zone is not None and start.astimezone(zone).replace(tzinfo=None) != local:
            zone = None  # the user has corrected the local time
    latitude, longitude = (float(text) if (text := row.get(name, "")) else None for name in ("latitude", "longitude"))
    site = unguarded_text(row.get("site", ""))
    return TimeAndPlace(site or None, start, zone, latitude, longitude)
