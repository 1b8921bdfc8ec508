"""Decoding of compressed sound from the start, packet by packet, up to the first damage.

The position of a sample is the number of samples decoded before it, because time stamps are not exact in these
formats: in Vorbis they are exact only at the ends of pages, and in Matroska they are in milliseconds.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from kenya_birds.data.compressed_frames import find_missing_avi, find_ogg_damage, follow_frames
from kenya_birds.data.decoders import PROBED_S, TooLongError, error_text, to_mono

# Formats whose packets have time stamps: a larger jump in seconds means that packets are missing. The limits are large
# because phones and browsers write inexact times, and a complete MP4 has all packets in its table.
LARGEST_JUMP_S = {"mov": 1.0, "matroska": 0.25, "asf": 0.02}
# Zeros are valid Opus packets, but shorter than others.
LARGEST_JUMP_OF_OPUS_S = 0.004
# Formats with the length in their headers.
MEASURED_FORMATS = ("mov", "matroska", "asf", "wav", "w64", "aiff", "au", "caf", "wv", "tta", "ape", "avi")
# Formats without a container.
BARE_FORMATS = ("mp3", "aac")
# Codecs with checksums. Packets of other codecs may be decoded without an error although they are damaged.
CHECKED_CODECS = ("flac", "wavpack", "tta")
# In intact files the length in the header differs from the decoded length by up to 0.03 s, or a few packets.
TOLERANCE_S = 0.1
CHUNK_FRAMES = 2**16
# Headers with a greater length are damaged.
MAX_LENGTH_S = 31 * 24 * 3600
# The object of an ASF header that contains the length. FFmpeg's value may be an estimate.
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@dataclass(frozen=True)
class Survey:
    """Length and damage of a file, after it was decoded once.

    Attributes:
        frames: Samples per channel of the whole file, damaged parts included.
        certain_frames: Samples per channel before the first damage; later positions are uncertain.
        sample_rate_hz: Samples per second.
        channels: Number of channels.
        damage: Description of the damage. Without damage it is empty, and `certain_frames` equals `frames`.
        is_end_known: False if an unknown amount of sound is missing after `frames`.
    """

    frames: int
    certain_frames: int
    sample_rate_hz: int
    channels: int
    damage: str
    is_end_known: bool


def survey_sound(container: av.container.InputContainer, path: Path, max_s: float = math.inf) -> Survey:
    """Decodes a whole file, counts its samples and detects damage.

    Args:
        container: The file, opened and not yet read.
        path: The same file.
        max_s: Longest sound in seconds.

    Raises:
        TooLongError: If the file has more sound.
    """
    surveyor = _Surveyor(container, path)
    for packet, frames, error in _decoded_packets(container):
        surveyor.add(packet, frames, error)
        if surveyor.is_longer_than(max_s):
            raise TooLongError
    return surveyor.finish()


def decode_sound(
    container: av.container.InputContainer, certain_frames: int, channel: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes the sound before the first damage.

    Args:
        container: The file, opened and not yet read.
        certain_frames: See `Survey`.
        channel: The only channel to read; None: the mean of all channels.

    Yields:
        (first frame, float32 array of shape `(frames,)`), in order and without gaps.
    """
    if not certain_frames:
        return
    at = end = 0
    form: tuple[int, int] | None = None
    pending: list[np.ndarray] = []
    for _, frames, _ in _decoded_packets(container):
        for frame in frames:
            form = form or _form(frame)
            if _form(frame) == form:
                pending.append(channels_last(frame))
                end += frame.samples
        if pending and (end - at >= CHUNK_FRAMES or end >= certain_frames):
            yield at, to_mono_float(np.concatenate(pending), channel)[: certain_frames - at]
            at, pending = end, []
            if end >= certain_frames:
                return


def channels_last(frame: av.AudioFrame) -> np.ndarray:
    """Returns FFmpeg's samples, shape `(frames, channels)`."""
    samples = frame.to_ndarray()
    return samples.T if frame.format.is_planar else samples.reshape(frame.samples, -1)


def first_sound(container: av.container.InputContainer) -> Iterator[np.ndarray]:
    """Decodes the beginning of a file: float32 blocks of shape `(frames, channels)`, a second or more each."""
    pending: list[np.ndarray] = []
    channels = frames_read = 0
    for _, frames, _ in _decoded_packets(container):
        for frame in frames:
            channels = channels or frame.layout.nb_channels
            if frame.layout.nb_channels == channels:
                pending.append(channels_last(frame))
                frames_read += frame.samples
            if sum(map(len, pending)) >= frame.sample_rate:
                yield _to_float(np.concatenate(pending))
                pending = []
            if frames_read >= PROBED_S * frame.sample_rate:
                return
    if pending:
        yield _to_float(np.concatenate(pending))


