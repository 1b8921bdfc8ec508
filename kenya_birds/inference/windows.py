"""Windows of a recording: their positions, how they are cut, and which sound is not scored."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from kenya_birds.data.sound_pieces import SILENCE_S, audible
from kenya_birds.data.window_grid import WindowGrid


@dataclass(frozen=True)
class Windows:
    """Consecutive windows.

    Attributes:
        starts: First samples, int64 of shape `(windows,)`.
        ends: The samples after the last ones, int64 of shape `(windows,)`; never past the sound's end.
        sound: float32 of shape `(windows, window_samples)`; shorter sections are mirrored at both ends.
    """

    starts: np.ndarray
    ends: np.ndarray
    sound: np.ndarray


class WindowCutter:
    """Cutter of the windows of one recording, from a stream of sound.

    Args:
        grid: Positions of the windows.
    """

    def __init__(self, grid: WindowGrid) -> None:
        self._grid = grid
        self._begin = 0  # position of the first sample of `_carry`
        self._carry = np.zeros(0, dtype=np.float32)
        self._next = 0  # start of the next window of the section
        self._covered = 0  # end of the last window

    def add(self, start: int, sound: np.ndarray) -> Iterator[Windows]:
        """Adds sound; after a gap, a new section begins.

        Args:
            start: Position of its first sample, not before the end of the previous sound.
            sound: float32 of shape `(samples,)`.

        Yields:
            The windows that are complete, in groups of bounded size.
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
        """Ends the section.

        Yields:
            Its last window, if it was not yielded before.
        """
        end = self._begin + len(self._carry)
        if end > self._covered and len(self._carry) >= self._grid.least_samples:
            missing = self._grid.window_samples - len(self._carry)
            # The feature extractor pads short clips in the same way.
            window = np.pad(self._carry, (missing // 2, missing - missing // 2), mode="symmetric")
            yield Windows(np.array([self._begin]), np.array([end]), window[None])


SILENT = "digital silence"
WHOLLY_SILENT = "digital silence from the beginning to the end"
NEARLY_SILENT = "digital silence, with too little sound to be scored"


@dataclass(frozen=True)
class UnscoredSound:
    """A section of a recording that was not scored.

    Attributes:
        start_s: Begin in seconds from the start of the recording.
        end_s: End in seconds; None: the end of the recording, if that is unknown.
        reason: Reason in words.
    """

    start_s: float
    end_s: float | None
    reason: str


class Coverage:
    """Cutter of one recording into windows that also finds the sound that is not scored.

    Windows are cut from continuous sound (see `WindowGrid`). Damage ends a section, and so does digital silence of
    0.25 s, or of a quarter of a window if that is shorter.

    Args:
        grid: Positions of the windows.
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
            pieces: Positions and sound, float32 of shape `(samples,)`, in order; sound between two pieces is lost.

        Yields:
            The windows to score, in order.
        """
        cutter = WindowCutter(self._grid)
        for start, sound in audible(self._recorded(pieces), self._least_silence, self._silent.add):
            yield from self._counted(cutter.add(start, sound))
        yield from self._counted(cutter.finish())

    def find_unscored(
        self, samples: int, duration_s: float, undecodable: Sequence[UnscoredSound]
    ) -> tuple[list[UnscoredSound], list[UnscoredSound]]:
        """Finds the sound that is not scored; call this after the last window.

        Args:
            samples: Length of the recording, at the rate of the windows.
            duration_s: Length of the recording in seconds.
            undecodable: Sections that cannot be decoded, in order.

        Returns:
            Lost sound, and digital silence, both in order. If no window was scored, everything is lost sound.
        """
        losses = self._lost(samples, undecodable)
        silences: list[UnscoredSound] = []
        for begin, end in self._given:
            for first, last in self._scored.gaps(begin, end):
                start_s, end_s = first / self._rate, min(last / self._rate, duration_s)
                if self._silent.touch(first, last):
                    is_pure = not self._silent.gaps(first, last)
                    silences.append(UnscoredSound(start_s, end_s, SILENT if is_pure else NEARLY_SILENT))
                else:
                    losses.append(UnscoredSound(start_s, end_s, self._too_short(last - first)))
        if not self._scored.begins:
            if not losses and [part.reason for part in silences] == [SILENT]:
                silences = [UnscoredSound(0.0, duration_s, WHOLLY_SILENT)]
            losses += silences or ([] if losses else [UnscoredSound(0.0, duration_s, self._too_short(samples))])
            silences = []
        return sorted(losses, key=lambda loss: loss.start_s), silences

    def _lost(self, samples: int, lost: Sequence[UnscoredSound]) -> list[UnscoredSound]:
        """Returns undecodable sections, extended by the neighbouring samples that the resampler skips."""
        found = list(lost)
        for begin, end in self._given.gaps(0, samples):
            begin_s, end_s = begin / self._rate, end / self._rate
            within = [i for i, loss in enumerate(lost) if loss.start_s < end_s and (loss.end_s or end_s) > begin_s]
            for i, after in zip(within, [*within[1:], None], strict=True):
                until_s = end_s if after is None else lost[after].start_s
                found[i] = UnscoredSound(
                    min(found[i].start_s, begin_s), max(found[i].end_s or until_s, until_s), lost[i].reason
                )
                begin_s = until_s
        return found

    def _recorded(self, pieces: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        for start, sound in pieces:
            self._given.add(start, start + len(sound))
            yield start, sound

    def _counted(self, groups: Iterator[Windows]) -> Iterator[Windows]:
        for windows in groups:
            for begin, end in zip(windows.starts.tolist(), windows.ends.tolist(), strict=True):
                self._scored.add(begin, end)
            yield windows

    def _too_short(self, samples: int) -> str:
        sound_s, least_s = samples / self._rate, self._grid.least_samples / self._rate
        return f"{sound_s:.3g} s of sound is too short to be scored: expected {least_s:g} s or more without a gap"


class _Runs:
    """Ordered list of sections `[begin, end)`; adjacent and overlapping ones are joined."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.ends: list[int] = []

    @property
    def runs(self) -> list[tuple[int, int]]:
        return list(zip(self.begins, self.ends, strict=True))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.runs)

    def add(self, begin: int, end: int) -> None:
        """Adds a section that begins after the begin of the last one."""
        if self.ends and begin <= self.ends[-1]:
            self.ends[-1] = max(end, self.ends[-1])
        elif begin < end:
            self.begins.append(begin)
            self.ends.append(end)

    def touch(self, begin: int, end: int) -> bool:
        """Returns True if a section overlaps `[begin, end)`."""
        index = bisect_right(self.ends, begin)
        return index < len(self.begins) and self.begins[index] < end

    def gaps(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Returns the parts of `[begin, end)` that are in no section."""
        found = []
        for index in range(bisect_right(self.ends, begin), len(self.begins)):
            if self.begins[index] >= end:
                break
            if self.begins[index] > begin:
                found.append((begin, self.begins[index]))
            begin = self.ends[index]
        return [*found, (begin, end)] if begin < end else found
