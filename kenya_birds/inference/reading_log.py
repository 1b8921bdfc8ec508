"""What the log says of recordings that were read: channels, missing frequencies, sound that was left out."""

import logging
from collections import Counter
from collections.abc import Mapping

from kenya_birds.inference.audio_stream import Reading

logger = logging.getLogger(__name__)


def log_missing_band(readings: Mapping[str, Reading], highest_hz: float) -> None:
    """Logs how many recordings have a sampling rate that is too low for the model.

    Args:
        readings: Result of the reading of each recording.
        highest_hz: Highest frequency of the model's input.
    """
    low = {
        name: reading.sample_rate_hz
        for name, reading in readings.items()
        if 0 < reading.sample_rate_hz < 2 * highest_hz
    }
    if low:
        lowest = min(low, key=lambda name: low[name])
        logger.warning(
            "%d of %d recordings have a sampling rate below %.0f Hz, so they lack a part of the model's frequency "
            "range (up to %.0f Hz): expect lower scores and missed calls; the lowest rate is %d Hz (%s)",
            len(low),
            len(readings),
            2 * highest_hz,
            highest_hz,
            low[lowest],
            lowest,
        )


def log_channels(readings: Mapping[str, Reading], channel: str | None) -> None:
    """Logs how many recordings each channel was the best of.

    Args:
        readings: Result of the reading of each recording.
        channel: See `RecordingReader`.
    """
    counts = Counter(
        reading.channel for reading in readings.values() if reading.windows and reading.channel is not None
    )
    if channel == "best" and counts:
        logger.info(
            "The best channel is %s",
            ", ".join(f"{number} in {count} recordings" for number, count in sorted(counts.items())),
        )


def log_losses(recording: str, reading: Reading | None) -> None:
    """Logs the sound of a recording that was not scored.

    Args:
        recording: Name of the recording.
        reading: Result of its reading; None before its end.
    """
    if reading is None:
        return
    for loss in reading.losses:
        end = "its end" if loss.end_s is None else f"{loss.end_s:.3f} s"
        logger.warning("%s was not scored from %.3f s to %s: %s", recording, loss.start_s, end, loss.reason)
    if reading.silences:
        logger.warning("%s has %.1f s of digital silence, which were not scored", recording, reading.silence_s)