def to_mono_float(samples: np.ndarray, channel: int | None = None) -> np.ndarray:
    """Scales and mixes FFmpeg's samples of shape `(frames, channels)` as `SoundfileDecoder` does."""
    return to_mono(_to_float(samples), channel)


def _to_float(samples: np.ndarray) -> np.ndarray:
    sound = samples.astype(np.float32, copy=False)
    if samples.dtype.kind != "f":
        sound = sound / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return sound - np.float32(1) if samples.dtype.kind == "u" else sound


def _form(frame: av.AudioFrame) -> tuple[int, int]:
    """Returns sampling rate in Hz and number of channels."""
    return frame.sample_rate, frame.layout.nb_channels


def _decoded_packets(
    container: av.container.InputContainer,
) -> Iterator[tuple[av.Packet | None, list[av.AudioFrame], str]]:
    """Yields (packet, its sound, error message); the packet is None if the rest of the file cannot be read."""
    stream = container.streams.audio[0]
    try:
        for packet in container.demux(stream):
            try:
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                yield packet, [], f"a packet cannot be decoded: {error_text(error)}"
            else:
                yield packet, frames, "a packet is incomplete" if packet.is_corrupt else ""
    except av.FFmpegError as error:
        yield None, [], f"the rest cannot be read: {error_text(error)}"


