"""Occasions of a survey: the hours, days, nights or twilights into which recordings are divided."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from astral import Observer
from astral.sun import dawn, dusk, sunrise, sunset

from kenya_birds.data.recording_time import NIGHT_START

Unit = Literal["night", "day", "hour", "twilight"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# Length, start of the first one after midnight, and format of the name.
CLOCK_UNITS = {"hour": (HOUR, timedelta(0), "%Y-%m-%dT%H"), "day": (DAY, timedelta(0), "%Y-%m-%d")}
CLOCK_UNITS["night"] = (DAY, NIGHT_START, "%Y-%m-%d")
NAUTICAL_DEGREES = 12
TWILIGHTS: dict[str, tuple[Callable[..., datetime], Callable[..., datetime]]] = {
    "dawn": (partial(dawn, depression=NAUTICAL_DEGREES), sunrise),
    "dusk": (sunset, partial(dusk, depression=NAUTICAL_DEGREES)),
}
DEGREES_AN_HOUR = 15


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
    observer = Observer(latitude, longitude)
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    found: dict[str, Occasion] = {}
    date = (start - DAY).date()
    while date <= (end + DAY).date():
        for part, (first, last) in TWILIGHTS.items():
            try:
                begins, ends = first(observer, date), last(observer, date)
            except ValueError:  # the sun does not pass this height on this day
                continue
            if ends < begins:  # astral gives the events of a date in UTC; at some longitudes they are not in order
                ends += DAY
            solar = begins + HOUR * (longitude / DEGREES_AN_HOUR)
            name = f"{solar.date()} {part}"
            if begins < end and ends > start:
                found.setdefault(name, Occasion(name, max(begins, start), min(ends, end)))
        date += DAY
    yield from sorted(found.values(), key=lambda occasion: occasion.start)
