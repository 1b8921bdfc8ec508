"""What tables say of a recording besides what is heard in it."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from kenya_birds.data.recording_name import parse_recording_name
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.species import SpeciesNames


@dataclass(frozen=True)
class RecordingInfo:
    """A recording that was analysed to its end.

    Attributes:
        recording: The recording, as it was found: a path or URL, as in its detections.
        frames: Its samples per channel.
        sample_rate_hz: Its own sampling rate.
        is_here: Whether `recording` leads to it on this machine; a web page's visitor has it on another.
    """

    recording: str
    frames: int
    sample_rate_hz: int
    is_here: bool = True

    @property
    def name(self) -> str:
        """Its file name."""
        return self.recording.replace(os.sep, "/").rpartition("/")[-1]

    @cached_property
    def duration(self) -> Fraction:
        """Length in seconds, exact."""
        return Fraction(self.frames, self.sample_rate_hz)

    @cached_property
    def start(self) -> datetime | None:
        """When it begins, as its name tells: local time without a zone, or UTC; None where it does not tell."""
        parsed = parse_recording_name(self.name)
        return None if parsed is None else parsed.start

    def times(self, after_us: int) -> tuple[datetime | None, datetime | None]:
        """The local time and the time in UTC so many microseconds after its start; at least one is None."""
        if self.start is None:
            return None, None
        time = self.start + timedelta(microseconds=after_us)
        return (None, time) if time.tzinfo is UTC else (time, None)


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
