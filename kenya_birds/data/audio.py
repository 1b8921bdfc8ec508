"""Reads recordings: headers, windows at exact sample positions, whole in blocks; and the form clips are stored in."""

import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import scipy.io.wavfile
import soxr

from kenya_birds.data.decoders import MAX_FRAMES, DecodingError, SoundfileDecoder
from kenya_birds.data.pyav_decoder import PyavDecoder
from kenya_birds.data.sound_extent import JOINED_FLAC, find_sound
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# No recorder is slower or faster. A damaged header may say so, and a second of such sound, or a plan of its windows,
# would fill the memory.
MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 100, 10_000_000
# Context kept on both sides of a resampled window, in output samples: longer than the resampler's filter.
RESAMPLING_MARGIN = 4096
# Samples of floats beyond this are no sound: they are what a damaged file holds.
MAX_AMPLITUDE = 1e9


class UndecodableError(UserError):
    """A window of a recording that neither decoder gives; the rest of the recording can still be read."""


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


@dataclass(frozen=True)
class Block:
    """A stretch of a recording, at the recording's own rate.

    Attributes:
        start: Its first frame.
        frames: Number of frames; 0 at the end of a file that was cut off, where it is not known how much is missing.
        sound: float32 array of shape `(frames,)`, mono, full scale at -1 and 1 and floats beyond it as they are; None
            where it cannot be decoded.
        decoder: Which decoder gave it, `soundfile` or `PyAV`; None where it cannot be decoded.
        reason: What each decoder said where it cannot be decoded, else empty.
    """

    start: int
    frames: int
    sound: np.ndarray | None
    decoder: str | None
    reason: str


def read_header(path: Path) -> AudioHeader:
    """Reads a recording's header; one that does not say how long it is, is decoded once to its end.

    Raises:
        UserError: If the file is not audio that a decoder reads, or holds no samples.
    """
    with RecordingReader(path) as reader:
        return reader.header


