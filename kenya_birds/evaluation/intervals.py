"""Confidence intervals of the metrics, from a bootstrap over recordings."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import sparse

from kenya_birds.evaluation.metrics import (
    CALIBRATION_BINS,
    calibration_bin,
    calibration_points,
    class_targets,
    predicted_classes,
    top_k_hits,
)

RESAMPLES = 1000
LEVEL = 0.95
# Clips per block, and clips with one class per block: memory does not grow with clips x recordings.
CLIP_BLOCK, PRESENT_BLOCK = 8192, 512
METRICS = ("macro_f1", "weighted_f1", "accuracy", "top1_accuracy", "top5_accuracy", "cmap", "auroc", "ece")


def metric_intervals(
    scores: np.ndarray,
    references: np.ndarray,
    recordings: np.ndarray,
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, tuple[float, float] | None]:
    """Bootstrap intervals of the metrics of `evaluation_metrics`.

    Whole recordings are drawn with replacement, each with all its clips (cluster bootstrap: Davison and Hinkley 1997,
    section 3.8). Clips of one recording share birds, noise and place; drawing single clips would give intervals that
    are far too narrow. A class that is not in a resample is not part of that resample's means.

    The limits are percentiles of the resamples, shifted so that their median is the metric itself. Resampling repeats
    clips, which raises average precision and calibration error of rare classes, so that percentiles without the shift
    may not contain the metric. Shifted intervals contain the true value at least as often
    (`benchmarks/interval_coverage.py`), though with few recordings and many rare classes still less often than
    `level`. The interval shows how the metric of this model varies with the recordings. It does not include the
    variation between trainings.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        recordings: Name of each clip's recording, shape `(clips,)`.
        generator: Draws the resamples; the same state gives the same intervals.
        resamples: Number of resamples.
        level: Confidence level, between 0 and 1.

    Returns:
        Lower and upper limit by metric. None if there is only one recording, or no resample can be scored.
    """
    names, group = np.unique(recordings, return_inverse=True)
    if len(names) < 2:
        return dict.fromkeys(METRICS)
    weights = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    # The first row is the original sample.
    weighted = weighted_metrics(scores, references, group, np.vstack([np.ones(len(names), dtype=int), weights]))
    return {name: centred_interval(weighted[name][1:], weighted[name][0].item(), level) for name in METRICS}


def centred_interval(
    values: np.ndarray, estimate: float, level: float, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float] | None:
    """Percentiles of resampled values, shifted so that their median is the estimate.

    Args:
        values: Metric of each resample; NaN values are skipped.
        estimate: Metric of the original sample.
        level: Confidence level, between 0 and 1.
        bounds: Smallest and largest possible value of the metric.

    Returns:
        Lower and upper limit; None without values or estimate.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0 or np.isnan(estimate):
        return None
    low, median, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    ends = np.clip([low + estimate - median, high + estimate - median], *bounds)
    return float(ends[0]), float(ends[1])


