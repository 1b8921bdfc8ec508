"""How far the metrics can be trusted: intervals from a bootstrap over recordings."""

import warnings

import numpy as np

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

    Recordings are drawn with replacement, as many as there are, each with all its clips (cluster bootstrap: Davison
    and Hinkley 1997, section 3.8): clips of one recording share birds, noise and place, so that drawing clips would
    give intervals far too narrow. A class that a resample lacks is left out of that resample's means, as it is left
    out of the metrics.

    The ends are percentiles of the resamples, moved together so that their median is the metric itself. Resampling
    repeats clips, which raises average precision and calibration error of rare classes: plain percentiles may not even
    hold the metric. Moved, they hold the truth as often or more often (`benchmarks/interval_coverage.py`), though with
    few recordings and many rare classes still less often than `level`. The interval says how the figure would vary
    with the recordings, for this model: not how another training would.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        recordings: Name of each clip's recording, shape `(clips,)`.
        generator: Draws the resamples; the same state gives the same intervals.
        resamples: Number of resamples.
        level: Share of the resamples between the ends.

    Returns:
        Lower and upper end by metric. None where there is one recording only, or no resample can be scored.
    """
    names, group = np.unique(recordings, return_inverse=True)
    if len(names) < 2:
        return dict.fromkeys(METRICS)
    weights = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    resampled = weighted_metrics(scores, references, group, weights)
    metrics = weighted_metrics(scores, references, group, np.ones((1, len(names))))
    return {name: centred_interval(resampled[name], metrics[name].item(), level) for name in METRICS}


def centred_interval(values: np.ndarray, estimate: float, level: float) -> tuple[float, float] | None:
    """Percentiles of resampled values, moved so that their median is the estimate, within 0 and 1.

    Args:
        values: Of the resamples; NaN does not count.
        estimate: Of what was resampled.
        level: Share of the values between the ends.

    Returns:
        Lower and upper end; None without values or estimate.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0 or np.isnan(estimate):
        return None
    low, median, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    ends = np.clip([low + estimate - median, high + estimate - median], 0, 1)
    return float(ends[0]), float(ends[1])


def weighted_metrics(
    scores: np.ndarray, references: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics of `evaluation_metrics` when the clips of group `g` count `weights[:, g]` times.

    They are exact. Each is a function of sums over clips, so the sums of each group are computed once and added up by
    a matrix product.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        group: Number of each clip's group, shape `(clips,)`.
        weights: Shape `(resamples, groups)`.

    Returns:
        Shape `(resamples,)` by metric; NaN where nothing can be scored.
    """
    references = np.asarray(references)
    targets = class_targets(references, scores.shape[1])
    weights = weights.astype(np.float64)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        ap, auroc = _ranking(scores, targets, group, weights)
        return {
            **_decisions(scores, targets, group, weights, multi_label=references.ndim == 2),
            "top1_accuracy": _share(top_k_hits(scores, targets, 1), group, weights),
            "top5_accuracy": _share(top_k_hits(scores, targets, 5), group, weights),
            "cmap": np.nanmean(ap, axis=1),
            "auroc": np.nanmean(auroc, axis=1),
            "ece": _calibration_error(scores, references, group, weights),
        }


def _decisions(
    scores: np.ndarray, targets: np.ndarray, group: np.ndarray, weights: np.ndarray, multi_label: bool
) -> dict[str, np.ndarray]:
    predicted = predicted_classes(scores, multi_label=multi_label) * (targets >= 0)
    present = targets == 1
    hits = weights @ _sums(predicted * present, group, weights.shape[1])
    support = weights @ _sums(present, group, weights.shape[1])
    f1 = np.where(support > 0, 2 * hits / (support + weights @ _sums(predicted, group, weights.shape[1])), np.nan)
    return {
        "macro_f1": np.nanmean(f1, axis=1),
        "weighted_f1": np.nansum(f1 * support, axis=1) / support.sum(axis=1),
        "accuracy": _share((predicted == present).all(axis=1).astype(float), group, weights),
    }


def _ranking(
    scores: np.ndarray, targets: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC, both of shape `(resamples, classes)`.

    Both are sums over the clips that hold the class, of a function of how many clips score as high and higher.
    """
    groups = weights.shape[1]
    ap, auroc = (np.full((len(weights), targets.shape[1]), np.nan) for _ in range(2))
    for label in range(targets.shape[1]):
        known = targets[:, label] >= 0
        order = np.flatnonzero(known)[np.argsort(-scores[known, label], kind="stable")]
        score, is_present, its_group = scores[order, label], targets[order, label] == 1, group[order]
        at = np.flatnonzero(is_present)
        if len(at) == 0:
            continue
        # Row k: clips of each group among the k best.
        counted = np.zeros((2, len(order) + 1, groups))
        counted[0, np.arange(len(order)) + 1, its_group] = 1
        counted[1, at + 1, its_group[at]] = 1
        every, present = counted.cumsum(axis=1)
        first, last = (np.searchsorted(-score, -score[at], side=side) for side in ("left", "right"))
        hits = weights @ present[last].T
        own = weights[:, its_group[at]]
        total = own.sum(axis=1)
        # A clip that is not drawn counts nothing, whatever precision it would have.
        precision = np.where(own > 0, hits / (weights @ every[last].T), 0)
        ap[:, label] = (own * precision).sum(axis=1) / total
        absent = every - present
        below_or_equal = weights @ (absent[-1] - (absent[first] + absent[last]) / 2).T
        auroc[:, label] = (own * below_or_equal).sum(axis=1) / (total * (weights @ absent[-1]))
    return ap, auroc


def _calibration_error(
    scores: np.ndarray, references: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    confidences, outcomes = calibration_points(scores, references)
    its_group = group if references.ndim == 1 else group[np.nonzero(references >= 0)[0]]
    cell = its_group * CALIBRATION_BINS + calibration_bin(confidences)
    groups = weights.shape[1]
    gap, points = (
        np.bincount(cell, weights=values, minlength=groups * CALIBRATION_BINS).reshape(groups, CALIBRATION_BINS)
        for values in (confidences - outcomes, None)
    )
    return np.abs(weights @ gap).sum(axis=1) / (weights @ points).sum(axis=1)


def _share(hits: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the hits that are not NaN."""
    counts = np.stack([np.nan_to_num(hits), ~np.isnan(hits)], axis=1)
    right, all_ = np.moveaxis(weights @ _sums(counts, group, weights.shape[1]), 1, 0)
    return right / all_


def _sums(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Sums of the rows of each group."""
    sums = np.zeros((groups, values.shape[1]))
    np.add.at(sums, group, values)
    return sums
