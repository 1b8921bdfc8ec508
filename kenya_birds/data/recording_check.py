"""Check of one recording: it is read to its last frame, and its levels are measured."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kenya_birds.data.audio import RecordingReader
from kenya_birds.errors import UserError
from kenya_birds.files import as_utf8

logger = logging.getLogger(__name__)

SILENCE_BLOCK_S = 0.1
SILENCE_DBFS = -90.0
READ_BLOCK_S = 10.0
# The largest 16-bit sample; full scale of other formats is between this value and 1.
FULL_SCALE = 32767 / 32768


@dataclass(frozen=True)
class MissingSound:
    """A section of a recording that no decoder can decode.

    Attributes:
        start_s: Begin in seconds from the start of the recording.
        end_s: End in seconds.
        reason: Error messages of the decoders.
    """

    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True)
class RecordingCheck:
    """Result of `check_recording`. Levels are of the sound that is read; 0 dBFS is full scale.

    Attributes:
        recording: File name; bytes that are not UTF-8 are escaped.
        error: Reason why it cannot be opened, else empty. With an error all other fields have their default values.
        encoding: Container and sample format, such as `FLAC PCM_16`.
        sample_rate_hz: Samples per second.
        channels: Number of channels.
        frames_promised: Samples per channel by the header.
        frames_read: Samples per channel that were decoded.
        decoders: The decoders used, separated by `+`.
        losses: The sections that could not be decoded.
        peak_dbfs: Largest sample; -inf in digital silence.
        rms_dbfs: Root mean square; -inf in digital silence. A full-scale sine has -3.
        dc_offset: Mean sample, as a share of full scale.
        clipped_share: Share of the samples at or beyond full scale.
        silent_share: Share of the time, in blocks of 0.1 s, with an RMS below -90 dBFS.
        longest_silence_s: Length of the longest continuous silence.
        lone_channel: Number (from 0) of the only channel that is read; None: all channels are read.
    """

    recording: str
    error: str = ""
    encoding: str = ""
    sample_rate_hz: int = 0
    channels: int = 0
    frames_promised: int = 0
    frames_read: int = 0
    decoders: str = ""
    losses: tuple[MissingSound, ...] = ()
    peak_dbfs: float = -np.inf
    rms_dbfs: float = -np.inf
    dc_offset: float = 0.0
    clipped_share: float = 0.0
    silent_share: float = 0.0
    longest_silence_s: float = 0.0
    lone_channel: int | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds by the header; 0 if the recording cannot be opened."""
        return self.frames_promised / self.sample_rate_hz if self.sample_rate_hz else 0.0


def check_recording(path: Path, channel: str | None = None) -> RecordingCheck:
    """Reads a recording to its last frame; problems are part of the result, not raised.

    Args:
        path: The recording.
        channel: See `RecordingReader`.
    """
    try:
        return _measure(path, channel)
    except UserError as error:
        reason = str(error)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file must not stop the check of the others
        logger.debug("The check of %s failed", path, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
    return RecordingCheck(as_utf8(path.name), error=as_utf8(reason))


def _measure(path: Path, channel: str | None) -> RecordingCheck:
    with RecordingReader(path, channel=channel) as reader:
        rate = reader.header.sample_rate_hz
        step = max(round(SILENCE_BLOCK_S * rate), 1)
        losses: list[MissingSound] = []
        decoders: set[str] = set()
        frames = clipped = 0
        peak = total = squares = 0.0
        silent: list[np.ndarray] = [
            np.zeros(0, int)
        ]  # number of frames of each block of 0.1 s if it is silent, else 0
        for block in reader.blocks(step * round(READ_BLOCK_S / SILENCE_BLOCK_S)):
            if block.sound is None:
                start_s, end_s = block.start / rate, (block.start + block.frames) / rate
                if losses and losses[-1].end_s == start_s:
                    start_s = losses.pop().start_s
                losses.append(MissingSound(start_s, end_s, as_utf8(block.reason)))
                silent.append(np.zeros(1, int))
                continue
            decoders.add(str(block.decoder))
            frames += block.frames
            power = np.square(block.sound, dtype=np.float64)
            peak = max(peak, float(block.sound.max()), -float(block.sound.min()))
            clipped += int(((block.sound >= FULL_SCALE) | (block.sound <= -1)).sum())
            total += float(block.sound.sum(dtype=np.float64))
            squares += float(power.sum())
            starts = np.arange(0, block.frames, step)
            lengths = np.diff(starts, append=block.frames)
            quiet = np.add.reduceat(power, starts) / lengths < 10 ** (SILENCE_DBFS / 10)
            silent.append(np.where(quiet, lengths, 0))
        silent_frames = np.concatenate(silent)
        return RecordingCheck(
            as_utf8(path.name),
            encoding=reader.encoding,
            sample_rate_hz=rate,
            channels=reader.header.channels,
            frames_promised=reader.header.frames,
            frames_read=frames,
            decoders="+".join(sorted(decoders, reverse=True)),
            losses=tuple(losses),
            peak_dbfs=_dbfs(peak),
            rms_dbfs=_dbfs((squares / max(frames, 1)) ** 0.5),
            dc_offset=total / max(frames, 1),
            clipped_share=clipped / max(frames, 1),
            silent_share=int(silent_frames.sum()) / max(frames, 1),
            longest_silence_s=_longest_run(silent_frames) / rate,
            lone_channel=reader.lone_channel,
        )


def _dbfs(amplitude: float) -> float:
    return 20 * float(np.log10(amplitude)) if amplitude else -np.inf


def _longest_run(frames: np.ndarray) -> int:
    """Returns the largest sum of consecutive values above zero."""
    sums = np.concatenate([[0], frames.cumsum()])
    edges = np.flatnonzero(np.diff(frames > 0, prepend=False, append=False))
    return int((sums[edges[1::2]] - sums[edges[::2]]).max(initial=0))
