"""Recordings that are the same under other names: found by their sound, and kept together."""

import logging
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import noise, write_archive

from kenya_birds.data.balanced_split import balanced_folds, balanced_split
from kenya_birds.data.check import check_archive
from kenya_birds.data.dataset import clips_builder
from kenya_birds.data.same_recording import (
    check_undivided,
    recording_key,
    same_sound,
    sound_fingerprint,
    sound_fingerprints,
)
from kenya_birds.data.splits import stratified_folds, stratified_split
from kenya_birds.errors import UserError
from kenya_birds.experiments.cross_validation import find_folds

RATE = 8_000


def write(path, sound, rate=RATE, subtype=None, title=None):
    with soundfile.SoundFile(path, "w", rate, sound.ndim if sound.ndim == 1 else sound.shape[1], subtype) as file:
        if title:
            file.title = title
        file.write(sound)
    return path


# Names


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9.flac", "cafe\u0301.flac"), ("A_1.WAV", "A_1.wav"), ("caf\u00e9.FLAC", "cafe\u0301.flac")],
)
def test_spellings_of_one_name_have_one_key(one, other):
    assert recording_key(one) == recording_key(other)


@pytest.mark.parametrize("other", ["a.wav", "A.flac", "A", ".WAV", "A.WAV.wav"])
def test_other_names_have_other_keys(other):
    assert recording_key("A.WAV") != recording_key(other)


# Sound


def test_the_sound_is_the_same_in_any_format_without_loss_and_with_any_tags(tmp_path):
    sound = noise(10)
    files = [
        write(tmp_path / "a.flac", sound),
        write(tmp_path / "b.flac", sound, title="another"),
        write(tmp_path / "c.wav", sound),
        write(tmp_path / "d.aiff", sound),
        write(tmp_path / "e.w64", sound),
        write(tmp_path / "f.wav", sound, subtype="PCM_24"),
        write(tmp_path / "g.wav", sound / 32768, subtype="FLOAT"),
    ]
    assert len(set(sound_fingerprints(files))) == 1
    assert sound_fingerprint(files[0]) is not None


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_copies_of_an_encoded_file_have_the_same_sound_whatever_their_tags(tmp_path, suffix):
    first, second, other = (
        write(tmp_path / f"{name}.{suffix}", noise(3, 16_000, seed), 16_000, title=name)
        for name, seed in (("first", 0), ("second", 0), ("other", 1))
    )
    assert first.read_bytes() != second.read_bytes()
    assert sound_fingerprint(first) == sound_fingerprint(second) != sound_fingerprint(other)
    assert sound_fingerprint(first) is not None


def test_other_sound_has_another_fingerprint(tmp_path):
    sound = noise(10)
    stereo = np.stack([sound, sound], axis=1)
    others = [sound, sound[:-1], np.roll(sound, 1), -sound, noise(10, seed=1), stereo]
    files = [write(tmp_path / f"{number}.wav", other) for number, other in enumerate(others)]
    files.append(write(tmp_path / "rate.wav", sound, RATE * 2))
    assert len(set(sound_fingerprints(files))) == len(files)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_silence_tells_nothing(tmp_path, suffix):
    assert sound_fingerprint(write(tmp_path / f"a.{suffix}", np.zeros(160_000, np.int16), 16_000)) is None


def test_a_file_that_cannot_be_read_has_no_fingerprint(tmp_path):
    (tmp_path / "text.wav").write_text("not sound")
    (tmp_path / "empty.flac").touch()
    cut = write(tmp_path / "cut.flac", noise(10))
    cut.write_bytes(cut.read_bytes()[:60])
    none = write(tmp_path / "none.wav", noise(0))
    paths = [tmp_path / "text.wav", tmp_path / "empty.flac", tmp_path / "nothing.wav", cut, none]
    assert sound_fingerprints(paths) == [None] * 5


def test_a_list_of_files_opens_none_of_them(tmp_path):
    write(tmp_path / "other.mp3", noise(4, 16_000), 16_000)
    for name, content in {
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nother.mp3\n#EXT-X-ENDLIST\n",
        "list.mp3": "ffconcat version 1.0\nfile other.mp3\n",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert sound_fingerprint(tmp_path / name) is None


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "a.wav", noise(2))
    before = sound_fingerprint(path)
    write(path, noise(3))
    assert sound_fingerprint(path) != before


def test_files_without_a_fingerprint_are_not_the_same():
    assert same_sound({"a": None, "b": None, "c": "x", "d": "y", "e": "x"}) == [["c", "e"]]


# Splits


SPLITTERS = {
    "stratified": stratified_split,
    "balanced": partial(balanced_split, time_limit_s=0.5),
    "stratified folds": partial(stratified_folds, folds=4),
    "balanced folds": partial(balanced_folds, folds=4, time_limit_s=0.5),
}