class RecordingReader:
    """Reads windows of one recording, mono (the mean of the channels), at one sampling rate, padded past its ends.

    Where the channels would cancel each other, one of them is read alone (see `lone_channel`).

    Samples are float32 with full scale at -1 and 1, which holds 16 and 24 bits exactly: a mono recording that is read
    at its own rate keeps every bit, and floats above full scale are not clipped. soundfile reads it. PyAV reads what
    soundfile does not, and compressed formats such as MP3, Ogg and M4A: whole, with the samples that FFmpeg's decoder
    gives, from the start to the first damage, behind which no sample's place is certain. Damage is never read over:
    what is returned is what was recorded, at its place. (WAV, which has no checksums, shows only that its end is
    missing. Ogg shows all damage, MP3 and M4A show most.)

    Args:
        path: The recording.
        sampling_rate: Rate of the windows in Hz; a recording with another rate is resampled (soxr, high quality), on
            the same sample grid as if the whole recording had been. By default the recording's own.

    Attributes:
        path: The recording.
        sampling_rate: Rate of the windows in Hz.
        header: What the recording's header promises; in compressed formats what FFmpeg counts when it decodes them.
        encoding: Container and sample format, such as `FLAC PCM_16`.
        decoder: Which decoder gave the last window, `soundfile` or `PyAV`; None before the first, and for a window in
            which there is no sound to decode.

    Raises:
        UserError: If the file cannot be opened as audio or holds no samples.
    """

    def __init__(self, path: Path, sampling_rate: int | None = None) -> None:
        self.path = path
        self.decoder: str | None = None
        self._said: dict[str, str] = {}  # what each decoder last said, where it failed
        self._soundfile: SoundfileDecoder | None = None
        self._pyav: PyavDecoder | None = None
        if os.path.exists(path) and not os.path.isfile(path):  # a named pipe would wait for somebody to write to it
            raise UserError(f"{path} cannot be read as audio: expected a file, found a folder, a pipe or a device")
        try:
            self._extent = self._ask("header", lambda: find_sound(path))
            if self._extent is not None and self._extent.reason == JOINED_FLAC:
                self._said[PyavDecoder.name] = JOINED_FLAC  # it would find frames of the second
            self._soundfile = self._ask(SoundfileDecoder.name, lambda: SoundfileDecoder(path, self._extent))
            self.header, self.encoding = self._read_header()
            if not MIN_SAMPLE_RATE_HZ <= self.header.sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
                raise UserError(
                    f"{path} has a sampling rate of {self.header.sample_rate_hz} Hz by its header: expected "
                    f"{MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz; the header is damaged, fetch the file again"
                )
        except BaseException:
            self.close()
            raise
        self._is_damaged = False  # whether soundfile has failed
        self.sampling_rate = sampling_rate or self.header.sample_rate_hz
        common = math.gcd(self.sampling_rate, self.header.sample_rate_hz)
        self._out_step = self.sampling_rate // common
        self._in_step = self.header.sample_rate_hz // common

    def __enter__(self) -> "RecordingReader":
        """Returns itself; the file closes at the end of the `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()

    def close(self) -> None:
        """Closes the file."""
        for decoder in (self._soundfile, self._pyav):
            if decoder is not None:
                decoder.close()

    @cached_property
    def lone_channel(self) -> int | None:
        """The channel that is read alone, the loudest, as the channels cancel each other in their mean; else None.

        That is so where one channel is inverted. The first sound of the recording decides.
        """
        decoder = self._soundfile or (self._open_pyav() if self.header.channels > 1 else None)
        if decoder is None or self.header.channels == 1:
            return None
        try:
            return decoder.find_lone_channel()
        except MemoryError:
            raise
        except Exception:  # the same bytes are read again later, and told
            logger.debug("The channels of %s were not compared", self.path, exc_info=True)
            return None

    @property
    def samples(self) -> int:
        """Length of the recording at `sampling_rate`, as soxr rounds it."""
        return (2 * self.header.frames * self._out_step + self._in_step) // (2 * self._in_step)

    def read(self, start: int, samples: int, *, pad_mode: str = "constant") -> np.ndarray:
        """Reads the window `[start, start + samples)`.

        Args:
            start: First sample, at `sampling_rate`; may be negative.
            samples: Number of samples; the window may reach past the end.
            pad_mode: What is past the recording's ends: `constant` for zeros, or `symmetric` for mirrored sound (see
                `numpy.pad`). A window that is wholly outside is zeros.

        Returns:
            float32 array of shape `(samples,)`.

        Raises:
            UndecodableError: If a part of the window that the header promises cannot be decoded. Other windows can
                still be read.
        """
        first, last = max(start, 0), min(start + samples, self.samples)
        if pad_mode != "constant" and first < last:
            return np.pad(self._read(first, last - first), (first - start, start + samples - last), mode=pad_mode)  # type: ignore[call-overload]
        return self._read(start, samples)

    def _read(self, start: int, samples: int) -> np.ndarray:
        """The window with zeros past the recording's ends."""
        if self._in_step == self._out_step:
            return self._read_frames(start, samples)
        # Both grids meet every `out_step` output samples: begin and end the source block there.
        first = (start - RESAMPLING_MARGIN) // self._out_step
        last = -((start + samples + RESAMPLING_MARGIN) // -self._out_step)
        block = self._read_frames(first * self._in_step, (last - first) * self._in_step)
        resampled = soxr.resample(block, self.header.sample_rate_hz, self.sampling_rate)
        offset = start - first * self._out_step
        return resampled[offset : offset + samples]

    def blocks(self, frames: int, start: int = 0, end: int | None = None) -> Iterator[Block]:
        """Reads the recording, or a part, at its own rate, in order; damage is reported in its place, not raised.

        Args:
            frames: Length of a block. Blocks are shorter at the end and at damage; a damaged one may be longer.
            start: First frame.
            end: The frame after the last; by default the recording's end.

        Yields:
            Blocks that follow on each other and together hold every frame that the header promises.
        """
        end = self.header.frames if end is None else min(end, self.header.frames)
        here = min(end, self._frames_here)
        while start < here:
            stretches = self._decode(start, min(start + frames, here))
            for first, last, sound in stretches:
                if sound is not None:
                    yield Block(first, last - first, sound, self.decoder, "")
                elif last - first == frames and self._pyav is not None and self._pyav.ended:
                    yield Block(first, here - first, None, None, self._reason())  # nothing is left
                    stretches.append((first, here, None))
                    break
                else:
                    yield Block(first, last - first, None, None, self._reason())
            start = stretches[-1][1]
        if start < end:
            yield Block(start, end - start, None, None, self._missing())
        elif end == self.header.frames and self._pyav is not None and not self._pyav.is_end_known:
            self._said[PyavDecoder.name] = self._pyav.damage
            yield Block(end, 0, None, None, self._reason())

    def _read_frames(self, start: int, frames: int) -> np.ndarray:
        """Mono float32 frames `[start, start + frames)` of the file, zeros outside it."""
        window = np.zeros(frames, dtype=np.float32)
        first, last = max(start, 0), min(start + frames, self.header.frames)
        self.decoder = None
        if first >= last:
            return window
        here = min(last, self._frames_here)
        for begin, end, sound in self._decode(first, here) if first < here else ():
            if sound is None:
                raise self._undecodable(begin, self._reason())
            window[begin - start : end - start] = sound
        if here < last:
            raise self._undecodable(max(first, here), self._missing())
        return window

    def _undecodable(self, frame: int, reason: str) -> UndecodableError:
        return UndecodableError(
            f"{self.path} cannot be decoded at {frame / self.header.sample_rate_hz:.3f} s ({reason}): the file is "
            "damaged there, fetch it again or go without this stretch"
        )

    def _decode(self, first: int, last: int) -> list[tuple[int, int, np.ndarray | None]]:
        """Stretches (first frame, frame after the last, float32 sound or None) that make up `[first, last)`."""
        stretches = self._decode_any(first, last)
        # Sample formats of floats can hold what is no sound: that is lost too. The comparison is false for NaN.
        if not all(sound is None or max(sound.max(), -sound.min()) < MAX_AMPLITUDE for *_, sound in stretches):
            self._said[str(self.decoder)] = "samples that are no numbers, or far beyond full scale"
            return [part for stretch in stretches for part in _finite_parts(*stretch)]
        return stretches

    def _decode_any(self, first: int, last: int) -> list[tuple[int, int, np.ndarray | None]]:
        # Once it has failed soundfile is left alone, if it can be: its seeks into long damage take minutes.
        if not self._is_damaged or self._open_pyav() is None:
            sound = self._read_soundfile(first, last)
            if sound is not None:
                self.decoder = SoundfileDecoder.name
                return [(first, last, sound)]
            self._is_damaged = True
        self.decoder = PyavDecoder.name
        return self._read_pyav(first, last)

    def _read_soundfile(self, first: int, last: int) -> np.ndarray | None:
        file = self._soundfile
        if file is None:
            return None
        file.channel = self.lone_channel
        return self._ask(SoundfileDecoder.name, lambda: file.read(first, last))

    def _read_pyav(self, first: int, last: int) -> list[tuple[int, int, np.ndarray | None]]:
        pyav = self._open_pyav()
        if pyav is not None:
            pyav.channel = self.lone_channel
        found = None if pyav is None else self._ask(PyavDecoder.name, lambda: pyav.read(first, last))
        if pyav is not None and found is not None:
            self._said[PyavDecoder.name] = pyav.damage or "no intact sound there"
        stretches: list[tuple[int, int, np.ndarray | None]] = []
        at = first
        for begin, sound in found or ():
            if begin > at:
                stretches.append((at, begin, None))
            at = begin + len(sound)
            stretches.append((begin, at, sound))
        if at < last:
            stretches.append((at, last, None))
        return stretches

    def _open_pyav(self) -> PyavDecoder | None:
        """PyAV's decoder, if it can open the file and finds the same kind of sound in it."""
        if self._pyav is None and PyavDecoder.name not in self._said:
            pyav = self._ask(PyavDecoder.name, lambda: PyavDecoder(self.path))
            if pyav is not None:
                file = self._soundfile
                # In MP3 and the like FFmpeg's word counts, as libsndfile's is not taken.
                if (
                    file
                    and pyav.is_positioned
                    and (file.sample_rate_hz, file.channels) != (pyav.sample_rate_hz, pyav.channels)
                ):
                    self._said[PyavDecoder.name] = "another sampling rate or number of channels"
                else:
                    self._pyav = pyav
        return self._pyav

    def _ask(self, decoder: str, call: Callable[[], Result]) -> Result | None:
        """What a decoder answers; None, and the reason is kept, where it cannot: no file's bytes end a long run."""
        try:
            return call()
        except DecodingError as error:
            self._said[decoder] = str(error)
        except MemoryError:
            raise
        except Exception as error:
            logger.debug("%s failed on %s", decoder, self.path, exc_info=True)
            self._said[decoder] = f"{type(error).__name__}: {error}"
        return None

    def _read_header(self) -> tuple[AudioHeader, str]:
        """What the file promises, and its encoding."""
        file, extent = self._soundfile, self._extent
        pyav = None if file is not None and file.is_positioned else self._open_pyav()
        if pyav is not None and not pyav.is_positioned:
            return self._leave_to_pyav(pyav)
        decoder: SoundfileDecoder | PyavDecoder | None = file
        frames = None if extent is None else extent.frames
        is_wrong = extent is not None and extent.is_length_wrong
        if file is not None and 0 < file.frames <= MAX_FRAMES and not is_wrong:
            frames = file.frames if frames is None else min(file.frames, frames)
        elif frames != 0:
            decoder = pyav = self._open_pyav()
            frames = frames or (None if pyav is None else self._ask(PyavDecoder.name, pyav.count))
        if frames == 0:
            raise UserError(f"{self.path} holds no samples: fetch the file again")
        if decoder is None or frames is None:
            raise UserError(f"{self.path} cannot be read as audio ({self._reason()}): fetch the file again")
        self._frames_here = frames
        promised = frames if extent is None else extent.promised_frames(frames)
        return AudioHeader(promised, decoder.sample_rate_hz, decoder.channels), (file or decoder).encoding

    def _leave_to_pyav(self, pyav: PyavDecoder) -> tuple[AudioHeader, str]:
        """Leaves compressed sound to PyAV alone: libsndfile's lengths and seeks are not exact there."""
        file = self._soundfile
        if file is not None:
            file.close()
        self._said.pop(SoundfileDecoder.name, None)
        self._soundfile = self._extent = None
        self._frames_here = pyav.count()
        return AudioHeader(self._frames_here, pyav.sample_rate_hz, pyav.channels), (file or pyav).encoding

    def _missing(self) -> str:
        """Why the end that the header promises is not there."""
        return "" if self._extent is None else self._extent.reason

    def _reason(self) -> str:
        return "; ".join(f"{name}: {self._said[name]}" for name in sorted(self._said, reverse=True))


def _finite_parts(first: int, last: int, sound: np.ndarray | None) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """A stretch of sound, without what lies from its first to its last sample that is no sound."""
    wrong = np.zeros(0, int) if sound is None else np.flatnonzero(~(np.abs(sound) < MAX_AMPLITUDE))
    if sound is None or not len(wrong):
        yield first, last, sound
        return
    begin, end = int(wrong[0]), int(wrong[-1]) + 1
    if begin:
        yield first, first + begin, sound[:begin]
    yield first + begin, first + end, None
    if first + end < last:
        yield first + end, last, sound[end:]


def encode_wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """A mono waveform as the bytes of a WAV file that holds it exactly.

    Args:
        waveform: float32, shape `(samples,)`, full scale at -1 and 1.
        sampling_rate: In Hz.

    Returns:
        A file of 16-bit integers where every sample is one, as in a recording of 16 bits that is read at its own
        rate; else of 32-bit floats, which keep quiet sound, and sound above full scale, as it is.
    """
    integers = waveform * np.float32(32768)
    if (np.rint(integers) == integers).all() and (integers >= -32768).all() and (integers <= 32767).all():
        waveform = integers.astype(np.int16)
    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, sampling_rate, waveform)
    return buffer.getvalue()


def decode_wav(data: bytes) -> np.ndarray:
    """The samples of a WAV file that `encode_wav` wrote: float32, shape `(samples,)`, full scale at -1 and 1.

    Raises:
        ValueError: If it is a WAV file of another form.
    """
    _, samples = scipy.io.wavfile.read(io.BytesIO(data))
    if samples.ndim != 1 or samples.dtype not in (np.int16, np.float32):
        raise ValueError(f"expected mono WAV of int16 or float32, found {samples.dtype} of shape {samples.shape}")
    return samples / np.float32(32768) if samples.dtype == np.int16 else samples
