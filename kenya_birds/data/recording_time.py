"""Time and place of a recording, from its name, its header and the time zone of its recorder."""

import logging
import re
import zoneinfo
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from kenya_birds.data.recorder_header import NO_HEADER, RecorderHeader, is_same_time
from kenya_birds.data.recording_name import NamePattern, RecordingName, parse_recording_name, zone_of
from kenya_birds.errors import UserError
from kenya_birds.values import nearest_name

logger = logging.getLogger(__name__)

# A night is from noon to noon, by the date of its evening.
NIGHT_START = timedelta(hours=12)
# Such as EAT, SAST and UTC+3.
_ABBREVIATION = re.compile("[A-Z]{1,4}([+-]?[0-9:]+)?")


def parse_time_zone(text: str | None) -> tzinfo | None:
    """Returns a time zone by its name, such as Africa/Nairobi, or its offset, such as +03:00; None for None.

    Raises:
        UserError: If there is no such time zone; the message has the nearest name.
    """
    if text is None:
        return None
    try:
        return zone_of(text) if text[:1] in ("+", "-") or text in ("Z", "UTC") else zoneinfo.ZoneInfo(text)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        names = zoneinfo.available_timezones()
    if not names:
        raise UserError(f"the time zone '{text}' cannot be found: run pip install tzdata, or give an offset (+03:00)")
    if _ABBREVIATION.fullmatch(text):
        # What is similar to EAT is WET: only a whole name or city in capitals (ROME) is meant. Etc/GMT+3 is -03:00.
        places = sorted(name for name in names if not name.startswith("Etc/"))
        near = next((name for name in places if text.lower() in (name.lower(), _city(name).lower())), None)
        hint = f"; did you mean {near}?" if near else "; abbreviations are not known: give a place or an offset"
    else:
        near = nearest_name(text, names) or _by_city(text, names)
        hint = f"; did you mean {near}?" if near else ""
    raise UserError(f"there is no time zone '{text}': expected a name such as Africa/Nairobi, or +03:00{hint}")


def _by_city(text: str, names: Iterable[str]) -> str | None:
    """Returns the time zone whose city is most similar to a text; None if none is."""
    cities = {_city(name): name for name in sorted(names)}
    near = nearest_name(_city(text), cities)
    return None if near is None else cities[near]


def _city(name: str) -> str:
    return name.rpartition("/")[2]


@dataclass(frozen=True)
class TimeAndPlace:
    """When and where a recording begins.

    Attributes:
        site: See `RecordingName`; None if unknown.
        start: Start: in UTC, with an offset, or without a time zone in local time; None if unknown.
        zone: Time zone of local times; None: that of `start`, unless it is UTC.
        latitude: Degrees, north is positive; None if unknown.
        longitude: Degrees, east is positive; None if unknown.
        conflict: How name and header disagree; empty if they do not.
    """

    site: str | None = None
    start: datetime | None = None
    zone: tzinfo | None = None
    latitude: float | None = None
    longitude: float | None = None
    conflict: str = ""

    def times(self, after: timedelta) -> tuple[datetime | None, datetime | None]:
        """Returns local time, without a time zone, and UTC time; None if unknown.

        Args:
            after: Time since the start of the recording.
        """
        if self.start is None:
            return None, None
        if self.start.tzinfo is None:
            return self.start + after, None
        utc = self.start.astimezone(UTC) + after
        zone = self.zone or self.start.tzinfo
        return None if zone is UTC else utc.astimezone(zone).replace(tzinfo=None), utc


def find_time_and_place(
    name: str,
    *,
    pattern: NamePattern | None = None,
    header: RecorderHeader = NO_HEADER,
    time_zone: tzinfo | None = None,
) -> TimeAndPlace:
    """Finds when and where a recording begins.

    The name comes first, because people see and correct it. The header fills what the name lacks: the start, or its
    time zone if both state the same time of the clock. Times that still have no time zone are in `time_zone`. A time
    that occurs twice, when clocks are set back, is the first of the two.

    Args:
        name: File name.
        pattern: Pattern that is tried first (see `parse_recording_name`).
        header: Time and place in its header.
        time_zone: Time zone of recorders on local clocks, and of local times.
    """
    known = parse_recording_name(name, pattern) or RecordingName(None, None)
    noted, start, conflict = header.time, known.start, ""
    if start is None:
        start = noted
    elif noted is not None:
        if start.tzinfo is None and noted.tzinfo is not None and is_same_time(start, noted):
            start = start.replace(tzinfo=noted.tzinfo)
        elif not is_same_time(_in_zone(start, time_zone), _in_zone(noted, time_zone)):
            conflict = f"{name}, {header.source} states {header.start}"
    if start is not None:
        start = _in_zone(start, time_zone)
    return TimeAndPlace(known.site, start, time_zone, header.latitude, header.longitude, conflict)


def _in_zone(time: datetime, zone: tzinfo | None) -> datetime:
    return time.replace(tzinfo=zone) if time.tzinfo is None else time


def log_headers(recordings: Iterable[tuple[str, RecorderHeader, TimeAndPlace]]) -> None:
    """Logs, in one line for each kind of fault, how many headers disagree with the name or have unusable values.

    Args:
        recordings: Path, header, and time and place of each recording.
    """
    recordings = list(recordings)
    conflicts = [place.conflict for _, _, place in recordings if place.conflict]
    if conflicts:
        logger.warning(
            "The names and headers of %d of %d recordings state different times; the name is used (first: %s)",
            len(conflicts),
            len(recordings),
            conflicts[0],
        )
    faults = [f"{path}: {fault}" for path, header, _ in recordings for fault in header.faults[:1]]
    if faults:
        logger.warning(
            "The headers of %d of %d recordings have a time or place that is not used (first: %s)",
            len(faults),
            len(recordings),
            faults[0],
        )
