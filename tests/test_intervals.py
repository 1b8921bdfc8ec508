"""Intervals of metrics: exact on every resample, as wide as recordings differ."""

import time
import tracemalloc

import numpy as np
import pytest
from predicting import multi_label_case, single_label_case

from kenya_birds.evaluation.intervals import METRICS, centred_interval, metric_intervals, weighted_metrics
from kenya_birds.evaluation.metrics import evaluation_metrics


def case(multi_label, **sizes):
    return (multi_label_case if multi_label else single_label_case)(**sizes)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_a_weighted_metric_is_that_of_clips_repeated_as_often(multi_label, ties):
    scores, references, recordings = case(multi_label, clips=120, classes=6, recordings=7)
    if ties:
        scores = scores.round(1)
    group = np.unique(recordings, return_inverse=True)[1]
    weights = np.random.default_rng(1).multinomial(7, np.full(7, 1 / 7), size=20)
    found = weighted_metrics(scores, references, group, weights)
    assert set(found) == set(METRICS)
    for draw, weight in enumerate(weights):
        clips = np.repeat(np.arange(120), weight[group])
        expected = evaluation_metrics(scores[clips], references[clips])
        for name in METRICS:
            assert found[name][draw] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), (name, draw)


def test_a_class_that_a_resample_lacks_is_left_out_of_it():
    # Class 1 is in the second recording only, and is always missed.
    scores = np.array([[0.9, 0.1]] * 4)
    found = weighted_metrics(scores, np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1]), np.array([[2, 0], [1, 1]]))
    np.testing.assert_allclose(found["macro_f1"], [1, 6 / 7 / 2])
    np.testing.assert_allclose(found["cmap"][0], 1)
    assert np.isnan(found["auroc"][0])


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_same_generator_gives_the_same_intervals_round_the_metrics(multi_label):
    scores, references, recordings = case(multi_label)
    first, second = (metric_intervals(scores, references, recordings, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert first != metric_intervals(scores, references, recordings, np.random.default_rng(6))
    metrics = evaluation_metrics(scores, references)
    for name in METRICS:
        low, high = first[name]
        assert low <= metrics[name] <= high
        assert type(low) is float


def test_percentiles_are_moved_to_have_the_estimate_in_their_middle_and_stay_within_0_and_1():
    values = np.array([*np.linspace(0.4, 0.6, 101), np.nan])
    assert centred_interval(values, 0.5, 0.8) == pytest.approx((0.42, 0.58))
    assert centred_interval(values, 0.3, 0.8) == pytest.approx((0.22, 0.38))
    assert centred_interval(values, 0.95, 0.8) == pytest.approx((0.87, 1))
    assert centred_interval(values, float("nan"), 0.8) is None


def test_many_rare_classes_do_not_push_an_interval_off_its_metric():
    scores, references, recordings = case(False, clips=400, classes=100, recordings=20)
    metrics = evaluation_metrics(scores, references)
    found = metric_intervals(scores, references, recordings, np.random.default_rng(0), resamples=300)
    group = np.unique(recordings, return_inverse=True)[1]
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=300)
    # Plain percentiles are: of nearly all resamples cmAP is higher than of the clips themselves.
    assert np.quantile(weighted_metrics(scores, references, group, weights)["cmap"], 0.1) > metrics["cmap"]
    for name in METRICS:
        assert found[name][0] <= metrics[name] <= found[name][1], name


def test_one_recording_gives_no_interval():
    scores, references, _ = single_label_case()
    found = metric_intervals(scores, references, np.array(["a"] * len(scores)), np.random.default_rng(0))
    assert found == dict.fromkeys(METRICS)


def test_what_no_resample_can_score_has_no_interval():
    scores = np.array([[0.9, 0.1], [0.8, 0.2]])
    found = metric_intervals(scores, np.array([0, 0]), np.array(["a", "b"]), np.random.default_rng(0))
    assert found["auroc"] is None
    assert found["accuracy"] == (1, 1)


def clustered(generator, recordings=30, clips=20, spread=0.25):
    """Clips that are right with a chance that differs between recordings, 0.6 on average."""
    chance = np.clip(generator.normal(0.6, spread, recordings), 0, 1)
    right = generator.random((recordings, clips)) < chance[:, None]
    references = generator.integers(0, 2, right.size)
    predicted = np.where(right.ravel(), references, 1 - references)
    return np.where(np.arange(2) == predicted[:, None], 0.9, 0.1), references, np.repeat(np.arange(recordings), clips)


def test_intervals_hold_the_truth_as_often_as_they_say_and_those_over_clips_do_not():
    generator = np.random.default_rng(0)
    large = clustered(generator, recordings=20_000)
    truth = (large[0].argmax(axis=1) == large[1]).mean()
    held = {"recordings": 0, "clips": 0}
    for _ in range(100):
        scores, references, recordings = clustered(generator, clips=10)
        for name, units in (("recordings", recordings), ("clips", np.arange(len(recordings)))):
            low, high = metric_intervals(scores, references, units, generator, resamples=200)["accuracy"]
            held[name] += low <= truth <= high
    assert held["recordings"] >= 88
    assert held["clips"] <= 80


def test_an_interval_over_clips_would_be_narrower_where_recordings_differ():
    scores, references, recordings = clustered(np.random.default_rng(1))
    widths = [
        np.diff(metric_intervals(scores, references, units, np.random.default_rng(0))["macro_f1"])[0]
        for units in (recordings, np.arange(len(recordings)))
    ]
    assert widths[0] > 1.5 * widths[1]


def test_memory_does_not_grow_with_clips_times_recordings():
    scores, references, recordings = single_label_case(clips=20_000, classes=3, recordings=1000)
    tracemalloc.start()
    try:
        metric_intervals(scores, references, recordings, np.random.default_rng(0), resamples=20)
        assert tracemalloc.get_traced_memory()[1] < 30e6  # counts of clips x recordings would take 640 MB
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_calls_times_recordings():
    group = np.arange(20_000)
    scores, references = np.random.default_rng(0).random((20_000, 1)), (group[:, None] % 40 == 0).astype(int)
    tracemalloc.start()
    try:
        weighted_metrics(scores, references, group, np.ones((2, 20_000)))
        assert tracemalloc.get_traced_memory()[1] < 30e6  # counts of calls x recordings would take 80 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_thousand_resamples_of_2000_clips_and_100_classes_take_seconds(multi_label):
    scores, references, recordings = case(multi_label, clips=2000, classes=100, recordings=35)
    began = time.perf_counter()
    metric_intervals(scores, references, recordings, np.random.default_rng(0), resamples=1000)
    assert time.perf_counter() - began < 20
