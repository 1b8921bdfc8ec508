"""Precision and call density from a stratified sample of detections that a person has checked, with intervals."""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit, logit

LEVEL = 0.95
# Added to the heard answers of a stratum: Kerman's neutral prior on the side of the limit, Jeffreys' on the other.
NEUTRAL, JEFFREYS = 1 / 3, 1 / 2
# Scores are clipped to this distance from 0 and 1, so that their logits are finite.
EPSILON = 1e-6
MOST_STEPS, SMALL_STEP, LONGEST_STEP, MOST_HALVES, SMALL_GAIN = 200, 1e-8, 5.0, 40, 1e-12


@dataclass(frozen=True)
class Share:
    """Share of right detections, with its interval.

    Attributes:
        estimate: Estimated share, 0 to 1; NaN if nothing was heard.
        low: Lower limit of the interval.
        high: Upper limit of the interval.
    """

    estimate: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width of the interval."""
        return self.high - self.low


def share_of_right(
    right: np.ndarray,
    heard: np.ndarray,
    total: np.ndarray,
    bins: np.ndarray | None = None,
    borrowed: np.ndarray | None = None,
    level: float = LEVEL,
) -> Share:
    """Estimates the share of right detections among all detections of some strata.

    See `shares_of_right`, which does it for many samples of one group, and `share_over_groups`.

    Args:
        right: Number of right answers in each stratum, from the lowest scores to the highest, shape `(strata,)`.
        heard: Number of answers, right or wrong.
        total: Number of detections.
        bins: Score bin of each stratum, if they are strata of several sites or nights; None: of one.
        borrowed: See `shares_of_right`.
        level: Confidence level.
    """
    if borrowed is None:
        borrowed = np.zeros(len(total), dtype=bool)
    if bins is not None:
        return share_over_groups(right, heard, total, bins, borrowed, level)
    samples = [np.asarray(values)[None] for values in (right, heard, total, borrowed)]
    estimate, low, high = shares_of_right(*samples, level=level)
    return Share(float(estimate[0]), float(low[0]), float(high[0]))


def shares_of_right(
    right: np.ndarray,
    heard: np.ndarray,
    total: np.ndarray,
    borrowed: np.ndarray | None = None,
    *,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates the share of right detections from stratified samples: call density, or precision above a score.

    With the strata `b`, this is the call density of Navine et al. 2024 (All thresholds barred: direct estimation of
    call density in bioacoustic data, Frontiers in Bird Science 3:1380636): `P(+) = sum over b of P(+|b) P(b)`, where
    `P(b)` is the share of detections in a stratum, which is known, and `P(+|b)` has a beta distribution, given the
    answers. The estimate is the sum with the share of right answers as `P(+|b)`; it is unbiased.

    The interval is that of the number of right detections in this table. Heard detections are certain. The number of
    right ones among the others of a stratum is beta-binomial. The sum over the strata is approximated by a beta
    distribution with equal mean and variance on the range of possible sums. The lower limit adds 1/3 right and 1/2
    wrong answers to each stratum, and the upper limit 1/2 right and 1/3 wrong ones: between the neutral prior
    (Kerman 2011, Electronic Journal of Statistics 5) and Jeffreys' prior. The lowest strata whose answers are all
    wrong count as one stratum, because the share of right ones does not fall with the score; otherwise each would add
    its own half of an answer. In the upper limit, so do the highest strata whose answers are all right. If no answer
    is right, the lower limit is 0; if all are, the upper one is 1.
    `benchmarks/verification_coverage.py` measures the coverage.

    Args:
        right: Number of right answers, shape `(samples, strata)`, strata from the lowest scores to the highest.
        heard: Number of answers, right or wrong.
        total: Number of detections. Strata without answers must be joined with others (see `join_unheard`).
        borrowed: Whether the answers are about other detections than those of the stratum, so that none of its
            detections is certain; None: they are about its own.
        level: Confidence level.

    Returns:
        Estimate, lower and upper limit, each of shape `(samples,)`; NaN for a sample without answers.
    """
    right, heard, total = (np.asarray(values, dtype=float) for values in (right, heard, total))
    own = np.ones(total.shape, dtype=bool) if borrowed is None else ~np.asarray(borrowed, dtype=bool)
    strata = np.stack([right, heard, total, right * own, heard * own])
    everything = total.sum(axis=1)
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(heard > 0, right / heard, 0.0)
        estimate = (mean * total).sum(axis=1) / everything
        lowest, both = _pool(strata, highest=False), _pool(strata, highest=True)
        low = np.floor(_quantile(lowest, NEUTRAL, JEFFREYS, tail) + 1e-9) / everything
        high = np.ceil(_quantile(both, JEFFREYS, NEUTRAL, 1 - tail) - 1e-9) / everything
    answers, hits = heard.sum(axis=1), right.sum(axis=1)
    low = np.where(hits == 0, 0.0, np.minimum(low, estimate))
    high = np.where(hits == answers, 1.0, np.maximum(high, estimate))
    is_known = np.all(heard * own == total, axis=1)
    low, high = (np.where(is_known, estimate, limit) for limit in (low, high))
    estimate, low, high = (np.where(answers > 0, values, np.nan) for values in (estimate, low, high))
    return estimate, low, high


