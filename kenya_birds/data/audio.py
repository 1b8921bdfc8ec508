"""Reads recordings: headers, windows at exact sample positions, and the lossless form in which clips are stored."""

import io
import math
import wave
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import soxr

from kenya_birds.errors import UserError

# Context kept on both sides of a resampled window, in output samples: longer than the resampler's filter.
RESAMPLING_MARGIN = 4096
# libsndfile says 2^63 - 1 of a FLAC file whose header has no length; no recording has this many.
MAX_FRAMES = 2**40


@dataclass(frozen=True)
class AudioHeader:
    """What a recording's header promises.

    Attributes:
        frames: Samples per channel.
        sample_rate_hz: Samples per second.
        channels: Number of channels.
    """

    frames: int
    sample_rate_hz: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate_hz


def read_header(path: Path) -> AudioHeader:
    """Reads a recording's header.

    Raises:
        UserError: If the file is not audio that libsndfile reads, holds no samples, or does not say how many.
    """
    with _open(path) as file:
        header = AudioHeader(file.frames, file.samplerate, file.channels)
    if header.frames <= 0:
        raise UserError(f"{path} holds no samples: fetch the file again")
    if header.frames > MAX_FRAMES:
        raise UserError(f"{path} does not say how long it is, as FLAC that was streamed: encode it again from a file")
    return header


class RecordingReader:
    """Reads windows of one recording, mono (the mean of the channels), at one sampling rate, padded with zeros.

    A 16-bit mono recording that is read at its own rate comes back bit for bit.

    Args:
        path: The recording.
        sampling_rate: Rate of the windows in Hz; a recording with another rate is resampled (soxr, high quality), on
            the same sample grid as if the whole recording had been.

    Raises:
        UserError: If the file cannot be opened as audio, or (on reading) stops short of what its header promises.
    """

    def __init__(self, path: Path, sampling_rate: int) -> None:
        self.path = path
        self.sampling_rate = sampling_rate
        self._file = _open(path)
        common = math.gcd(sampling_rate, self._file.samplerate)
        self._out_step = sampling_rate // common
        self._in_step = self._file.samplerate // common

    def __enter__(self) -> "RecordingReader":
        """Returns itself; the file closes at the end of the `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, start: int, samples: int) -> np.ndarray:
        """Reads the window `[start, start + samples)`.

        Args:
            start: First sample, at `sampling_rate`; may be negative.
            samples: Number of samples; the window may reach past the end.

        Returns:
            int16 array of shape `(samples,)`; zeros where the recording has no sound.
        """
        if self._in_step == self._out_step:
            window = self._read_frames(start, samples)
        else:
            # Both grids meet every `out_step` output samples: begin and end the source block there.
            first = (start - RESAMPLING_MARGIN) // self._out_step
            last = -((start + samples + RESAMPLING_MARGIN) // -self._out_step)
            block = self._read_frames(first * self._in_step, (last - first) * self._in_step)
            resampled = soxr.resample(block, self._file.samplerate, self.sampling_rate)
            offset = start - first * self._out_step
            window = resampled[offset : offset + samples]
        return to_int16(window)

    def _read_frames(self, start: int, frames: int) -> np.ndarray:
        """Mono float32 frames `[start, start + frames)` of the file, zeros outside it."""
        window = np.zeros(frames, dtype=np.float32)
        first, last = max(start, 0), min(start + frames, self._file.frames)
        if first >= last:
            return window
        try:
            self._file.seek(first)
            sound = self._file.read(last - first, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError(self._damaged(first, str(error))) from None
        if len(sound) != last - first:
            raise UserError(self._damaged(first + len(sound), f"{self._file.frames} frames promised"))
        window[first - start : last - start] = sound[:, 0] if sound.shape[1] == 1 else sound.mean(axis=1)
        return window

    def _damaged(self, frame: int, reason: str) -> str:
        return (
            f"{self.path} cannot be decoded at {frame / self._file.samplerate:.3f} s ({reason}): "
            "the file is damaged, fetch it again or remove its annotations"
        )


def _open(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(str(path))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: the name ends in .raw
        raise UserError(f"{path} cannot be read as audio ({error}): fetch the file again") from None


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1) to int16; exact for sound that was 16-bit, clipped at full scale."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def encode_wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """An int16 mono waveform of shape `(samples,)` as the bytes of a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(waveform.astype("<i2").tobytes())
    return buffer.getvalue()


def decode_wav(data: bytes) -> np.ndarray:
    """The int16 samples, shape `(samples,)`, of a WAV file that `encode_wav` wrote."""
    with wave.open(io.BytesIO(data), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
