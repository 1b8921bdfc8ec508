"""Occasions of a survey: the hours, days, nights or twilights into which recordings are divided."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from astral import SunDirection

from kenya_birds.data.recording_time import NIGHT_START
from kenya_birds.data.sunrise import SUNRISE_DEGREES, solar_offset, sun_passes

Unit = Literal["night", "day", "hour", "twilight"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# Length, start of the first one after midnight, and format of the name.
CLOCK_UNITS = {"hour": (HOUR, timedelta(0), "%Y-%m-%dT%H"), "day": (DAY, timedelta(0), "%Y-%m-%d")}
CLOCK_UNITS["night"] = (DAY, NIGHT_START, "%Y-%m-%d")
NAUTICAL_DEGREES = -12
# Direction of the sun, and its heights at the start and the end.
TWILIGHTS = {
    "dawn": (SunDirection.RISING, NAUTICAL_DEGREES, SUNRISE_DEGREES),
    "dusk": (SunDirection.SETTING, SUNRISE_DEGREES, NAUTICAL_DEGREES),
}


@dataclass(frozen=True)
class Occasion:
    """A part of a time span that belongs to one occasion.

    Attributes:
        name: Name of the occasion, such as `2021-12-07`; names sort by time.
        start: Start of the part.
        end: End of the part.
    """

    name: str
    start: datetime
    end: datetime


def clock_occasions(unit: Literal["night", "day", "hour"], start: datetime, end: datetime) -> Iterator[Occasion]:
    """Divides a time span at full hours, at midnight, or at noon.

    Args:
        unit: `hour`; `day`; or `night`, from noon to noon, by the date of its evening.
        start: Start of the span, on any clock.
        end: End of the span, on the same clock.

    Yields:
        The parts of the span in order; without gaps.
    """
    length, offset, name = CLOCK_UNITS[unit]
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    since = start - midnight - offset
    begin = midnight + offset + (since // length) * length
    while begin < end:
        yield Occasion(begin.strftime(name), max(begin, start), min(begin + length, end))
        begin += length


def twilight_occasions(start: datetime, end: datetime, latitude: float, longitude: float) -> Iterator[Occasion]:
    """Finds the twilights in a time span, from nautical dawn to sunrise, and from sunset to nautical dusk.

    At nautical dawn and dusk, the centre of the sun is 12 degrees below the horizon. The names are `2021-12-07 dawn`
    and `2021-12-07 dusk`, by the date of the mean solar time at the place. Twilights without one of their ends, as in
    summer at high latitudes, do not exist.

    Args:
        start: Start of the span, with a time zone.
        end: End of the span, with a time zone.
        latitude: Degrees, north is positive.
        longitude: Degrees, east is positive.

    Yields:
        The parts of the span that are in twilights, in order, in UTC.
    """
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    offset = solar_offset(longitude)
    day, last_day = (start + offset - DAY).date(), (end + offset + DAY).date()
    while day <= last_day:
        for part, (direction, *heights) in TWILIGHTS.items():
            begins, ends = (sun_passes(height, direction, day, latitude, longitude) for height in heights)
            if begins is not None and ends is not None and begins < end and ends > start:
                yield Occasion(f"{day} {part}", max(begins, start), min(ends, end))
        day += DAY