def share_over_groups(
    right: np.ndarray,
    heard: np.ndarray,
    total: np.ndarray,
    bins: np.ndarray,
    borrowed: np.ndarray | None = None,
    level: float = LEVEL,
) -> Share:
    """Estimates the share of right detections from samples of several sites or nights.

    With many groups of few clips, a prior for each stratum would decide. Instead the interval is that of a simple
    random sample with the same variance (effective sample size: Korn and Graubard 1998, Survey Methodology 24), with
    the priors of `shares_of_right`. In the variance, the share of a stratum is moved towards that of its score bin in
    all groups, with the weight of one answer, because a stratum whose few answers are all equal is not certain; and
    the variance of `n` answers is divided by `n - 1/3`. Simulated intervals contain the truth in 92 to 98% of samples
    of 4 to 20 clips at each of 20 sites (`tests/test_call_density.py`).

    Args:
        right: Number of right answers of each stratum, shape `(strata,)`.
        heard: Number of answers; above 0.
        total: Number of detections.
        bins: Score bin of each stratum.
        borrowed: See `shares_of_right`.
        level: Confidence level.
    """
    right, heard, total = (np.asarray(values, dtype=float) for values in (right, heard, total))
    certain = heard if borrowed is None else np.where(borrowed, 0.0, heard)
    _, place = np.unique(bins, return_inverse=True)
    hits, answers = np.bincount(place, weights=right), np.bincount(place, weights=heard)
    of_bin = ((hits + NEUTRAL) / (answers + NEUTRAL + JEFFREYS))[place]
    moved = (right + of_bin) / (heard + 1)
    weight = total / total.sum()
    estimate = float((weight * right / heard).sum())
    if (certain >= total).all():
        return Share(estimate, estimate, estimate)
    variance = (weight**2 * (1 - certain / total) * moved * (1 - moved) / (heard - 1 / 3)).sum()
    centre = (weight * moved).sum()
    size = centre * (1 - centre) / max(variance, 1e-15)
    good, bad, tail = size * estimate, size * (1 - estimate), (1 - level) / 2
    low = float(betaincinv(good + NEUTRAL, bad + JEFFREYS, tail)) if right.any() else 0.0
    high = float(betaincinv(good + JEFFREYS, bad + NEUTRAL, 1 - tail)) if (right < heard).any() else 1.0
    return Share(estimate, min(low, estimate), max(high, estimate))