class _Surveyor:
    """Counter of samples that detects damage."""

    def __init__(self, container: av.container.InputContainer, path: Path) -> None:
        stream = container.streams.audio[0]
        self._path = path
        self._format = container.format.name.split(",")[0]
        mpeg = follow_frames(path) if self._format in BARE_FORMATS else None
        self._no_sound = mpeg.no_sound if mpeg else ()
        self._promised_packets = mpeg.promised_frames if mpeg else None
        # First byte of damage by the file's structure, and its description.
        self._broken = mpeg.damage if mpeg else _find_damage(path, self._format)
        self._header_s = self._length_in_header(container)
        self._largest_jump_s = LARGEST_JUMP_S.get(self._format)
        if self._format == "mov" and stream.codec_context.name == "opus":
            self._largest_jump_s = LARGEST_JUMP_OF_OPUS_S
        self._is_checked = self._format == "ogg" or stream.codec_context.name in CHECKED_CODECS
        self._largest = stream.codec_context.frame_size or 0  # samples of a packet
        self._form = (0, 0)  # of the first frame: headers of HE-AAC say half the rate
        self._total = self._packets = 0
        self._at_last = 0  # samples before those of the last packet
        self._last_position = -1
        self._lag: float | None = None  # time stamp minus counted samples
        self._has_ended = True  # False if FFmpeg cannot read the rest
        self._damage = ""
        self._certain = self._total_at_damage = 0

    def add(self, packet: av.Packet | None, frames: list[av.AudioFrame], error: str) -> None:
        """Adds the next packet.

        Args:
            packet: The packet; None if the rest of the file cannot be read.
            frames: Its decoded sound.
            error: Error message; empty without an error.
        """
        self._has_ended = packet is not None
        position = packet.pos if packet is not None and packet.size and packet.pos is not None else -1
        is_no_sound = any(begin <= position < end for begin, end in self._no_sound)
        self._packets += position >= 0 and not error and not is_no_sound
        if self._broken and position >= self._broken[0]:
            error = self._broken[1]
        elif is_no_sound or (self._format == "ogg" and self._broken and packet is None):
            error = ""  # the file's structure is more reliable than FFmpeg's error
        is_decoded = position >= 0 and not error and not is_no_sound
        if frames and not self._form[0]:
            self._form = _form(frames[0])
        is_rest = packet is not None and not packet.size  # what the decoder still has at the end
        error = error or ("" if is_no_sound else self._find_change(frames, is_timed=not is_rest))
        if error and not self._damage:
            # A damaged packet may be decoded without an error, so the packet before is uncertain too.
            self._certain = self._total if self._is_checked else self._at_last
            self._damage, self._total_at_damage = error, self._total
        if is_decoded:
            # One ASF packet contains several packets of the codec.
            if self._format != "asf" or position != self._last_position:
                self._at_last = self._total
            self._last_position = position
        samples = sum(frame.samples * self._form[0] // frame.sample_rate for frame in self._counted(frames))
        self._largest = max(self._largest, samples)
        self._total += samples

    def is_longer_than(self, max_s: float) -> bool:
        """Returns True if the packets so far have more sound than `max_s` seconds."""
        return self._total > max_s * self._form[0]

    def finish(self) -> Survey:
        """Returns the result, after the last packet."""
        promised = self._promised_frames()
        if promised is not None and promised > MAX_LENGTH_S * self._form[0]:
            promised = None
        is_short = promised is not None and self._total + self._slack() < promised
        if self._damage and self._total == self._total_at_damage and promised is not None and not is_short:
            self._damage = ""  # the damage is after the last sound
        if not self._damage and is_short:
            self._damage = "the file has less sound than its header promises"
            # AVI continues after damage without an error, and its packets have no time stamps.
            self._certain = 0 if self._format == "avi" else self._total if self._is_checked else self._at_last
        is_counted_whole = self._promised_packets is not None and not is_short
        if not self._damage and self._broken and not is_counted_whole:
            self._damage, self._certain = self._broken[1], self._total
        if not self._damage:
            return Survey(self._total, self._total, *self._form, "", is_end_known=True)
        frames = max(self._total, promised or 0)
        is_end_known = frames > self._certain and (self._has_ended or promised is not None)
        return Survey(frames, self._certain, *self._form, self._damage, is_end_known)

    def _counted(self, frames: list[av.AudioFrame]) -> list[av.AudioFrame]:
        """Returns the frames to count; before damage, frames of another format are excluded (false matches)."""
        return [frame for frame in frames if self._damage or _form(frame) == self._form]

    def _find_change(self, frames: list[av.AudioFrame], *, is_timed: bool) -> str:
        """Describes a change from the previous frames to these, also of time stamps; empty without a change."""
        counted = self._total
        for frame in frames:
            rate, channels = _form(frame)
            if (rate, channels) != self._form:
                return f"the sound changes to {rate} Hz and {channels} channels"
            if is_timed and self._largest_jump_s and frame.pts is not None and frame.time_base is not None:
                lag = float(frame.pts * frame.time_base) - counted / rate
                jump = lag - (lag if self._lag is None else self._lag)
                self._lag = lag
                if abs(jump) > self._largest_jump_s:
                    return f"the time stamps jump by {jump:.3f} s"
            counted += frame.samples
        return ""

    def _slack(self) -> float:
        """Returns how many samples a complete file may have less than its header promises."""
        if self._format in ("mp3", "caf"):  # these count packets, some writers of MP3 one more
            return 1.5 * self._largest
        if self._format in LARGEST_JUMP_S:  # the encoder's delay may be counted
            return 2 * self._largest + TOLERANCE_S * self._form[0]
        return TOLERANCE_S * self._form[0]

    def _promised_frames(self) -> int | None:
        """Returns the number of samples by the header, or by the last page of an Ogg file; None if unknown."""
        by_ffmpeg = None if self._header_s is None else round(self._header_s * self._form[0])
        if self._promised_packets is not None:
            missing = max(self._promised_packets - self._packets, 0) * self._largest
            # FFmpeg's length excludes the encoder's padding at the end, but may be an estimate.
            is_close = missing and by_ffmpeg and abs(by_ffmpeg - self._total - missing) < 3 * self._largest
            return by_ffmpeg if is_close else self._total + missing
        if self._format in BARE_FORMATS or (self._format == "ogg" and not self._damage):
            return None
        return by_ffmpeg

    def _length_in_header(self, container: av.container.InputContainer) -> float | None:
        """Returns the length in seconds by the header; None if FFmpeg would only estimate it."""
        if self._format not in (*MEASURED_FORMATS, "mp3") and not self._broken:
            return None
        if self._format == "asf":
            return _asf_length_s(self._path) if len(container.streams) == 1 else None
        stream = container.streams.audio[0]
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        # The container has the length of its longest stream.
        if container.duration is not None and len(container.streams) == 1:
            return container.duration / av.time_base
        return None


def _find_damage(path: Path, name: str) -> tuple[int, str] | None:
    """Returns the first byte of damage by the structure of a file, and its description; None without damage."""
    find = {"ogg": find_ogg_damage, "avi": find_missing_avi}.get(name)
    return None if find is None else find(path)


def _asf_length_s(path: Path) -> float | None:
    """Returns the length in seconds of an ASF header; None if it is not set."""
    with path.open("rb") as file:
        header = file.read(2**16)
    found = header[header.find(ASF_FILE_PROPERTIES) :]
    if not found.startswith(ASF_FILE_PROPERTIES) or len(found) < 92 or found[88] & 1:  # a stream of unknown length
        return None
    length_100ns, preroll_ms = struct.unpack_from("<Q8xQ", found, 64)
    return (length_100ns / 1e7 - preroll_ms / 1e3) or None
