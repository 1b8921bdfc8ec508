"""Streams of sound: resampling, and removal of long digital silence."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import soxr

from kenya_birds.data.audio import Block

# Quieter samples (-200 dBFS) are digital silence: some decoders return them for zeros.
SILENCE_AMPLITUDE = 1e-10
# Longer digital silence, which recorders leave for missing sound, splits the sound. In a window it changes scores more
# than a shift of the window does, and from 1 s on it is detected as a bird (see docs/detection.md).
SILENCE_S = 0.25


def resampled(
    blocks: Iterable[Block],
    rate_hz: int,
    sampling_rate: int,
    timed: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[tuple[int, np.ndarray]]:
    """Resamples blocks: the result is as if each continuous section were resampled at once.

    After missing sound the resampler restarts where both rates have a sample at the same time.

    Args:
        blocks: Blocks with sound, in order.
        rate_hz: Sampling rate of the blocks in Hz.
        sampling_rate: Requested rate in Hz.
        timed: Returns a context manager that measures the resampler's time.

    Yields:
        Position of the first sample at `sampling_rate`, and float32 samples.
    """
    if rate_hz == sampling_rate:
        for block in blocks:
            assert block.sound is not None
            yield block.start, block.sound
        return
    common = np.gcd(rate_hz, sampling_rate)
    in_step, out_step = int(rate_hz // common), int(sampling_rate // common)
    stream: soxr.ResampleStream | None = None
    expected, place = -1, 0

    def resample(sound: np.ndarray, is_last: bool) -> tuple[int, np.ndarray]:
        nonlocal place
        with timed():
            assert stream is not None
            out = stream.resample_chunk(sound, last=is_last)
        place += len(out)
        return place - len(out), out

    for block in blocks:
        sound, start = block.sound, block.start
        assert sound is not None
        if start != expected:
            if stream is not None:
                yield resample(sound[:0], is_last=True)
            skipped = -start % in_step
            stream, sound, place = None, sound[skipped:], (start + skipped) // in_step * out_step
            if len(sound):
                stream = soxr.ResampleStream(rate_hz, sampling_rate, 1, "float32")
        expected = block.start + block.frames if stream is not None else -1
        if len(sound):
            yield resample(sound, is_last=False)
    if stream is not None:
        yield resample(np.zeros(0, dtype=np.float32), is_last=True)


def audible(
    pieces: Iterable[tuple[int, np.ndarray]], least: int, silent: Callable[[int, int], object] = lambda *_: None
) -> Iterator[tuple[int, np.ndarray]]:
    """Removes long digital silence, even if it spans several pieces.

    Args:
        pieces: Positions and sound, float32 of shape `(samples,)`, in order.
        least: Smallest number of samples of removed silence; shorter silence is kept.
        silent: Called with begin and end of each removed silence.

    Yields:
        Positions and sound.
    """
    place = held = 0  # `held` samples of silence end at `place` and are not yielded yet

    def end_silence(end: int, samples: int) -> Iterator[tuple[int, np.ndarray]]:
        if samples >= least:
            silent(end - samples, end)
        elif samples:
            yield end - samples, np.zeros(samples, dtype=np.float32)

    for start, sound in pieces:
        if start != place:
            yield from end_silence(place, held)
            held = 0
        done = 0
        for first, last in silences(sound, least):
            if first > done:
                yield from end_silence(start + done, held)
                yield start + done, sound[done:first]
                held = 0
            held += last - first
            done = last
        if done < len(sound):
            yield from end_silence(start + done, held)
            yield start + done, sound[done:]
            held = 0
        place = start + len(sound)
    yield from end_silence(place, held)


def silences(sound: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Returns the silent sections of a piece: long ones, and also shorter ones at its two ends.

    Args:
        sound: Shape `(samples,)`.
        least: Smallest number of samples of a long silence.
    """
    step = max(1, least // 8)
    some = np.flatnonzero(np.abs(sound[::step]) > SILENCE_AMPLITUDE) * step
    if len(some) and max(some[0], len(sound) - some[-1], np.diff(some).max(initial=0)) <= least:
        # These few samples exclude long silence, as in most sound: only the ends must be checked.
        first = int(np.argmax(np.abs(sound[: some[0] + 1]) > SILENCE_AMPLITUDE))
        last = len(sound) - int(np.argmax(np.abs(sound[some[-1] :][::-1]) > SILENCE_AMPLITUDE))
        long = []
    else:
        loud = np.flatnonzero(np.abs(sound) > SILENCE_AMPLITUDE)
        if not len(loud):
            return [(0, len(sound))]
        first, last = int(loud[0]), int(loud[-1]) + 1
        before = np.flatnonzero(np.diff(loud) > least)
        long = list(zip((loud[before] + 1).tolist(), loud[before + 1].tolist(), strict=True))
    return [(begin, end) for begin, end in [(0, first), *long, (last, len(sound))] if begin < end]
