"""Calibration: what is fitted on validation brings scores nearer to frequencies, and never makes that split worse."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predicting import multi_label_logits, single_label_logits
from torch.nn import functional

from kenya_birds.evaluation.calibration import Calibration, choose_calibration, fit_calibration
from kenya_birds.evaluation.metrics import calibration_points, expected_calibration_error, probabilities
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig


def error(logits, references):
    scores = probabilities(logits, multi_label=references.ndim == 2)
    return expected_calibration_error(*calibration_points(scores, references))


def negative_log_likelihood(logits, references):
    """Mean over clips, or over known elements of a matrix."""
    logits, references = torch.from_numpy(np.asarray(logits, dtype=np.float64)), torch.from_numpy(references)
    if references.ndim == 1:
        return functional.cross_entropy(logits, references).item()
    known = references >= 0
    return functional.binary_cross_entropy_with_logits(logits[known], references[known].double()).item()


def drawn(clips=4000, classes=5, seed=0):
    """Logits, and class ids drawn with just their probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(clips, classes))
    scores = probabilities(logits, multi_label=False)
    return logits, (rng.random((clips, 1)) > scores.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)


def test_a_temperature_undoes_that_logits_were_sharpened():
    logits, references = drawn()
    calibration = fit_calibration(3 * logits, references)
    assert calibration.scale == pytest.approx(1 / 3, rel=0.05)
    assert calibration.offset is None
    assert error(3 * logits, references) > 0.1
    assert error(calibration.apply(3 * logits), references) < 0.03


def test_a_scale_and_offset_of_each_class_undo_those_that_were_there():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 3)) - 1
    references = (rng.random(logits.shape) < probabilities(logits, multi_label=True)).astype(int)
    scale, offset = np.array([0.5, 1.0, 2.0]), np.array([1.0, 0.0, -1.0])
    calibration = fit_calibration((logits - offset) / scale, references)
    np.testing.assert_allclose(calibration.scale, scale, rtol=0.1)
    np.testing.assert_allclose(calibration.offset, offset, atol=0.1)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.05, 20), st.booleans())
def test_a_fit_never_worsens_what_it_is_fitted_on(seed, clips, sharpness, multi_label):
    case = multi_label_logits if multi_label else single_label_logits
    logits, references, _ = case(clips=clips, classes=4, seed=seed, sharpness=sharpness)
    if (references >= 0).any():
        calibration = fit_calibration(logits, references)
        assert np.min(calibration.scale) > 0
        before, after = (negative_log_likelihood(x, references) for x in (logits, calibration.apply(logits)))
        assert after <= before + 1e-9


def test_what_was_fitted_on_one_half_helps_the_other():
    for case in (single_label_logits, multi_label_logits):
        logits, references, _ = case(clips=2000, sharpness=4.0)
        calibration = fit_calibration(logits[:1000], references[:1000])
        rest = logits[1000:], references[1000:]
        assert error(calibration.apply(rest[0]), rest[1]) < error(*rest) / 2
        assert negative_log_likelihood(calibration.apply(rest[0]), rest[1]) < negative_log_likelihood(*rest)


def test_a_class_with_few_clips_stays_near_what_all_classes_share():
    logits, references, _ = multi_label_logits(clips=3000, classes=4, unknown=0)
    logits[:, 2] = 3 * logits[:, 2] + 1
    logits[:, 3] = logits[:, 2]
    references[:, 3] = np.where(np.arange(3000) < 8, references[:, 2], -100)
    without = references.copy()
    without[:, 3] = -100
    shared = fit_calibration(logits, without)
    found = fit_calibration(logits, references)
    distance = np.abs(np.log(found.scale) - np.log(shared.scale[3]))
    assert distance[3] < distance[2] / 2


def test_a_class_that_no_clip_or_every_clip_holds_keeps_what_all_share():
    logits, references, _ = multi_label_logits(classes=4, unknown=0)
    references[:, 0], references[:, 1] = 0, 1
    found = fit_calibration(logits, references)
    assert found.scale[0] == found.scale[1] != found.scale[2]
    assert found.offset[0] == found.offset[1] != found.offset[2]


@pytest.mark.parametrize("references", [np.zeros((5, 3), dtype=int), np.full((5, 3), -100), np.zeros(0, dtype=int)])
def test_without_evidence_nothing_is_changed(references):
    logits = np.random.default_rng(0).normal(size=(len(references), 3))
    assert fit_calibration(logits, references) == Calibration()
    np.testing.assert_array_equal(Calibration().apply(logits), logits)


def test_clips_that_are_all_right_do_not_make_the_model_certain():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert 1 < fit_calibration(logits, np.array([0, 1])).scale < 2


def test_a_calibration_goes_through_a_config_and_json(tmp_path):
    logits, references, _ = multi_label_logits(classes=3)
    for calibration in (fit_calibration(logits, references), Calibration(0.5)):
        config = KenyaBirdsConfig(num_labels=3)
        assert Calibration.of(config) == Calibration()
        calibration.store(config)
        config.save_pretrained(tmp_path)
        assert Calibration.of(KenyaBirdsConfig.from_pretrained(tmp_path)) == calibration
        json.dumps(calibration.__dict__)


