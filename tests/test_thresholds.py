"""Thresholds: best F1 or a wanted precision, near all species' where there is little to go by, None where nothing."""

import json

import numpy as np
import pytest
from predicting import multi_label_case, single_label_case

from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds, choose_thresholds

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
    with pytest.raises(UserError, match="none of the 3 clips"):
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
    for text in ("{", '{"species": {}}', "[]"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(UserError, match=r"other\.json does not hold thresholds"):
            Thresholds.read(tmp_path / "other.json")