def join_unheard(
    right: np.ndarray, heard: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Joins strata without answers with the next lower stratum that has answers, or else with the next higher one.

    Detections with higher scores are more often right, so the lower stratum does not raise the estimate.

    Args:
        right: Number of right answers, shape `(strata,)`, from the lowest scores to the highest.
        heard: Number of answers.
        total: Number of detections.

    Returns:
        The three arrays of the strata with answers, and their indices; empty if there is none.
    """
    known = np.flatnonzero(heard > 0)
    if len(known) == 0:
        return right[:0], heard[:0], total[:0], known
    owner = np.clip(np.searchsorted(known, np.arange(len(heard)), side="right") - 1, 0, None)
    joined = np.bincount(owner, weights=total, minlength=len(known))
    return right[known], heard[known], joined, known


def _pool(strata: np.ndarray, *, highest: bool) -> np.ndarray:
    """Joins the lowest strata without a right answer, and if wanted the highest ones without a wrong answer.

    Args:
        strata: Right answers, answers, detections, and those of the right answers and of the answers that are about
            these detections; shape `(5, samples, strata)`.
        highest: Whether to join the highest ones.
    """
    right, heard = strata[:2]
    wrong = np.cumprod(right == 0, axis=1).astype(bool)
    sure = np.cumprod(((right == heard) & ~wrong & highest)[:, ::-1], axis=1)[:, ::-1].astype(bool)
    joined = np.where(wrong | sure, 0.0, strata)
    joined[:, :, 0] += (strata * wrong).sum(axis=2)
    joined[:, :, -1] += (strata * sure).sum(axis=2)
    return joined


def _quantile(strata: np.ndarray, more_right: float, more_wrong: float, level: float) -> np.ndarray:
    """Quantile of the number of right detections, shape `(samples,)`; see `_pool` for the strata."""
    right, heard, total, certain_right, certain = strata
    rest = total - certain
    a, b = right + more_right, heard - right + more_wrong
    both = a + b
    mean = (certain_right + rest * a / both).sum(axis=1)
    variance = (rest * a * b * (both + rest) / (both**2 * (both + 1))).sum(axis=1)
    least, most = certain_right.sum(axis=1), (rest + certain_right).sum(axis=1)
    span = np.maximum(most - least, 1e-9)
    centre = np.clip((mean - least) / span, 1e-9, 1 - 1e-9)
    size = np.maximum(centre * (1 - centre) / np.maximum(variance / span**2, 1e-12) - 1, 1e-9)
    found: np.ndarray = least + span * betaincinv(centre * size, (1 - centre) * size, level)
    return found


def clips_for_width(
    right: np.ndarray,
    heard: np.ndarray,
    total: np.ndarray,
    width: float,
    bins: np.ndarray | None = None,
    borrowed: np.ndarray | None = None,
) -> int:
    """Estimates how many more detections must be heard until the interval is at most so wide.

    It assumes that the share of right answers in each stratum stays as it is, and that more clips are drawn in equal
    numbers from all strata, as `verify sample` does.

    Args:
        right: Number of right answers, shape `(strata,)`, from the lowest scores to the highest.
        heard: Number of answers; above 0.
        total: Number of detections.
        width: Wanted width of the interval, above 0.
        bins: See `share_of_right`.
        borrowed: See `shares_of_right`.

    Returns:
        Number of clips; 0 if the interval is narrow enough.
    """
    share = (right + JEFFREYS) / (heard + 2 * JEFFREYS)
    borrowed = np.zeros(len(total), dtype=bool) if borrowed is None else borrowed
    unheard = np.floor(np.where(borrowed, total, total - heard) + 1e-9).astype(int)

    def is_enough(more: int) -> bool:
        added = spread(more, unheard)
        # Own answers take the place of borrowed ones.
        is_own = ~borrowed | (added > 0)
        new = np.where(borrowed & is_own, 0, heard) + added
        expected = np.where(borrowed & is_own, 0, right) + share * added
        return share_of_right(expected, new, total, bins, ~is_own).width <= width

    if share_of_right(right, heard, total, bins, borrowed).width <= width:
        return 0
    few, many = 0, int(unheard.sum())
    while many - few > max(1, many // 200):
        middle = (few + many) // 2
        few, many = (few, middle) if is_enough(middle) else (middle, many)
    return many


def spread(clips: int, sizes: np.ndarray) -> np.ndarray:
    """Divides clips equally among strata; what a small stratum cannot take goes to the others.

    Args:
        clips: Number of clips.
        sizes: Number of detections of each stratum, shape `(strata,)`.

    Returns:
        Clips of each stratum, shape `(strata,)`. Single clips that remain go to the highest strata.
    """
    given = np.zeros(len(sizes), dtype=int)
    left = int(min(clips, sizes.sum()))
    while left > 0:
        free = np.flatnonzero(given < sizes)[::-1]
        if left < len(free):
            given[free[:left]] += 1
            break
        more = np.minimum(left // len(free), sizes[free] - given[free])
        given[free] += more
        left -= int(more.sum())
    return given


@dataclass(frozen=True)
class LogisticFit:
    """Logistic fit of the probability that a detection is right, on the logit of its score.

    Attributes:
        intercept: Intercept.
        slope: Slope; 1 and an intercept of 0 mean that scores are probabilities.
        covariance: Covariance of both, shape `(2, 2)`.
    """

    intercept: float
    slope: float
    covariance: np.ndarray

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Probability that detections with these scores are right, of the same shape."""
        found: np.ndarray = expit(self.intercept + self.slope * score_logits(scores))
        return found

    def band(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise 95% band of the probability: lower and upper limits, of the same shape."""
        x = score_logits(scores)
        (v_a, v_ab), (_, v_b) = self.covariance
        spread_ = 1.959964 * np.sqrt(np.maximum(v_a + 2 * v_ab * x + v_b * x**2, 0))
        centre = self.intercept + self.slope * x
        return expit(centre - spread_), expit(centre + spread_)


def score_logits(scores: np.ndarray) -> np.ndarray:
    """Logits of scores, clipped to be finite."""
    found: np.ndarray = logit(np.clip(scores, EPSILON, 1 - EPSILON))
    return found


def fit_logistic(scores: np.ndarray, is_right: np.ndarray, weights: np.ndarray | None = None) -> LogisticFit | None:
    """Fits the probability that a detection is right on the logit of its score.

    Wood and Kahl 2024 (Guidelines for appropriate use of BirdNET scores and other detector outputs, Journal of
    Ornithology 165) fit this for each species. The fit maximises Firth's penalised likelihood (Firth 1993, Biometrika
    80), which is finite also if all answers are right, or if one score separates right from wrong. Newton's steps are
    halved until they raise it enough (Heinze and Schemper 2002, Statistics in Medicine 21; Armijo's rule).

    Higher scores are not less often right: if the slope would be negative, the likelihood is maximised with a slope of
    0, and the probability is the same at all scores.

    Args:
        scores: Scores of the heard detections, shape `(clips,)`.
        is_right: Whether each is right.
        weights: How many answers each answer counts as, with a mean of 1; None: one each. With unequal weights, the
            covariance is that of fewer answers (effective sample size of Kish 1965, Survey Sampling).

    Returns:
        The fit; None if there are fewer than two different scores, or if it does not converge.
    """
    x = score_logits(np.asarray(scores, dtype=float))
    if len(np.unique(x)) < 2:
        return None
    target = np.asarray(is_right, dtype=float)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=float)
    design = np.column_stack([np.ones(len(x)), x])
    # Scores of 0 and 1 among others can give two maxima.
    starts = (_maximise(design, target, weights, np.array([0.0, slope])) for slope in (0.0, 1.0))
    maxima = [found for found in starts if found is not None]
    if not maxima:
        return None
    rising = [found for found in maxima if found[0][1] >= 0] or maxima
    (intercept, slope), covariance, _ = max(rising, key=lambda found: found[2])
    if slope < 0:
        # With a slope of 0, the penalty is the logarithm of p (1 - p): one more answer of each kind.
        p = (float((weights * target).sum()) + 1) / (float(weights.sum()) + 2)
        intercept, slope = float(logit(p)), 0.0
        covariance = np.diag([1 / (float(weights.sum()) * p * (1 - p)), 0.0])
    spread_out = float((weights**2).sum() / weights.sum())
    return LogisticFit(float(intercept), float(slope), covariance * spread_out)


def _maximise(
    design: np.ndarray, target: np.ndarray, weights: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Coefficients at a maximum of the penalised likelihood, their covariance, and it; None without convergence."""

    def information(p: np.ndarray) -> np.ndarray:
        found: np.ndarray = design.T @ ((weights * np.maximum(p * (1 - p), 1e-12))[:, None] * design)
        return found

    def likelihood(beta: np.ndarray) -> float:
        eta = design @ beta
        of_answers = (weights * (target * eta - np.logaddexp(0, eta))).sum()
        return float(of_answers + 0.5 * np.linalg.slogdet(information(expit(eta)))[1])

    beta = start
    reached = likelihood(beta)
    for _ in range(MOST_STEPS):
        p = expit(design @ beta)
        covariance = np.linalg.inv(information(p))
        weight = weights * np.maximum(p * (1 - p), 1e-12)
        leverage = weight * np.einsum("ij,jk,ik->i", design, covariance, design)
        slope = design.T @ (weights * (target - p) + leverage * (0.5 - p))
        step = covariance @ slope
        step *= min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), 1e-12))
        halves = 0
        # A step that gains much less than its slope promises goes beyond the maximum.
        while (new := likelihood(beta + step)) - reached < slope @ step / 4 and halves < MOST_HALVES:
            step, halves = step / 2, halves + 1
        if np.abs(step).max() < SMALL_STEP or new - reached < SMALL_GAIN:
            return beta, covariance, reached
        beta, reached = beta + step, new
    return None
