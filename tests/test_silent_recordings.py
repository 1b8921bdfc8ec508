"""Recordings without a call are in splits and folds, and their windows are examples without birds."""

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import noise
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds import UserError, load_clips
from kenya_birds.data.dataset import clips_builder, load_no_call
from kenya_birds.data.importing import ImportSettings, import_annotations
from kenya_birds.data.silent_recordings import with_silent

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
