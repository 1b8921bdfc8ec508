"""Where the windows of a recording are, and how they are cut from it while it is read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kenya_birds.errors import UserError


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one length at even distances: starts are integer samples, so that nothing adds up over hours.

    The last window is the first that reaches the recording's end; a recording shorter than a window has one.

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

    def count(self, samples: int) -> int:
        """Number of windows of a recording with so many samples."""
        if samples <= 0:
            return 0
        return 1 + max(0, -((samples - self.window_samples) // -self.hop_samples))

    def starts(self, first: int, last: int) -> np.ndarray:
        """First samples of the windows `first` to `last - 1`, int64."""
        return np.arange(first, last, dtype=np.int64) * self.hop_samples


@dataclass(frozen=True)
class Windows:
    """Windows that follow on each other.

    Attributes:
        starts: First samples, int64 of shape `(windows,)`.
        ends: The samples after the last, int64 of shape `(windows,)`; never past the recording's end.
        sound: float32 of shape `(windows, window_samples)`; zeros past the recording's end.
    """

    starts: np.ndarray
    ends: np.ndarray
    sound: np.ndarray


class WindowCutter:
    """Cuts the windows of one recording out of the sound as it comes.

    Args:
        grid: Where windows are.
        samples: Length of the recording.
    """

    def __init__(self, grid: WindowGrid, samples: int) -> None:
        self._grid = grid
        self._samples = samples
        self._count = grid.count(samples)
        self._next = 0  # the first window that is not cut yet
        self._begin = 0  # place of the carry's first sample
        self._carry = np.zeros(0, dtype=np.float32)

    def add(self, start: int, sound: np.ndarray) -> Iterator[Windows]:
        """Takes sound that follows, or that stands further on; windows that lack some of it are left out.

        Args:
            start: Place of its first sample, not before the end of what came last.
            sound: float32 of shape `(samples,)`.

        Yields:
            The windows that are complete now, at most about twice as many samples as were given and carried.
        """
        if start != self._begin + len(self._carry):
            self._begin, self._carry = start, sound
        else:
            self._carry = np.concatenate([self._carry, sound])
        end = self._begin + len(self._carry)
        length, hop = self._grid.window_samples, self._grid.hop_samples
        first = max(self._next, -(self._begin // -hop))
        stop = self._count if end >= self._samples else max(first, (end - length) // hop + 1)
        stop = min(stop, self._count)
        per_group = max(1, 2 * len(self._carry) // length)
        for group in range(first, stop, per_group):
            starts = self._grid.starts(group, min(group + per_group, stop))
            windows = np.zeros((len(starts), length), dtype=np.float32)
            for window, place in zip(windows, starts, strict=True):
                piece = self._carry[place - self._begin : place - self._begin + length]
                window[: len(piece)] = piece
            yield Windows(starts, np.minimum(starts + length, self._samples), windows)
        self._next = max(first, stop)
        keep_from = max(self._begin, min(end, self._next * hop))
        self._carry = self._carry[keep_from - self._begin :].copy()
        self._begin = keep_from
