"""Thresholds know windows without a call: detection meets more of them than of clips."""

import json

import numpy as np
import pandas as pd
import pytest
from running import flags, settings_of, train

from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.errors import UserError
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.thresholds import choose_checked_thresholds
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.training_run import Run

SETTINGS = {"folds": 3, "num_train_epochs": 2, "no_call_windows": 2}

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Six recordings of a minute with gaps between calls."""
    folder = tmp_path_factory.mktemp("sparse") / "archive"
    return synthesize_archive(folder, recordings=6, duration_s=60, species=3, annotations=60, scene="quiet", seed=3)


@pytest.fixture(scope="module")
def validated(archive, tmp_path_factory):
    """A cross-validation with at most two windows without a call of each recording."""
    folder = tmp_path_factory.mktemp("folds")
    return train(archive, folder / "birds", folder / "cache", **SETTINGS)


def read(path):
    return json.loads(path.read_text())


def stored(validated, fold):
    with np.load(validated / f"fold-{fold}" / "logits.npz") as arrays:
        return dict(arrays)


def thresholds(folds, calibration, classes):
    """Chosen on clips and on windows, each repeated as often as it counts."""
    times = [fold["no_call_weights"].round(9) for fold in folds]
    assert all((each % 0.5 == 0).all() for each in times), "two of them stand for all"
    rows = [fold["validation_logits"].repeat(2, axis=0) for fold in folds]
    rows += [
        fold["no_call_logits"].repeat((2 * each).astype(int), axis=0) for fold, each in zip(folds, times, strict=True)
    ]
    labels = np.concatenate([fold["validation_references"].repeat(2) for fold in folds])
    scores = probabilities(calibration.apply(np.concatenate(rows)), multi_label=False)
    nothing = np.full(len(scores) - len(labels), -1)
    recordings = [fold["validation_recordings"].repeat(2) for fold in folds]
    recordings += [
        fold["no_call_recordings"].repeat((2 * each).astype(int)) for fold, each in zip(folds, times, strict=True)
    ]
    return choose_checked_thresholds(
        scores, np.concatenate([labels, nothing]), classes, np.concatenate(recordings), shrinkage_clips=20
    )


def test_thresholds_are_chosen_on_clips_and_on_windows_without_a_call(validated):
    for fold in range(3):
        folder, arrays = validated / f"fold-{fold}", stored(validated, fold)
        assert len(arrays["no_call_logits"]) == read(folder / "metrics.json")["validation"]["no_call_windows"] > 0
        model, _ = load_classifier(find_model(folder))
        classes = [model.config.id2label[label] for label in range(model.config.num_labels)]
        expected = thresholds([arrays], Calibration.of(model.config), classes)
        assert read(folder / "thresholds.json")["species"] == pytest.approx(expected.species)
    every = [stored(validated, fold) for fold in range(3)]
    calibration = Calibration(**read(validated / "cross_validation.json")["calibration"])
    expected = thresholds(every, calibration, read(validated / "cross_validation.json")["classes"])
    assert read(validated / "thresholds.json")["species"] == pytest.approx(expected.species)


def test_few_windows_without_a_call_stand_for_all_there_are(validated, archive, tmp_path):
    splits = pd.read_csv(validated / "fold-0" / "splits.csv")
    recordings = set(splits.loc[splits["split"] == "validation", "recording"])

    def cut(number):
        words = flags(archive, tmp_path / "run", tmp_path / "cache", no_call_windows=number)
        return Run(settings_of(words), splits).validation_no_call()

    (few, weights), (every, ones) = cut(1), cut(100)
    assert sorted(few["recording"]) == sorted(set(every["recording"]))
    assert set(every["recording"]) <= recordings
    assert weights.sum() == len(every) > len(few)
    np.testing.assert_array_equal(ones, 1)
    assert cut(0)[0] is None
    with pytest.raises(UserError, match="no_call_windows is -1: expected 0 or more"):
        cut(-1)
