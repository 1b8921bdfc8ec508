import errno
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import datasets
import multiprocess
import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import RATE, as_int16, edit, noise, write_archive
from fresh_python import FreshProgram
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ROOT

from kenya_birds.data import builders
from kenya_birds.data.archive import Archive, read_archive
from kenya_birds.data.audio import decode_wav
from kenya_birds.data.builders import ClipsConfig
from kenya_birds.data.dataset import build_clips, clips_builder, load_clips, load_no_call
from kenya_birds.data.planning import plan_clips
from kenya_birds.data.splits import SPLITS
from kenya_birds.errors import UserError

# For archives of `write_archive`, whose recordings are at this rate.
SETTINGS = {"sampling_rate": RATE, "clip_s": 1.0, "min_annotations": 2}


def rows_of(clips):
    """The rows of all splits, in order of recording and centre, audio as bytes."""
    rows = [{**row, "split": split, "audio": row["audio"]["bytes"]} for split in clips for row in clips[split]]
    return sorted(rows, key=lambda row: (row["recording"], row["center_s"], row["label"]))


def waveform(row):
    return as_int16(decode_wav(row["audio"]))


def window(recording, start, samples):
    """A slice of a recording, mirrored where it has no samples."""
    padded = np.pad(recording, samples, mode="symmetric")
    return padded[samples + start : 2 * samples + start]


