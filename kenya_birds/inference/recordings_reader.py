"""Reader of `recordings.csv` of a detection run: lengths, and when and where recordings begin."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from kenya_birds.data.recording_matching import RecordingFinder
from kenya_birds.data.recording_time import TimeAndPlace
from kenya_birds.errors import UserError
from kenya_birds.inference.detections import name_in
from kenya_birds.inference.table_formats import FORMULA, RECORDINGS_TABLE
from kenya_birds.inference.table_reader import read_cells

NUMBERS = ("duration_s", "latitude", "longitude")


@dataclass(frozen=True)
class RunRecordings:
    """The recordings of a run.

    Attributes:
        duration_s: Length in seconds by path.
        places: Time and place by path.
    """

    duration_s: Mapping[str, float]
    places: Mapping[str, TimeAndPlace]

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
    """Reads `recordings.csv` in the folder of a table of detections.

    Args:
        detections: The table.
        recordings: Recordings with detections.

    Returns:
        None if the file is missing or from another run.

    Raises:
        UserError: If the file cannot be read.
    """
    path = detections.parent / RECORDINGS_TABLE
    if not path.is_file():
        return None
    try:
        rows = read_cells(path, NUMBERS)
        found = RunRecordings(
            dict(zip(rows["recording"], rows["duration_s"].astype(float), strict=True)),
            {str(row["recording"]): _place(row) for row in rows.to_dict("records")},
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): correct it, or move it away") from None
    # Raven's table has absolute paths.
    listed = set(map(name_in, found.duration_s))
    return found if set(map(name_in, recordings)) <= listed else None


def _place(row: Mapping[Any, str]) -> TimeAndPlace:
    """Returns time and place in a row; raises `ValueError` if a value cannot be parsed."""
    local, utc = (
        datetime.fromisoformat(text) if (text := row.get(name, "")) else None for name in ("local_time", "utc_time")
    )
    start = local if utc is None else utc.astimezone(UTC)
    if local is not None and utc is not None:
        offset = local - utc.astimezone(UTC).replace(tzinfo=None)
        # Without a name, an offset of 0 would be the object UTC, which stands for an unknown local time.
        start = local.replace(tzinfo=timezone(offset) if offset else timezone(offset, "UTC+00:00"))
    latitude, longitude = (float(text) if (text := row.get(name, "")) else None for name in ("latitude", "longitude"))
    site = row.get("site", "")
    site = site[1:] if site.startswith("'") and FORMULA.match(site[1:]) else site
    return TimeAndPlace(site or None, start, None, latitude, longitude)
