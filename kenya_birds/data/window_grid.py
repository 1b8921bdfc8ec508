"""Where the windows of a recording are."""

import math
from dataclasses import dataclass

import numpy as np

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
