"""Precision and call density from checked samples: numbers worked by hand, and coverage by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from kenya_birds.evaluation.call_density import (
    clips_for_width,
    fit_logistic,
    join_unheard,
    score_logits,
    share_of_right,
    share_over_groups,
    shares_of_right,
    spread,
)
from kenya_birds.verification.strata import bin_edges

SIMULATIONS, DETECTIONS, CLIPS = 3000, 2000, 60
# Probability that a detection is right: expit(intercept + slope x), with x normal, so that about so many are right.
KINDS = {"common": ((-1.5, 1.0), (1.0, 2.5)), "rare": ((-6.0, -4.0), (1.5, 2.5))}


def populations(kind: str) -> np.ndarray:
    """Whether each detection is right, from the lowest score to the highest, shape `(SIMULATIONS, DETECTIONS)`."""
    generator = np.random.default_rng(5)
    intercept, slope = (generator.uniform(*limits, (SIMULATIONS, 1)) for limits in KINDS[kind])
    x = np.sort(generator.standard_normal(DETECTIONS))
    return generator.random((SIMULATIONS, DETECTIONS)) < expit(intercept + slope * x)


def bin_sizes() -> np.ndarray:
    firsts = bin_edges(np.arange(DETECTIONS), CLIPS)
    return np.diff([*firsts, DETECTIONS]).astype(int)


def hear(is_right: np.ndarray, sizes: np.ndarray, clips: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Right answers, answers, detections and right detections of each stratum, shape `(SIMULATIONS, strata)`."""
    firsts = np.cumsum([0, *sizes[:-1]])
    right = np.add.reduceat(is_right, firsts, axis=1, dtype=int)
    heard = np.random.default_rng(seed).hypergeometric(right, sizes - right, clips)
    return heard, np.broadcast_to(clips, right.shape), np.broadcast_to(sizes, right.shape), right


def covered(heard: np.ndarray, clips: np.ndarray, sizes: np.ndarray, right: np.ndarray) -> float:
    _, low, high = shares_of_right(heard, clips, sizes)
    truth = right.sum(axis=1) / sizes.sum(axis=1)
    return float(((low <= truth + 1e-9) & (truth <= high + 1e-9)).mean())


def test_bins_halve_from_the_lowest_scores_on():
    assert bin_sizes().tolist() == [1000, 500, 250, 125, 63, 31, 16, 15]
    assert bin_edges(np.arange(100), 60).tolist() == [0, 50, 75, 88]  # a bin is not smaller than its share of clips
    assert bin_edges(np.full(100, 0.5), 60).tolist() == [0.5]


def test_small_strata_leave_their_clips_to_others():
    assert spread(60, np.array([1000, 5, 30])).tolist() == [27, 5, 28]
    assert spread(60, np.array([10, 5])).tolist() == [10, 5]
    assert (spread(61, np.array([1000, 5, 30])) >= spread(60, np.array([1000, 5, 30]))).all()


def test_the_estimate_weighs_strata_by_what_they_stand_for():
    found = share_of_right(np.array([1, 9]), np.array([10, 10]), np.array([900, 100]))
    assert found.estimate == pytest.approx(0.1 * 0.9 + 0.9 * 0.1)
    assert found.low < found.estimate < found.high


def test_what_was_heard_completely_is_certain():
    found = share_of_right(np.array([3]), np.array([5]), np.array([5]))
    assert (found.estimate, found.low, found.high) == (0.6, 0.6, 0.6)


@pytest.mark.parametrize(("right", "limit"), [(0, "low"), (30, "high")])
def test_answers_that_are_all_equal_give_an_interval_that_ends_there(right, limit):
    found = share_of_right(np.array([right]), np.array([30]), np.array([100_000]))
    assert getattr(found, limit) == found.estimate == right / 30
    assert found.width == pytest.approx(0.0797, abs=0.001)  # Jeffreys' interval for 0 of 30


