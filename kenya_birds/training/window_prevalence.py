"""How often drawn windows hold each species, beside how often the recordings do."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.training.embedded_data import EmbeddedWindows, EmbeddedWindowSampler
from kenya_birds.training.recording_windows import RecordingWindows
from kenya_birds.training.window_sampler import WindowSampler

# Windows that are drawn to count species; windows of the recordings to count them, about; and windows whose targets
# are in memory at the same time.
DRAWN_WINDOWS = 50_000
MOST_WINDOWS = 500_000
BLOCK = 4096


def prior_shift(
    windows: RecordingWindows | EmbeddedWindows,
    sampler: WindowSampler | EmbeddedWindowSampler,
    *,
    softmax_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Log-odds of each class in drawn windows, less its log-odds in all windows of the recordings.

    Windows round calls are drawn more often than they occur, so a model would learn too high probabilities. If
    training adds this shift to the logits, the logits themselves have the odds of the recordings (logit adjustment:
    Menon et al. 2021; correction for other priors: Saerens et al. 2002). A drawn window counts with the weight of its
    recording in the loss.

    Args:
        windows: The training windows; they mix labels as their augmentation does.
        sampler: Draws the windows to count, an epoch.
        softmax_weights: Weight of each class in the loss, if the classes share a softmax with "no call". The odds are
            then those of class against no call. In a window with several classes, each counts as its share.

    Returns:
        float64, shape `(classes,)`. A class that is in no window has the shift of all classes together. Zeros if no
        window of the recordings is known (see `WindowTargets.is_partial`).
    """
    is_softmax = softmax_weights is not None
    blocks = ((windows.labels(draws), windows.weights(draws)) for draws in _blocks(sampler))
    drawn, without = _count(blocks, is_softmax=is_softmax)
    if softmax_weights is not None:
        drawn = drawn * softmax_weights
    present, absent = _count(_every_window(windows), is_softmax=is_softmax)
    if not (present.any() or absent.any()):
        return np.zeros(len(drawn))
    shift = _log_odds(drawn, without) - _log_odds(present, absent)
    of_all = _log_odds(drawn.sum(), without.sum()) - _log_odds(present.sum(), absent.sum())
    return np.where((drawn > 0) & (present > 0), shift, of_all)


def _log_odds(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    return np.log(present + 0.5) - np.log(absent + 0.5)


def _blocks(sampler: WindowSampler | EmbeddedWindowSampler) -> Iterator[list[Any]]:
    draws: Iterator[Any] = iter(sampler)
    while block := list(islice(draws, BLOCK)):
        yield block


def _every_window(windows: RecordingWindows | EmbeddedWindows) -> Iterator[tuple[np.ndarray, None]]:
    """Targets of all windows of the recordings: ten in the length of a window, fewer if there are too many.

    They have no weights: the odds are those of the recordings as they are.
    """
    targets = windows.targets
    samples = sum(recording.samples for recording in windows.decoded.recordings)
    hop = min(max(targets.window // 10, samples // MOST_WINDOWS), targets.window // 2)
    grid = RecordingWindowGrid.of(windows.decoded, targets.window, (targets.window - hop) / targets.sampling_rate)
    is_long = grid.end - grid.start == targets.window
    # What is known of recordings with weak labels or checked detections does not show how often species call.
    is_long &= ~targets.is_partial(targets.offset[grid.recording])
    recording, start = grid.recording[is_long], grid.start[is_long]
    for first in range(0, len(start), BLOCK):
        yield targets(recording[first : first + BLOCK], start[first : first + BLOCK]), None


def _count(
    blocks: Iterable[tuple[np.ndarray, np.ndarray | None]], *, is_softmax: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Windows with each class, and windows without it (softmax: without any), shape `(classes,)` each.

    Args:
        blocks: Targets and weights of windows; None: all weights are 1.
        is_softmax: Whether a window with several classes counts as a share of each.
    """
    present, absent = np.zeros(()), np.zeros(())
    for labels, weights in blocks:
        weight = np.ones(len(labels)) if weights is None else weights
        is_present = labels == 1
        if is_softmax:
            number = is_present.sum(axis=1, keepdims=True)
            present = present + weight @ (is_present / np.maximum(number, 1))
            absent = absent + weight @ (labels == 0).all(axis=1)
        else:
            present, absent = present + weight @ is_present, absent + weight @ (labels == 0)
    return present, absent