def everything_in(folder):
    """Content of all files in a folder but locks, and when each was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def archive(tmp_path):
    """Four recordings of 10 s, each with a call in the middle and one near each end."""
    rows = [(f"r{i}.flac", time, code) for i in range(4) for time, code in [(0.2, "wren"), (5.0, "owl"), (9.9, "owl")]]
    return write_archive(tmp_path / "archive", rows)


@pytest.fixture
def load(archive, tmp_path):
    def load(**changes):
        return load_clips(archive, **{"cache_dir": tmp_path / "cache", **SETTINGS, **changes})

    return load


# Clips


def test_clips_have_the_columns_that_are_promised(clips):
    assert list(clips) == list(SPLITS)
    classes = datasets.ClassLabel(names=["synbuz1", "synhar1", "synswe1", "syntri1", "synwhi1"])
    for split in clips:
        assert clips[split].features == {
            "audio": datasets.Audio(sampling_rate=32_000, decode=False),
            "label": classes,
            "labels": datasets.List(classes),
            "unknown": datasets.Value("bool"),
            "weak": datasets.Value("bool"),
            "recording": datasets.Value("string"),
            "start_s": datasets.Value("float64"),
            "center_s": datasets.Value("float64"),
        }


def test_every_annotation_of_a_frequent_species_has_one_clip(clips, small_archive):
    names = clips["train"].features["label"].names
    found = [(row["recording"], row["center_s"], names[row["label"]]) for row in rows_of(clips)]
    table = pd.read_csv(small_archive / "annotations.csv", usecols=[0, 1, 3])
    expected = table[table.iloc[:, 2] != "synwhi2"]
    assert sorted(found) == sorted(expected.itertuples(index=False, name=None))
    assert len(table) - len(expected) == 5


def test_clips_are_the_recording_s_own_samples_round_the_centre(clips, small_archive):
    recordings = {
        path.name: soundfile.read(path, dtype="int16")[0] for path in (small_archive / "soundscape_data").iterdir()
    }
    for row in rows_of(clips):
        start = round(row["center_s"] * 32_000) - 48_000
        assert round(row["start_s"] * 32_000) == start
        np.testing.assert_array_equal(waveform(row), window(recordings[row["recording"]], start, 96_000))


def test_no_recording_is_in_two_splits_and_each_follows_the_order_of_time(clips):
    recordings = [set(clips[split]["recording"]) for split in clips]
    assert sum(map(len, recordings)) == len(set.union(*recordings)) == 8
    for split in clips:
        keys = list(zip(clips[split]["recording"], clips[split]["center_s"], strict=True))
        assert keys == sorted(keys)


def test_labels_are_all_species_whose_centre_lies_in_the_window(clips):
    rows = rows_of(clips)
    for row in rows:
        expected = {
            other["label"]
            for other in rows
            if other["recording"] == row["recording"] and -1.5 <= round(other["center_s"] - row["center_s"], 6) < 1.5
        }
        assert row["labels"] == sorted(expected)
        assert row["label"] in row["labels"]
    assert any(len(row["labels"]) > 1 for row in rows)


def test_windows_past_the_ends_are_filled_with_mirrored_sound(load, archive):
    for row in rows_of(load()):
        recording, _ = soundfile.read(archive / "soundscape_data" / row["recording"], dtype="int16")
        begin = {0.2: -0.3, 5.0: 4.5, 9.9: 9.4}[row["center_s"]]
        assert row["start_s"] == pytest.approx(begin)
        sound = waveform(row)
        assert len(sound) == RATE
        np.testing.assert_array_equal(sound, window(recording, round(begin * RATE), RATE))
        if begin < 0:
            np.testing.assert_array_equal(sound[:2400], recording[:2400][::-1])
            np.testing.assert_array_equal(sound[2400:], recording[:5600])
        if begin > 9:
            np.testing.assert_array_equal(sound[:4800], recording[-4800:])
            np.testing.assert_array_equal(sound[4800:], recording[-3200:][::-1])


def test_the_middle_of_a_long_call_is_the_centre(tmp_path):
    rows = [(f"r{i}.flac", (2.0, 3.5), code) for i in range(3) for code in ("owl", "wren")]
    row = rows_of(load_clips(write_archive(tmp_path / "archive", rows), cache_dir=tmp_path, **SETTINGS))[0]
    assert (row["start_s"], row["center_s"]) == (2.25, 2.75)


def test_a_call_of_several_windows_gives_several_clips(tmp_path):
    rows = [(f"r{i}.flac", (2.0, 5.5), code) for i in range(3) for code in ("owl", "wren")]
    found = rows_of(load_clips(write_archive(tmp_path / "archive", rows), cache_dir=tmp_path, **SETTINGS))
    centers = [row["center_s"] for row in found if (row["recording"], row["label"]) == ("r0.flac", 0)]
    # Three windows of 1 s in the middle of three parts of 3.5 s / 3.
    assert centers == pytest.approx([2 + 3.5 / 6, 2 + 3.5 / 2, 2 + 3.5 * 5 / 6])
    assert {tuple(row["labels"]) for row in found} == {(0, 1)}


def test_clips_have_the_rate_and_length_asked_for(load):
    found = load(sampling_rate=12_000, clip_s=0.5)
    assert found["train"].features["audio"].sampling_rate == 12_000
    for row in rows_of(found):
        assert soundfile.info(io.BytesIO(row["audio"])).samplerate == 12_000
        assert len(waveform(row)) == 6_000


def test_clips_are_made_and_read_without_torchcodec_and_so_ffmpeg(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", False)
    assert all(waveform(row).any() for row in rows_of(load()))


def test_recordings_with_many_clips_are_cut_whole(tmp_path):
    rows = [(f"r{i}.flac", time / 10, "owl" if i else "wren") for i in range(3) for time in range(65)]
    archive = write_archive(tmp_path / "archive", [*rows, ("r1.flac", 9.0, "wren")])
    found = load_clips(archive, cache_dir=tmp_path, **SETTINGS)
    assert sum(found.num_rows.values()) == len(rows) + 1
    assert [row["center_s"] for row in rows_of(found) if row["recording"] == "r0.flac"] == [t / 10 for t in range(65)]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400), st.sampled_from(["owl", "wren", "rare"]))),
    st.sampled_from([0.01, 0.99, 1.0, 1.01]),
)
def test_windows_are_centred_and_hold_their_first_moment_but_not_the_one_after_their_last(rows, clip_s):
    table = pd.DataFrame(rows, columns=["recording", "center_s", "species"])
    table["center_s"] /= 100
    table = table.assign(start_s=table["center_s"], end_s=table["center_s"])
    archive = Archive(Path(), table, table.iloc[:0], pd.DataFrame(), {}, pd.DataFrame())
    planned = plan_clips(archive, ["owl", "wren"], 100, clip_s)
    samples = round(clip_s * 100)
    known = [(recording, center, code) for recording, center, code in rows if code != "rare"]
    assert sorted(zip(planned.recording, planned.center_s, planned.species, strict=True)) == sorted(
        (recording, center / 100, code) for recording, center, code in known
    )
    for clip in planned.itertuples():
        assert clip.start == round(clip.center_s * 100) - samples // 2
        inside = {
            ["owl", "wren"].index(code)
            for recording, center, code in known
            if recording == clip.recording and clip.start <= center < clip.start + samples
        }
        assert clip.labels == sorted(inside)


# One label space


def test_class_ids_are_the_same_in_every_split_and_fold(load):
    names = {tuple(found[split].features["label"].names) for found in (load(fold=0), load(fold=1)) for split in found}
    assert names == {("owl", "wren")}


def test_rare_species_are_dropped_from_labels_too_and_told(archive, load, caplog):
    edit(archive / "annotations.csv", "r1.flac,5.0,5.0,owl\n", "r1.flac,5.0,5.0,owl\nr1.flac,5.1,5.1,auk\n")
    edit(archive / "species.csv", "Avis owl", "Avis auk,auk,Auk\nAvis owl")
    with caplog.at_level(logging.WARNING, "kenya_birds"):
        found = load()
    assert found["train"].features["label"].names == ["owl", "wren"]
    assert sum(found.num_rows.values()) == 12
    assert all(row["labels"] == [row["label"]] for row in rows_of(found))
    assert any("Dropped 1 of 3 species" in message and "auk (1)" in message for message in caplog.messages)


def test_a_class_in_one_recording_only_is_kept(archive, load):
    edit(archive / "annotations.csv", "r1.flac,5.0,5.0,owl\n", "r1.flac,3.0,3.0,auk\nr1.flac,7.1,7.1,auk\n")
    edit(archive / "species.csv", "Avis owl", "Avis auk,auk,Auk\nAvis owl")
    found = load()
    assert found["train"].features["label"].names == ["auk", "owl", "wren"]
    assert sum(0 in found[split]["label"] for split in found) == 1


# The cache


def test_clips_are_kept_in_the_folder_asked_for(load, tmp_path):
    default = Path(datasets.config.HF_DATASETS_CACHE)
    before = everything_in(default)
    load(cache_dir=tmp_path / "mine")
    assert {Path(name).suffix for name in everything_in(tmp_path / "mine")} == {".arrow", ".json"}
    assert everything_in(default) == before
    found = load(cache_dir=None)
    assert Path(found["train"].cache_files[0]["filename"]).is_relative_to(default)


def test_nothing_is_cut_again_while_settings_and_archive_stay(load, tmp_path):
    first = rows_of(load())
    before = everything_in(tmp_path / "cache")
    assert rows_of(load()) == first
    assert everything_in(tmp_path / "cache") == before


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate": 4_000},
        {"clip_s": 0.5},
        {"min_annotations": 3},
        {"fold": 1},
        {"split_seed": 7},
        {"test_size": 0.5},
        {"validation_size": 0.25},
        {"splits": pd.DataFrame({"recording": [f"r{i}.flac" for i in range(4)], "split": [*SPLITS, "test"]})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_cut_anew_beside_the_old(load, tmp_path, change):
    first, before = rows_of(load()), everything_in(tmp_path / "cache")
    load(**change)
    after = everything_in(tmp_path / "cache")
    assert before.items() < after.items()
    assert len(after) == 2 * len(before)
    assert rows_of(load()) == first


def test_another_decoder_or_code_cuts_anew(archive, monkeypatch):
    names = {ClipsConfig(data_dir=archive).create_config_id({})}
    versions = builders.library_versions(["av", "soundfile", "soxr", "scikit-learn"])
    assert len(versions) == 4
    for name in versions:
        monkeypatch.setattr(builders, "library_versions", lambda _, n=name: {**versions, n: "9.9"})
        names.add(ClipsConfig(data_dir=archive).create_config_id({}))
    monkeypatch.setattr(builders, "code_fingerprint", lambda module: "another")
    names.add(ClipsConfig(data_dir=archive).create_config_id({}))
    assert len(names) == 6


def test_a_changed_table_is_cut_anew(load, archive):
    load()
    edit(archive / "annotations.csv", "r1.flac,5.0,5.0,owl", "r1.flac,6.0,6.0,owl")
    centers = [row["center_s"] for row in rows_of(load()) if row["recording"] == "r1.flac"]
    assert centers == [0.2, 6.0, 9.9]


def test_a_changed_recording_is_cut_anew(load, archive):
    load()
    soundfile.write(archive / "soundscape_data" / "r1.flac", noise(10, seed=99), RATE)
    found = [waveform(row) for row in rows_of(load()) if row["recording"] == "r1.flac"]
    np.testing.assert_array_equal(found[1], noise(10, seed=99)[36_000:44_000])


def test_several_processes_cut_the_same_clips(load, tmp_path):
    assert rows_of(load(num_proc=2, cache_dir=tmp_path / "two")) == rows_of(load(cache_dir=tmp_path / "one"))


@pytest.fixture
def spawn():
    """Processes begin as on Windows and macOS: nothing is inherited, all that they get is pickled."""
    before = multiprocess.get_start_method()
    multiprocess.set_start_method("spawn", force=True)
    yield
    multiprocess.set_start_method(before, force=True)


def test_processes_that_inherit_nothing_cut_the_same_clips(archive, spawn, tmp_path):
    settings = {**SETTINGS, "no_call_per_recording": 2}
    one, two = (
        load_clips(archive, split="no_call", cache_dir=tmp_path / name, num_proc=num_proc, **settings)
        for name, num_proc in (("one", 1), ("two", 2))
    )
    assert one.to_list() == two.to_list()


SLOW_BUILD = """
import signal, sys, time
import multiprocess
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from kenya_birds.data import builders
from kenya_birds.data.dataset import load_clips
fast, cut = builders.encode_wav, []
def encode(*args):
    cut.append(args)
    if len(cut) > int(sys.argv[5]):
        time.sleep(600)
    return fast(*args)
