"""Merged detections, which may be longer than an hour, in counts by hour or occasion."""

import numpy as np
import pandas as pd

# Half of a usual window: in a single window, the middle counts.
HALF_WINDOW_S = 1.5


def middles_s(detections: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The middle of the first and of the last window of 3 s in each detection; of a shorter one, its own middle.

    Args:
        detections: `start_s` and `end_s`.

    Returns:
        Two arrays of seconds, of shape `(detections,)`.
    """
    start_s, end_s = (detections[name].to_numpy(dtype=float) for name in ("start_s", "end_s"))
    inner_s = np.minimum((end_s - start_s) / 2, HALF_WINDOW_S)
    return start_s + inner_s, end_s - inner_s


def spread_rows(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeats each row for all whole numbers from `first` to `last`.

    Args:
        first: First number of each row, shape `(rows,)`.
        last: Last number; a row whose last number is below the first is left out.

    Returns:
        The row and the number of each repetition.
    """
    repeats = np.maximum(last - first + 1, 0)
    row = np.repeat(np.arange(len(first)), repeats)
    before = np.repeat(np.cumsum(repeats) - repeats, repeats)
    return row, first[row] + np.arange(len(row)) - before
