"""The code that travels answers today what it answered when its answers were stored; see compatibility.py for other
versions of the libraries."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from compatibility import STORED, TOLERANCE, VARIED, oldest, requirements
from packaging.requirements import Requirement
from reference_model import LABELS, MODELS, ask, numbers, save_reference_model


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text())


@pytest.mark.parametrize("problem", MODELS)
def test_a_clean_process_gives_the_stored_answers(stored, problem, tmp_path):
    found = ask(sys.executable, save_reference_model(problem, tmp_path / problem), tmp_path)
    expected = stored[problem]["scores"]
    if importlib.util.find_spec("torchaudio") is None:  # with which the pipeline resamples
        expected = {name: scores for name, scores in expected.items() if name != "other rate"}
    assert list(found["scores"]) == list(expected)
    expected = numbers({**stored[problem], "scores": expected})
    np.testing.assert_allclose(numbers(found), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("problem", MODELS)
def test_the_stored_answers_tell_sounds_and_classes_apart(stored, problem):
    scores = np.array([[sound[label] for label in LABELS] for sound in stored[problem]["scores"].values()])
    assert scores.shape == (4, len(LABELS))
    assert scores.std(axis=1).min() > 100 * TOLERANCE
    # Twins, but for their rate, are the clip and the clip at another rate.
    clip, short, long, other_rate = scores
    assert np.abs(clip - short).max() > 100 * TOLERANCE
    assert np.abs(clip - long).max() > 100 * TOLERANCE
    assert 0 < np.abs(clip - other_rate).max() < np.abs(clip - short).max()


def test_the_oldest_versions_are_those_of_setup_cfg():
    asked = requirements()
    assert set(asked) == set(VARIED)
    assert oldest(Requirement("timm>=1.0.23,<2")) == "timm==1.0.23"
    for name in VARIED:
        assert asked[name].specifier.contains(oldest(asked[name]).partition("==")[2])
