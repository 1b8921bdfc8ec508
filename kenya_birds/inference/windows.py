"""Windows of a recording: where they lie, how they are cut, and which sound is in none of them."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from kenya_birds.errors import UserError

# Of a window: less sound is not scored. See "How short a recording may be" in docs/detection.md.
LEAST_SOUND_SHARE = 0.25


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one length that together hold every sample of an unbroken stretch of sound, and nothing else.

    Windows start at each multiple of the hop in the recording, as integer samples, so that nothing adds up over hours.
    Where a stretch begins between two of them, one more starts with it; where the last one ends before the stretch
    does, one more ends with it. A stretch shorter than a window is one window, with the stretch in its middle and
    mirrored sound on both sides; a stretch shorter than a quarter of a window is none.

    Attributes:
        window_samples: Length of a window.
        hop_samples: From one start to the next.
    """

    window_samples: int
    hop_samples: int

    @classmethod
    def with_overlap(cls, window_samples: int, overlap_s: float, sample_rate_hz: int) -> "WindowGrid":
        """Windows that overlap by so many seconds, to the next sample.

        Raises:
            UserError: If the overlap is negative, or as long as a window.
        """
        overlap = round(overlap_s * sample_rate_hz) if 0 <= overlap_s < np.inf else -1
        if not 0 <= overlap < window_samples:
            raise UserError(
                f"the overlap is {overlap_s} s: expected 0 s or more, and less than the "
                f"{window_samples / sample_rate_hz:g} s of a window"
            )
        return cls(window_samples, window_samples - overlap)

    @property
    def least_samples(self) -> int:
        """The shortest stretch of which a window is made."""
        return math.ceil(LEAST_SOUND_SHARE * self.window_samples)

    def starts(self, begin: int, end: int) -> np.ndarray:
        """First samples of the windows of the unbroken stretch `[begin, end)`, int64, ascending."""
        if end - begin < self.least_samples:
            return np.zeros(0, dtype=np.int64)
        starts = self.full_starts(begin, end)
        if not len(starts):
            return np.array([begin], dtype=np.int64)
        is_covered = starts[-1] + self.window_samples == end
        return starts if is_covered else np.append(starts, end - self.window_samples)

    def full_starts(self, next_start: int, end: int) -> np.ndarray:
        """`next_start` and the multiples of the hop behind it, of all windows that end by `end`: int64, ascending."""
        last = end - self.window_samples
        if next_start > last:
            return np.zeros(0, dtype=np.int64)
        multiples = np.arange(next_start // self.hop_samples + 1, last // self.hop_samples + 1, dtype=np.int64)
        return np.concatenate([np.array([next_start], dtype=np.int64), multiples * self.hop_samples])


@dataclass(frozen=True)
class Windows:
    """Windows that follow on each other.

    Attributes:
        starts: First samples, int64 of shape `(windows,)`.
        ends: The samples after the last, int64 of shape `(windows,)`; never past the sound's end.
        sound: float32 of shape `(windows, window_samples)`; of a shorter stretch mirrored at both ends.
    """

    starts: np.ndarray
    ends: np.ndarray
    sound: np.ndarray


class WindowCutter:
    """Cuts the windows of one recording out of the sound as it comes.

    Args:
        grid: Where windows are.
    """

    def __init__(self, grid: WindowGrid) -> None:
        self._grid = grid
        self._begin = 0  # place of the carry's first sample: a window before its end, or where the stretch begins
        self._carry = np.zeros(0, dtype=np.float32)
        self._next = 0  # start of the next window of the stretch
        self._covered = 0  # end of the last one

    def add(self, start: int, sound: np.ndarray) -> Iterator[Windows]:
        """Takes sound that follows, or that stands further on: then a new stretch begins.

        Args:
            start: Place of its first sample, not before the end of what came last.
            sound: float32 of shape `(samples,)`.

        Yields:
            The windows that are complete now, at most about twice as many samples as were given and carried.
        """
        if start != self._begin + len(self._carry):
            yield from self.finish()
            self._begin, self._carry = start, sound
            self._next = self._covered = start
        else:
            self._carry = np.concatenate([self._carry, sound])
        end = self._begin + len(self._carry)
        length, hop = self._grid.window_samples, self._grid.hop_samples
        starts = self._grid.full_starts(self._next, end)
        per_group = max(1, 2 * len(self._carry) // length)
        for first in range(0, len(starts), per_group):
            group = starts[first : first + per_group]
            yield Windows(group, group + length, sliding_window_view(self._carry, length)[group - self._begin])
        if len(starts):
            self._covered = int(starts[-1]) + length
            self._next = (int(starts[-1]) // hop + 1) * hop
        keep_from = max(self._begin, end - length)
        self._carry = self._carry[keep_from - self._begin :].copy()
        self._begin = keep_from

    def finish(self) -> Iterator[Windows]:
        """Ends the stretch.

        Yields:
            Its last window, if that is still to come.
        """
        end = self._begin + len(self._carry)
        if end > self._covered and len(self._carry) >= self._grid.least_samples:
            missing = self._grid.window_samples - len(self._carry)
            # As the feature extractor fills short clips up.
            window = np.pad(self._carry, (missing // 2, missing - missing // 2), mode="symmetric")
            yield Windows(np.array([self._begin]), np.array([end]), window[None])


# Quieter samples (-200 dBFS) are digital silence: no format of recorders has them, but some decoders leave such dust.
SILENCE_AMPLITUDE = 1e-10
# Longer digital silence breaks the sound: it is what recorders leave where they wrote nothing. In a window it changes
# scores more than a shift of the window does, and from 1 s on it is named as a bird (see docs/detection.md).
SILENCE_S = 0.25
SILENT = "digital silence"
WHOLLY_SILENT = "digital silence from the beginning to the end"
NEARLY_SILENT = "digital silence, but for too little sound to be scored"


@dataclass(frozen=True)
class Loss:
    """What of a recording was not scored.

    Attributes:
        start_s: Where it begins, in seconds from the start of the recording.
        end_s: Where it ends; None: at the recording's end, wherever that is.
        reason: Why.
    """

    start_s: float
    end_s: float | None
    reason: str


class Coverage:
    """Cuts one recording into the windows that are scored, and knows what of it is in none of them.

    Windows lie in unbroken sound (see `WindowGrid`). Damage breaks it, and so does digital silence from 0.25 s on, or
    from a quarter of a window on where that is shorter.

    Args:
        grid: Where windows are.
        sampling_rate: Rate of the windows in Hz.
    """

    def __init__(self, grid: WindowGrid, sampling_rate: int) -> None:
        self._grid = grid
        self._rate = sampling_rate
        self._least_silence = min(round(SILENCE_S * sampling_rate), grid.least_samples)
        self._given, self._scored, self._silent = _Runs(), _Runs(), _Runs()

    def cut(self, pieces: Iterator[tuple[int, np.ndarray]]) -> Iterator[Windows]:
        """Cuts the windows.

        Args:
            pieces: Places and sound, float32 of shape `(samples,)`, in order; what lies between two of them is lost.

        Yields:
            The windows that are to be scored, in order.
        """
        cutter = WindowCutter(self._grid)
        for start, sound in self._audible(pieces):
            yield from self._noted(cutter.add(start, sound))
        yield from self._noted(cutter.finish())

    def account(self, samples: int, duration_s: float, lost: Sequence[Loss]) -> tuple[list[Loss], list[Loss]]:
        """What of the recording is in no window; to be asked after the last one.

        Args:
            samples: Length of the recording, at the rate of the windows.
            duration_s: Length of the recording in seconds.
            lost: What could not be decoded, in order.

        Returns:
            What was lost, and what is digital silence, both in order. Where nothing was scored, all was lost.
        """
        losses = self._lost(samples, lost)
        silences: list[Loss] = []
        for begin, end in self._given:
            for first, last in self._scored.gaps(begin, end):
                start_s, end_s = first / self._rate, min(last / self._rate, duration_s)
                if self._silent.touch(first, last):
                    is_pure = not self._silent.gaps(first, last)
                    silences.append(Loss(start_s, end_s, SILENT if is_pure else NEARLY_SILENT))
                else:
                    losses.append(Loss(start_s, end_s, self._too_short(last - first)))
        if not self._scored.begins:
            if not losses and [part.reason for part in silences] == [SILENT]:
                silences = [Loss(0.0, duration_s, WHOLLY_SILENT)]
            losses += silences or ([] if losses else [Loss(0.0, duration_s, self._too_short(samples))])
            silences = []
        return sorted(losses, key=lambda loss: loss.start_s), silences

    def _lost(self, samples: int, lost: Sequence[Loss]) -> list[Loss]:
        """What could not be decoded, with the samples beside it that the resampler left out."""
        found = list(lost)
        for begin, end in self._given.gaps(0, samples):
            begin_s, end_s = begin / self._rate, end / self._rate
            within = [i for i, loss in enumerate(lost) if loss.start_s < end_s and (loss.end_s or end_s) > begin_s]
            for i, after in zip(within, [*within[1:], None], strict=True):
                until_s = end_s if after is None else lost[after].start_s
                found[i] = Loss(
                    min(found[i].start_s, begin_s), max(found[i].end_s or until_s, until_s), lost[i].reason
                )
                begin_s = until_s
        return found

    def _noted(self, groups: Iterator[Windows]) -> Iterator[Windows]:
        for windows in groups:
            for begin, end in zip(windows.starts.tolist(), windows.ends.tolist(), strict=True):
                self._scored.add(begin, end)
            yield windows

    def _too_short(self, samples: int) -> str:
        sound_s, least_s = samples / self._rate, self._grid.least_samples / self._rate
        return f"{sound_s:.3g} s of sound are too short to be scored: expected {least_s:g} s or more without a break"

    def _audible(self, pieces: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """The pieces without longer silence, however it is divided among them."""
        place = held = 0  # silence that ends at this place and is not passed on yet
        for start, sound in pieces:
            if start != place:
                yield from self._end_silence(place, held)
                held = 0
            self._given.add(start, start + len(sound))
            done = 0
            for first, last in _silences(sound, self._least_silence):
                if first > done:
                    yield from self._end_silence(start + done, held)
                    yield start + done, sound[done:first]
                    held = 0
                held += last - first
                done = last
            if done < len(sound):
                yield from self._end_silence(start + done, held)
                yield start + done, sound[done:]
                held = 0
            place = start + len(sound)
        yield from self._end_silence(place, held)

    def _end_silence(self, end: int, samples: int) -> Iterator[tuple[int, np.ndarray]]:
        """Passes short silence on, and notes longer."""
        if samples >= self._least_silence:
            self._silent.add(end - samples, end)
        elif samples:
            yield end - samples, np.zeros(samples, dtype=np.float32)


class _Runs:
    """Stretches `[begin, end)` in order, joined where they meet: no more of them than there are breaks."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.ends: list[int] = []

    @property
    def runs(self) -> list[tuple[int, int]]:
        return list(zip(self.begins, self.ends, strict=True))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.runs)

    def add(self, begin: int, end: int) -> None:
        """Takes one that begins behind the begin of the last."""
        if self.ends and begin <= self.ends[-1]:
            self.ends[-1] = max(end, self.ends[-1])
        elif begin < end:
            self.begins.append(begin)
            self.ends.append(end)

    def touch(self, begin: int, end: int) -> bool:
        """Whether one of them has a part of this one."""
        index = bisect_right(self.ends, begin)
        return index < len(self.begins) and self.begins[index] < end

    def gaps(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The parts of `[begin, end)` that are in none of them."""
        found = []
        for index in range(bisect_right(self.ends, begin), len(self.begins)):
            if self.begins[index] >= end:
                break
            if self.begins[index] > begin:
                found.append((begin, self.begins[index]))
            begin = self.ends[index]
        return [*found, (begin, end)] if begin < end else found


def _silences(sound: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Silent stretches of a piece: those of so many samples, and also shorter ones at its two ends."""
    step = max(1, least // 8)
    some = np.flatnonzero(np.abs(sound[::step]) > SILENCE_AMPLITUDE) * step
    if len(some) and max(some[0], len(sound) - some[-1], np.diff(some).max(initial=0)) <= least:
        # These few samples show that no silence is long, as in most sound: only the ends are looked at.
        first = int(np.argmax(np.abs(sound[: some[0] + 1]) > SILENCE_AMPLITUDE))
        last = len(sound) - int(np.argmax(np.abs(sound[some[-1] :][::-1]) > SILENCE_AMPLITUDE))
        long = []
    else:
        heard = np.flatnonzero(np.abs(sound) > SILENCE_AMPLITUDE)
        if not len(heard):
            return [(0, len(sound))]
        first, last = int(heard[0]), int(heard[-1]) + 1
        before = np.flatnonzero(np.diff(heard) > least)
        long = list(zip((heard[before] + 1).tolist(), heard[before + 1].tolist(), strict=True))
    return [(begin, end) for begin, end in [(0, first), *long, (last, len(sound))] if begin < end]
