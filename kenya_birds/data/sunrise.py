"""Time from sunrise, computed with astral."""

from datetime import UTC, datetime, timedelta

from astral import Observer
from astral.sun import sunrise

DAY = timedelta(days=1)


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
    passed = []
    for day in (-DAY, timedelta(0), DAY):
        try:
            passed.append(time - sunrise(Observer(latitude, longitude), (time + day).astimezone(UTC).date()))
        except ValueError:  # the sun is always above or below the horizon on this day
            continue
    nearest = min(passed, key=abs, default=None)
    return nearest if nearest is not None and abs(nearest) <= DAY else None
