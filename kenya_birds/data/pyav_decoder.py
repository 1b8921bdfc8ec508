"""Decoder of sound files with FFmpeg (PyAV), for files that libsndfile cannot read."""

import math
import os
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np

from kenya_birds.data.compressed_frames import find_flac_frame, flac_headers, possible_ends, read_at
from kenya_birds.data.compressed_sound import (
    Survey,
    channels_last,
    decode_sound,
    first_sound,
    survey_sound,
    to_mono_float,
)
from kenya_birds.data.decoders import BLOCK_S, MAX_FRAMES, DecodingError, TooLongError, error_text, find_lone_channel

# Containers with exact seeks, if they contain FLAC or PCM.
POSITIONED_FORMATS = ("flac", "wav", "w64", "aiff", "au", "caf")
# Each FLAC frame that cannot be decoded is searched for its end. This many bytes are searched in a file, and so many
# more for each of its bytes: a small file can have thousands of false frame headers.
SEARCHED_BYTES, SEARCHED_PER_BYTE = 2**22, 4
# Allowed containers. FFmpeg also reads play lists, which open other files.
FORMATS = ",".join(
    (*POSITIONED_FORMATS, "mp3", "ogg", "mov", "aac", "ac3", "amr", "ape", "asf", "avi", "matroska", "tta", "wv")
)


