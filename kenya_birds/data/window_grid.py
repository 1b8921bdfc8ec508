"""Grid of the windows of a recording."""

import math
from dataclasses import dataclass

import numpy as np

from kenya_birds.errors import UserError

# Share of a window; shorter sound is not scored. See "How short a recording may be" in docs/detection.md.
LEAST_SOUND_SHARE = 0.25


@dataclass(frozen=True)
class WindowGrid:
    """Grid of windows of one length that cover every sample of a continuous section of sound.

    Windows start at multiples of the hop, counted in integer samples, so that rounding errors do not accumulate. If a
    section begins between two starts, an additional window begins with it. If the last window ends before the section
    does, an additional window ends with it. A section shorter than a window is one window, padded with mirrored sound
    on both sides. A section shorter than a quarter of a window is not scored.

    Attributes:
        window_samples: Length of a window.
        hop_samples: Distance from one start to the next.
    """

    window_samples: int
    hop_samples: int

    @classmethod
    def with_overlap(cls, window_samples: int, overlap_s: float, sample_rate_hz: int) -> "WindowGrid":
        """Makes a grid of overlapping windows.

        Args:
            window_samples: Length of a window.
            overlap_s: Overlap of neighbouring windows in seconds, rounded to samples.
            sample_rate_hz: Sampling rate.

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
        """Length of the shortest section that is scored."""
        return math.ceil(LEAST_SOUND_SHARE * self.window_samples)

    def starts(self, begin: int, end: int) -> np.ndarray:
        """Returns the first samples of the windows of a continuous section, int64, ascending.

        Args:
            begin: First sample of the section.
            end: The sample after the last one.
        """
        if end - begin < self.least_samples:
            return np.zeros(0, dtype=np.int64)
        starts = self.full_starts(begin, end)
        if not len(starts):
            return np.array([begin], dtype=np.int64)
        is_covered = starts[-1] + self.window_samples == end
        return starts if is_covered else np.append(starts, end - self.window_samples)

    def full_starts(self, next_start: int, end: int) -> np.ndarray:
        """Returns `next_start` and the following multiples of the hop, for windows that fit before `end`.

        Args:
            next_start: First sample of the next window.
            end: The sample after the last one.

        Returns:
            int64, ascending.
        """
        last = end - self.window_samples
        if next_start > last:
            return np.zeros(0, dtype=np.int64)
        multiples = np.arange(next_start // self.hop_samples + 1, last // self.hop_samples + 1, dtype=np.int64)
        return np.concatenate([np.array([next_start], dtype=np.int64), multiples * self.hop_samples])