@pytest.fixture(scope="module")
def annotations():
    rng = np.random.default_rng(0)
    names = [f"r{number:02}.wav" for number in range(14)]
    return pd.DataFrame({"recording": rng.choice(names, 200), "species": rng.choice(["a", "b", "c"], 200)})


@pytest.mark.parametrize("name", SPLITTERS)
def test_the_same_sound_stays_together_in_every_kind_of_split(annotations, name, caplog):
    groups = [["r00.wav", "r05.wav", "r09.wav"], ["r03.wav", "r12.wav"], ["none.wav", "r01.wav"]]
    with caplog.at_level(logging.WARNING, "kenya_birds.data.same_recording"):
        table = SPLITTERS[name](annotations, same_sound=groups)
    assert table["recording"].tolist() == sorted(annotations["recording"].unique())
    part = table.set_index("recording").iloc[:, 0]
    assert part["r00.wav"] == part["r05.wav"] == part["r09.wav"]
    assert part["r03.wav"] == part["r12.wav"]
    assert caplog.messages == [
        "Recordings that belong together stay in one split: r00.wav and r05.wav; r00.wav and r09.wav; "
        "r03.wav and r12.wav"
    ]
    check_undivided(table, groups)
    pd.testing.assert_frame_equal(
        SPLITTERS[name](annotations, same_sound=[["none.wav", "r01.wav"]]), SPLITTERS[name](annotations)
    )


@pytest.mark.parametrize("column", ["split", "fold"])
def test_a_table_that_divides_the_same_sound_is_refused_with_the_names(column):
    table = pd.DataFrame({"recording": ["a", "b", "c"], column: ["train", "test", "train"]})
    check_undivided(table, [["a", "c"], ["b", "z"]])
    with pytest.raises(UserError, match=rf"the table of {column}s separates .*: a \(train\) and b \(test\)"):
        check_undivided(table, [["a", "b"]])


@pytest.fixture
def archive(tmp_path):
    """Six recordings, of which two are the same one, in other formats."""
    rows = [(f"r{number}.wav", float(time), code) for number in range(5) for time in (2, 4) for code in ("owl", "tit")]
    folder = write_archive(tmp_path / "archive", rows)
    sound, rate = soundfile.read(folder / "soundscape_data" / "r1.wav", dtype="int16")
    soundfile.write(folder / "soundscape_data" / "copy.flac", sound, rate)
    with (folder / "annotations.csv").open("a") as file:
        file.write("copy.flac,2.0,2.0,owl\ncopy.flac,4.0,4.0,tit\n")
    return folder


def test_an_archives_splits_and_folds_keep_the_same_sound_together(archive, tmp_path):
    for seed in range(3):
        builder = clips_builder(archive, cache_dir=tmp_path, min_annotations=2, split_seed=seed)
        assert builder.same_sound == [["copy.flac", "r1.wav"]]
        part = builder.splits.set_index("recording")["split"]
        assert part["copy.flac"] == part["r1.wav"]
        fold = find_folds(builder, None, 3, seed).set_index("recording")["fold"]
        assert fold["copy.flac"] == fold["r1.wav"]
    divided = builder.splits.assign(split=["test", "train", "train", "train", "validation", "test"])
    with pytest.raises(UserError, match=r"copy.flac \(test\) and r1.wav \(train\)"):
        clips_builder(archive, cache_dir=tmp_path, min_annotations=2, splits=divided)
    folds = builder.splits[["recording"]].assign(fold=[0, 1, 2, 0, 1, 2])
    folds.to_csv(tmp_path / "folds.csv", index=False)
    with pytest.raises(UserError, match=r"copy.flac \(0\) and r1.wav \(2\)"):
        find_folds(builder, tmp_path / "folds.csv", None, 0)


def test_a_table_may_spell_names_otherwise(archive, tmp_path):
    parts = ["train", "validation", "train", "train", "test", "train"]
    table = pd.DataFrame(
        {"recording": ["copy.FLAC", *(f"r{number}.WAV" for number in (0, 1, 2, 3, 4))], "split": parts}
    )
    builder = clips_builder(archive, cache_dir=tmp_path, min_annotations=2, splits=table)
    assert builder.splits["recording"].tolist() == ["copy.flac", *(f"r{number}.wav" for number in range(5))]
    assert builder.splits["split"].tolist() == parts


def test_the_check_lists_recordings_with_the_same_sound(archive):
    found = check_archive(archive).findings
    found = found[found["finding"] == "has the same sound as another recording"]
    assert found[["recording", "detail", "effect"]].to_numpy().tolist() == [
        ["copy.flac", "r1.wav", ""],
        ["r1.wav", "copy.flac", ""],
    ]
