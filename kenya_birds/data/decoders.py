"""Decoder of sound files with libsndfile: it returns the right samples at the right position, or raises an error."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from kenya_birds.data.compressed_frames import read_at
from kenya_birds.data.sound_extent import JOINED_FLAC, SoundBytes, SoundExtent

# libsndfile returns 2^63 - 1 for a FLAC file without a length in its header; no recording has this many frames.
MAX_FRAMES = 2**40
POSITIONED_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")
# FFmpeg takes these for other codecs, or reads another length, and libsndfile seeks nowhere in them.
REFUSED_ENCODINGS = ("WAV G721_32", "AU G721_32", "AU G723_24", "AU G723_40", "AIFF GSM610")
# Formats whose headers this package checks, or whose structure reveals damage. For other formats, which no recorder
# writes, libsndfile reads a truncated file without an error.
FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "NIST", "FLAC", "OGG", "MP3", "RAW")
# Zeros of this length may be a missing frame; encoders write frames of 576 samples or more.
SHORT_FLAC_FRAME = 512
EDGE_FRAMES = 32
BLOCK_S = 10
# Channels cancel each other if their mean has less than this share of their power, as with an inverted channel.
CANCELLED_POWER = 0.01
# Seconds at the start of a recording that are searched for sound.
PROBED_S = 60


class DecodingError(Exception):
    """Raised if a decoder cannot decode the requested sound; the message is the decoder's."""


class TooLongError(Exception):
    """Raised while a recording is decoded to find its length, if it is longer than allowed."""


