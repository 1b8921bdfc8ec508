"""Thresholds: best F1 or a wanted precision, near all species' where there is little to go by, None where nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predicting import multi_label_case, single_label_case
from scipy.special import expit, logit

from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import (
    Thresholds,
    choose_checked_thresholds,
    choose_thresholds,
    choose_window_thresholds,
)

CLASSES = [f"bird{index}" for index in range(8)]


def one_class(scores, targets, **settings):
    return choose_thresholds(
        np.array(scores)[:, None], np.array(targets)[:, None], ["bird"], shrinkage_clips=0, **settings
    ).species["bird"]


def test_the_best_f1_lies_between_the_two_scores_that_it_separates():
    # In logits, halfway between 0.6 and 0.4 is 0.5.
    assert one_class([0.9, 0.6, 0.4, 0.1], [1, 1, 0, 0]) == pytest.approx(0.5)


def test_the_best_f1_is_not_beaten_by_any_other_threshold():
    scores, references, _ = multi_label_case(clips=400, classes=1, unknown=0)
    chosen = one_class(scores[:, 0], references[:, 0])

    def f1(threshold):
        predicted = scores[:, 0] >= threshold
        return 2 * (predicted & (references[:, 0] == 1)).sum() / (predicted.sum() + references.sum())

    assert f1(chosen) == pytest.approx(max(f1(threshold) for threshold in scores[:, 0]))


def test_a_wanted_precision_is_had_at_the_threshold_and_at_no_lower_one():
    scores, references, _ = multi_label_case(clips=400, classes=1, unknown=0)
    chosen = one_class(scores[:, 0], references[:, 0], wanted_precision=0.9)
    for threshold in scores[:, 0]:
        predicted = scores[:, 0] >= threshold
        precision = (references[predicted, 0] == 1).mean()
        assert (precision < 0.9) if threshold < chosen else True
    predicted = scores[:, 0] >= chosen
    assert (references[predicted, 0] == 1).mean() >= 0.9


def test_a_window_without_a_call_counts_for_as_many_as_it_stands_for():
    scores, references, _ = multi_label_case(clips=60, classes=8, unknown=5)
    windows = np.random.default_rng(1).random((7, 8))
    absent, weights = np.zeros((7, 8), dtype=int), np.array([1, 5, 2, 3, 1, 9, 4])
    weighted = choose_thresholds(
        np.concatenate([scores, windows]),
        np.concatenate([references, absent]),
        CLASSES,
        weights=np.concatenate([np.ones(60), weights]),
    )
    repeated = choose_thresholds(
        np.concatenate([scores, windows.repeat(weights, axis=0)]),
        np.concatenate([references, absent.repeat(weights, axis=0)]),
        CLASSES,
    )
    assert weighted.species == pytest.approx(repeated.species)
    assert weighted.every_species == pytest.approx(repeated.every_species)
    assert weighted.every_species > choose_thresholds(scores, references, CLASSES).every_species


def test_few_clips_leave_the_threshold_near_that_of_all_species():
    rng = np.random.default_rng(0)
    # Both species are cut best at 0.9; what differs is how many clips say so. All together are cut at 0.5.
    targets = np.full((400, 3), -100)
    scores = np.where(rng.random(targets.shape) < 0.5, 0.6, 0.4)
    targets[:, 0] = scores[:, 0] > 0.5
    for label, clips in ((1, 3), (2, 100)):
        targets[: 2 * clips, label] = np.arange(2 * clips) % 2
        scores[: 2 * clips, label] = np.where(targets[: 2 * clips, label] == 1, 0.95, 0.8)
    found = choose_thresholds(scores, targets, ["many", "few", "own"])
    own = choose_thresholds(scores, targets, ["many", "few", "own"], shrinkage_clips=0)
    assert own.species["few"] == own.species["own"] > found.species["own"] > found.species["few"] > found.every_species
    assert found.every_species == pytest.approx(0.5)


def test_a_species_without_a_clip_abstains():
    scores, references, _ = single_label_case()
    references = np.where(references == 2, 0, references)
    found = choose_thresholds(scores, references, CLASSES)
    assert found.species["bird2"] is None
    assert np.isinf(found.values(CLASSES)[2])
    assert all(0 < found.species[code] < 1 for code in CLASSES if code != "bird2")
    assert json.loads(json.dumps(found.to_json()))["species"]["bird2"] is None


def window_case(calls, best, classes=1):
    """Windows of which the last class has so many calls; the best threshold of all classes is `best`."""
    above, below = expit(logit(best) + 0.1), expit(logit(best) - 0.1)
    scores = np.full((2 * calls, classes), below)
    targets = np.zeros((2 * calls, classes), dtype=int)
    scores[:calls, -1], targets[:calls, -1] = above, 1
    return scores, targets


def test_the_shared_threshold_of_few_calls_on_windows_is_near_the_one_that_the_scores_let_expect():
    def shared(calls):
        return choose_window_thresholds(*window_case(calls, 0.9), ["bird"], overlap_s=0).every_species

    # All scores are about 0.9, so that 90% of all windows would have a call, and F1 is highest if all are reported.
    scores, _ = window_case(100, 0.9)
    expected = scores.sum() / (len(scores) + scores.sum())
    assert logit(shared(100)) == pytest.approx((logit(0.9) + logit(expected)) / 2)
    assert expected < shared(1) < shared(20) < shared(100) < shared(2000) < 0.9
    plain = choose_window_thresholds(*window_case(20, 0.9), ["bird"], overlap_s=0, shared_shrinkage=0)
    assert plain.every_species == pytest.approx(0.9)


def test_the_expected_threshold_is_the_best_one_where_scores_are_probabilities():
    generator = np.random.default_rng(0)
    scores = expit(generator.normal(-2, 2, size=(40_000, 2)))
    targets = (generator.random(scores.shape) < scores).astype(int)
    expected = choose_window_thresholds(scores, targets, ["a", "b"], overlap_s=0, shared_shrinkage=1e9)
    best = choose_window_thresholds(scores, targets, ["a", "b"], overlap_s=0, shared_shrinkage=0)
    assert expected.every_species == pytest.approx(best.every_species, abs=0.03)
    present = targets == 1
    reported = scores >= best.every_species
    f1 = 2 * (reported & present).sum() / (reported.sum() + present.sum())
    assert expected.every_species == pytest.approx(f1 / 2, abs=0.01)


def test_ten_windows_of_a_species_move_its_threshold_halfway_from_the_shared_one():
    found = choose_window_thresholds(*window_case(10, 0.9), ["bird"], overlap_s=1.5)
    assert logit(found.species["bird"]) == pytest.approx((logit(0.9) + logit(found.every_species)) / 2)
    assert (found.overlap_s, found.merge, found.defaults) == (1.5, True, {})
    assert found.reason() == "The thresholds were chosen on all windows of the validation recordings."


def test_a_species_in_no_window_has_the_shared_threshold_and_the_reason_is_told():
    found = choose_window_thresholds(*window_case(10, 0.8, classes=2), ["rare", "bird"], overlap_s=0)
    assert found.species["rare"] == found.every_species
    assert found.defaults == {"rare": "no window contains it"}
    assert found.reason().endswith("1 of 2 species are in none of them and have the shared threshold.")
    assert not found.merge
    with pytest.raises(UserError, match="none of the 4 windows of the recordings contains one of the 2 species"):
        choose_window_thresholds(np.full((4, 2), 0.5), np.zeros((4, 2), dtype=int), ["a", "b"], overlap_s=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.98))
def test_a_threshold_on_windows_lies_between_its_own_best_the_shared_best_and_the_expected_one(seed, share):
    generator = np.random.default_rng(seed)
    targets = (generator.random((60, 3)) < share).astype(int)
    targets[0] = 1
    scores = expit(generator.normal(size=targets.shape) + 2 * targets)
    found = choose_window_thresholds(scores, targets, ["a", "b", "c"], overlap_s=0)
    best = choose_thresholds(scores, targets, ["a", "b", "c"], shrinkage_clips=0)
    ordered = np.sort(scores.ravel())[::-1]
    expected = max(ordered[:k].sum() / (k + ordered.sum()) for k in range(1, 181))
    for code in "abc":
        around = [best.species[code], best.every_species, expected]
        assert min(around) - 1e-9 <= found.species[code] <= max(around) + 1e-9


def test_a_species_that_never_reaches_the_wanted_precision_abstains():
    scores = np.array([[0.9, 0.9], [0.8, 0.8], [0.7, 0.7]])
    found = choose_thresholds(scores, np.array([[1, 0], [1, 1], [0, 0]]), ["good", "bad"], wanted_precision=0.7)
    assert found.species["bad"] is None
    assert found.species["good"] is not None


def test_elements_that_are_not_known_do_not_move_thresholds():
    scores, references, _ = multi_label_case(unknown=0)
    more = np.concatenate([scores, np.random.default_rng(0).random((50, 8))])
    masked = np.concatenate([references, np.full((50, 8), -100)])
    assert choose_thresholds(more, masked, CLASSES) == choose_thresholds(scores, references, CLASSES)


def test_certain_scores_give_thresholds_between_0_and_1():
    assert 0 < one_class([1.0, 0.0], [1, 0]) < 1


def test_validation_without_any_species_is_refused():
    with pytest.raises(UserError, match="none of the 3 validation clips contains one of the 2 species"):
        choose_thresholds(np.full((3, 2), 0.5), np.array([[0, -100]] * 3), ["a", "b"])


@pytest.mark.parametrize("precision", [0, -1, 1.5])
def test_a_precision_out_of_range_is_refused(precision):
    with pytest.raises(UserError, match="wanted precision"):
        one_class([0.5], [1], wanted_precision=precision)


def test_thresholds_are_read_as_they_were_written(tmp_path):
    scores, references, _ = single_label_case()
    chosen = choose_thresholds(scores, references, CLASSES)
    (tmp_path / "thresholds.json").write_text(json.dumps(chosen.to_json()))
    assert Thresholds.read(tmp_path / "thresholds.json") == chosen
    deep = '{"species":' * 20_000
    for text in (
        deep,
        "{",
        '{"species": {}}',
        "[]",
        '{"wanted_precision": null, "every_species": null, "species": []}',
    ):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(UserError, match=r"other\.json is not a thresholds file"):
            Thresholds.read(tmp_path / "other.json")


@pytest.mark.parametrize("value", ["0,5", "0.5", [0.5], 50, -0.1, True, float("nan")])
def test_a_threshold_is_a_number_from_0_to_1(tmp_path, value):
    path = tmp_path / "thresholds.json"
    written = {"wanted_precision": None, "every_species": None, "species": {"a": 0, "b": None, "c": 1.0}}
    path.write_text(json.dumps(written))
    assert Thresholds.read(path).species == written["species"]
    path.write_text(json.dumps({**written, "species": {"a": 0.5, "b": value}}))
    with pytest.raises(UserError, match=r"thresholds\.json: the threshold of b is .*: expected .*0 to 1"):
        Thresholds.read(path)


# What is checked on other recordings


def reported(scores, references, cuts):
    """Hits, reports and calls by class."""
    present = references[:, None] == np.arange(scores.shape[1]) if references.ndim == 1 else references == 1
    found = scores >= cuts
    return (found & present).sum(axis=0), found.sum(axis=0), present.sum(axis=0)


def f1_of(scores, references, cuts):
    hits, reports, calls = reported(scores, references, cuts)
    return 2 * hits / np.maximum(reports + calls, 1)


@pytest.mark.parametrize("case", [single_label_case, multi_label_case])
def test_thresholds_that_help_are_kept_and_help_elsewhere(case):
    scores, references, recordings = case(clips=3000, **({"unknown": 0} if case is multi_label_case else {}))
    half = np.arange(3000) < 1500
    plain = choose_thresholds(scores[half], references[half], CLASSES)
    checked = choose_checked_thresholds(scores[half], references[half], CLASSES, recordings[half])
    kept = [code for code in CLASSES if code not in checked.defaults]
    assert len(kept) >= 4
    assert all(checked.species[code] >= plain.species[code] - 1e-12 for code in kept)
    told = checked.cross_validation
    assert told["macro_f1"] > told["default_macro_f1"]
    elsewhere = [f1_of(scores[~half], references[~half], cuts).mean() for cuts in (checked.values(CLASSES), 0.5)]
    assert elsewhere[0] > elsewhere[1] - 0.01
    assert f"{told['macro_f1']:.3f} at the thresholds" in checked.reason()


def test_a_species_whose_scores_tell_nothing_has_the_default():
    rng = np.random.default_rng(0)
    scores, references, recordings = multi_label_case(clips=600, unknown=0)
    scores[:, 3] = rng.uniform(0, 0.6, 600)
    plain = choose_thresholds(scores, references, CLASSES)
    assert plain.species["bird3"] < references[:, 3].mean() * 2
    checked = choose_checked_thresholds(scores, references, CLASSES, recordings)
    assert checked.species["bird3"] == 0.5
    assert checked.defaults["bird3"] in (
        "more false than correct reports on other recordings",
        "below the share of clips that contain the species",
        "not better than 0.5 on other recordings",
    )


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_of_its_own_is_below_chance_or_reports_more_wrongly_than_rightly(seed):
    scores, references, recordings = multi_label_case(clips=80, recordings=4, seed=seed, unknown=0)
    scores = scores**3  # most are below 0.5
    windows = np.random.default_rng(seed).random((20, 8)) ** 4
    every = np.concatenate([references, np.zeros((20, 8), dtype=int)])
    weights = np.concatenate([np.ones(80), np.full(20, 15.0)])
    names = np.concatenate([recordings, recordings[:20]])
    checked = choose_checked_thresholds(np.concatenate([scores, windows]), every, CLASSES, names, weights=weights)
    share = (weights[:, None] * every).sum(axis=0) / weights.sum()
    for label, code in enumerate(CLASSES):
        if code not in checked.defaults and checked.species[code] is not None:
            assert checked.species[code] >= share[label]
        elif code in checked.defaults:
            assert checked.species[code] == 0.5
    assert checked.cross_validation["macro_f1"] >= checked.cross_validation["default_macro_f1"]


def test_one_validation_recording_leaves_the_default_and_says_so(tmp_path):
    scores, references, _ = single_label_case()
    references = np.where(references == 2, 0, references)
    checked = choose_checked_thresholds(scores, references, CLASSES, np.array(["a.wav"] * len(scores)))
    assert set(checked.species.values()) == {0.5, None}
    assert checked.species["bird2"] is None
    assert set(checked.defaults.values()) == {"only one recording"}
    assert "one validation recording cannot check" in checked.reason()
    (tmp_path / "thresholds.json").write_text(json.dumps(checked.to_json()))
    assert Thresholds.read(tmp_path / "thresholds.json") == checked


def test_a_window_counts_for_as_many_as_it_stands_for_in_the_check_too():
    scores, references, recordings = multi_label_case(clips=60, unknown=0, recordings=5)
    weights = np.arange(60) % 3 + 1
    weighted = choose_checked_thresholds(scores, references, CLASSES, recordings, weights=weights, shrinkage_clips=0)
    repeated = choose_checked_thresholds(
        *(array.repeat(weights, axis=0) for array in (scores, references)),
        CLASSES,
        recordings.repeat(weights),
        shrinkage_clips=0,
    )
    assert weighted.species == pytest.approx(repeated.species)
    assert weighted.cross_validation == pytest.approx(repeated.cross_validation)
