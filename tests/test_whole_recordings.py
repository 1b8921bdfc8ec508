"""A model is judged on whole recordings: with known scores, as one does it by hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from archives import write_archive
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.data.archive import read_archive
from kenya_birds.data.decoded_recordings import decode_recordings
from kenya_birds.errors import UserError
from kenya_birds.evaluation.event_metrics import event_intervals
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid, WindowPredictions
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.experiments.whole_recordings import (
    evaluate_recordings,
    pool_folds,
    strongest_detections,
    truth_of,
)

CLASSES = ["lark", "owl"]
# 12 s are four windows of 3 s. The lark at 6.1 s is near an edge: unknown in the window before.
ROWS = [("a.wav", 1.5, "owl"), ("a.wav", 6.1, "lark"), ("b.wav", 4.5, "owl"), ("b.wav", 10.5, "????")]


@pytest.fixture
def judged(tmp_path):
    archive = read_archive(write_archive(tmp_path / "archive", ROWS, seconds=12.0))
    paths = {name: archive.recording_path(name) for name in archive.headers}
    decoded = decode_recordings(paths, tmp_path / "cache", 8_000)
    grid = RecordingWindowGrid.of(decoded, 24_000)
    targets = WindowTargets.of(
        archive.annotations, archive.unknown, decoded.lengths, CLASSES, sampling_rate=8_000, window=24_000
    )

    def judge(scores):
        windows = WindowPredictions.of(grid, CLASSES, np.array(scores, dtype=float), grid.targets(targets))
        return evaluate_recordings(windows, truth_of(archive, decoded.names, CLASSES), np.array([0.5, 0.5]))

    return grid, grid.targets(targets), judge


# lark, owl
SCORES = [
    *([0.1, 0.9], [0.4, 0.2], [0.3, 0.1], [0.0, 0.7]),  # a: one owl is right, one is wrong
    *([0.2, 0.1], [0.1, 0.6], [0.0, 0.0], [0.9, 0.1]),  # b: right; the lark is where nobody knows
]


def value(scores, name):
    return event_intervals([scores], np.random.default_rng(0), resamples=20)[0][name]["value"]


def test_windows_and_targets_are_those_of_the_recordings(judged):
    grid, targets, _ = judged
    assert grid.names.tolist() == ["a.wav"] * 4 + ["b.wav"] * 4
    assert (grid.start / 8_000).tolist() == [0, 3, 6, 9] * 2
    # A lark within a quarter of a second of an edge is unknown on both sides.
    assert targets.tolist() == [
        *([0, 1], [-100, 0], [-100, 0], [0, 0]),
        *([0, 0], [0, 1], [0, 0], [-100, -100]),
    ]


def test_detections_at_the_thresholds_and_scores_of_all_windows_are_judged(judged):
    scores = judged[2](SCORES)
    assert value(scores, "precision") == pytest.approx(2 / 3)  # the lark with an unknown bird does not count
    assert value(scores, "recall") == pytest.approx(2 / 3)
    assert value(scores, "false_per_h") == pytest.approx(1 / (24 / 3600))
    # Four windows are empty: a at 3 and 9 s, b at 0 and 6 s.
    assert value(scores, "named_empty_windows") == pytest.approx(1 / 4)
    # Owls at 0.9 and 0.6, another score of 0.7 between them; no window is known to hold a lark.
    assert value(scores, "cmap") == pytest.approx((1 + 2 / 3) / 2)
    # At 0.3 all three calls are found, by five detections.
    assert value(scores, "best_f1") == pytest.approx(0.75)
    table = scores.per_recording()
    assert table[["calls", "found", "detections", "right"]].to_numpy().tolist() == [[2, 1, 2, 1], [1, 1, 1, 1]]
    false_per_h, recall = scores.recall_curve()
    assert (false_per_h[0], recall[0], recall[-1]) == (0, pytest.approx(1 / 3), 1)


def test_intervals_come_from_recordings(judged):
    found = event_intervals([judged[2](SCORES)], np.random.default_rng(0), resamples=50)[0]
    low, high = found["recall"]["interval"]
    assert low <= 2 / 3 <= high


def test_a_call_in_two_overlapping_windows_is_one_detection(tmp_path):
    archive = read_archive(write_archive(tmp_path / "archive", [("a.wav", 2.25, "owl")], seconds=6.0))
    decoded = decode_recordings({"a.wav": archive.recording_path("a.wav")}, tmp_path / "cache", 8_000)
    grid = RecordingWindowGrid.of(decoded, 24_000, 1.5)  # windows from 0, 1.5 and 3 s
    targets = WindowTargets.of(
        archive.annotations, archive.unknown, decoded.lengths, CLASSES, sampling_rate=8_000, window=24_000
    )
    windows = WindowPredictions.of(
        grid, CLASSES, np.array([[0.0, 0.9], [0.0, 0.8], [0.0, 0.1]]), grid.targets(targets)
    )
    scores = evaluate_recordings(windows, truth_of(archive, ["a.wav"], CLASSES), np.array([0.5, 0.5]))
    assert scores.detections[["start_s", "end_s", "is_right"]].to_numpy().tolist() == [[0.0, 4.5, True]]
    assert (value(scores, "precision"), value(scores, "best_f1")) == (1, 1)


def test_a_perfect_model_finds_every_call_of_a_bout(tmp_path):
    # A bout of six calls, of which two are in one window, and a single call: two merged detections.
    rows = [("a.wav", time, "owl") for time in (1.0, 3.0, 4.2, 8.0, 10.0, 13.0, 24.0)]
    archive = read_archive(write_archive(tmp_path / "archive", rows, seconds=30.0))
    decoded = decode_recordings({"a.wav": archive.recording_path("a.wav")}, tmp_path / "cache", 8_000)
    grid = RecordingWindowGrid.of(decoded, 24_000, 1.5)
    targets = grid.targets(
        WindowTargets.of(
            archive.annotations, archive.unknown, decoded.lengths, CLASSES, sampling_rate=8_000, window=24_000
        )
    )
    windows = WindowPredictions.of(grid, CLASSES, (targets == 1).astype(float), targets)
    scores = evaluate_recordings(windows, truth_of(archive, ["a.wav"], CLASSES), np.array([0.5, 0.5]))
    assert len(scores.detections) == 2
    assert (value(scores, "precision"), value(scores, "recall"), value(scores, "best_f1")) == (1, 1, 1)


detections = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 6), st.integers(0, 9)), max_size=25
).map(
    lambda rows: pd.DataFrame(
        [("r", species, start, start + length, score) for species, start, length, score in rows],
        columns=["recording", "species", "start_s", "end_s", "score"],
    )
)


@given(detections, st.integers(0, 9))
def test_the_strongest_of_overlapping_detections_remain_at_every_threshold(table, threshold):
    kept = strongest_detections(table)

    def overlapping(row):
        return kept[(kept["species"] == row.species) & (kept["start_s"] < row.end_s) & (kept["end_s"] > row.start_s)]

    for row in kept.itertuples():
        assert len(overlapping(row)) == 1
    for row in table.itertuples():
        assert overlapping(row)["score"].max() >= row.score
    above = table[table["score"] >= threshold]
    pd.testing.assert_frame_equal(
        strongest_detections(above), kept[kept["score"] >= threshold].reset_index(drop=True), check_dtype=False
    )


def test_folds_are_pooled_from_their_files(judged, tmp_path):
    grid, targets, judge = judged
    whole = judge(SCORES)
    archive = read_archive(tmp_path / "archive")
    both = WindowPredictions.of(grid, CLASSES, np.array(SCORES), targets)
    for fold in range(2):
        rows, folder = np.flatnonzero(grid.recording == fold), tmp_path / f"fold-{fold}"
        part = replace(
            both,
            recordings=[both.recordings[fold]],
            **{name: getattr(both, name)[rows] for name in ("start", "end", "scores", "targets")},
            recording=np.zeros(len(rows), dtype=np.int64),
        )
        folder.mkdir()
        part.write(folder / "recording_windows.parquet")
        again = WindowPredictions.read(folder / "recording_windows.parquet")
        for name, value_of in vars(part).items():
            np.testing.assert_array_equal(getattr(again, name), value_of)
        thresholds = Thresholds(None, 0.5, dict.fromkeys(CLASSES, 0.5))
        (folder / "thresholds.json").write_text(json.dumps(thresholds.to_json()))
    pooled = pool_folds([tmp_path / "fold-0", tmp_path / "fold-1"], archive)
    first, second = (
        event_intervals([scores], np.random.default_rng(0), resamples=20)[0] for scores in (whole, pooled)
    )
    assert first == second
    pd.testing.assert_frame_equal(whole.per_species(), pooled.per_species())
    (tmp_path / "fold-1" / "recording_windows.parquet").unlink()
    assert pool_folds([tmp_path / "fold-0", tmp_path / "fold-1"], archive) is None


def test_a_file_that_is_no_table_of_windows_is_refused(tmp_path):
    pd.DataFrame({"recording": ["a.wav"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet is not a table of windows"):
        WindowPredictions.read(tmp_path / "other.parquet")
