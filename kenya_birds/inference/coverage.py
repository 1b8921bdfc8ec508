"""Which windows of a recording are scored, and an account of what of it is in none of them, and why."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kenya_birds.inference.windows import WindowCutter, WindowGrid, Windows

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
