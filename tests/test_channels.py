import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from archives import RATE, write_archive
from detecting import RATE as MODEL_RATE
from detecting import chirps, run_in_folder, save_model

from kenya_birds import cli
from kenya_birds.data.audio import RecordingReader, decode_wav
from kenya_birds.data.channels import SECTION_S, SECTIONS, find_best_channel, sections
from kenya_birds.data.check import check_archive
from kenya_birds.data.dataset import build_clips, clips_builder, load_clips
from kenya_birds.data.decoded_recordings import decode_recordings
from kenya_birds.errors import UserError
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.arguments import ModelArguments
from kenya_birds.training.frozen_training import FrozenEmbeddings
from kenya_birds.training.run_folder import SETTINGS_FILE
from kenya_birds.training.settings import clip_settings

LEFT, RIGHT = chirps(3.0, 1, RATE) // 2, chirps(3.0, 2, RATE) // 2


def write(path, *channels, rate=RATE, **form):
    soundfile.write(path, np.stack(channels, axis=1), rate, **form)
    return path


def read(path, channel=None):
    with RecordingReader(path, channel=channel) as reader:
        whole = reader.read(0, reader.samples)
        blocks = np.concatenate([block.sound for block in reader.blocks(RATE // 3)])
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    return whole


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_channel_is_read_alone_and_mix_is_the_mean(tmp_path, name):
    path = write(tmp_path / name, LEFT, RIGHT)
    np.testing.assert_array_equal(read(path, "0"), LEFT / np.float32(32768))
    np.testing.assert_array_equal(read(path, "1"), RIGHT / np.float32(32768))
    mean = (LEFT.astype(float) + RIGHT) / 65536
    np.testing.assert_allclose(read(path, "mix"), mean, atol=1e-7)
    np.testing.assert_array_equal(read(path), read(path, "mix"))


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_compressed_channels_are_apart(tmp_path, name):
    low, high = calls(0.3, pitch_hz=300), calls(0.3, pitch_hz=500)
    path = write(tmp_path / name, low, high, rate=32_000)
    for channel, expected, other in (("0", low, high), ("1", high, low)):
        with RecordingReader(path, channel=channel) as reader:
            found = reader.read(0, len(expected))
        assert np.corrcoef(found, expected)[0, 1] > 0.95
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.1


def test_mix_of_an_inverted_channel_is_silent_and_the_default_is_not(tmp_path):
    path = write(tmp_path / "a.wav", LEFT, -LEFT)
    assert not read(path, "mix").any()
    np.testing.assert_array_equal(read(path), LEFT / np.float32(32768))


@pytest.mark.parametrize("channel", [None, "0", "mix", "best"])
def test_a_recording_of_one_channel_is_the_same_with_each_setting(tmp_path, channel):
    np.testing.assert_array_equal(read(write(tmp_path / "a.wav", LEFT), channel), LEFT / np.float32(32768))


@pytest.mark.parametrize(
    ("channels", "channel", "found"),
    [([LEFT], "1", "found one channel, 0"), ([LEFT, RIGHT], "2", "found the channels 0 to 1")],
)
def test_a_channel_that_is_not_there_is_an_error_with_the_file(tmp_path, channels, channel, found):
    path = write(tmp_path / "a.wav", *channels)
    with pytest.raises(UserError) as error:
        RecordingReader(path, channel=channel)
    assert f"{path} has no channel {channel}" in str(error.value)
    assert found in str(error.value)


def noise(level, seconds=4.0, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def calls(level, seconds=4.0, pitch_hz=2000):
    """A tone in one second of four."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * pitch_hz * time_s) * (time_s % 4 < 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "best"),
    [
        # The same call, with more and with less noise; the level does not count.
        ([calls(0.1) + noise(0.05), calls(0.1) + noise(0.005)], 1),
        ([0.01 * (calls(0.1) + noise(0.005)), calls(0.1) + noise(0.05)], 0),
        # A dead channel, and one that has only an offset.
        ([np.zeros(4 * RATE, np.float32), noise(0.05)], 1),
        ([np.full(4 * RATE, 0.3, np.float32), noise(0.05)], 1),
        # A clipped channel, although its calls stand out more.
        ([np.clip(20 * calls(0.1) + noise(0.001), -1, 1), calls(0.1) + noise(0.05)], 1),
        # Wind: strong at low frequencies, in one second of four.
        ([noise(0.01) + calls(0.5, pitch_hz=5), calls(0.1) + noise(0.01)], 1),
        # Equal channels, and silent ones: the first.
        ([noise(0.1), noise(0.1), noise(0.1)], 0),
        ([np.zeros(RATE, np.float32)] * 2, 0),
        ([np.zeros(1, np.float32)] * 2, 0),
    ],
)  # fmt: skip
def test_the_best_channel_has_sound_then_least_clipping_then_the_highest_signal_to_noise_ratio(channels, best):
    assert find_best_channel(([sound] for sound in channels), RATE) == best
    halves = (np.array_split(sound, 2) for sound in channels)
    assert find_best_channel(halves, RATE) == best


def test_the_best_channel_is_chosen_once_for_the_whole_recording(tmp_path):
    bad, good = calls(0.1) + noise(0.05), calls(0.1) + noise(0.005, seed=1)
    path = write(tmp_path / "a.wav", bad, good, subtype="FLOAT")
    with RecordingReader(path, channel="best") as reader:
        assert reader.lone_channel == 1
        np.testing.assert_array_equal(reader.read(0, len(good)), good)


def test_long_recordings_are_judged_by_sections_over_their_whole_length():
    assert sections(7, 10) == [(0, 7)]
    frames = 3600 * 10
    found = sections(frames, 10)
    assert len(found) == SECTIONS
    assert {end - start for start, end in found} == {SECTION_S * 10}
    assert (found[0][0], found[-1][1]) == (0, frames)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "birds", threshold=0.0)


def test_detections_are_those_of_the_channel_alone_and_recordings_without_it_are_counted(model, tmp_path):
    left, right = chirps(3.0, 1), chirps(3.0, 2)
    both, one = write(tmp_path / "both.wav", left, right, rate=MODEL_RATE), tmp_path / "one.wav"
    write(one, right, rate=MODEL_RATE)
    found = SoundscapePipeline(model, device="cpu", channel="1")(both)
    alone = SoundscapePipeline(model, device="cpu")(one)
    assert [(d.species, d.score, d.start_s) for d in found] == [(d.species, d.score, d.start_s) for d in alone]
    report = run_in_folder(model, [both, one], tmp_path / "out", channel="1")
    assert report.exit_code == 3
    assert "one.wav has no channel 1" in (tmp_path / "out" / "failed.csv").read_text()
    # Another channel is another run.
    report = run_in_folder(model, [both, one], tmp_path / "out", channel="best")
    assert (report.exit_code, report.content["this_run"]["recordings"]) == (0, 2)
    with open(tmp_path / "out" / "recordings.csv", encoding="utf-8") as file:
        rows = {row["recording"]: row["channel"] for row in csv.DictReader(file)}
    assert rows[str(one)] == ""
    assert rows[str(both)] in ("0", "1")


def test_embeddings_are_those_of_the_channel(model, tmp_path):
    left, right = chirps(2.0, 1), chirps(2.0, 2)
    write(tmp_path / "both.wav", left, right, rate=MODEL_RATE)
    write(tmp_path / "one.wav", right, rate=MODEL_RATE)
    for name, more in (("both", ["--channel", "1"]), ("one", [])):
        output = str(tmp_path / f"{name}.parquet")
        with pytest.raises(SystemExit, match="0"):
            cli.main(["embed", str(model), str(tmp_path / f"{name}.wav"), "--output", output, *more])
    both, one = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("both", "one"))
    assert both["embedding"].to_pylist() == one["embedding"].to_pylist()
    assert json.loads(both.schema.metadata[b"kenya_birds.embeddings"])["channel"] == "1"


def test_a_picture_of_a_channel_that_is_not_there_is_an_error_of_one_line(tmp_path, capsys):
    path = write(tmp_path / "KEN_001_20211207_153852.wav", LEFT, RIGHT)
    table = pd.DataFrame(
        [[path.name, 0.0, 1.0, "a", "A", "Avis a", 1.0]],
        columns=["recording", "start_s", "end_s", "code", "common_name", "scientific_name", "score"],
    )
    table.to_csv(tmp_path / "found.csv", index=False)
    words = ["plot", str(path), str(tmp_path / "found.csv"), "--output", str(tmp_path / "a.png")]
    cli.main([*words, "--channel", "1"])
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "--overwrite", "--channel", "2"])
    assert "has no channel 2: expected one that it has, found the channels 0 to 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "--channel", "left"])
    assert "expected the number of a channel from 0, mix or best" in capsys.readouterr().err


@pytest.fixture
def archive(tmp_path):
    """Recordings of two channels, and one of one."""
    names = [f"KEN_{number:03}_20211207_153852.wav" for number in range(4)]
    rows = [(name, 1.5, code) for name, code in zip(names, ("abc", "def", "abc", "def"), strict=True)]
    folder = write_archive(tmp_path / "archive", rows, seconds=3.0)
    for name, gain in zip(names[:3], (1, 0.5, 1), strict=True):
        write(folder / "soundscape_data" / name, (gain * LEFT).astype(np.int16), RIGHT - (name == names[2]))
    return folder


def test_clips_and_decoded_recordings_are_those_of_the_channel_and_have_their_own_cache(archive, tmp_path, caplog):
    settings = {"cache_dir": tmp_path / "cache", "min_annotations": 1, "sampling_rate": RATE, "clip_s": 3.0}
    names = [f"KEN_{number:03}_20211207_153852.wav" for number in range(4)]
    splits = pd.DataFrame({"recording": names, "split": ["train", "validation", "test", "train"]})
    for channel, expected in ((None, (LEFT.astype(float) + RIGHT - 1) / 2), ("0", LEFT), ("1", RIGHT - 1)):
        clips = load_clips(archive, splits=splits, channel=channel, **settings)
        (sound,) = (decode_wav(clip["bytes"]) for clip in clips["test"]["audio"])
        np.testing.assert_allclose(32768 * sound, expected, atol=0.51)
        # The last recording has one channel.
        assert len(clips["train"]) == (1 if channel == "1" else 2)
    assert "1 of 4 recordings lack a channel, so their clips and windows are skipped" in caplog.text
    paths = {"a": archive / "soundscape_data" / names[0]}
    for channel, expected in (("0", LEFT), ("1", RIGHT)):
        decoded = decode_recordings(paths, tmp_path / "cache", RATE, channel=channel)
        np.testing.assert_array_equal(decoded.read(0, 0, len(expected)), expected)
    with pytest.raises(UserError, match=r"no recording has the channel: .* has no channel 7"):
        clips_builder(archive, splits=splits, channel="7", **settings)


def test_a_split_without_a_recording_that_has_the_channel_is_refused_with_this_reason(archive, tmp_path):
    names = [f"KEN_{number:03}_20211207_153852.wav" for number in range(4)]
    splits = pd.DataFrame({"recording": names, "split": ["train", "train", "validation", "test"]})
    settings = {"min_annotations": 1, "sampling_rate": RATE, "clip_s": 3.0, "channel": "1"}
    told = r"no clip of the test split can be read: 1 of its 1 recordings have no channel 1; give another --channel"
    with pytest.raises(UserError, match=told):
        load_clips(archive, splits=splits, cache_dir=tmp_path / "cache", **settings)


def test_embeddings_of_a_frozen_backbone_have_their_own_cache_for_each_channel(archive, model, tmp_path):
    classifier, extractor = load_classifier(find_model(str(model)))
    settings = {"min_annotations": 1, "sampling_rate": MODEL_RATE, "clip_s": 1.0, "one_split": "train"}
    inputs = []
    for channel in ("0", "1", "0"):
        builder = clips_builder(archive, cache_dir=tmp_path / "cache", channel=channel, **settings)
        clips = build_clips(builder)["train"].select([0])
        frozen = FrozenEmbeddings(classifier, extractor, builder, torch.device("cpu"), ModelArguments(), 0)
        inputs.append(frozen.clips(clips, "clips"))
    assert not np.allclose(inputs[0], inputs[1])
    np.testing.assert_array_equal(inputs[0], inputs[2])


def test_the_check_measures_the_channel(archive):
    findings = check_archive(archive, channel="1").findings
    missing = findings[findings["finding"] == "cannot be opened"]
    assert missing["recording"].tolist() == ["KEN_003_20211207_153852.wav"]
    assert "has no channel 1" in missing["detail"].iloc[0]


def test_evaluation_repeats_the_channel_of_the_model_s_training(model, tmp_path):
    record = {"settings": {"channel": "best", "context_s": 0.0, "edge_tolerance_s": 0.0, "min_annotations": 5}}
    (model / SETTINGS_FILE).write_text(json.dumps(record))
    assert clip_settings(model)["channel"] == "best"
    record["settings"]["channel"] = "left"
    (model / SETTINGS_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="expected the number of a channel from 0, mix or best"):
        clip_settings(model)
    (model / SETTINGS_FILE).unlink()
