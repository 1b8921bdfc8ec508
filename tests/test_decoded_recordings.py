"""Recordings are decoded once, whole, and kept on disk."""

import logging
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from archives import noise

from kenya_birds.data import decoded_recordings
from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.decoded_recordings import FOLDER, decode_recordings
from kenya_birds.errors import UserError

RATE = 8_000


@pytest.fixture
def write(tmp_path):
    def write(name, sound, rate=RATE, subtype="PCM_16"):
        path = tmp_path / name
        soundfile.write(path, sound, rate, subtype=subtype)
        return {name: path}

    return write


def sound_of(decoded, index=0):
    recording = decoded.recordings[index]
    return np.load(recording.path) * np.float32(recording.scale)


def test_16_bit_sound_at_its_own_rate_keeps_every_bit(write, tmp_path):
    stored = noise(3.0)
    decoded = decode_recordings(write("a.wav", stored), tmp_path / "cache", RATE)
    assert np.array_equal(np.load(decoded.recordings[0].path), stored)
    assert decoded.recordings[0].runs.tolist() == [[0, len(stored)]]
    assert np.array_equal(decoded.read(0, 100, 50), stored[100:150])


def test_quiet_24_bit_sound_survives(write, tmp_path):
    quiet = np.sin(np.arange(RATE) / 7) * 1e-5  # less than half a step of 16 bits
    decoded = decode_recordings(write("a.wav", quiet, subtype="PCM_24"), tmp_path / "cache", RATE)
    assert np.abs(sound_of(decoded) - quiet).max() < 2e-7


def test_other_rates_are_as_the_reader_resamples_them(write, tmp_path):
    paths = write("a.wav", noise(70.0, rate=22_050), rate=22_050)
    decoded = decode_recordings(paths, tmp_path / "cache", RATE)
    with RecordingReader(paths["a.wav"], RATE) as reader:
        expected = reader.read(0, reader.samples)
    assert len(expected) == decoded.recordings[0].samples
    # The reader resamples the ends with the zeros round the recording.
    assert np.abs(sound_of(decoded) - expected)[200:-200].max() < 1e-4


def test_silence_is_marked_and_short_silence_is_not(write, tmp_path):
    sound = noise(10.0)
    sound[16_000:24_000] = 0
    sound[40_000:41_000] = 0
    decoded = decode_recordings(write("a.wav", sound), tmp_path / "cache", RATE)
    runs = decoded.recordings[0].runs
    assert abs(runs - [[0, 16_000], [24_000, 80_000]]).max() <= 2
    with pytest.raises(ValueError, match=r"a\.wav has no sound at sample 20000"):
        decoded.read(0, 20_000, 100)


def test_damage_is_marked_and_the_rest_is_kept(write, tmp_path, caplog):
    paths = write("a.flac", noise(20.0))
    data = bytearray(paths["a.flac"].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8))
    paths["a.flac"].write_bytes(data)
    decoded = decode_recordings(paths, tmp_path / "cache", RATE)
    recording = decoded.recordings[0]
    assert 0 < recording.damaged_s < 5
    assert len(recording.runs) == 2
    assert "1 of 1 recordings are damaged" in caplog.text
    stored = noise(20.0)
    for begin, end in recording.runs:
        assert np.array_equal(decoded.read(0, int(begin), int(end - begin)), stored[begin:end])


def test_a_window_longer_than_its_run_is_mirrored(write, tmp_path):
    stored = noise(1.0)
    decoded = decode_recordings(write("a.wav", stored), tmp_path / "cache", RATE)
    window = decoded.read(0, 0, 10_000)
    assert np.array_equal(window[1_000:9_000], stored)
    assert np.array_equal(window[:1_000], stored[:1_000][::-1])


def test_what_is_in_the_cache_is_not_decoded_again_and_a_changed_file_is(write, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    paths = write("a.wav", noise(1.0)) | write("b.wav", noise(2.0, seed=1))
    decode_recordings(paths, tmp_path / "cache", RATE)
    assert "Decoding 2 recordings" in caplog.text
    caplog.clear()
    written = []
    plain = decoded_recordings._write
    monkeypatch.setattr(
        decoded_recordings, "_write", lambda path, *rest: [written.append(path.name), plain(path, *rest)]
    )
    decode_recordings(paths, tmp_path / "cache", RATE)
    assert written == []
    paths |= write("b.wav", noise(2.0, seed=2))
    decoded = decode_recordings(paths, tmp_path / "cache", RATE)
    assert written == ["b.wav"]
    assert np.array_equal(np.load(decoded.recordings[1].path), noise(2.0, seed=2))


def test_copies_of_a_file_are_decoded_once(write, tmp_path):
    source = write("a.wav", noise(30.0, 22_050), rate=22_050)["a.wav"]
    paths = {}
    for site in ("one", "two", "three"):
        (tmp_path / site).mkdir()
        paths[f"{site}/a.wav"] = Path(shutil.copy2(source, tmp_path / site))
    decoded = decode_recordings(paths, tmp_path / "cache", RATE, threads=3)
    assert decoded.names == list(paths)
    assert len({recording.path for recording in decoded.recordings}) == 1
    assert len(sound_of(decoded)) == 30 * RATE


def test_an_interrupted_run_continues_with_the_next_recording(write, tmp_path, monkeypatch):
    paths = write("a.wav", noise(1.0)) | write("b.wav", noise(2.0, seed=1))
    plain = decoded_recordings._write_floats

    def stop(reader, *rest):
        if reader.path.name == "b.wav":
            raise KeyboardInterrupt
        return plain(reader, *rest)

    monkeypatch.setattr(decoded_recordings, "_write_floats", stop)
    with pytest.raises(KeyboardInterrupt):
        decode_recordings(paths, tmp_path / "cache", RATE)
    names = sorted(path.suffix for path in (tmp_path / "cache" / FOLDER).iterdir() if path.suffix)
    assert names == [".json", ".npy"]
    monkeypatch.setattr(decoded_recordings, "_write_floats", plain)
    assert decode_recordings(paths, tmp_path / "cache", RATE).names == ["a.wav", "b.wav"]


def test_too_little_disk_is_one_line(write, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded_recordings.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"need 0\.00 GB of disk in .*free disk space there"):
        decode_recordings(write("a.wav", noise(1.0)), tmp_path / "cache", RATE)


def test_a_recording_that_cannot_be_opened_is_left_out_and_logged(write, tmp_path, caplog):
    paths = write("a.wav", noise(1.0))
    (tmp_path / "b.wav").write_bytes(b"no sound")
    decoded = decode_recordings({**paths, "b.wav": tmp_path / "b.wav"}, tmp_path / "cache", RATE)
    assert decoded.names == ["a.wav"]
    assert "b.wav cannot be read as audio" in caplog.text


def _first_samples(decoded):
    return decoded.read(0, 0, 5).tolist()


def test_other_processes_read_the_same(write, tmp_path):
    stored = noise(1.0)
    decoded = decode_recordings(write("a.wav", stored), tmp_path / "cache", RATE)
    decoded.read(0, 0, 5)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_first_samples, decoded).result() == stored[:5].tolist()
