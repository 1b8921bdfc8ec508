"""Where the windows of a recording are, and how they are cut from it while it is read."""

import math
from collections.abc import Iterator
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
