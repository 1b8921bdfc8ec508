"""Recordings as streams of windows, in bounded memory, with a stopwatch for each part of the work."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import soxr

from kenya_birds.data.audio import MAX_AMPLITUDE, AudioHeader, Block, RecordingReader
from kenya_birds.data.recorder_header import NO_HEADER, RecorderHeader, read_recorder_header
from kenya_birds.data.sound_pieces import resampled
from kenya_birds.errors import UserError
from kenya_birds.inference.sources import FileState, Source
from kenya_birds.inference.windows import Coverage, UnscoredSound, WindowGrid, Windows

logger = logging.getLogger(__name__)

PARTS = ("fetch", "decode", "resample", "features", "model", "write")


class Stopwatch:
    """Stopwatch that sums the time of all threads for each part of the work.

    Attributes:
        spent_s: Seconds by part, summed over threads.
    """

    def __init__(self) -> None:
        self.spent_s = dict.fromkeys(PARTS, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Adds the time of the `with` block to a part."""
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - begin_s)

    def add(self, part: str, seconds: float) -> None:
        """Adds seconds to a part.

        Args:
            part: One of `PARTS`.
            seconds: The time.
        """
        with self._lock:
            self.spent_s[part] += seconds


BLOCK_S = 30


@dataclass(frozen=True)
class Reading:
    """Result of reading a recording to its end.

    Attributes:
        frames: Samples per channel by its header; 0 if it cannot be opened.
        sample_rate_hz: The recording's own rate; 0 if it cannot be opened.
        windows: Number of windows that were scored.
        losses: Lost sound that was not scored. A recording that cannot be opened, disappeared or is silent has one
            entry, which starts at 0.
        is_final: Whether a second reading would give the same result; False if it could not be opened or disappeared.
        state: State of the file; None if it could not be opened, and for a waveform.
        silences: Digital silence that was not scored, in a recording that also has sound.
        header: Time and place in its header.
        channel: The only channel that was read, of several; None: their mean.
    """

    frames: int
    sample_rate_hz: int
    windows: int
    losses: tuple[UnscoredSound, ...]
    is_final: bool = True
    state: FileState | None = None
    silences: tuple[UnscoredSound, ...] = ()
    header: RecorderHeader = NO_HEADER
    channel: int | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds; 0 if the recording cannot be opened."""
        return self.frames / self.sample_rate_hz if self.sample_rate_hz else 0.0

    @property
    def silence_s(self) -> float:
        """Seconds of digital silence that were not scored."""
        return sum((self.duration_s if part.end_s is None else part.end_s) - part.start_s for part in self.silences)

    @classmethod
    def failed(cls, reason: str) -> "Reading":
        """Returns the result for a recording that cannot be used."""
        return cls(0, 0, 0, (UnscoredSound(0.0, None, reason),), is_final=False)


def read_source(
    source: Source, grid: WindowGrid, sampling_rate: int, stopwatch: Stopwatch, channel: str | None = None
) -> Iterator[Windows | Reading]:
    """Reads the windows of a recording, after a download if necessary; errors are part of the result, not raised.

    Args:
        source: The recording.
        grid: Positions of the windows.
        sampling_rate: Rate of the windows in Hz.
        stopwatch: Measures download, decoding and resampling.
        channel: See `RecordingReader`.

    Yields:
        The windows, in order, and finally the `Reading`.
    """
    try:
        source.recording.encode("utf-8")
    except UnicodeError:
        yield Reading.failed("its name is not valid Unicode, so tables cannot contain it: rename it")
        return
    try:
        before = source.state()
        with ExitStack() as stack:
            with stopwatch.time("fetch"):
                path = stack.enter_context(source.local_path())
            for found in read_windows(path, grid, sampling_rate, stopwatch, channel):
                if isinstance(found, Reading):
                    if source.state() != before:
                        raise UserError("the file changed while it was read")
                    found = replace(found, state=before, header=read_recorder_header(path))
                yield found
    except UserError as error:
        yield Reading.failed(str(error))
    except MemoryError:
        raise
    except Exception as error:  # a damaged file must not stop the other recordings
        logger.debug("Reading %s failed", source.recording, exc_info=True)
        yield Reading.failed(f"{type(error).__name__}: {error}")


def read_array(
    waveform: np.ndarray, rate_hz: int, grid: WindowGrid, sampling_rate: int
) -> Iterator[Windows | Reading]:
    """Reads the windows of a mono waveform in memory.

    Args:
        waveform: Floats with full scale at -1 and 1, or int16, shape `(samples,)`.
        rate_hz: Sampling rate of the waveform.
        grid: Positions of the windows.
        sampling_rate: Rate of the windows in Hz.

    Yields:
        The windows, in order, and finally the `Reading`.

    Raises:
        UserError: If the waveform has another shape or type, or samples that are not finite.
    """
    if waveform.ndim != 1 or not len(waveform) or (waveform.dtype.kind != "f" and waveform.dtype != np.int16):
        raise UserError(
            f"the waveform is {waveform.dtype} of shape {waveform.shape}: expected floats in [-1, 1] or int16, mono"
        )
    if waveform.dtype != np.int16 and not max(waveform.max(), -waveform.min()) < MAX_AMPLITUDE:  # false for NaN too
        raise UserError("the waveform has samples that are NaN, infinite or far beyond full scale: correct it first")
    sound = waveform.astype(np.float32)
    if waveform.dtype == np.int16:
        sound /= 32768
    if rate_hz != sampling_rate:
        sound = soxr.resample(sound, rate_hz, sampling_rate)
    # In blocks, because windows that overlap are copies.
    block = BLOCK_S * sampling_rate
    pieces = ((first, sound[first : first + block]) for first in range(0, len(sound), block))
    yield from _windows(pieces, len(sound), AudioHeader(len(waveform), rate_hz, 1), [], grid, sampling_rate)


def read_windows(
    path: Path, grid: WindowGrid, sampling_rate: int, stopwatch: Stopwatch, channel: str | None = None
) -> Iterator[Windows | Reading]:
    """Reads the windows of a file.

    Args:
        path: The recording.
        grid: Positions of the windows.
        sampling_rate: Rate of the windows in Hz.
        stopwatch: Measures decoding and resampling.
        channel: See `RecordingReader`.

    Yields:
        The windows, in order, and finally the `Reading`.

    Raises:
        UserError: If the file cannot be opened as audio or has no samples.
    """
    with stopwatch.time("decode"):
        reader = RecordingReader(path, sampling_rate, channel)
    with reader:
        rate = reader.header.sample_rate_hz
        lost: list[UnscoredSound] = []
        blocks = _timed_blocks(reader, lost, stopwatch)
        pieces = resampled(blocks, rate, sampling_rate, partial(stopwatch.time, "resample"))
        for found in _windows(pieces, reader.samples, reader.header, lost, grid, sampling_rate):
            yield replace(found, channel=reader.lone_channel) if isinstance(found, Reading) else found
        if channel is None and reader.lone_channel is not None:
            logger.warning(
                "%s has channels that cancel each other in their mean (one is inverted): only channel %d was read",
                path,
                reader.lone_channel,
            )


def _windows(
    pieces: Iterator[tuple[int, np.ndarray]],
    samples: int,
    header: AudioHeader,
    lost: list[UnscoredSound],
    grid: WindowGrid,
    sampling_rate: int,
) -> Iterator[Windows | Reading]:
    coverage = Coverage(grid, sampling_rate)
    count = 0
    for windows in coverage.cut(pieces):
        count += len(windows.starts)
        yield windows
    losses, silences = coverage.find_unscored(samples, header.duration_s, lost)
    yield Reading(header.frames, header.sample_rate_hz, count, tuple(losses), silences=tuple(silences))


def _timed_blocks(reader: RecordingReader, losses: list[UnscoredSound], stopwatch: Stopwatch) -> Iterator[Block]:
    """Yields blocks of sound; adds undecodable blocks to `losses`, adjacent ones joined."""
    rate = reader.header.sample_rate_hz
    blocks = reader.blocks(BLOCK_S * rate)
    while True:
        with stopwatch.time("decode"):
            block = next(blocks, None)
        if block is None:
            return
        if block.sound is not None:
            yield block
            continue
        start_s = block.start / rate
        end_s = (block.start + block.frames) / rate if block.frames else None
        if losses and losses[-1].end_s == start_s:
            start_s = losses.pop().start_s
        losses.append(UnscoredSound(start_s, end_s, block.reason))