builders.encode_wav = encode
builders.CLIPS_PER_TABLE = 1
if __name__ == "__main__":
    archive, cache, num_proc, method = sys.argv[1:5]
    multiprocess.set_start_method(method)
    load_clips(archive, cache_dir=cache, num_proc=int(num_proc), sampling_rate=8000, min_annotations=2)
"""


@pytest.fixture
def slow_build(archive, tmp_path):
    """Begins to cut clips, in a process that is returned; each of its processes waits after so many clips."""
    script, log, begun = tmp_path / "build.py", tmp_path / "log.txt", []
    script.write_text(SLOW_BUILD, encoding="utf-8")

    def begin(cache, num_proc, method, clips=2):
        words = [script, archive, cache, str(num_proc), method, str(clips)]
        if method == "spawn":
            file = log.open("w", encoding="utf-8")
            return subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, start_new_session=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        begun.append(FreshProgram(*words, cwd=tmp_path, env=environment, stdout=log, stderr=log))
        return begun[-1]

    yield begin
    for program in begun:  # of a test that failed
        if program.code is None:
            program.kill()
            program.wait()


def wait_for(condition, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def open_files(pid):
    """Paths of the files that a process has open; none if it has ended."""
    with suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                yield os.readlink(link)


def children_of(pid):
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the processes of a killed build go on")
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_clips(archive, tmp_path, slow_build, num_proc):
    cache = tmp_path / "cache"
    # One process is killed with a complete split, two in the middle of the first one.
    process = slow_build(cache, num_proc, "fork", clips=6 if num_proc == 1 else 2)
    least = 30_000 if num_proc == 1 else 0
    wait_for(lambda: len([path for path in cache.rglob("*train*.arrow") if path.stat().st_size >= least]) == num_proc)
    children = children_of(process.pid)
    assert len(children) == (3 if num_proc == 2 else 0), "two that cut, and one that serves their queue"
    os.kill(process.pid, signal.SIGKILL)  # it alone
    process.wait()
    wait_for(lambda: not any(map(is_running, children)))
    (incomplete,) = cache.rglob("*.incomplete")
    assert not list(cache.rglob("dataset_info.json"))
    (incomplete / "kenya_birds-train-00007-00000-of-NNNNN.arrow").write_bytes(b"of a build with more processes")
    settings = {"sampling_rate": RATE, "min_annotations": 2}
    clips = load_clips(archive, cache_dir=cache, num_proc=num_proc, **settings)
    assert rows_of(clips) == rows_of(load_clips(archive, cache_dir=tmp_path / "undisturbed", **settings))
    assert not incomplete.exists()
    used = {Path(file["filename"]) for split in clips for file in clips[split].cache_files}
    assert set(cache.rglob("*.arrow")) == used


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_workers_end_with_a_build_that_is_killed_where_they_inherit_nothing(tmp_path, slow_build):
    cache = tmp_path / "cache"
    process = slow_build(cache, 2, "spawn")

    def writers():
        return {pid for pid in children_of(process.pid) if any(".incomplete" in link for link in open_files(pid))}

    wait_for(lambda: len(writers()) == 2)
    children, writing = children_of(process.pid), writers()
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_running, writing)))
    for child in filter(is_running, children):  # one that only serves their queue
        os.kill(child, signal.SIGTERM)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("num_proc", [1, 2])
def test_ctrl_c_ends_a_build_with_all_its_processes_and_one_traceback(tmp_path, slow_build, num_proc):
    cache = tmp_path / "cache"
    process = slow_build(cache, num_proc, "fork")
    wait_for(lambda: len(list(cache.rglob("*train*.arrow"))) == num_proc)
    children = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=300) == -signal.SIGINT
    wait_for(lambda: not any(map(is_running, children)))
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.count("Traceback") == 1, log
    assert log.splitlines()[-1] == "KeyboardInterrupt"


def test_clips_can_be_streamed_without_being_kept(load, archive, tmp_path):
    cut = rows_of(load())
    builder = clips_builder(archive, cache_dir=tmp_path / "streamed", **SETTINGS)
    streams = builder.as_streaming_dataset()
    assert rows_of(streams) == cut
    assert not everything_in(tmp_path / "streamed")


def test_parquet_which_the_hub_keeps_holds_the_same_clips(load, tmp_path):
    found = load()
    for split in found:
        found[split].to_parquet(tmp_path / f"{split}.parquet")
    files = {split: str(tmp_path / f"{split}.parquet") for split in found}
    again = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "parquet"))
    assert again["train"].features == found["train"].features
    assert rows_of(again) == rows_of(found)


# Splits


def test_given_splits_are_used(load, archive, tmp_path):
    given = pd.DataFrame({"recording": [f"r{i}.flac" for i in (3, 2, 1, 0)], "split": ["test", "train", *SPLITS[:2]]})
    found = load(splits=given)
    assert {split: sorted(set(found[split]["recording"])) for split in found} == {
        "train": ["r1.flac", "r2.flac"],
        "validation": ["r0.flac"],
        "test": ["r3.flac"],
    }
    builder = clips_builder(archive, cache_dir=tmp_path / "cache", splits=given, **SETTINGS)
    pd.testing.assert_frame_equal(builder.splits, given.sort_values("recording").reset_index(drop=True))


def test_the_builder_s_splits_give_the_same_clips_again(load, archive, tmp_path):
    builder = clips_builder(archive, cache_dir=tmp_path / "cache", **SETTINGS)
    assert rows_of(load(splits=builder.splits)) == rows_of(build_clips(builder))


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        (["r0.flac", "r1.flac", "r2.flac"], r"lacks recordings of the archive: r3\.flac"),
        (["r0.flac", "r1.flac", "r2.flac", "r3.flac", "r4.flac"], r"without clips in the archive: r4\.flac"),
        (["r0.flac", "r1.flac", "r2.flac", "r3.flac", "r0.flac"], r"twice: r0\.flac"),
    ],
)
def test_splits_that_do_not_fit_the_archive_are_refused(load, recordings, message):
    split = [*SPLITS, "train", "test"][: len(recordings)]
    with pytest.raises(UserError, match=message):
        load(splits=pd.DataFrame({"recording": recordings, "split": split}))


# Bad input


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


@pytest.mark.parametrize("num_proc", [None, 2])
def test_clips_that_cannot_be_read_are_set_aside_and_their_neighbours_kept(load, archive, tmp_path, caplog, num_proc):
    splits = pd.DataFrame({"recording": [f"r{i}.flac" for i in range(4)], "split": ["train", "train", *SPLITS[1:]]})
    whole = rows_of(load(cache_dir=tmp_path / "whole", splits=splits))
    path = archive / "soundscape_data" / "r1.flac"
    content = damage(path)
    with caplog.at_level(logging.WARNING, "kenya_birds"):
        found = rows_of(load(num_proc=num_proc, splits=splits))
    lost = [row for row in whole if row not in found]
    assert all(row in whole for row in found), "what is read is the recording's own sound"
    assert {row["recording"] for row in lost} == {"r1.flac"}
    assert 9.9 in [row["center_s"] for row in lost]
    assert 0.2 not in [row["center_s"] for row in lost]
    assert f"Skipped {len(lost)} of 12 clips, whose sound cannot be read: {len(lost)} of r1.flac" in caplog.text
    path.write_bytes(content)
    assert rows_of(load(num_proc=num_proc, splits=splits)) == whole


def test_clips_of_sound_that_the_header_does_not_tell_are_set_aside(load, archive, caplog):
    path = archive / "soundscape_data" / "r1.flac"
    wav = io.BytesIO()
    soundfile.write(wav, noise(10), RATE, format="WAV")
    content = bytearray(wav.getvalue())
    content[40:44] = (2 * 3 * RATE).to_bytes(4, "little")  # 3 of 10 s
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "kenya_birds"):
        found = rows_of(load())
    assert [row["center_s"] for row in found if row["recording"] == "r1.flac"] == [0.2]
    assert "Skipped 2 of 12 clips, whose sound cannot be read: 2 of r1.flac" in caplog.text


def test_clips_of_a_recording_that_is_not_audio_are_set_aside(load, archive):
    (archive / "soundscape_data" / "r1.flac").write_text("no")
    assert {row["recording"] for row in rows_of(load())} == {"r0.flac", "r2.flac", "r3.flac"}


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_split_of_which_nothing_can_be_read_is_refused(archive, tmp_path, num_proc):
    builder = clips_builder(archive, cache_dir=tmp_path / "cache", **SETTINGS)
    only = builder.splits.loc[builder.splits["split"] == "test", "recording"]
    for recording in only:
        (archive / "soundscape_data" / recording).unlink()
    with pytest.raises(UserError, match="no clip of the test split can be read"):
        build_clips(builder, num_proc)


# Several species, unknown birds, context


def test_the_edge_tolerance_decides_whether_a_centre_near_the_edge_counts(tmp_path):
    # Windows of 1 s: the wren is 0.55 s from the owl.
    rows = [(f"r{i}.flac", time, code) for i in range(3) for time, code in [(5.0, "owl"), (5.55, "wren")]]
    archive = write_archive(tmp_path / "archive", rows)

    def labels(tolerance_s):
        found = load_clips(archive, cache_dir=tmp_path, edge_tolerance_s=tolerance_s, **SETTINGS)
        return {tuple(row["labels"]) for row in rows_of(found)}

    assert labels(0.0) == {(0,), (1,)}
    assert labels(0.1) == {(0, 1)}
    assert labels(-0.4) == {(0,), (1,)}, "the clip's own annotation always counts"


def test_a_negative_tolerance_leaves_out_what_is_near_the_edge(tmp_path):
    rows = [(f"r{i}.flac", time, code) for i in range(3) for time, code in [(5.0, "owl"), (5.3, "wren")]]
    archive = write_archive(tmp_path / "archive", rows)
    found = load_clips(archive, cache_dir=tmp_path, edge_tolerance_s=-0.25, **SETTINGS)
    assert {tuple(row["labels"]) for row in rows_of(found)} == {(0,), (1,)}


def test_clips_near_an_unknown_bird_are_marked(tmp_path):
    rows = [(f"r{i}.flac", time, code) for i in range(3) for time, code in [(2.0, "owl"), (5.0, "owl"), (7.0, "wren")]]
    archive = write_archive(tmp_path / "archive", [*rows, ("r1.flac", 5.4, "????"), ("r2.flac", 2.6, "????")])
    found = load_clips(archive, cache_dir=tmp_path, **SETTINGS)
    marked = [(row["recording"], row["center_s"]) for row in rows_of(found) if row["unknown"]]
    assert marked == [("r1.flac", 5.0)]
    assert sum(found.num_rows.values()) == 9, "an unknown bird has no clip of its own"


def test_context_is_the_recordings_own_sound_on_both_sides(load, archive):
    for plain, wide in zip(rows_of(load()), rows_of(load(context_s=0.5)), strict=True):
        assert len(waveform(wide)) == 2 * RATE
        np.testing.assert_array_equal(waveform(wide)[RATE // 2 : -RATE // 2], waveform(plain))
        assert wide["start_s"] == plain["start_s"]
        recording = soundfile.read(archive / "soundscape_data" / wide["recording"], dtype="int16")[0]
        start = round(wide["start_s"] * RATE) - RATE // 2
        np.testing.assert_array_equal(waveform(wide), window(recording, start, 2 * RATE))


# Windows without a call


def test_no_call_windows_are_from_training_recordings_and_keep_away_from_every_annotation(tmp_path):
    rows = [
        (f"r{i}.flac", time, code)
        for i in range(6)
        for time, code in [(3.0, "owl"), (9.0, "wren"), (15.0, "owl"), (21.0, "????"), (26.0, "rare")]
    ]
    rows = [row for row in rows if row[2] != "rare" or row[0] == "r0.flac"]
    archive = write_archive(tmp_path / "archive", rows, seconds=30.0)
    settings = {**SETTINGS, "cache_dir": tmp_path / "cache"}
    windows = load_clips(archive, split="no_call", no_call_margin_s=1.0, no_call_per_recording=100, **settings)
    builder = clips_builder(archive, **settings)
    train = set(builder.splits.loc[builder.splits["split"] == "train", "recording"])
    assert set(windows["recording"]) == train
    assert set(windows["label"]) == {None}
    assert all(labels == [] for labels in windows["labels"])
    centers = pd.DataFrame(rows, columns=["recording", "center_s", "species"]).groupby("recording")["center_s"]
    for recording, start_s in zip(windows["recording"], windows["start_s"], strict=True):
        assert 0 <= start_s <= 29
        for center_s in centers.get_group(recording):
            assert start_s - center_s >= 1.0 or center_s - (start_s + 1) >= 1.0
    # Gaps of 4 s between margins hold four windows of 1 s; 2 s at the start hold two.
    of_one = [
        s for recording, s in zip(windows["recording"], windows["start_s"], strict=True) if recording != "r0.flac"
    ]
    assert len(of_one) == len(train - {"r0.flac"}) * (2 + 4 + 4 + 4 + 8)


def test_no_call_windows_of_another_split_are_from_its_recordings(tmp_path):
    rows = [(f"r{i}.flac", time, code) for i in range(6) for time, code in [(3.0, "owl"), (9.0, "wren")]]
    archive = write_archive(tmp_path / "archive", rows, seconds=12.0)
    settings = {**SETTINGS, "cache_dir": tmp_path / "cache"}
    splits = clips_builder(archive, **settings).splits.set_index("recording")["split"]
    for split in ("train", "validation", "test"):
        windows = load_clips(archive, split="no_call", no_call_split=split, **settings)
        assert set(windows["recording"]) == set(splits.index[splits == split])
    with pytest.raises(UserError, match="no_call_split is 'noon'"):
        load_clips(archive, split="no_call", no_call_split="noon", **settings)


def test_the_quietest_windows_are_cut_first(tmp_path):
    rows = [(f"r{i}.flac", time, code) for i in range(4) for time, code in [(5.0, "owl"), (6.0, "wren")]]
    archive = write_archive(tmp_path / "archive", rows, seconds=20.0)
    for seed, path in enumerate((archive / "soundscape_data").iterdir()):
        sound = noise(20.0, seed=seed)
        sound[15 * RATE : 17 * RATE] //= 100
        soundfile.write(path, sound, RATE)
    settings = {**SETTINGS, "cache_dir": tmp_path / "cache", "no_call_per_recording": 1, "no_call_margin_s": 1.0}
    windows = load_clips(archive, split="no_call", **settings)
    assert all(14.5 < start_s < 16.5 for start_s in windows["start_s"])
    spread = load_clips(archive, split="no_call", **{**settings, "no_call_per_recording": 3}, no_call_order="uniform")
    starts = sorted(spread["start_s"])
    assert starts[0] < 2
    assert starts[-1] > 17


@pytest.mark.parametrize("num_proc", [None, 2])
def test_windows_without_a_call_are_cut_beside_the_clips_and_nothing_twice(archive, tmp_path, num_proc):
    settings = {"cache_dir": tmp_path / "cache", **SETTINGS}
    builder = clips_builder(archive, fold=1, context_s=0.25, **settings)
    windows = load_no_call(builder, num_proc, no_call_margin_s=0.5)
    assert not list((tmp_path / "cache").rglob("*-t*.arrow")), "the clips are not cut for it"
    clips = build_clips(builder, num_proc)
    assert list(clips) == list(SPLITS)
    before = everything_in(tmp_path / "cache")
    again = load_clips(archive, split="no_call", fold=1, context_s=0.25, no_call_margin_s=0.5, **settings)
    assert again[:] == load_no_call(builder, no_call_margin_s=0.5)[:] == windows[:]
    assert rows_of(load_clips(archive, fold=1, context_s=0.25, **settings)) == rows_of(clips)
    assert everything_in(tmp_path / "cache") == before
    assert windows.features == clips["train"].features
    assert set(windows["recording"]) == set(clips["train"]["recording"])
    for row in windows:
        assert row["center_s"] == row["start_s"] + 0.5
        assert len(decode_wav(row["audio"]["bytes"])) == 1.5 * RATE
    other = load_no_call(builder, no_call_margin_s=0.5, no_call_per_recording=2)
    assert len(other) == 2 * len(set(windows["recording"])) < len(windows)


def test_an_archive_without_a_gap_has_no_windows_without_a_call(load):
    with pytest.raises(UserError, match=r"readable window of 1 s that is 4 s away from every annotation: lower"):
        load(split="no_call", no_call_margin_s=4.0)


def test_a_cache_that_cannot_be_written_is_an_error_of_the_user(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the cache .*file cannot be written: .* give another --cache_dir"):
        load(cache_dir=tmp_path / "file")


@pytest.mark.parametrize("split", [None, "no_call"])
def test_a_disk_that_is_full_while_clips_are_cut_is_an_error_of_the_user(load, tmp_path, monkeypatch, split):
    def full(*args, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.write_table", full)
    with pytest.raises(UserError, match=r"the cache .*cache cannot be written: .*No space left on device; free disk"):
        load(split=split, **({"no_call_margin_s": 0.5} if split else {}))
    monkeypatch.undo()
    assert load(split=split, **({"no_call_margin_s": 0.5} if split else {}))


def test_only_the_columns_of_a_problem_are_given_and_its_clips_are_not_cut_again(load, tmp_path):
    everything = load()
    before = everything_in(tmp_path / "cache")
    single = load(problem_type="single_label_classification")
    multi = load(problem_type="multi_label_classification")
    assert everything_in(tmp_path / "cache") == before
    shared = {"audio", "weak", "recording", "start_s", "center_s"}
    for split in SPLITS:
        assert set(single[split].column_names) == shared | {"label"}
        assert set(multi[split].column_names) == shared | {"labels", "unknown"}
        assert single[split]["label"][:] == everything[split]["label"][:]
        assert multi[split]["labels"][:] == everything[split]["labels"][:]
    assert "label" not in load(split="test", problem_type="multi_label_classification").column_names
    assert "label" not in load(split="no_call", problem_type="multi_label_classification").column_names


def test_there_is_no_such_split(load):
    with pytest.raises(UserError, match="no split 'dev'"):
        load(split="dev")
    assert load(split="test").num_rows == load()["test"].num_rows


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda archive: shutil.rmtree(archive), "no archive at"),
        (lambda archive: shutil.rmtree(archive / "soundscape_data"), "no folder soundscape_data"),
        (lambda archive: (archive / "annotations.csv").unlink(), r"no annotations\.csv"),
        (lambda archive: edit(archive / "annotations.csv", "r1.flac,5.0,", "../r1.flac,5.0,"), "plain file name"),
        (lambda archive: edit(archive / "annotations.csv", "5.0,5.0", "nan,5.0"), "start_s is 'nan'"),
        (lambda archive: (archive / "soundscape_data" / "r1.flac").unlink(), r"r1\.flac"),
    ],
)
def test_an_archive_that_cannot_be_used_is_refused_before_anything_is_written(load, archive, tmp_path, spoil, message):
    spoil(archive)
    with pytest.raises(UserError, match=message):
        load()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clip_s": 0.0}, "clip_s is 0.0 s"),
        ({"clip_s": float("nan")}, "clip_s is nan s"),
        ({"clip_s": float("inf")}, "clip_s is inf s"),
        ({"sampling_rate": 0}, "sampling_rate is 0 Hz"),
        ({"sampling_rate": -32_000, "clip_s": -3.0}, "sampling_rate is -32000 Hz"),
        ({"num_proc": 0}, "num_proc is 0"),
        ({"context_s": -1.0}, "context_s is -1.0"),
        ({"edge_tolerance_s": 0.5}, "edge_tolerance_s is 0.5"),
        ({"split": "no_call", "no_call_order": "loudest"}, "no_call_order is 'loudest'"),
        ({"split": "no_call", "no_call_margin_s": -1.0}, "no_call_margin_s is -1.0"),
        ({"split": "no_call", "no_call_per_recording": 0}, "no_call_per_recording is 0"),
        ({"split": "no_call", "num_proc": 0}, "num_proc is 0"),
        ({"problem_type": "regression"}, "no problem type 'regression': expected one of single_label"),
        ({"min_annotations": 9}, "none of the 2 species has"),
        ({"fold": 4}, "fold is 4"),
    ],
)
def test_impossible_settings_are_refused(load, setting, message):
    with pytest.raises(UserError, match=message):
        load(**setting)


# A real archive


@pytest.mark.skipif("KENYA_BIRDS_ARCHIVE" not in os.environ, reason="KENYA_BIRDS_ARCHIVE names no archive")
def test_a_real_archive_gives_a_clip_for_every_annotation_of_its_frequent_species(tmp_path):
    data_dir = Path(os.environ["KENYA_BIRDS_ARCHIVE"])
    rows = pd.read_csv(data_dir / "annotations.csv", keep_default_na=False)
    set_aside = read_archive(data_dir).set_aside["row"] - 2
    counts = rows.drop(index=set_aside)["Species eBird Code"].value_counts()
    found = load_clips(data_dir, cache_dir=tmp_path, num_proc=2)
    names = found["train"].features["label"].names
    assert names == sorted(counts[counts >= 10].index)
    labels = [names[label] for split in found for label in found[split]["label"]]
    assert pd.Series(labels).value_counts().to_dict() == counts[counts >= 10].to_dict()
    recordings = [set(found[split]["recording"]) for split in found]
    assert all(recordings)
    assert sum(map(len, recordings)) == len(set.union(*recordings))
    sounds = [decode_wav(clip["bytes"]) for clip in found["test"]["audio"]]
    assert all(len(sound) == 96_000 and sound.any() for sound in sounds)
