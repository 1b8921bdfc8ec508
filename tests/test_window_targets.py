"""What is known to be in a window: worked by hand, and compared with a plain loop."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.evaluation.window_targets import WindowTargets

RATE = 10


def targets_of(
    calls, unknown=(), lengths=None, margin_s=0.5, classes=("lark", "owl"), min_overlap_s=0.0, absent=(), **settings
):
    """(recording, start, end, species) and (recording, start, end); windows of 3 s at 10 Hz."""
    return WindowTargets.of(
        pd.DataFrame(calls, columns=["recording", "start_s", "end_s", "species"]),
        pd.DataFrame(unknown, columns=["recording", "start_s", "end_s"]),
        lengths or {"a": 600, "b": 600},
        classes,
        sampling_rate=RATE,
        window=30,
        margin_s=margin_s,
        min_overlap_s=min_overlap_s,
        absent=pd.DataFrame(absent, columns=["recording", "start_s", "end_s", "species"]),
        **settings,
    )


def found(targets, start_s, recording=0):
    starts = np.rint(np.atleast_1d(start_s) * RATE).astype(int)
    return targets(np.full(len(starts), recording), starts).tolist()


@pytest.mark.parametrize(
    ("start_s", "expected"),
    [
        (8.5, 1),
        (9.5, 1),  # 0.5 s from the edge is far enough
        (9.6, -100),
        (10.4, -100),  # just outside
        (10.6, 0),
        (7.4, -100),
        (7.6, 1),
        (6.4, 0),
    ],
)
def test_a_point_is_present_unknown_near_an_edge_or_absent(start_s, expected):
    assert found(targets_of([("a", 10.0, 10.0, "owl")]), start_s) == [[0, expected]]


def test_windows_with_a_call_of_a_species_that_is_no_class_are_told():
    targets = targets_of([("a", 10.0, 10.0, "owl"), ("a", 20.0, 20.0, "wren")], unknown=[("a", 40.0, 40.0)])
    starts = np.array([85, 185, 172, 300, 390])  # owl; wren; wren at the edge; nothing; an unknown bird
    assert targets.has_other(np.zeros(5, dtype=int), starts).tolist() == [False, True, False, False, False]


def test_without_margin_nothing_is_unknown_and_a_window_ends_before_its_end():
    targets = targets_of([("a", 10.0, 10.0, "owl")], margin_s=0.0)
    assert found(targets, [7.0, 7.1, 10.0, 10.1]) == [[0, 0], [0, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("start_s", "expected"),
    [
        (9.0, 1),  # 2 of 4 s: more than half of the window
        (8.5, 1),  # 1.5 s: half of the window
        (8.4, -100),
        (7.1, -100),
        (7.0, 0),  # they only touch
        (13.9, -100),
        (14.0, 0),
    ],
)
def test_a_box_counts_by_its_overlap(start_s, expected):
    assert found(targets_of([("a", 10.0, 14.0, "owl")]), start_s) == [[0, expected]]


def test_a_short_box_is_present_where_half_of_it_is():
    targets = targets_of([("a", 10.0, 11.0, "owl")])
    assert found(targets, [7.5, 7.4, 10.5, 10.6]) == [[0, 1], [0, -100], [0, 1], [0, -100]]


def test_a_present_call_of_a_species_outweighs_an_unknown_one():
    targets = targets_of([("a", 10.0, 10.0, "owl"), ("a", 11.4, 11.4, "owl")])
    assert found(targets, 10.0) == [[0, 1]]


def test_an_unknown_bird_leaves_only_what_is_present():
    targets = targets_of([("a", 10.0, 10.0, "owl")], [("a", 9.0, 9.0), ("b", 5.0, 8.0)])
    assert found(targets, [8.5, 12.0]) == [[-100, 1], [0, 0]]
    assert found(targets, [7.9, 8.0], recording=1) == [[-100, -100], [0, 0]]


def test_species_that_are_no_class_are_absent_but_their_windows_are_not_empty():
    targets = targets_of([("a", 10.0, 10.0, "rare")], [("a", 30.0, 30.0)])
    starts = np.array([90, 200, 290, 320])
    assert targets(np.zeros(4, dtype=int), starts)[0].tolist() == [0, 0]
    assert targets.is_empty(np.zeros(4, dtype=int), starts).tolist() == [False, True, False, True]


def test_recordings_do_not_reach_into_each_other():
    targets = targets_of([("b", 0.1, 0.1, "owl"), ("a", 59.9, 59.9, "owl")], lengths={"a": 600, "b": 600})
    assert found(targets, [57.0], recording=0) == [[0, -100]]
    assert found(targets, [-1.0, 3.0], recording=1) == [[0, 1], [0, 0]]


def test_a_margin_of_half_a_window_is_refused():
    with pytest.raises(ValueError, match="less than half a window"):
        targets_of([], margin_s=1.5)


def slow(calls, unknown, recording, start, margin):
    end = start + 30
    state = {"lark": 0, "owl": 0}
    is_unknown = False
    for name, begin, until, species in [*calls, *((*row, "????") for row in unknown)]:
        if name != recording:
            continue
        overlap = min(until, end) - max(begin, start)
        if begin == until:
            is_in = start + margin <= begin < end - margin
            touches = start - margin <= begin < end + margin
        else:
            is_in, touches = overlap >= min(until - begin, 30) / 2, overlap > 0
        if species == "????":
            is_unknown |= touches
        elif species in state and touches:
            state[species] = 1 if is_in or state[species] == 1 else -100
    return [-100 if is_unknown and value != 1 else value for value in state.values()]


times = st.integers(0, 200)
spans = st.tuples(times, st.sampled_from([0, 0, 1, 7, 30, 90])).map(lambda span: (span[0], span[0] + span[1]))
names = st.sampled_from(["a", "b"])


@given(
    st.lists(st.tuples(names, spans, st.sampled_from(["lark", "owl", "rare"])), max_size=12),
    st.lists(st.tuples(names, spans), max_size=3),
    st.lists(st.tuples(st.integers(0, 1), st.integers(-20, 230)), min_size=1, max_size=20),
    st.integers(0, 14),
)
def test_many_windows_at_once_are_as_one_by_one(calls, unknown, windows, margin):
    calls = [(name, *span, species) for name, span, species in calls]
    unknown = [(name, *span) for name, span in unknown]
    targets = targets_of(
        [(name, a / RATE, b / RATE, species) for name, a, b, species in calls],
        [(name, a / RATE, b / RATE) for name, a, b in unknown],
        lengths={"a": 200, "b": 200},
        margin_s=margin / RATE,
    )
    recording, start = np.array(windows).T
    expected = [slow(calls, unknown, "ab"[index], first, margin) for index, first in windows]
    assert targets(recording, start).tolist() == expected


@pytest.mark.parametrize(
    ("start_s", "expected"),
    [
        (7.8, 1),  # 0.8 s of 4 s
        (7.7, -100),
        (7.0, 0),
        (13.2, 1),
        (13.3, -100),
    ],
)
def test_a_call_with_an_end_is_present_from_the_least_overlap_on(start_s, expected):
    assert found(targets_of([("a", 10.0, 14.0, "owl")], min_overlap_s=0.8), start_s) == [[0, expected]]


def test_a_call_that_is_shorter_than_the_least_overlap_is_present_if_all_of_it_is():
    targets = targets_of([("a", 10.0, 10.5, "owl")], min_overlap_s=0.8)
    assert found(targets, [7.5, 7.4, 10.0, 10.1]) == [[0, 1], [0, -100], [0, 1], [0, -100]]


@pytest.mark.parametrize(
    ("start_s", "expected"),
    [
        (10.0, [-100, 1]),  # the box of a right owl
        (9.5, [-100, 1]),  # all of the box but the margin
        (9.4, [-100, -100]),  # the call may be before the window
        (10.6, [-100, -100]),
        (20.0, [-100, 0]),  # wrong
        (20.5, [-100, 0]),
        (20.6, [-100, -100]),  # nobody has listened to the last 0.6 s
        (19.4, [-100, -100]),
        (41.5, [-100, 0]),  # two wrong ones side by side
        (50.0, [1, 0]),  # a lark instead of the owl
        (60.0, [-100, -100]),  # unsure: known as little as what is not checked
        (70.0, [-100, 1]),
        (71.5, [-100, -100]),  # wrong, but half of the box of a right one
        (85.0, [-100, -100]),
    ],
)
def test_checked_detections_say_something_of_their_box_and_species_alone(start_s, expected):
    targets = targets_of(
        [("a", 10.0, 13.0, "owl"), ("a", 50.0, 53.0, "lark"), ("a", 70.0, 73.0, "owl")],
        absent=[
            *(("a", start_s, start_s + 3, "owl") for start_s in (20.0, 40.0, 43.0, 50.0, 71.5)),
            ("b", 0.0, 3.0, "rare"),
        ],
        lengths={"a": 1000, "b": 100},
        verified=["a"],
    )
    assert found(targets, start_s) == [expected]
    assert found(targets, start_s, recording=1) == [[0, 0]]
    where = np.rint([start_s * RATE]).astype(int)
    assert not targets.is_empty(np.array([0]), where)
    assert targets.is_empty(np.array([1]), where)
    assert targets.is_partial(targets.offset).tolist() == [True, False]


def test_boxes_of_other_lengths_than_a_window():
    """A longer right box holds calls wherever the window is in it; a shorter wrong one never fills a window."""
    targets = targets_of(
        [("a", 10.0, 16.0, "owl"), ("a", 30.0, 31.0, "owl")],
        absent=[("a", 40.0, 46.0, "owl"), ("a", 50.0, 52.0, "owl")],
        verified=["a"],
    )
    assert [row[1] for row in found(targets, [9.4, 9.5, 13.5, 13.6])] == [-100, 1, 1, -100]
    assert [row[1] for row in found(targets, [27.4, 27.5, 30.5, 30.6])] == [-100, 1, 1, -100]
    assert [row[1] for row in found(targets, [39.5, 43.5, 43.6, 49.5])] == [0, 0, -100, -100]