class SoundfileDecoder:
    """Decoder that uses libsndfile: one open file, a seek and a read for each window.

    In FLAC, libsndfile reports a damaged frame as an error but reads a missing frame as silence. This decoder
    therefore refuses silent windows, so that another decoder must confirm them.

    Args:
        path: The recording.
        extent: Position of the sound in the file, if known. It is used if libsndfile finds another length.

    Attributes:
        frames: Samples per channel that libsndfile finds; 0 or more than `MAX_FRAMES` if unknown.
        sample_rate_hz: Samples per second.
        channels: Number of channels.
        encoding: Container and sample format, such as `FLAC PCM_16`.
        is_positioned: Whether each sample's position is certain, as in FLAC and WAV. In MP3 and Ogg a seek may end at
            another position, and after damage other sound is returned without an error.
        channel: The only channel to read; None: the mean of all channels.

    Raises:
        DecodingError: If libsndfile does not open the file.
    """

    name = "soundfile"

    def __init__(self, path: Path, extent: SoundExtent | None = None) -> None:
        self._path = path
        self._sound: SoundExtent | None = None
        self._bytes: SoundBytes | None = None
        self._file = self._open_with_extent(extent)
        self._at: int | None = (
            None  # forces a seek before the first read: otherwise libFLAC accepts any frame as the first
        )
        self._has_hole: bool | None = None
        self.frames: int = self._file.frames
        self.sample_rate_hz: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.encoding = f"{self._file.format.replace('RAW', 'WAV')} {self._file.subtype}"
        self.is_positioned = self._file.subtype.startswith(POSITIONED_SUBTYPES)
        self.channel: int | None = None

    def find_lone_channel(self) -> int | None:
        """See `find_lone_channel`; also None if the beginning cannot be read."""
        if self._find_hole():
            return None
        self._at = None
        frames = PROBED_S * self.sample_rate_hz
        try:
            self._file.seek(0)
            blocks = self._file.blocks(BLOCK_S * self.sample_rate_hz, frames=frames, dtype="float32", always_2d=True)
            return find_lone_channel(blocks)
        except soundfile.SoundFileError:
            self._open_again()
            return None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        if self._bytes is not None:
            self._bytes.close()

    def read(self, first: int, last: int) -> np.ndarray:
        """Reads the frames `[first, last)`, all of them within the file.

        Returns:
            float32 array of shape `(last - first,)`, the mean of the channels.

        Raises:
            DecodingError: If a frame cannot be read; other windows may still be readable.
        """
        if self._find_hole():
            raise DecodingError("the file has a gap of zeros")
        reason = ""
        try:
            if first != self._at:
                self._file.seek(first)
            sound = self._file.read(last - first, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            reason = error_text(error)
        else:
            if len(sound) != last - first:
                reason = f"stops after {len(sound)} of {last - first} frames"
            elif self._file.format == "FLAC" and _has_silence(sound):
                reason = "silence, which may be a missing frame"
        if reason:  # libsndfile then refuses all later seeks
            self._open_again()
            raise DecodingError(reason)
        self._at = last
        return to_mono(sound, self.channel)

    def _find_hole(self) -> bool:
        if self._has_hole is None:
            self._has_hole = self._file.format == "FLAC" and _has_hole(self._path)
        return self._has_hole

    def _open_again(self) -> None:
        self._at = None
        self.close()
        self._file = self._open()

    def _open_with_extent(self, extent: SoundExtent | None) -> soundfile.SoundFile:
        """Opens the file, or only its sound if libsndfile would find another length or read a second file."""
        if extent is not None and extent.reason == JOINED_FLAC:
            self._sound = extent
        elif extent is not None and extent.raw:
            with suppress(DecodingError):
                file = self._open()
                if file.frames == extent.frames:
                    return file
                file.close()
            self._sound = extent
        return self._open()

    def _open(self) -> soundfile.SoundFile:
        try:
            if self._sound is not None:
                self._bytes = SoundBytes(self._path, self._sound.begin, self._sound.end)
                file = soundfile.SoundFile(self._bytes, **self._sound.raw)
            else:
                file = soundfile.SoundFile(str(self._path))
        except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: the name ends in .raw
            if self._bytes is not None:
                self._bytes.close()
            raise DecodingError(error_text(error)) from None
        if file.format not in FORMATS:
            file.close()
            raise DecodingError(
                f"a missing end cannot be recognised in the format {file.format}, convert it to WAV or FLAC"
            )
        return file


def _has_hole(path: Path) -> bool:
    """Returns True if a FLAC file has a mebibyte or more of zeros, as after an interrupted download.

    libFLAC takes minutes to seek there: its time grows with the square of the size.
    """
    step = 2**20
    with suppress(OSError), path.open("rb", buffering=0) as file:
        for position in range(step, os.fstat(file.fileno()).st_size, step):
            if not any(read_at(file, position, 64)):
                return True
    return False


def _has_silence(sound: np.ndarray) -> bool:
    """Returns True if sound of shape `(frames, channels)` has zeros as long as a FLAC frame, or at its edges."""
    if not sound[:EDGE_FRAMES].any() or not sound[-EDGE_FRAMES:].any():
        return True
    step = SHORT_FLAC_FRAME // 4
    if np.diff(np.flatnonzero(sound[::step, 0])).max(initial=0) < 4:  # fast, and true of most sound
        return False
    return bool(np.diff(np.flatnonzero(sound.any(axis=1))).max(initial=0) > SHORT_FLAC_FRAME)


def to_mono(sound: np.ndarray, channel: int | None = None) -> np.ndarray:
    """Returns the mean of the channels, or one channel, of sound of shape `(frames, channels)`.

    Args:
        sound: Shape `(frames, channels)`.
        channel: The only channel to read; None: the mean of all channels.
    """
    if sound.shape[1] == 1:
        channel = 0
    return sound.mean(axis=1) if channel is None else np.ascontiguousarray(sound[:, channel])


def find_lone_channel(blocks: Iterable[np.ndarray]) -> int | None:
    """Returns the index of the loudest channel if the channels cancel each other in their mean; else None.

    Args:
        blocks: Sound of shape `(frames, channels)` from the beginning; the first block that is not silent decides.
    """
    for sound in blocks:
        power = np.square(sound, dtype=np.float64).mean(axis=0)
        if power.max(initial=0) > 0:
            mixed = np.square(sound.mean(axis=1, dtype=np.float64)).mean()
            return int(power.argmax()) if mixed < CANCELLED_POWER * power.mean() else None
    return None


def error_text(error: Exception) -> str:
    """Returns a decoder's error message, without the file's name and libsndfile's prefix."""
    if isinstance(error, soundfile.LibsndfileError):
        words = error.error_string
    else:
        words = getattr(error, "strerror", None) or str(error)
    return words.removeprefix("Error :").strip().rstrip(".")
