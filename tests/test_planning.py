"""Windows hold the boxes that overlap them enough, and windows without a call keep away from whole boxes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.data.archive import Archive
from kenya_birds.data.audio import AudioHeader
from kenya_birds.data.planning import AnnotatedTimes, plan_clips, plan_no_call

RATE = 100


def archive_of(calls, unknown=(), seconds=60):
    """An archive of one recording with (start, end, species) and (start, end) of unknown birds."""
    table = pd.DataFrame(calls, columns=["start_s", "end_s", "species"]).assign(recording="a")
    others = pd.DataFrame(unknown, columns=["start_s", "end_s"]).astype(float).assign(recording="a")
    for rows in (table, others):
        rows["center_s"] = (rows["start_s"] + rows["end_s"]) / 2
    headers = {"a": AudioHeader(seconds * RATE, RATE, 1)}
    return Archive(Path(), table, others, pd.DataFrame(), headers, pd.DataFrame())


def labels_at(calls, unknown=(), **settings):
    """Species and the mark of unknown birds in the window of 2 s around the first call."""
    plan = plan_clips(archive_of(calls, unknown), ["lark", "owl"], RATE, 2.0, **settings)
    center_s = (calls[0][0] + calls[0][1]) / 2
    row = plan[(plan["center_s"] == center_s) & (plan["species"] == calls[0][2])].iloc[0]
    return [["lark", "owl"][label] for label in row["labels"]], bool(row["unknown"])


# The window of the owl lasts from 9 to 11 s.
OWL = (10.0, 10.0, "owl")


@pytest.mark.parametrize(
    ("box", "min_overlap_s", "is_in"),
    [
        ((10.0, 12.0), 0.0, True),  # 1 s of 2 s
        ((10.01, 12.01), 0.0, False),
        ((10.6, 11.4), 0.0, True),  # half of a short call
        ((10.61, 11.41), 0.0, False),
        ((8.0, 14.0), 0.0, True),  # the whole window of a longer call
        ((10.01, 12.01), 0.9, True),
        ((10.2, 12.2), 0.9, False),
        ((10.5, 10.6), 0.9, True),  # the whole call is shorter than that
        ((10.95, 11.05), 0.9, False),
        ((11.0, 12.0), 0.01, False),
    ],
)
def test_a_window_holds_a_box_that_overlaps_enough(box, min_overlap_s, is_in):
    species, _ = labels_at([OWL, (*box, "lark")], min_overlap_s=min_overlap_s)
    assert species == (["lark", "owl"] if is_in else ["owl"])


def test_points_count_by_their_place_and_the_edge_tolerance():
    assert labels_at([OWL, (11.0, 11.0, "lark")])[0] == ["owl"]
    assert labels_at([OWL, (10.99, 10.99, "lark")])[0] == ["lark", "owl"]
    assert labels_at([OWL, (11.1, 11.1, "lark")], edge_tolerance_s=0.2)[0] == ["lark", "owl"]


def test_any_part_of_an_unknown_bird_marks_a_window():
    assert labels_at([OWL], [(10.99, 15.0)]) == (["owl"], True)
    assert labels_at([OWL], [(11.0, 15.0)]) == (["owl"], False)


@given(st.floats(0.1, 30), st.floats(0.5, 5))
def test_the_windows_of_a_long_call_lie_in_it_side_by_side(duration_s, clip_s):
    plan = plan_clips(archive_of([(10.0, 10.0 + duration_s, "owl")]), ["owl"], RATE, clip_s)
    samples = round(clip_s * RATE)
    assert len(plan) == max(1, int(duration_s / clip_s + 1e-9))
    starts = plan["start"].to_numpy()
    assert (np.diff(starts) >= samples - 1).all()
    if len(plan) > 1:
        assert starts[0] >= 10 * RATE - 1.5
        assert starts[-1] + samples <= (10 + duration_s) * RATE + 1.5


def test_windows_without_a_call_keep_away_from_whole_boxes():
    archive = archive_of([(10.0, 30.0, "owl"), (12.0, 13.0, "lark"), (50.0, 50.0, "lark")], [(29.0, 40.0)])
    plan = plan_no_call(archive, ["a"], RATE, 2.0, margin_s=1.0)
    begins, ends = plan["start"] / RATE, plan["start"] / RATE + 2
    assert ((ends <= 9) | ((begins >= 41) & (ends <= 49)) | (begins >= 51)).all()
    assert len(plan) == 4 + 4 + 4


def test_windows_without_a_call_of_several_recordings_are_those_of_each():
    one = archive_of([(10.0, 30.0, "owl"), (12.0, 13.0, "lark"), (50.0, 50.0, "lark")], [(29.0, 40.0)])
    other = one.annotations[1:].assign(recording="b")
    archive = replace(
        one,
        annotations=pd.concat([other, one.annotations], ignore_index=True),
        headers=dict.fromkeys("abc", one.headers["a"]),
    )
    plan = plan_no_call(archive, ["c", "b", "a"], RATE, 2.0, margin_s=1.0)
    assert plan["recording"].drop_duplicates().tolist() == ["a", "b", "c"]
    annotated = AnnotatedTimes(archive)
    for name, rows in plan.groupby("recording"):
        alone = plan_no_call(archive, [name], RATE, 2.0, 1.0, annotated)
        pd.testing.assert_frame_equal(alone, rows.reset_index(drop=True))
    assert len(plan) == 12 + (5 + 17 + 4) + 30
