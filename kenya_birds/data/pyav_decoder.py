"""Decodes with FFmpeg what libsndfile does not, each sample at its certain place."""

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
from kenya_birds.data.decoders import BLOCK_S, MAX_FRAMES, DecodingError, find_lone_channel, in_words

# Containers in which any place can be sought exactly, if they hold FLAC or PCM.
POSITIONED_FORMATS = ("flac", "wav", "w64", "aiff", "au", "caf")
# Containers that hold all of their sound: FFmpeg also knows play lists, which open other files.
FORMATS = ",".join(
    (*POSITIONED_FORMATS, "mp3", "ogg", "mov", "aac", "ac3", "amr", "ape", "asf", "avi", "matroska", "tta", "wv")
)


class PyavDecoder:
    """Reads sound with FFmpeg, whose libraries PyAV's wheels carry.

    In FLAC each frame's checksum is verified, and its place is the one that its own header says. MP3 and other files
    without such places are decoded from their start up to the first damage: behind it no sample's place is certain.
    They are decoded once when they are opened, so that their length and their damage are known.

    Args:
        path: The recording.

    Attributes:
        sample_rate_hz: Samples per second.
        channels: Number of channels.
        encoding: Container, codec and sample format, such as `flac flac s16`.
        is_positioned: Whether any place can be sought exactly. If not, FFmpeg's own count of samples is the length.
        damage: Why sound is missing from some place on, where that is known; else empty.
        is_end_known: Whether no sound is missing behind the last frame; if not, it is not known how much.
        channel: The one that is read alone; None: the mean of all.

    Raises:
        DecodingError: If FFmpeg does not open the file, or finds no sound in it.
    """

    name = "PyAV"

    def __init__(self, path: Path) -> None:
        self._path = path
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
                state = path.stat()
                self._survey = _survey(path, state.st_size, state.st_mtime_ns)
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
        # What can be decoded of the frames `[_since, _until)` is in `_recent`; `_chunks` gives what follows.
        self._recent: deque[tuple[int, np.ndarray]] = deque()
        self._since, self._until = MAX_FRAMES, 0
        self._chunks: Iterator[tuple[int, np.ndarray]] = iter(())

    @property
    def ended(self) -> bool:
        """Whether decoding has come to the end of what can be decoded."""
        return self._until > MAX_FRAMES

    def find_lone_channel(self) -> int | None:
        """See `find_lone_channel`."""
        with _open(self._path) as container:
            return find_lone_channel(first_sound(container))

    def close(self) -> None:
        """Closes the file."""
        self._chunks = iter(())

    def count(self) -> int:
        """Decodes the whole file, if that was not done when it was opened.

        Returns:
            Number of frames up to the last one that can be decoded; in files without certain places of all frames,
            those behind damage included.
        """
        if self._survey:
            return self._survey.frames
        return max((at + len(sound) for at, sound in self._decode(0)), default=0)

    def read(self, first: int, last: int) -> list[tuple[int, np.ndarray]]:
        """Reads what can be decoded of the frames `[first, last)`; fastest in order.

        Returns:
            (first frame, float32 array of shape `(frames,)`, the mean of the channels) of each unbroken stretch, in
            order; between them sound is lost.
        """
        keep = BLOCK_S * self.sample_rate_hz
        if not self._since <= first <= self._until + (keep if self.is_positioned else MAX_FRAMES):
            self._start(first)
        while self._until < last:
            self._advance(first - keep)
        stretches: list[tuple[int, list[np.ndarray]]] = []
        end = -1
        for at, sound in self._recent:
            sound = sound[max(first - at, 0) : max(last - at, 0)]
            if len(sound):
                at = max(at, first)
                if at != end:
                    stretches.append((at, []))
                stretches[-1][1].append(sound)
                end = at + len(sound)
        return [(at, np.concatenate(sounds)) for at, sounds in stretches]

    def _start(self, first: int) -> None:
        """Begins to decode at the frame in which `first` is."""
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
        """Decodes from a frame at or before `first`: (place, mono sound), in order and without overlap."""
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
                ]  # a frame may be there twice
                if len(sound):
                    yield max(end, place), sound
                    end = max(end, place) + len(sound)

    def _flac_places(self, container: av.container.InputContainer, first: int) -> Iterator[tuple[int, av.AudioFrame]]:
        """Frames whose checksum is true, where their headers say.

        They are found here, as FFmpeg, which guesses where frames are before it decodes them, loses and misplaces
        whole ones round damage.
        """
        context = container.streams.audio[0].codec_context
        largest = self._block_frames * self.channels * 5 + 1024  # bytes, at up to 33 bits a sample
        has_ended = False
        with self._path.open("rb", buffering=0) as file:
            headers = flac_headers(file, self._block_frames, find_flac_frame(file, self._block_frames, first))
            for (offset, place), (end, _) in pairwise(chain(headers, [(MAX_FRAMES, 0)])):
                data = read_at(file, offset, min(end - offset, largest))
                frames = _decode_packet(context, av.Packet(data))
                if not frames:  # it may end before the next header, or what looks like one may stand in its middle
                    data = read_at(file, offset, largest)
                    tries = (_decode_packet(context, av.Packet(data[:length])) for length in possible_ends(data))
                    frames = next(filter(None, tries), None)
                if frames:
                    if has_ended:  # a short frame should be the last where frames, not samples, are counted
                        return
                    has_ended = not data[1] & 1 and frames[0].samples < self._block_frames
                    yield place, frames[0]

    def _timed_places(self, container: av.container.InputContainer, first: int) -> Iterator[tuple[int, av.AudioFrame]]:
        """Frames where their times say."""
        for packet in _packets(container, first / self.sample_rate_hz):
            for frame in _decode_packet(container.streams.audio[0].codec_context, packet) or ():
                if frame.pts is None or frame.time_base is None:
                    return
                yield round(frame.pts * frame.time_base * self.sample_rate_hz), frame


@lru_cache(maxsize=100_000)
def _survey(path: Path, size: int, mtime_ns: int) -> Survey:
    """Decodes a file once, however often it is opened; another size or time means that it has changed."""
    with _open(path) as container:
        return survey_sound(container, path)


def _open(path: Path) -> av.container.InputContainer:
    try:
        # `file:`, because FFmpeg takes what stands before a colon in a name for a protocol.
        container = av.open(
            f"file:{path}",
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError) as error:
        raise DecodingError(in_words(error)) from None
    context = container.streams.audio[0].codec_context if container.streams.audio else None
    if context is None or context.format is None or not context.sample_rate:
        container.close()
        raise DecodingError("no sound in it")
    context.options = {"err_detect": "crccheck+explode"}  # a frame with a false checksum is not given
    context.thread_count = 1
    return container


def _packets(container: av.container.InputContainer, start_s: float) -> Iterator[av.Packet]:
    """Packets from one at or before a time; none where FFmpeg cannot seek."""
    stream = container.streams.audio[0]
    assert stream.time_base is not None
    try:
        if start_s:
            container.seek(round(start_s / stream.time_base), stream=stream)
        yield from container.demux(stream)
    except av.FFmpegError:
        return


def _decode_packet(context: av.AudioCodecContext, packet: av.Packet) -> list[av.AudioFrame] | None:
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return None
