"""Detections, and the columns of their tables."""

import ntpath
import os
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from kenya_birds.data.recorder_header import NO_HEADER, RecorderHeader
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import TimeAndPlace, find_time_and_place
from kenya_birds.files import as_utf8
from kenya_birds.inference.species import SpeciesNames

# Digits of scores after the decimal point.
SCORE_DIGITS = 6


@dataclass(frozen=True)
class Detection:
    """A species in one window, or in several merged windows.

    Attributes:
        recording: Path or URL of the recording.
        start_sample: First sample at `sample_rate_hz`; integers keep times exact in long recordings.
        end_sample: The sample after the last one; never past the recording's end.
        sample_rate_hz: Sampling rate of the model, in which samples are counted.
        species: eBird code.
        score: Calibrated probability, 0 to 1.
        novelty: Share of known calls that are as near to the training calls or nearer (see `NoveltyReference`); of
            merged windows, that of the one with the highest score. None: not computed.
    """

    recording: str
    start_sample: int
    end_sample: int
    sample_rate_hz: int
    species: str
    score: float
    novelty: float | None = None

    @property
    def start_s(self) -> float:
        """Start in seconds."""
        return self.start_sample / self.sample_rate_hz

    @property
    def end_s(self) -> float:
        """End in seconds."""
        return self.end_sample / self.sample_rate_hz


@dataclass(frozen=True)
class RecordingInfo:
    """A completely analysed recording.

    Attributes:
        recording: Path or URL, as in its detections.
        frames: Samples per channel.
        sample_rate_hz: Sampling rate of the recording.
        is_here: Whether the file is on this machine; False for visitors of the web page.
        name_pattern: Pattern that reads site and time from its name (see `parse_recording_name`).
        header: Time and place in its header.
        time_zone: Time zone of recorders on local clocks (see `find_time_and_place`).
        channel: The only channel that was read, of several; None: their mean.
    """

    recording: str
    frames: int
    sample_rate_hz: int
    is_here: bool = True
    name_pattern: NamePattern | None = None
    header: RecorderHeader = NO_HEADER
    time_zone: tzinfo | None = None
    channel: int | None = None

    @property
    def name(self) -> str:
        """File name."""
        return name_in(self.recording)

    @cached_property
    def duration(self) -> Fraction:
        """Exact length in seconds."""
        return Fraction(self.frames, self.sample_rate_hz)

    @cached_property
    def duration_us(self) -> int:
        """Length in microseconds, rounded."""
        return sample_us(self.frames, self.sample_rate_hz)

    @cached_property
    def known(self) -> TimeAndPlace:
        """When and where it begins, by its name and header."""
        return find_time_and_place(self.name, pattern=self.name_pattern, header=self.header, time_zone=self.time_zone)

    def times(self, after_us: int) -> tuple[datetime | None, datetime | None]:
        """Returns local time and UTC time at an offset in microseconds; None if unknown."""
        return self.known.times(timedelta(microseconds=after_us))

    def when(self, after_us: int) -> "When":
        """Returns times, site, date and hour at an offset in microseconds; date and hour are local time if known."""
        local, utc = self.times(after_us)
        time = local or utc
        day, hour = (None, None) if time is None else (time.date(), time.hour)
        return When(local, utc, self.known.site, day, hour, self.known.latitude, self.known.longitude)


class When(NamedTuple):
    """Time and place of a detection, from the recording's name and header; these are columns of tables.

    Attributes:
        local_time: Local time, without a time zone.
        utc_time: Time in UTC.
        site: See `RecordingName`.
        date: Date in local time, or in UTC if only that is known.
        hour: Hour, 0 to 23, in the same time.
        latitude: Degrees, north is positive.
        longitude: Degrees, east is positive.
    """

    local_time: datetime | None
    utc_time: datetime | None
    site: str | None
    date: date | None
    hour: int | None
    latitude: float | None
    longitude: float | None

    def texts(self) -> tuple[str, ...]:
        """Returns the fields as text: times in ISO 8601 with milliseconds; empty if unknown."""
        return (
            _iso_time(self.local_time),
            _iso_time(self.utc_time),
            self.site or "",
            *map(_text, (self.date, self.hour, self.latitude, self.longitude)),
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values; None if unknown."""
        local_time, utc_time, site, day, *_ = self.texts()
        texts = {"local_time": local_time, "utc_time": utc_time, "site": as_utf8(site), "date": day}
        numbers = {"hour": self.hour, "latitude": self.latitude, "longitude": self.longitude}
        return {**{name: text or None for name, text in texts.items()}, **numbers}


def _iso_time(time: datetime | None) -> str:
    """Formats a time in ISO 8601 with milliseconds, with a Z for UTC; empty for None."""
    return "" if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: date | float | None) -> str:
    return "" if value is None else str(value)


def name_in(path: str) -> str:
    """Returns the file name of a path or URL; Windows paths are recognised on every system."""
    is_of_windows = "\\" in path and (os.sep == "\\" or "/" not in path or bool(ntpath.splitdrive(path)[0]))
    return ntpath.basename(path) if is_of_windows else path.rpartition("/")[-1]


def sample_us(sample: int, sample_rate_hz: int, begin_s: Fraction = Fraction(0)) -> int:
    """Rounds the time of a sample to microseconds, half to even.

    Args:
        sample: The sample.
        sample_rate_hz: Its sampling rate.
        begin_s: Time of sample 0.
    """
    # Integers, because fractions take several times as long.
    number = (begin_s.numerator * sample_rate_hz + sample * begin_s.denominator) * 1_000_000
    time_us, rest = divmod(number, begin_s.denominator * sample_rate_hz)
    twice = 2 * rest - begin_s.denominator * sample_rate_hz
    return time_us + (twice > 0 or (twice == 0 and time_us % 2))


def decimal_s(time_us: int) -> str:
    """Formats microseconds as seconds with six decimals."""
    return f"{time_us // 1_000_000}.{time_us % 1_000_000:06d}"


@dataclass(frozen=True)
class Row:
    """A detection as a row of a table.

    Attributes:
        detection: The detection.
        info: Its recording.
        start_us: Start in microseconds.
        end_us: End in microseconds.
        names: Names of the species.
    """

    detection: Detection
    info: RecordingInfo
    start_us: int
    end_us: int
    names: SpeciesNames

    @cached_property
    def when(self) -> When:
        """Time and place of its start."""
        return self.info.when(self.start_us)

    @classmethod
    def of(cls, detection: Detection, info: RecordingInfo, names: SpeciesNames) -> "Row":
        """Makes the row of a detection.

        Args:
            detection: The detection.
            info: Its recording.
            names: Names of its species.
        """
        # The recording's end may be between two samples at the model's rate.
        end_us = min(sample_us(detection.end_sample, detection.sample_rate_hz), info.duration_us)
        return cls(detection, info, sample_us(detection.start_sample, detection.sample_rate_hz), end_us, names)