def weighted_metrics(
    scores: np.ndarray, references: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics of `evaluation_metrics` for resamples in which the clips of group `g` occur `weights[:, g]` times.

    The result is exact. Each metric is a function of sums over clips: the sums of each group are computed once, and a
    matrix product adds them up for all resamples.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        group: Number of each clip's group, shape `(clips,)`.
        weights: Shape `(resamples, groups)`.

    Returns:
        Shape `(resamples,)` by metric; NaN if undefined.
    """
    references = np.asarray(references)
    weights = weights.astype(np.float64)
    sums = _GroupSums(scores, references, group, weights.shape[1])
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        ap, auroc = weighted_ranking(scores, references, group, weights)
        return {
            **sums.metrics(weights),
            "cmap": np.nanmean(ap, axis=1),
            "auroc": np.nanmean(auroc, axis=1),
        }


class _GroupSums:
    """Sums over the clips of each group, from which all metrics except the ranking metrics follow.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        references: See `weighted_metrics`.
        group: Number of each clip's group, shape `(clips,)`.
        groups: Number of groups.

    Attributes:
        hits: Correctly predicted clips of each class, shape `(groups, classes)`.
        support: Clips that contain each class, same shape.
        predicted: Clips for which each class is predicted, same shape.
        shares: By metric, the number of correct clips and of scored clips, shape `(groups, 2)`.
        gap: Sum of confidence minus outcome in each bin of the calibration, shape `(groups, CALIBRATION_BINS)`.
        points: Number of confidences in each bin, same shape.
    """

    def __init__(self, scores: np.ndarray, references: np.ndarray, group: np.ndarray, groups: int) -> None:
        self.hits, self.support, self.predicted = (np.zeros((groups, scores.shape[1])) for _ in range(3))
        self.shares = {name: np.zeros((groups, 2)) for name in ("accuracy", "top1_accuracy", "top5_accuracy")}
        self.gap, self.points = (np.zeros((groups, CALIBRATION_BINS)) for _ in range(2))
        for first in range(0, len(scores), CLIP_BLOCK):
            block = slice(first, first + CLIP_BLOCK)
            self._add(scores[block], references[block], group[block])

    def _add(self, scores: np.ndarray, references: np.ndarray, group: np.ndarray) -> None:
        targets = class_targets(references, scores.shape[1])
        present = targets == 1
        predicted = (predicted_classes(scores, multi_label=references.ndim == 2) == 1) & (targets >= 0)
        for total, values in ((self.hits, predicted & present), (self.support, present), (self.predicted, predicted)):
            clips, classes = np.nonzero(values)
            np.add.at(total, (group[clips], classes), 1)
        right = {
            "accuracy": (predicted == present).all(axis=1).astype(float),
            "top1_accuracy": top_k_hits(scores, targets, 1),
            "top5_accuracy": top_k_hits(scores, targets, 5),
        }
        for name, hits in right.items():
            np.add.at(self.shares[name], group, np.stack([np.nan_to_num(hits), ~np.isnan(hits)], axis=1))
        confidences, outcomes = calibration_points(scores, references)
        its_group = group if references.ndim == 1 else group[np.nonzero(references >= 0)[0]]
        where = its_group, calibration_bin(confidences)
        np.add.at(self.gap, where, confidences - outcomes)
        np.add.at(self.points, where, 1)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of all resamples."""
        hits, support, predicted = (weights @ sums for sums in (self.hits, self.support, self.predicted))
        f1 = np.where(support > 0, 2 * hits / (support + predicted), np.nan)
        shares = {name: (weights @ sums).T for name, sums in self.shares.items()}
        return {
            "macro_f1": np.nanmean(f1, axis=1),
            "weighted_f1": np.nansum(f1 * support, axis=1) / support.sum(axis=1),
            **{name: right / counted for name, (right, counted) in shares.items()},
            "ece": np.abs(weights @ self.gap).sum(axis=1) / (weights @ self.points).sum(axis=1),
        }


def weighted_ranking(
    scores: np.ndarray, references: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC, both of shape `(resamples, classes)`."""

    def column(label: int) -> tuple[np.ndarray, np.ndarray]:
        return scores[:, label], references[:, label] if references.ndim == 2 else references == label

    return weighted_ranking_by_class(column, scores.shape[1], group, weights)


def weighted_ranking_by_class(
    column: Callable[[int], tuple[np.ndarray, np.ndarray]], classes: int, group: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `weighted_ranking`, for scores and targets of which only one class is in memory.

    Args:
        column: Returns scores and targets of a class, both of shape `(clips,)`.
        classes: Number of classes.
        group: Number of each clip's group, shape `(clips,)`.
        weights: Shape `(resamples, groups)`.
    """
    ap, auroc = (np.full((len(weights), classes), np.nan) for _ in range(2))
    # In this order, products with sparse matrices need no copy.
    weights = np.asfortranarray(weights)
    for label in range(classes):
        score, target = column(label)
        if (target == 1).any():
            known = np.flatnonzero(target >= 0)
            order = known[np.argsort(-score[known], kind="stable")]
            ap[:, label], auroc[:, label] = _class_ranking(score[order], target[order] == 1, group[order], weights)
    return ap, auroc


def _class_ranking(
    score: np.ndarray, is_present: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC of one class in each resample.

    Both are sums over the clips that contain the class. The terms depend on how many clips have an equal or a higher
    score. The sums are computed from the highest score to the lowest, in blocks of `PRESENT_BLOCK` clips.

    Args:
        score: Scores of the clips for which the class is known to be present or absent, in descending order, shape
            `(clips,)`.
        is_present: Whether the class is present.
        group: Number of each clip's group.
        weights: Shape `(resamples, groups)`.
    """
    at = np.flatnonzero(is_present)
    # For each of these clips, the number of clips with a higher score, and with an equal or higher score.
    higher, as_high = (np.searchsorted(-score, -score[at], side=side) for side in ("left", "right"))
    every = np.bincount(group, minlength=weights.shape[1])
    present = np.bincount(group[at], minlength=weights.shape[1])
    absent_total, total = weights @ (every - present), weights @ present
    ranked, absent_higher, absent_as_high = (
        _RunningCount(group, counted, weights) for counted in (np.ones_like(is_present), ~is_present, ~is_present)
    )
    precisions, below = np.zeros(len(weights)), np.zeros(len(weights))
    for first in range(0, len(at), PRESENT_BLOCK):
        block = slice(first, first + PRESENT_BLOCK)
        own = weights[:, group[at[block]]]
        among, absent = ranked.up_to(as_high[block]), absent_as_high.up_to(as_high[block])
        # A clip that is not drawn adds nothing; its precision may be 0 / 0.
        precisions += (own * np.where(own > 0, (among - absent) / among, 0)).sum(axis=1)
        below += (own * (absent_total[:, None] - (absent_higher.up_to(higher[block]) + absent) / 2)).sum(axis=1)
    return precisions / total, below / (total * absent_total)


class _RunningCount:
    """Counts how many of the first clips are drawn in each resample, for ascending numbers of clips.

    Args:
        group: Number of each clip's group, shape `(clips,)`.
        counted: Whether each clip is counted, shape `(clips,)`.
        weights: Shape `(resamples, groups)`.
    """

    def __init__(self, group: np.ndarray, counted: np.ndarray, weights: np.ndarray) -> None:
        self._group, self._counted, self._weights = group, counted.astype(np.float64), weights
        self._seen = 0
        self._count = np.zeros(len(weights))

    def up_to(self, numbers: np.ndarray) -> np.ndarray:
        """Counts among the first `numbers[k]` clips.

        Args:
            numbers: Ascending; not less than the numbers of the previous call.

        Returns:
            Shape `(resamples, len(numbers))`.
        """
        new = slice(self._seen, numbers[-1])
        # Clips between one number and the next, by group: nearly all are zero.
        counts = sparse.csr_array(
            (self._counted[new], self._group[new], np.append(0, numbers - self._seen)),
            shape=(len(numbers), self._weights.shape[1]),
        )
        # The order in memory decides how sums of the result are rounded.
        drawn = np.ascontiguousarray((counts @ self._weights.T).T).cumsum(axis=1) + self._count[:, None]
        self._seen, self._count = numbers[-1], drawn[:, -1]
        return drawn