class PyavDecoder:
    """Decoder that uses FFmpeg, whose libraries are in PyAV's wheels.

    In FLAC each frame's checksum is verified, and its position is taken from its header. Files without exact
    positions, such as MP3, are decoded from the start to the first damage; later positions are uncertain. These files
    are decoded once when they are opened, to find their length and damage.

    Args:
        path: The recording.
        max_s: Longest recording in seconds, where its length is found by decoding it.

    Attributes:
        sample_rate_hz: Samples per second.
        channels: Number of channels.
        encoding: Container, codec and sample format, such as `flac flac s16`.
        is_positioned: Whether seeks are exact. If not, the length is the number of samples that FFmpeg decodes.
        damage: Description of the damage from some position on, if known; else empty.
        is_end_known: False if an unknown amount of sound is missing after the last frame.
        channel: The only channel to read; None: the mean of all channels.

    Raises:
        DecodingError: If FFmpeg cannot open the file, or finds no sound in it.
        TooLongError: If the recording is longer than `max_s`.
    """

    name = "PyAV"

    def __init__(self, path: Path, max_s: float = math.inf) -> None:
        self._path, self._max_s = path, max_s
        self._survey: Survey | None = None
        with _open(self._path) as container:
            context = container.streams.audio[0].codec_context
            container_name = container.format.name.split(",")[0]
            self.sample_rate_hz: int = context.sample_rate
            self.channels: int = context.layout.nb_channels
            self.encoding = f"{container_name} {context.name} {context.format.name}"
            self._is_flac = container_name == "flac"
            self.is_positioned = self._is_flac or (
                container_name in POSITIONED_FORMATS and context.name.startswith("pcm_")
            )
            if not self.is_positioned:
                self._survey = _survey(path, max_s)
                if not self._survey.frames:
                    raise DecodingError(self._survey.damage or "no sound in it")
                self.sample_rate_hz, self.channels = self._survey.sample_rate_hz, self._survey.channels
            if self._is_flac:
                self._block_frames = int.from_bytes((context.extradata or b"")[2:4])
                if not self._block_frames:
                    raise DecodingError("its stream information is missing")
        self.damage = self._survey.damage if self._survey else ""
        self.is_end_known = self._survey is None or self._survey.is_end_known
        self.channel: int | None = None
        # `_recent` has the decoded sound of the frames `[_since, _until)`; `_chunks` yields the following sound.
        self._recent: deque[tuple[int, np.ndarray]] = deque()
        self._since, self._until = MAX_FRAMES, 0
        self._chunks: Iterator[tuple[int, np.ndarray]] = iter(())

    @property
    def ended(self) -> bool:
        """True if all sound that can be decoded has been decoded."""
        return self._until > MAX_FRAMES

    def find_lone_channel(self) -> int | None:
        """See `find_lone_channel`."""
        with _open(self._path) as container:
            return find_lone_channel(first_sound(container))

    def close(self) -> None:
        """Closes the file."""
        self._chunks = iter(())

    def count(self) -> int:
        """Counts frames by decoding the whole file, unless that was done when the file was opened.

        Returns:
            Number of frames up to the last one that can be decoded. In files without exact positions, frames after
            damage are included.

        Raises:
            TooLongError: If there are more than `max_s` allows.
        """
        if self._survey:
            return self._survey.frames
        end = 0
        for at, sound in self._decode(0):
            end = at + len(sound)
            if end > self._max_s * self.sample_rate_hz:
                raise TooLongError
        return end

    def read(self, first: int, last: int) -> list[tuple[int, np.ndarray]]:
        """Reads the frames `[first, last)` as far as they can be decoded; sequential reads are fastest.

        Args:
            first: First frame.
            last: The frame after the last one.

        Returns:
            (first frame, float32 array of shape `(frames,)`, the mean of the channels) of each continuous section, in
            order; sound between sections is lost.
        """
        keep = BLOCK_S * self.sample_rate_hz
        if not self._since <= first <= self._until + (keep if self.is_positioned else MAX_FRAMES):
            self._start(first)
        while self._until < last:
            self._advance(first - keep)
        parts: list[tuple[int, list[np.ndarray]]] = []
        end = -1
        for at, sound in self._recent:
            sound = sound[max(first - at, 0) : max(last - at, 0)]
            if len(sound):
                at = max(at, first)
                if at != end:
                    parts.append((at, []))
                parts[-1][1].append(sound)
                end = at + len(sound)
        return [(at, np.concatenate(sounds)) for at, sounds in parts]

    def _start(self, first: int) -> None:
        """Starts decoding at the frame that contains `first`."""
        self._recent.clear()
        self._chunks = self._decode(first if self.is_positioned else 0)
        self._since = self._until = 0
        self._advance(0)
        self._since = min(first, self._recent[0][0])

    def _advance(self, keep_from: int) -> None:
        at, sound = next(self._chunks, (2 * MAX_FRAMES, np.zeros(0, dtype=np.float32)))
        self._recent.append((at, sound))
        self._until = at + len(sound)
        while self._recent and self._recent[0][0] + len(self._recent[0][1]) <= keep_from:
            self._recent.popleft()
        self._since = max(self._since, keep_from)

    def _decode(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes from a frame at or before `first`: (position, mono sound), in order and without overlap."""
        end = 0
        with _open(self._path) as container:
            if self._survey:
                yield from decode_sound(container, self._survey.certain_frames, self.channel)
                return
            places = self._flac_places if self._is_flac else self._timed_places
            for place, frame in places(container, first):
                if (frame.sample_rate, frame.layout.nb_channels) != (self.sample_rate_hz, self.channels):
                    return
                sound = to_mono_float(channels_last(frame), self.channel)[
                    max(end - place, 0) :
                ]  # a frame may occur twice
                if len(sound):
                    yield max(end, place), sound
                    end = max(end, place) + len(sound)

    def _flac_places(self, container: av.container.InputContainer, first: int) -> Iterator[tuple[int, av.AudioFrame]]:
        """Yields frames with a correct checksum, at the positions in their headers.

        This method searches for frames itself, because FFmpeg loses and misplaces whole frames near damage.
        """
        context = container.streams.audio[0].codec_context
        largest = self._block_frames * self.channels * 5 + 1024  # bytes, at up to 33 bits a sample
        has_ended = False
        with self._path.open("rb", buffering=0) as file:
            left = SEARCHED_BYTES + SEARCHED_PER_BYTE * os.fstat(file.fileno()).st_size
            headers = flac_headers(file, self._block_frames, find_flac_frame(file, self._block_frames, first))
            for (offset, place), (end, _) in pairwise(chain(headers, [(MAX_FRAMES, 0)])):
                data = read_at(file, offset, min(end - offset, largest))
                frames = _decode_packet(context, av.Packet(data))
                if not frames and left > 0:  # it may end before the next header, or contain a false header
                    data = read_at(file, offset, largest)
                    frames, searched = _decode_start(context, data)
                    left -= searched
                if frames:
                    if has_ended:  # if headers count frames, only the last frame may be short
                        return
                    has_ended = not data[1] & 1 and frames[0].samples < self._block_frames
                    yield place, frames[0]

    def _timed_places(self, container: av.container.InputContainer, first: int) -> Iterator[tuple[int, av.AudioFrame]]:
        """Yields frames at the positions of their time stamps."""
        for packet in _packets(container, first / self.sample_rate_hz):
            for frame in _decode_packet(container.streams.audio[0].codec_context, packet) or ():
                if frame.pts is None or frame.time_base is None:
                    return
                yield round(frame.pts * frame.time_base * self.sample_rate_hz), frame


def _survey(path: Path, max_s: float) -> Survey:
    """Surveys a file once, however often it is opened."""
    state = path.stat()
    found = _surveys(path, state.st_size, state.st_mtime_ns)
    if not found:
        with _open(path) as container:
            found.append(survey_sound(container, path, max_s))
    return found[0]


@lru_cache(maxsize=100_000)
def _surveys(path: Path, size: int, mtime_ns: int) -> list[Survey]:
    """Returns the kept list of a file's survey, empty at first; `size` and `mtime_ns` detect a changed file."""
    return []


def _open(path: Path) -> av.container.InputContainer:
    try:
        # `file:`, because FFmpeg reads text before a colon in a name as a protocol.
        container = av.open(
            f"file:{path}",
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError) as error:
        raise DecodingError(error_text(error)) from None
    context = container.streams.audio[0].codec_context if container.streams.audio else None
    if context is None or context.format is None or not context.sample_rate:
        container.close()
        raise DecodingError("no sound in it")
    context.options = {"err_detect": "crccheck+explode"}  # skips frames with a wrong checksum
    context.thread_count = 1
    return container


def _packets(container: av.container.InputContainer, start_s: float) -> Iterator[av.Packet]:
    """Yields packets from one at or before a time; none if FFmpeg cannot seek."""
    stream = container.streams.audio[0]
    assert stream.time_base is not None
    try:
        if start_s:
            container.seek(round(start_s / stream.time_base), stream=stream)
        yield from container.demux(stream)
    except av.FFmpegError:
        return


def _decode_start(context: av.AudioCodecContext, data: bytes) -> tuple[list[av.AudioFrame] | None, int]:
    """Returns the FLAC frame at the start of `data`, which may go on after it, and how many bytes were searched."""
    searched = len(data)
    for length in possible_ends(data):
        frames = _decode_packet(context, av.Packet(data[:length]))
        searched += length
        if frames or searched > SEARCHED_BYTES:
            return frames, searched
    return None, searched


def _decode_packet(context: av.AudioCodecContext, packet: av.Packet) -> list[av.AudioFrame] | None:
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return None
