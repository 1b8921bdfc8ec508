"""Detections are matched to annotated calls, and counted, as one does it by hand."""

import mir_eval
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.evaluation.event_metrics import METRICS, EventScores, Truth, event_intervals, match_events


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


def test_a_point_makes_one_detection_right_the_higher_one_first():
    matches = matched([("a", "x", 0, 3, 0.5), ("a", "x", 1.5, 4.5, 0.9)], [("a", "x", 2.0)])
    assert matches.is_right.tolist() == [False, True]
    assert matches.is_found.tolist() == [True]


def test_a_detection_gives_its_call_up_to_another_that_holds_no_other_one():
    # The first holds both calls, the second only the one at 2.5 s.
    matches = matched([("a", "x", 1, 4, 0.9), ("a", "x", 2.2, 5.2, 0.8)], [("a", "x", 1.1), ("a", "x", 2.5)])
    assert matches.is_right.all()
    assert matches.is_found.all()


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
    assert matches.is_first.sum() == 1


def test_what_is_detected_where_an_unknown_bird_sings_is_neither_right_nor_wrong():
    found = [("a", "x", 0, 3, 0.5), ("a", "x", 3, 6, 0.5), ("a", "y", 0, 3, 0.5)]
    matches = matched(found, [("a", "x", 2.0)], [("a", 2.5, 2.5)])
    assert matches.is_right.tolist() == [True, False, False]
    assert matches.is_ignored.tolist() == [False, False, True]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 60), max_size=12), st.lists(st.integers(0, 60), max_size=12), st.integers(0, 99))
def test_as_many_calls_are_found_as_mir_eval_finds(times, middles, seed):
    times_s, middles_s = np.unique(times) / 2.0, np.unique(middles) / 2.0 + 0.25
    scores = np.random.default_rng(seed).permutation(len(middles_s)) / 100
    found = [("a", "x", middle - 1.5, middle + 1.5, score) for middle, score in zip(middles_s, scores, strict=True)]
    matches = matched(found, [("a", "x", time) for time in times_s])
    for least in (0.0, 0.05):  # at every score, not only over all
        high = np.sort(middles_s[scores >= least])
        if len(high) and len(times_s):
            precision, recall = mir_eval.onset.f_measure(times_s, high, window=1.5)[1:]
            assert (
                matches.is_first[scores >= least].sum() == round(recall * len(times_s)) == round(precision * len(high))
            )


def test_each_detection_gets_the_call_that_the_plain_recursive_search_gives_it():
    def finds(detection, held, taken_by, seen):
        for call in held[detection]:
            if call not in seen:
                seen.add(call)
                if call not in taken_by or finds(taken_by[call], held, taken_by, seen):
                    taken_by[call] = detection
                    return True
        return False

    generator = np.random.default_rng(0)
    for _ in range(200):
        starts, times = generator.uniform(0, 20, generator.integers(1, 25)), generator.uniform(0, 20, 15)
        scores = generator.random(len(starts)).round(1)
        matches = matched(
            [("a", "x", start, start + 3, score) for start, score in zip(starts, scores, strict=True)],
            [("a", "x", time) for time in times],
        )
        held = [np.flatnonzero((times >= start) & (times <= start + 3)).tolist() for start in starts]
        taken_by = {}
        first = {row: finds(row, held, taken_by, set()) for row in np.argsort(-scores, kind="stable").tolist()}
        assert matches.is_first.tolist() == [first[row] for row in range(len(starts))]
        assert matches.is_found.sum() == len(taken_by)


def test_thousands_of_overlapping_detections_move_over_one_by_one():
    number = 4000
    # Each detection takes the first of its two calls, and the last detection holds only the first call of all.
    found = [("a", "x", start, start + 1.5, 0.9) for start in range(number)]
    matches = matched([*found, ("a", "x", -1, 0.5, 0.1)], [("a", "x", time + 0.25) for time in range(number + 1)])
    assert matches.is_first.all()
    assert matches.is_found.all()


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
