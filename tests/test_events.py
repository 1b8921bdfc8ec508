"""Detections are matched to annotated calls, and counted, as one does it by hand."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.evaluation import event_metrics
from kenya_birds.evaluation.event_metrics import METRICS, EventScores, event_intervals, match_events
from kenya_birds.evaluation.event_windows import Truth


def detections(*rows):
    return pd.DataFrame(rows, columns=["recording", "species", "start_s", "end_s", "score"])


def calls(*rows):
    """(recording, species, time) or (recording, species, start, end)."""
    rows = [row if len(row) == 4 else (*row, row[2]) for row in rows]
    return pd.DataFrame(rows, columns=["recording", "species", "start_s", "end_s"])


def unknown(*rows):
    return pd.DataFrame(rows, columns=["recording", "start_s", "end_s"])


def matched(found, annotated, unnamed=(), **options):
    return match_events(detections(*found), calls(*annotated), unknown(*unnamed), **options)


def test_a_detection_is_right_if_it_contains_a_call_and_a_call_is_found_if_a_detection_contains_it():
    # A merged detection with a bout of three calls; two windows that overlap and contain the same call.
    found = [("a", "x", 0, 12, 0.9), ("a", "x", 60, 63, 0.5), ("a", "x", 61.5, 64.5, 0.8), ("a", "x", 90, 93, 0.7)]
    matches = matched(found, [("a", "x", time) for time in (1.0, 4.0, 11.0, 30.0, 62.0)])
    assert matches.is_right.tolist() == [True, True, True, False]
    assert matches.is_found.tolist() == [True, True, True, False, True]
    assert matches.new_calls.tolist() == [3, 0, 1, 0]


def test_species_and_recordings_do_not_mix():
    found = [("a", "x", 0, 3, 0.5), ("b", "x", 0, 3, 0.5), ("a", "y", 0, 3, 0.5)]
    matches = matched(found, [("a", "x", 1.0), ("b", "y", 1.0)])
    assert matches.is_right.tolist() == [True, False, False]
    assert matches.is_found.tolist() == [True, False]


@pytest.mark.parametrize(("tolerance_s", "is_right"), [(0.0, False), (0.4, False), (0.5, True)])
def test_a_point_outside_is_held_within_the_tolerance(tolerance_s, is_right):
    matches = matched([("a", "x", 0, 3, 0.5)], [("a", "x", 3.5)], tolerance_s=tolerance_s)
    assert matches.is_right.tolist() == [is_right]


@pytest.mark.parametrize(
    ("call", "is_right"),
    [
        ((2.0, 4.0), True),  # half of the box
        ((2.1, 4.1), False),
        ((-10.0, 20.0), True),  # the detection lies in a long box
        ((2.9, 3.0), True),  # a short box inside
        ((2.9, 3.2), False),  # a third of it
    ],
)
def test_a_box_is_held_if_half_of_the_shorter_one_is_in_both(call, is_right):
    assert matched([("a", "x", 0, 3, 0.5)], [("a", "x", *call)]).is_right.tolist() == [is_right]


@pytest.mark.parametrize("start_s", [0.3, 0.8, 1.0, 17.3])
def test_half_of_a_box_is_half_whatever_the_rounding_of_its_times(start_s):
    found, box = ("a", "x", start_s + 1.5, start_s + 4.5, 0.5), ("a", "x", start_s, start_s + 3)
    assert matched([found], [box]).is_right.tolist() == [True]


def test_a_long_box_makes_every_detection_in_it_right_and_is_found_once():
    found = [("a", "x", start, start + 3, 0.5) for start in range(0, 30, 3)]
    matches = matched(found, [("a", "x", 0.0, 30.0)])
    assert matches.is_right.all()
    assert matches.new_calls.sum() == 1


def test_what_is_detected_where_an_unknown_bird_sings_is_neither_right_nor_wrong():
    found = [("a", "x", 0, 3, 0.5), ("a", "x", 3, 6, 0.5), ("a", "y", 0, 3, 0.5)]
    matches = matched(found, [("a", "x", 2.0)], [("a", 2.5, 2.5)])
    assert matches.is_right.tolist() == [True, False, False]
    assert matches.is_ignored.tolist() == [False, False, True]


spans = st.tuples(st.sampled_from("xy"), st.integers(0, 30), st.integers(0, 6))


@given(st.lists(st.tuples(spans, st.integers(0, 9)), max_size=20), st.lists(spans, max_size=20), st.integers(0, 2))
def test_at_every_score_the_calls_that_the_detections_contain_are_found(found, annotated, tolerance_s):
    found = [("a", species, start, start + length + 1, score) for (species, start, length), score in found]
    annotated = [("a", species, start, start + length) for species, start, length in annotated]

    def contains(detection, call):
        (_, species, start, end, _), (_, other, call_start, call_end) = detection, call
        if species != other:
            return False
        if call_start == call_end:
            return start - tolerance_s <= call_start <= end + tolerance_s
        return 2 * (min(end, call_end) - max(start, call_start)) >= min(end - start, call_end - call_start)

    matches = matched(found, annotated, tolerance_s=tolerance_s)
    assert matches.is_right.tolist() == [any(contains(one, call) for call in annotated) for one in found]
    for least in range(10):
        above = [one for one in found if one[-1] >= least]
        number = sum(any(contains(one, call) for one in above) for call in annotated)
        assert sum(new for new, one in zip(matches.new_calls, found, strict=True) if one[-1] >= least) == number
    assert matches.is_found.sum() == matches.new_calls.sum()


def scored(found, annotated, unnamed=(), durations_s=None, classes=("x", "y"), **options):
    truth = Truth(durations_s or {"a": 3600.0}, list(classes), calls(*annotated), unknown(*unnamed))
    return EventScores(detections(*found), truth, **options)


def metrics_of(*systems):
    return [
        {name: metric["value"] for name, metric in each.items()}
        for each in event_intervals(list(systems), np.random.default_rng(0), resamples=20)
    ]


def test_metrics_worked_by_hand():
    # An hour: three calls of x, one of y. Two of four detections are right.
    annotated = [("a", "x", 1.0), ("a", "x", 100.0), ("a", "x", 200.0), ("a", "y", 300.0)]
    found = [
        ("a", "x", 0, 3, 0.9),  # right
        ("a", "x", 99, 102, 0.8),  # right
        ("a", "x", 150, 153, 0.7),  # wrong: an empty window
        ("a", "y", 1, 4, 0.6),  # wrong: the window holds a call of x
    ]
    (metrics,) = metrics_of(scored(found, annotated))
    assert metrics["precision"] == pytest.approx(2 / 4)
    assert metrics["recall"] == pytest.approx(2 / 4)
    assert metrics["f1"] == pytest.approx(0.5)
    # x: precision 2/3, recall 2/3; y: nothing right.
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["false_per_h"] == pytest.approx(2)
    # 1200 windows of 3 s, four hold a call; of the others, the one at 150 s is named.
    assert metrics["named_empty_windows"] == pytest.approx(1 / 1196)
    # The two best detections: precision 1, recall 1/2.
    assert metrics["best_f1"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert metrics["recall_at_1_false_per_h"] == pytest.approx(0.5)
    # Windows of x by score: hit, hit, miss; the third call is below all others, tied with 1197 - 1 windows at 0.
    assert metrics["cmap"] == pytest.approx((2 / 3 + 1 / 3 * 3 / 1200 + 1 / 1200) / 2, abs=1e-6)


def test_a_species_without_a_call_counts_in_micro_figures_only():
    (metrics,) = metrics_of(scored([("a", "y", 0, 3, 0.9), ("a", "x", 9, 12, 0.9)], [("a", "x", 10.0)]))
    assert metrics["precision"] == pytest.approx(0.5)
    assert metrics["macro_f1"] == pytest.approx(1.0)


def test_without_a_detection_precision_is_not_defined_and_recall_is_0():
    (metrics,) = metrics_of(scored([], [("a", "x", 10.0)]))
    assert metrics["precision"] is None
    assert (metrics["recall"], metrics["f1"], metrics["best_f1"], metrics["false_per_h"]) == (0, 0, 0, 0)


def test_windows_at_an_unknown_bird_and_near_an_edge_do_not_count():
    # Two windows of 3 s; the call at 2.9 s is within the tolerance of the second, where something is named.
    named = [("a", "x", 3.5, 5.5, 0.9)]
    for options, share in (({}, 1.0), ({"tolerance_s": 0.2}, None)):
        (metrics,) = metrics_of(scored(named, [("a", "x", 2.9)], durations_s={"a": 6.0}, **options))
        assert metrics["named_empty_windows"] == share
    (metrics,) = metrics_of(scored(named, [("a", "x", 1.0)], [("a", 4.0, 4.0)], durations_s={"a": 6.0}))
    assert metrics["named_empty_windows"] is None
    assert metrics["false_per_h"] == 0


def test_intervals_are_over_recordings_and_differences_are_paired():
    durations_s = {f"r{number}": 600.0 for number in range(8)}
    annotated = [(name, "x", time) for name in durations_s for time in (10.0, 100.0, 200.0)]
    good = [(name, "x", time - 1.5, time + 1.5, 0.9) for name, _, time in annotated]
    # Misses everything in half of the recordings.
    poor = [row for row in good if int(row[0][1]) % 2]
    systems = [scored(found, annotated, durations_s=durations_s, classes=["x"]) for found in (good, poor)]
    first, second, difference = event_intervals(systems, np.random.default_rng(1), resamples=200)
    assert first["recall"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert second["recall"]["value"] == pytest.approx(0.5)
    low, high = second["recall"]["interval"]
    assert 0.1 < low < 0.35 < 0.65 < high < 0.9
    assert difference["recall"]["value"] == pytest.approx(0.5)
    assert difference["recall"]["interval"] == pytest.approx([1 - high, 1 - low], abs=0.1)
    assert set(first) == set(METRICS)
    same = event_intervals([systems[1], systems[1]], np.random.default_rng(1), resamples=50)[2]
    assert same["f1"] == {"value": 0.0, "interval": [0.0, 0.0]}


def test_memory_does_not_grow_with_detections_times_resamples(monkeypatch):
    rng = np.random.default_rng(0)
    names = [f"r{number}" for number in range(5)]
    annotated = [(name, "x", time) for name in names for time in (10.0, 100.0, 200.0)]
    found = [
        (names[at % 5], "x", start, start + 3, score) for at, (start, score) in enumerate(rng.random((1000, 2)) * 250)
    ]
    system = scored(found, annotated, durations_s=dict.fromkeys(names, 300.0), classes=["x"])
    weights = rng.multinomial(5, np.full(5, 0.2), size=300)
    results, peaks = [], []
    for numbers in (10**9, 10_000):
        monkeypatch.setattr(event_metrics, "BLOCK_NUMBERS", numbers)
        tracemalloc.start()
        results.append(system.weighted(weights))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 8
    for name in METRICS:
        np.testing.assert_array_equal(results[0][name], results[1][name])


def test_memory_does_not_grow_with_recordings_or_windows_times_species():
    durations_s = {f"r{number}": 30.0 for number in range(500)}
    annotated, found = [("r0", "s0", 1.0), ("r9", "s1", 4.0)], [("r0", "s0", 0, 3, 0.9), ("r9", "s0", 3, 6, 0.3)]
    tracemalloc.start()
    try:
        system = scored(found, annotated, durations_s=durations_s, classes=[f"s{number}" for number in range(2000)])
        metrics = system.weighted(np.ones((2, 500)))
        assert tracemalloc.get_traced_memory()[1] < 20e6  # scores of windows x species would take 40 MB, counts 32 MB
    finally:
        tracemalloc.stop()
    # The first of 5000 windows, and one that is as good as all that have no score.
    assert metrics["cmap"].tolist() == [(1 + 1 / 5000) / 2] * 2


def test_one_recording_has_no_interval():
    (metrics,) = event_intervals([scored([], [("a", "x", 1.0)])], np.random.default_rng(0), resamples=5)
    assert metrics["recall"] == {"value": 0.0, "interval": None}


def test_tables_by_species_and_recording_add_up():
    annotated = [("a", "x", 1.0), ("b", "y", 5.0, 9.0)]
    found = [("a", "x", 0, 3, 0.9), ("b", "y", 4, 7, 0.5), ("b", "y", 7, 10, 0.4), ("b", "x", 20, 23, 0.3)]
    system = scored(found, annotated, durations_s={"a": 60.0, "b": 1800.0})
    species = system.per_species().set_index("species")
    assert species.loc["y", ["calls", "found", "detections", "right"]].tolist() == [1, 1, 2, 2]
    assert species.loc["x", ["calls", "found", "detections", "right"]].tolist() == [1, 1, 2, 1]
    recordings = system.per_recording().set_index("recording")
    assert recordings.loc["b", ["calls", "found", "detections", "right", "false_per_h"]].tolist() == [1, 1, 3, 2, 2]
    # Half of the calls of x are found.
    found, annotated = [("a", "x", 0, 3, 0.9), ("a", "x", 9, 12, 0.9)], [("a", "x", 1.0), ("a", "x", 60.0)]
    rates = scored(found, annotated).per_species().set_index("species")[["precision", "recall", "f1"]]
    assert rates.loc["x"].tolist() == [0.5, 0.5, 0.5]
    assert rates.loc["y"].isna().all()


def test_the_recall_curve_has_a_point_for_each_score():
    annotated = [("a", "x", time) for time in (1.0, 10.0, 100.0, 200.0)]
    # Of two detections with the same score, one is right; a third is at an unknown bird and does not count.
    found = [("a", "x", 0, 3, 0.9), ("a", "x", 9, 12, 0.5), ("a", "x", 40, 43, 0.5), ("a", "y", 60, 63, 0.7)]
    system = scored(found, annotated, [("a", 61.0, 61.0)], durations_s={"a": 1800.0})
    false_per_h, recall = system.recall_curve()
    assert false_per_h.tolist() == [0, 2]
    assert recall.tolist() == [0.25, 0.5]
    (metrics,) = metrics_of(system)
    assert metrics["false_per_h"] == 2
    assert metrics["recall_at_1_false_per_h"] == 0.25
