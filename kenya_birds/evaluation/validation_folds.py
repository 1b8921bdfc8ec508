"""Folds of recordings within the validation split: what is chosen there is checked on other recordings of it."""

import numpy as np

FOLDS = 5


def recording_folds(recordings: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides clips into at most five folds, each recording with all its clips in one.

    Args:
        recordings: Name of each clip's recording, shape `(clips,)`.

    Returns:
        For each fold the indices of the clips outside it, to fit on, and of its own, to check on. No folds where there
        is one recording only.
    """
    names, number_of = np.unique(recordings, return_inverse=True)
    folds = min(FOLDS, len(names))
    if folds < 2:
        return []
    return [
        (np.flatnonzero(number_of % folds != fold), np.flatnonzero(number_of % folds == fold)) for fold in range(folds)
    ]
