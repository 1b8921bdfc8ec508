"""When the sun passes a height, and time from sunrise, computed with astral."""

from datetime import UTC, date, datetime, time, timedelta

from astral import Observer, SunDirection
from astral.sun import time_at_elevation

DAY, HALF_DAY = timedelta(days=1), timedelta(hours=12)
# The centre of the sun when its upper edge is on the horizon; astral adds the refraction.
SUNRISE_DEGREES = -16 / 60


def solar_offset(longitude: float) -> timedelta:
    """Returns mean solar time at a longitude minus UTC."""
    return DAY * (longitude / 360)


def sun_passes(
    height_degrees: float, direction: SunDirection, day: date, latitude: float, longitude: float
) -> datetime | None:
    """Returns when the centre of the sun passes a height above or below the horizon.

    Args:
        height_degrees: The height, without refraction; negative below the horizon.
        direction: Whether the sun rises or sets.
        day: Date of the mean solar time at the place.
        latitude: Degrees, north is positive.
        longitude: Degrees, east is positive.

    Returns:
        Time in UTC; None if the sun does not pass this height on this day.
    """
    noon = datetime.combine(day, time(12), UTC) - solar_offset(longitude)
    usual = noon + (HALF_DAY / 2 if direction is SunDirection.SETTING else -HALF_DAY / 2)
    found = []
    # astral gives the time of a solar date, but that of the next one where the time is before 00:00 UTC.
    for asked in (day, day - DAY):
        try:
            passes = time_at_elevation(Observer(latitude, longitude), height_degrees, asked, direction)
        except ValueError:  # the sun does not pass this height
            break
        if abs(passes - usual) < HALF_DAY:
            return passes
        found.append(passes)
    # No date has the time if it is before 00:00 UTC today and after it yesterday: a day before that of tomorrow.
    return found[0] - DAY if found else None


def time_from_sunrise(time: datetime, latitude: float, longitude: float) -> timedelta | None:
    """Returns the time since the nearest sunrise, between -12 and 12 hours; negative before it.

    Sunrise is when the upper edge of the sun is on a flat horizon at sea level, with the usual refraction.

    Args:
        time: With a time zone.
        latitude: Degrees, north is positive.
        longitude: Degrees, east is positive.

    Returns:
        None if the sun does not rise within a day, as near the poles.
    """
    today = (time.astimezone(UTC) + solar_offset(longitude)).date()
    sunrises = (
        sun_passes(SUNRISE_DEGREES, SunDirection.RISING, day, latitude, longitude)
        for day in (today - DAY, today, today + DAY)
    )
    nearest = min((time - sunrise for sunrise in sunrises if sunrise is not None), key=abs, default=None)
    return nearest if nearest is not None and abs(nearest) <= DAY else None