def test_strata_without_answers_join_the_next_lower_one():
    joined = join_unheard(np.array([0, 1, 0, 4]), np.array([0, 5, 0, 5]), np.array([100, 50, 25, 12]))
    assert [values.tolist() for values in joined] == [[1, 4], [5, 5], [175, 12], [1, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_call_density_contain_the_truth_in_95_percent_of_samples(kind):
    sizes = bin_sizes()
    assert 0.93 <= covered(*hear(populations(kind), sizes, spread(CLIPS, sizes))) <= 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_the_precision_at_high_scores_contain_the_truth_in_95_percent_of_samples(kind):
    sizes = bin_sizes()
    top = [values[:, -5:] for values in hear(populations(kind), sizes, spread(CLIPS, sizes))]
    assert 0.93 <= covered(*top) <= 0.97


@pytest.mark.parametrize("share", [0.05, 0.4])
@pytest.mark.parametrize("clips", [4, 20])
def test_intervals_over_many_sites_contain_the_truth_in_95_percent_of_samples(share, clips):
    generator = np.random.default_rng(3)
    inside = []
    for _ in range(1000):
        sizes = generator.integers(40, 200, (20, 2))
        chance = np.clip(share * generator.gamma(2, 0.5, (20, 1)) * [0.3, 1.7], 0, 1)
        right = generator.binomial(sizes, chance)
        heard = generator.hypergeometric(right, sizes - right, clips // 2)
        values = (heard.ravel(), np.full(40, clips // 2), sizes.ravel(), np.tile([0, 1], 20))
        found = share_over_groups(*values)
        inside.append(found.low - 1e-9 <= right.sum() / sizes.sum() <= found.high + 1e-9)
    assert 0.92 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_bins_need_less_than_half_of_the_clips_of_a_random_sample_for_the_precision_at_high_scores(kind):
    is_right, sizes = populations(kind), bin_sizes()
    top = sizes[-4:].sum()
    heard, clips, total, _ = (values[:, -4:] for values in hear(is_right, sizes, spread(CLIPS, sizes)))
    _, low, high = shares_of_right(heard, clips, total)
    # A random sample of twice as many clips, of which only some have high scores.
    generator = np.random.default_rng(1)
    among = np.maximum(generator.hypergeometric(top, DETECTIONS - top, 2 * CLIPS, SIMULATIONS), 1)
    right = is_right[:, -top:].sum(axis=1)
    hits = generator.hypergeometric(right, top - right, among)
    _, low_random, high_random = shares_of_right(hits[:, None], among[:, None], np.full((SIMULATIONS, 1), top))
    assert (high - low).mean() < 0.8 * (high_random - low_random).mean()


def test_the_band_of_the_logistic_fit_contains_the_truth_in_95_percent_of_samples():
    generator = np.random.default_rng(2)
    scores = np.array([0.05, 0.3, 0.5, 0.7, 0.95])
    truth = expit(-0.5 + 0.8 * score_logits(scores))
    inside = []
    for _ in range(200):
        heard = generator.uniform(0.01, 0.99, CLIPS)
        fit = fit_logistic(heard, generator.random(CLIPS) < expit(-0.5 + 0.8 * score_logits(heard)))
        low, high = fit.band(scores)
        inside.append((low <= truth) & (truth <= high))
    assert 0.93 <= np.mean(inside) <= 0.975


def test_the_logistic_fit_is_finite_if_the_score_separates_right_from_wrong():
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    fit = fit_logistic(scores, scores > 0.5)
    assert fit.slope > 0
    assert np.isfinite(fit.covariance).all()
    assert fit.probability(np.array([0.5])) == pytest.approx(0.5)
    assert fit_logistic(np.array([0.5, 0.5]), np.array([True, False])) is None


@pytest.mark.parametrize("answers", [2, 3, 5, 12])
def test_the_logistic_fit_is_where_the_penalised_likelihood_is_largest(answers):
    generator = np.random.default_rng(answers)
    compared = 0
    for _ in range(40):
        scores = generator.uniform(0.01, 0.99, answers)
        is_right = generator.random(answers) < scores
        fit = fit_logistic(scores, is_right)
        x = score_logits(scores)
        design = np.column_stack([np.ones(answers), x])

        def loss(beta, design=design, is_right=is_right):
            p = expit(design @ beta)
            information = design.T @ ((p * (1 - p))[:, None] * design)
            return -(np.log(np.where(is_right, p, 1 - p)).sum() + 0.5 * np.linalg.slogdet(information)[1])

        best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10})
        if best.x[1] > 0.01:
            compared += 1
            assert fit.probability(scores) == pytest.approx(expit(design @ best.x), abs=0.01)
        elif best.x[1] < -0.01:
            assert fit.slope == 0
            flat = minimize(lambda one, loss=loss: loss([one[0], 0.0]), [0.0], method="Nelder-Mead")
            assert fit.probability(scores) == pytest.approx(expit(flat.x[0]), abs=0.001)
    assert compared >= 10


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans(), st.integers(1, 4)), min_size=3, max_size=12))
def test_an_answer_with_a_weight_counts_as_so_many_answers(answers):
    scores, is_right, times = (np.array(values) for values in zip(*answers, strict=True))
    weighted = fit_logistic(scores, is_right, times)
    repeated = fit_logistic(np.repeat(scores, times), np.repeat(is_right, times))
    assert (weighted is None) == (repeated is None)
    if weighted is not None:
        assert weighted.probability(scores) == pytest.approx(repeated.probability(scores), abs=1e-4)


def test_answers_about_other_detections_leave_these_uncertain():
    answers = (np.array([7.0]), np.array([8.0]), np.array([8.0]))
    assert share_of_right(*answers).width == 0
    found = share_of_right(*answers, borrowed=np.array([True]))
    assert found.low < found.estimate < found.high
    assert clips_for_width(*answers, 0.1, borrowed=np.array([True])) == 8


def test_the_number_of_further_clips_gives_the_wanted_width():
    right, heard, total = np.array([0, 4]), np.array([20, 20]), np.array([500, 500])
    more = clips_for_width(right, heard, total, 0.1)
    new = heard + spread(more, total - heard)
    share = (right + 0.5) / (heard + 1)
    assert share_of_right(right + share * (new - heard), new, total).width <= 0.1
    assert clips_for_width(right, heard, total, 0.9) == 0
    assert clips_for_width(right, heard, total, 1e-9) <= (total - heard).sum()