# What is chosen


def of_four_recordings(clips):
    return np.array(["a.wav", "b.wav", "c.wav", "d.wav"])[np.arange(clips) % 4]


def test_scores_that_mean_probabilities_already_are_mostly_left_as_they_are():
    worse = {"chosen": 0, "fitted": 0}
    for seed in range(30):
        logits, references = drawn(clips=1064, seed=seed)
        few, rest = (logits[:64], references[:64]), (logits[64:], references[64:])
        choice = choose_calibration(*few, of_four_recordings(64))
        assert choice.kind in ("none", "temperature")
        assert (choice.kind == "none") == (choice.calibration == Calibration())
        for name, calibration in (("chosen", choice.calibration), ("fitted", fit_calibration(*few))):
            worse[name] += negative_log_likelihood(calibration.apply(rest[0]), rest[1]) > negative_log_likelihood(
                *rest
            )
    assert worse["chosen"] < 0.7 * worse["fitted"]


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_helps_other_recordings_is_chosen_and_said(multi_label):
    case = multi_label_logits if multi_label else single_label_logits
    logits, references, recordings = case(clips=600, sharpness=4.0)
    choice = choose_calibration(logits, references, recordings)
    assert choice.kind != "none"
    assert choice.brier_score[choice.kind] == min(choice.brier_score.values())
    told = json.loads(json.dumps(choice.to_json()))
    assert told["recordings"] == 10
    assert f"Scores are calibrated by {choice.kind}: this has the lowest Brier score" in told["reason"]
    assert negative_log_likelihood(choice.calibration.apply(logits), references) < negative_log_likelihood(
        logits, references
    )


def test_a_few_sure_mistakes_do_not_decide():
    logits, references = drawn(clips=80)
    wrong = np.arange(80) % 10 == 0
    references[wrong] = (references[wrong] + 1) % 5
    logits[wrong] = 40.0 * (np.arange(5) == (references[wrong, None] + 1) % 5)
    fitted = fit_calibration(logits, references)
    assert fitted.scale < 0.5
    assert error(fitted.apply(logits), references) > error(logits, references) + 0.1
    assert choose_calibration(logits, references, of_four_recordings(80)).kind == "none"


def test_what_helps_the_recordings_that_it_is_fitted_on_alone_is_not_chosen():
    # In each recording another class is missed throughout: what three tell of their own does not hold in the fourth.
    rng = np.random.default_rng(0)
    recordings = np.repeat(np.arange(4), 40)
    references = rng.integers(0, 4, 160)
    logits = 3.0 * (references[:, None] == np.arange(4)) - 1.5 + 0.1 * rng.normal(size=(160, 4))
    present = (references[:, None] == np.arange(4)).astype(int)
    logits[recordings == 0, 0] *= -1
    choice = choose_calibration(logits, present, recordings)
    fitted = fit_calibration(logits, present)
    assert fitted.scale[0] != fitted.scale[1]
    assert negative_log_likelihood(fitted.apply(logits), present) < negative_log_likelihood(logits, present)
    if choice.calibration.offset is not None:
        assert choice.calibration.offset[0] != fitted.offset[0]


def test_a_class_in_one_recording_gets_no_scale_of_its_own():
    logits, references, recordings = multi_label_logits(clips=400, classes=3, unknown=0, sharpness=3.0)
    logits[:, 1] = logits[:, 1] * 3 + 2
    logits[:, 2] = logits[:, 2] * 3 + 2
    references[:, 2] = np.where(recordings == "KEN_003.flac", references[:, 2], 0)
    choice = choose_calibration(logits, references, recordings)
    assert choice.kind == "scale and offset of each class"
    assert 0 < choice.own_classes < 3
    fitted = fit_calibration(logits, references)
    assert (choice.calibration.scale[1], choice.calibration.offset[1]) == (fitted.scale[1], fitted.offset[1])
    assert choice.calibration.scale[2] != fitted.scale[2]


@pytest.mark.parametrize("multi_label", [False, True])
def test_one_recording_cannot_check_a_calibration(multi_label):
    logits, references, _ = (multi_label_logits if multi_label else single_label_logits)(sharpness=4.0)
    choice = choose_calibration(logits, references, np.array(["a.wav"] * len(logits)))
    assert choice.calibration == Calibration()
    assert choice.brier_score is None
    assert "there is only one validation recording, so a calibration cannot be checked" in choice.reason()


def test_fewer_recordings_than_asked_for_give_no_calibration():
    logits, references, recordings = multi_label_logits(sharpness=4.0)
    number = len(np.unique(recordings))
    choice = choose_calibration(logits, references, recordings, least_recordings=number + 1)
    assert choice.calibration == Calibration()
    assert f"this needs {number + 1} validation recordings, and there are {number}" in choice.reason()
    assert choose_calibration(logits, references, recordings, least_recordings=number).kind != "none"


def test_a_validation_split_that_tells_nothing_leaves_scores_as_they_are():
    logits = np.random.default_rng(0).normal(size=(8, 3))
    for references in (np.full((8, 3), -100), np.zeros((8, 3), dtype=int)):
        assert choose_calibration(logits, references, of_four_recordings(8)).kind == "none"
