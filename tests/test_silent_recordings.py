"""Recordings without clips are in splits and folds, and windows of them are examples without birds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import noise, write_archive
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds import UserError, load_clips
from kenya_birds.cli import main
from kenya_birds.data.archive import read_archive
from kenya_birds.data.dataset import clips_builder, load_no_call
from kenya_birds.data.importing import ImportSettings, import_annotations
from kenya_birds.data.planning import AnnotatedTimes
from kenya_birds.data.silent_recordings import with_others, with_silent
from kenya_birds.experiments.cross_validation import find_folds

SETTINGS = {"sampling_rate": 8_000, "clip_s": 1.0, "min_annotations": 2}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """6 recordings with calls of two species and 3 without a call."""
    folder = tmp_path_factory.mktemp("silent")
    (folder / "in").mkdir()
    for number in range(9):
        soundfile.write(folder / f"in/r{number}.wav", noise(10, seed=number), 8_000)
        text = "" if number >= 6 else "2.0\t2.0\towl\n4.0\t4.5\tlark\n"
        (folder / f"in/r{number}.txt").write_text(text)
    return import_annotations(folder / "archive", ImportSettings(folder / "in")).archive


def test_recordings_without_a_call_are_divided_as_the_others_are(archive, tmp_path):
    builder = clips_builder(archive, cache_dir=tmp_path, **SETTINGS)
    assert builder.archive.silent == ["r6.wav", "r7.wav", "r8.wav"]
    assert len(builder.splits) == 9
    silent = builder.splits[builder.splits["recording"].isin(builder.archive.silent)]
    assert set(silent["split"]) <= {"train", "validation", "test"}
    assert "train" in set(silent["split"])
    # They have no clips, and windows without a call.
    clips = load_clips(archive, cache_dir=tmp_path, **SETTINGS)
    assert {name for split in clips for name in clips[split]["recording"]} == {f"r{number}.wav" for number in range(6)}
    windows = load_no_call(builder, no_call_per_recording=100)
    in_train = set(silent.loc[silent["split"] == "train", "recording"])
    assert in_train <= set(windows["recording"])
    assert sum(name in in_train for name in windows["recording"]) == 10 * len(in_train)


def test_a_table_of_splits_may_have_them_or_leave_them_out(archive, tmp_path):
    names = [f"r{number}.wav" for number in range(6)]
    table = pd.DataFrame({"recording": names, "split": ["train", "train", "train", "train", "validation", "test"]})
    without = clips_builder(archive, splits=table, cache_dir=tmp_path, **SETTINGS)
    assert len(without.splits) == 6
    table.loc[6] = ["r8.wav", "test"]
    assert len(clips_builder(archive, splits=table, cache_dir=tmp_path, **SETTINGS).splits) == 7
    table.loc[7] = ["r9.wav", "test"]
    with pytest.raises(UserError, match=r"recordings without clips in the archive: r9\.wav"):
        clips_builder(archive, splits=table, cache_dir=tmp_path, **SETTINGS)


@pytest.fixture(scope="module")
def with_rare(tmp_path_factory):
    """9 recordings with calls of two species, 2 with a call of a rare species, 2 with an unknown bird, 1 misplaced."""
    calls = [(f"r{number}.wav", time, code) for number in range(9) for time, code in ((2.0, "owl"), (4.0, "lark"))]
    others = [
        ("s1.wav", 5.0, "hawk"),
        ("s2.wav", 5.0, "kite"),
        ("u1.wav", (4.0, 5.0), "????"),
        ("u2.wav", 5.0, "????"),
    ]
    return write_archive(tmp_path_factory.mktemp("rare") / "in", [*calls, *others, ("x.wav", 99.0, "owl")])


OTHERS = ["s1.wav", "s2.wav", "u1.wav", "u2.wav"]


def test_recordings_with_rare_or_unknown_birds_alone_are_divided_too(with_rare, tmp_path):
    builder = clips_builder(with_rare, cache_dir=tmp_path, **SETTINGS)
    names = [f"r{number}.wav" for number in range(9)]
    assert builder.splits["recording"].tolist() == [*names, *OTHERS]
    given = clips_builder(with_rare, splits=builder.splits, cache_dir=tmp_path, **SETTINGS)
    pd.testing.assert_frame_equal(given.splits, builder.splits)
    tested = clips_builder(with_rare, one_split="test", cache_dir=tmp_path, **SETTINGS)
    assert tested.splits["recording"].tolist() == [*names, *OTHERS]
    folds = find_folds(builder, None, 3, 0)
    assert folds["recording"].tolist() == [*names, *OTHERS]
    folds.to_csv(tmp_path / "folds.csv", index=False)
    pd.testing.assert_frame_equal(find_folds(builder, tmp_path / "folds.csv", None, 0), folds)
    path = tmp_path / "splits.csv"
    main(["split", str(with_rare), "--output", str(path), "--min_annotations", "2", "--strategy", "stratified"])
    pd.testing.assert_frame_equal(pd.read_csv(path), builder.splits)


def test_windows_with_a_rare_or_unknown_bird_do_not_count_as_empty(with_rare, tmp_path):
    builder = clips_builder(with_rare, one_split="train", cache_dir=tmp_path, **SETTINGS)
    windows = load_no_call(builder, no_call_per_recording=100).to_pandas()
    for name in OTHERS:
        start_s = windows.loc[windows["recording"] == name, "start_s"]
        assert len(start_s) >= 4
        assert not ((start_s < 5) & (start_s > 3)).any()


def test_the_annotations_are_grouped_once_for_the_windows_of_all_recordings(with_rare, tmp_path, monkeypatch):
    grouped = []

    def group(archive):
        grouped.append(archive)
        return AnnotatedTimes(archive)

    monkeypatch.setattr("kenya_birds.data.builders.AnnotatedTimes", group)
    load_no_call(clips_builder(with_rare, cache_dir=tmp_path, **SETTINGS))
    assert len(grouped) == 1


def test_recordings_with_rare_birds_do_not_change_the_part_of_the_others(archive):
    read = read_archive(archive)
    table = pd.DataFrame({"recording": [f"r{number}.wav" for number in range(6)], "fold": [0, 0, 0, 1, 1, 2]})
    before = with_others(table, read)
    header = read.headers["r0.wav"]
    unknown = read.annotations[:1].assign(recording="a.wav")
    more = replace(read, headers={**read.headers, "a.wav": header}, unknown=unknown)
    after = with_others(table, more)
    assert set(after["recording"]) - set(before["recording"]) == {"a.wav"}
    pd.testing.assert_frame_equal(after[after["recording"] != "a.wav"].reset_index(drop=True), before)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.integers(0, 20),
)
def test_every_part_gets_its_share(folds, silent):
    table = pd.DataFrame({"recording": [f"r{number}" for number in range(len(folds))], "fold": folds})
    names = [f"s{number:02}" for number in range(silent)]
    both = with_silent(table, names)
    assert sorted(both["recording"]) == sorted([*table["recording"], *names])
    added = both[both["recording"].isin(names)]["fold"].value_counts()
    for fold, share in table["fold"].value_counts(normalize=True).items():
        assert abs(added.get(fold, 0) - share * silent) < np.unique(folds).size
    pd.testing.assert_frame_equal(both, with_silent(table, names[::-1]))


def test_the_same_sound_stays_together():
    table = pd.DataFrame({"recording": ["a", "b", "c"], "split": ["train", "validation", "test"]})
    both = with_silent(table, ["s", "t"], [["s", "c"], ["t", "b"]]).set_index("recording")["split"]
    assert (both["s"], both["t"]) == ("test", "validation")
