"""What answers say about a species whose sample is drawn from several sites, and is answered in part."""

import numpy as np
import pandas as pd
import pytest

from kenya_birds.evaluation.call_density import fit_logistic
from kenya_birds.verification.strata import draw_clips, make_strata
from kenya_birds.verification.verified_species import VerifiedSpecies

LETTERS = "ABCDEFGHIJ"


def checked(site, scores, is_right, clips, is_answered=lambda site: True):
    """A sample of `clips` detections of each site, and the answers at those that `is_answered`."""
    sites = LETTERS[: site.max() + 1]
    strata = list(make_strata([("x", name) for name in sites], site, scores, clips, by_score=True))
    drawn = [one for name in sites for one in draw_clips([its for its in strata if its[0].group == name], clips, 0)]
    rows = [
        (scores[row], one.stratum.name, "unanswered" if not is_answered(one.stratum.group) else words[is_right[row]])
        for words in [("wrong", "right")]
        for one in drawn
        for row in one.rows
    ]
    return VerifiedSpecies(
        "x", "", tuple(one.stratum for one in drawn), pd.DataFrame(rows, columns=["score", "stratum", "verdict"])
    )


def detections(sizes, chance, seed=0):
    """Site, score and truth of detections; `chance(score, site)` is the probability that one is right."""
    generator = np.random.default_rng(seed)
    site = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.round(generator.uniform(0.01, 0.99, len(site)), 6)
    return site, scores, (generator.random(len(site)) < chance(scores, site)).astype(int)


def test_a_site_that_nobody_has_heard_may_be_all_right_or_all_wrong():
    site, scores, is_right = detections([20, 5000], lambda score, site: np.where(site == 0, 1.0, 0.05))
    found = checked(site, scores, is_right, 20, lambda group: group == "A")
    assert found.counts["right"] == found.counts["unanswered"] == 20
    assert found.share.low == pytest.approx(20 / 5020)
    assert found.share.high == 1
    assert found.clips_for(0.1) is None
    assert found.score_of(0.9) is None
    assert found.why_not(0.9) == (
        "1 of its sites or nights, with 5000 of its 5020 detections, have no answer right, wrong or other"
    )


def test_a_small_site_that_nobody_has_heard_widens_the_interval_by_its_detections():
    site, scores, is_right = detections([2000, 50], lambda score, site: score)
    whole = checked(site[:2000], scores[:2000], is_right[:2000], 60)
    found = checked(site, scores, is_right, 60, lambda group: group == "A")
    assert found.share.width == pytest.approx(whole.share.width, abs=50 / 2050 + 0.02)
    assert found.share.low < whole.share.low
    assert found.score_of(0.9) is not None
    assert found.clips_for(0.3) is not None
    assert found.clips_for(0.01) is None  # 50 of 2050 detections are unknown


@pytest.mark.parametrize("answered", ["all", "all but the highest bin", "the lowest bin"])
def test_answers_of_a_site_with_high_scores_say_nothing_about_a_site_with_low_ones(answered):
    generator = np.random.default_rng(0)
    site = np.repeat([0, 1], [2000, 20000])
    scores = np.round(np.where(site == 0, generator.beta(4, 2, len(site)), generator.beta(1, 8, len(site))), 6)
    is_right = (generator.random(len(site)) < np.where(site == 0, 0.6, 0.01)).astype(int)
    found = checked(site, scores, is_right, 40)
    bins = sorted({one.score_bin for one in found.strata if one.group == "B"})
    kept = {"all": bins, "all but the highest bin": bins[:-1], "the lowest bin": bins[:1]}[answered]
    silent = [one.name for one in found.strata if one.group == "B" and one.score_bin not in kept]
    found.clips.loc[found.clips["stratum"].isin(silent), "verdict"] = "unanswered"
    assert found.share.low <= is_right.mean() <= found.share.high
    assert found.share.estimate == pytest.approx(is_right.mean(), abs=0.04)


@pytest.mark.parametrize("shift", [-1.8, -0.5])
def test_the_fit_weighs_answers_by_the_detections_of_their_site(shift):
    def chance(score, site):
        return 1 / (1 + np.exp(-(np.log(score / (1 - score)) + np.where(site == 0, shift, 1.5))))

    errors = []
    for seed in range(8):
        site, scores, is_right = detections([8000] + [150] * 9, chance, seed)
        found = checked(site, scores, is_right, 20)
        cell = found.curve[[round(one.score, 1) for one in found.curve].index(0.5)]
        errors.append(cell.by_fit - is_right[scores >= cell.score].mean())
    assert abs(np.mean(errors)) < 0.1  # without weights: +0.22 to +0.42


def test_with_one_site_every_answer_counts_once():
    site, scores, is_right = detections([500], lambda score, site: score)
    found = checked(site, scores, is_right, 60)
    alone = fit_logistic(found.scores, found.is_right)
    assert found.fit.probability(scores) == pytest.approx(alone.probability(scores), abs=1e-9)


def test_detections_that_nobody_has_heard_are_not_certain():
    """The highest scores of a stratum have no answer: those about its lower scores are taken over."""
    widths = []
    for seed in range(10):
        site, scores, is_right = detections([400], lambda score, site: score, seed)
        found = checked(site, scores, is_right, 10)
        widths += [one.precision.width for one in found.curve if not (found.scores >= one.score).any()]
    assert len(widths) >= 3
    assert min(widths) > 0


def test_high_scores_without_an_answer_at_some_sites_are_uncertain_by_the_detections_there():
    inside, errors = [], []
    for seed in range(30):
        site, scores, is_right = detections([400] * 10, lambda score, site: score, seed)
        found = checked(site, scores, is_right, 20)
        (at,) = (one for one in found.curve if one.score == pytest.approx(0.9, abs=0.01))
        truth = is_right[scores >= at.score].mean()
        errors.append(at.precision.estimate - truth)
        inside.append(at.precision.low <= truth <= at.precision.high)
    assert abs(np.mean(errors)) < 0.05
    assert np.mean(inside) >= 0.9


@pytest.mark.parametrize("clips", [10, 20])
def test_a_species_with_right_answers_alone_is_reported(clips):
    for seed in range(10):
        site, scores, is_right = detections([300], lambda score, site: 1 + 0 * score, seed)
        assert checked(site, scores, is_right, clips).score_of(0.9) is not None
