"""Detections, and the columns of their tables."""

import ntpath
import os
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from kenya_birds.data.recording_name import NamePattern, RecordingName, parse_recording_name
from kenya_birds.files import as_utf8
from kenya_birds.inference.species import SpeciesNames


@dataclass(frozen=True)
class Detection:
    """A species in one window, or in several that were joined.

    Attributes:
        recording: The recording, as it was found.
        start_sample: First sample, counted at `sample_rate_hz`: times are exact after any number of hours.
        end_sample: The sample after the last; never past the recording's end.
        sample_rate_hz: Rate at which samples are counted, the model's.
        species: eBird code.
        score: Calibrated probability, 0 to 1.
    """

    recording: str
    start_sample: int
    end_sample: int
    sample_rate_hz: int
    species: str
    score: float

    @property
    def start_s(self) -> float:
        """Begin in seconds."""
        return self.start_sample / self.sample_rate_hz

    @property
    def end_s(self) -> float:
        """End in seconds."""
        return self.end_sample / self.sample_rate_hz


@dataclass(frozen=True)
class RecordingInfo:
    """A recording that was analysed to its end.

    Attributes:
        recording: The recording, as it was found: a path or URL, as in its detections.
        frames: Its samples per channel.
        sample_rate_hz: Its own sampling rate.
        is_here: Whether `recording` leads to it on this machine; a web page's visitor has it on another.
        name_pattern: Reads site and time out of its name (see `parse_recording_name`).
    """

    recording: str
    frames: int
    sample_rate_hz: int
    is_here: bool = True
    name_pattern: NamePattern | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return name_in(self.recording)

    @cached_property
    def duration(self) -> Fraction:
        """Length in seconds, exact."""
        return Fraction(self.frames, self.sample_rate_hz)

    @cached_property
    def known(self) -> RecordingName:
        """What its name tells; None for what it does not."""
        return parse_recording_name(self.name, self.name_pattern) or RecordingName(None, None)

    def times(self, after_us: int) -> tuple[datetime | None, datetime | None]:
        """The local time and that in UTC so many microseconds after its start; None where its name does not tell."""
        after = timedelta(microseconds=after_us)
        local, utc = self.known.local, self.known.utc
        return None if local is None else local + after, None if utc is None else utc + after

    def when(self, after_us: int) -> "When":
        """The same, and the site, with the date and hour of the local time, or in UTC where that alone is known."""
        local, utc = self.times(after_us)
        time = local or utc
        return When(
            local, utc, self.known.site, None if time is None else time.date(), None if time is None else time.hour
        )


class When(NamedTuple):
    """When and where something was heard, as far as the recording's name tells; these are columns of tables.

    Attributes:
        local_time: Without a time zone.
        utc_time: With the time zone UTC.
        site: See `RecordingName`.
        date: Of the local time, or in UTC where that alone is known.
        hour: The same: 0 to 23.
    """

    local_time: datetime | None
    utc_time: datetime | None
    site: str | None
    date: date | None
    hour: int | None

    def texts(self) -> tuple[str, ...]:
        """The same as texts: times in ISO 8601 to a millisecond, and empty where there is nothing."""
        return (
            _iso_time(self.local_time),
            _iso_time(self.utc_time),
            self.site or "",
            *map(_text, (self.date, self.hour)),
        )

    def as_json(self) -> dict[str, Any]:
        """The same as JSON: None where there is nothing."""
        local_time, utc_time, site, day, _ = self.texts()
        texts = {"local_time": local_time, "utc_time": utc_time, "site": as_utf8(site), "date": day}
        return {**{name: text or None for name, text in texts.items()}, "hour": self.hour}


def _iso_time(time: datetime | None) -> str:
    """A time in ISO 8601 to a millisecond, with a Z where it is in UTC; empty where there is none."""
    return "" if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: date | int | None) -> str:
    return "" if value is None else str(value)


def name_in(path: str) -> str:
    """The file name at the end of a path or URL, also of a path on Windows in a table that is read elsewhere."""
    is_of_windows = "\\" in path and (os.sep == "\\" or "/" not in path or bool(ntpath.splitdrive(path)[0]))
    return ntpath.basename(path) if is_of_windows else path.rpartition("/")[-1]


def microseconds(time_s: Fraction) -> int:
    """Seconds in the nearest whole number of microseconds: half of one more than the sample's place at most."""
    return round(time_s * 1_000_000)


def decimal_s(time_us: int) -> str:
    """Microseconds as seconds with six digits behind the point."""
    return f"{time_us // 1_000_000}.{time_us % 1_000_000:06d}"


class Row(NamedTuple):
    """A detection as the tables say it.

    Attributes:
        detection: The detection.
        info: Its recording.
        start_us: Begin in microseconds.
        end_us: End in microseconds.
        names: Names of the species.
    """

    detection: Detection
    info: RecordingInfo
    start_us: int
    end_us: int
    names: SpeciesNames

    @classmethod
    def of(cls, detection: Detection, info: RecordingInfo, names: SpeciesNames) -> "Row":
        """The row of a detection."""
        # At the recording's own rate it may end between two of the samples that its detections are counted in.
        end = min(Fraction(detection.end_sample, detection.sample_rate_hz), info.duration)
        start_us = microseconds(Fraction(detection.start_sample, detection.sample_rate_hz))
        return cls(detection, info, start_us, microseconds(end), names)
