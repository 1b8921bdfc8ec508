import os
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import soxr
from archives import noise
from detecting import RATE, chirps
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.data.audio import AudioHeader, Block, RecordingReader
from kenya_birds.errors import UserError
from kenya_birds.inference import audio_stream as streaming
from kenya_birds.inference.audio_stream import Reading, Stopwatch, read_array, read_source, read_windows
from kenya_birds.inference.sources import Source
from kenya_birds.inference.windows import UnscoredSound, WindowGrid

GRID = WindowGrid(16_000, 9_000)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_S", 1)


def read(path, rate=RATE, grid=GRID):
    """Starts, windows, and how the reading ended."""
    *windows, reading = read_windows(path, grid, rate, Stopwatch())
    starts = np.concatenate([one.starts for one in windows]) if windows else np.zeros(0, int)
    sound = np.concatenate([one.sound for one in windows]) if windows else np.zeros((0, grid.window_samples))
    return starts, sound, reading


def floats(sound):
    return sound.astype(np.float32) / 32768


def write(path, sound, rate=RATE, **options):
    soundfile.write(path, sound, rate, **options)
    return path


@pytest.mark.parametrize("rate", [RATE, 8_000, 22_050, 44_100, 48_000, 96_000, 250_000, 15_999])
def test_a_stream_is_resampled_to_the_samples_of_the_whole_recording(tmp_path, rate):
    sound = noise(3.7, rate)
    starts, windows, reading = read(write(tmp_path / "a.wav", sound, rate))
    whole = floats(sound)
    if rate != RATE:
        whole = soxr.resample(whole, rate, RATE)
    with RecordingReader(tmp_path / "a.wav", RATE) as reader:
        assert len(whole) == reader.samples
    np.testing.assert_array_equal(starts, GRID.starts(0, len(whole)))
    # Its blocks round the last digits of floats otherwise.
    whole_windows = [whole[start : start + GRID.window_samples] for start in starts]
    np.testing.assert_allclose(windows, whole_windows, rtol=0, atol=0 if rate == RATE else 1e-6)
    assert reading == Reading(len(sound), rate, len(starts), ())


def test_windows_of_an_array_are_those_of_the_file(tmp_path):
    sound = chirps(4.3)
    _, windows, reading = read(write(tmp_path / "a.wav", sound))
    *found, from_array = read_array(sound, RATE, GRID, RATE)
    np.testing.assert_array_equal(windows, np.concatenate([one.sound for one in found]))
    assert from_array == reading


def test_windows_of_a_long_array_are_cut_in_small_groups():
    sound = np.tile(chirps(10), 12).astype(np.float32) / 32768
    *found, reading = read_array(sound, RATE, GRID, RATE)
    assert max(len(one.sound) for one in found) * GRID.window_samples <= 2 * (30 * RATE + GRID.window_samples)
    starts = GRID.starts(0, len(sound))
    np.testing.assert_array_equal(np.concatenate([one.starts for one in found]), starts)
    assert reading == Reading(len(sound), RATE, len(starts), ())
    expected = [sound[start : start + GRID.window_samples] for start in starts]
    np.testing.assert_array_equal(np.concatenate([one.sound for one in found]), expected)


def test_channels_that_cancel_each_other_are_told_and_one_is_heard(tmp_path, caplog):
    sound = chirps(3)
    _, windows, reading = read(write(tmp_path / "a.wav", np.stack([sound, -sound], axis=1)))
    _, expected, _ = read(write(tmp_path / "b.wav", sound))
    np.testing.assert_array_equal(windows, expected)
    assert not reading.losses
    assert "channels that cancel each other" in caplog.text
    assert caplog.text.count("a.wav") == 1
    assert "b.wav" not in caplog.text


def test_two_channels_are_their_mean(tmp_path):
    left, right = chirps(2, 1) // 2, chirps(2, 2) // 2
    _, windows, _ = read(write(tmp_path / "a.wav", np.stack([left, right], axis=1)))
    mean = (left.astype(float) + right) / 2
    assert np.abs(32768 * windows[0] - mean[: GRID.window_samples]).max() == 0


@pytest.mark.parametrize("rate", [RATE, 24_000])
def test_around_a_damaged_stretch_windows_stay_at_their_places(tmp_path, rate):
    sound = noise(20, rate)
    path = write(tmp_path / "a.flac", sound, rate)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = os.urandom(3000)
    path.write_bytes(data)
    starts, windows, reading = read(path)
    assert len(reading.losses) == 1
    loss = reading.losses[0]
    assert 9 < loss.start_s < loss.end_s < 11
    # Every window that ends before the loss or begins after it, one that ends with it and one that begins with it.
    begin, end = round(loss.start_s * RATE), round(loss.end_s * RATE)
    np.testing.assert_array_equal(starts, [*GRID.starts(0, begin), *GRID.starts(end, 20 * RATE)])
    with RecordingReader(write(tmp_path / "whole.wav", sound, rate), RATE) as reader:
        for start, window in zip(starts, windows, strict=True):
            whole = reader.read(int(start), GRID.window_samples)
            inner = slice(
                200, min(GRID.window_samples, 20 * RATE - start) - 200
            )  # a resampler's filter reaches so far
            np.testing.assert_allclose(window[inner], whole[inner], atol=1 / 32768)


def test_a_recording_whose_end_is_missing_is_read_up_to_there(tmp_path):
    path = write(tmp_path / "a.flac", noise(10, RATE))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    starts, _, reading = read(path)
    assert reading.duration_s == 10
    assert [loss.end_s for loss in reading.losses] == [10.0]
    assert 4.0 < reading.losses[0].start_s < 5.1
    assert starts[-1] + GRID.window_samples <= reading.losses[0].start_s * RATE


def test_sound_that_the_header_does_not_tell_is_a_loss(tmp_path):
    path = write(tmp_path / "a.wav", chirps(10))
    content = bytearray(path.read_bytes())
    content[40:44] = (2 * 3 * RATE).to_bytes(4, "little")  # 3 of 10 s
    path.write_bytes(content)
    starts, _, reading = read(path)
    assert reading.duration_s == 10
    assert [(loss.start_s, loss.end_s) for loss in reading.losses] == [(3.0, 10.0)]
    assert starts.max() + GRID.window_samples <= 3 * RATE


def test_samples_that_are_no_numbers_are_a_loss(tmp_path):
    sound = floats(chirps(5))
    sound[3 * RATE : 3 * RATE + 10] = np.nan
    sound[3 * RATE + 20] = np.inf
    starts, _, reading = read(write(tmp_path / "a.wav", sound, subtype="FLOAT"))
    loss = reading.losses[0]
    assert (loss.start_s, loss.end_s) == (3.0, (3 * RATE + 21) / RATE)
    assert "samples that are not numbers" in loss.reason
    assert not any(start < loss.end_s * RATE and start + GRID.window_samples > 3 * RATE for start in starts)


def test_digital_silence_is_not_scored_and_a_silent_recording_has_failed(tmp_path):
    _, windows, reading = read(write(tmp_path / "silent.flac", np.zeros(4 * RATE, dtype=np.int16)))
    assert len(windows) == 0
    assert [loss.reason for loss in reading.losses] == ["digital silence from the beginning to the end"]
    half = np.concatenate([np.zeros(2 * RATE, dtype=np.int16), chirps(2)])
    starts, _, reading = read(write(tmp_path / "half.flac", half))
    assert reading.losses == ()
    assert reading.silences == (UnscoredSound(0.0, 2.0, "digital silence"),)
    assert reading.silence_s == 2.0
    assert starts.tolist() == [32_000, 36_000, 45_000, 48_000]


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("gain", [1e-5, 1e-3, 4])
def test_quiet_and_loud_sound_keeps_its_resolution(tmp_path, rate, gain):
    sound = floats(chirps(4, rate=rate))
    *_, (starts, windows, reading) = (
        read(write(tmp_path / f"{name}.wav", level * sound, rate, subtype="FLOAT"))
        for name, level in (("quiet", gain), ("plain", 1))
    )
    quiet = read(tmp_path / "quiet.wav")
    assert quiet[2] == reading
    np.testing.assert_array_equal(quiet[0], starts)
    np.testing.assert_allclose(quiet[1] / gain, windows, rtol=0, atol=1e-6)
    *found, _ = read_array((gain * sound).astype(np.float64), rate, GRID, RATE)
    np.testing.assert_allclose(np.concatenate([one.sound for one in found]) / gain, windows, rtol=0, atol=1e-6)


def test_a_few_milliseconds_of_sound_at_the_end_or_amid_silence_are_in_no_window_of_zeros(tmp_path):
    starts, windows, reading = read(write(tmp_path / "tail.wav", chirps(3.0003)))
    assert starts[-1] + GRID.window_samples == round(3.0003 * RATE)
    assert (windows != 0).mean() > 0.99
    assert reading.losses == reading.silences == ()
    gap = chirps(4)
    gap[RATE : 3 * RATE] = 0
    gap[2 * RATE : 2 * RATE + 50] = 20_000
    starts, windows, reading = read(write(tmp_path / "gap.wav", gap))
    assert starts.tolist() == [0, 3 * RATE]
    assert reading.silences == (UnscoredSound(1.0, 3.0, "digital silence, with too little sound to be scored"),)


@pytest.mark.parametrize(("length_s", "is_scored"), [(0.2, False), (0.25, True), (0.7, True)])
def test_a_recording_shorter_than_a_window_is_scored_from_a_quarter_of_one_on(tmp_path, length_s, is_scored):
    sound = chirps(length_s)
    starts, windows, reading = read(write(tmp_path / "a.wav", sound))
    if is_scored:
        assert (starts.tolist(), reading.windows, reading.losses) == ([0], 1, ())
        missing = GRID.window_samples - len(sound)
        padded = np.pad(floats(sound), (missing // 2, missing - missing // 2), mode="symmetric")
        np.testing.assert_array_equal(windows[0], padded)
    else:
        (loss,) = reading.losses
        assert (reading.windows, loss.start_s, loss.end_s) == (0, 0.0, 0.2)
        assert loss.reason == "0.2 s of sound is too short to be scored: expected 0.25 s or more without a gap"


class FakeReader:
    """A recording of which some frames are lost, and some are digital silence; its samples tell their places."""

    lone_channel = None

    def __init__(self, rate, sampling_rate, frames, lost, silent):
        self.header = AudioHeader(frames, rate, 1)
        self.sampling_rate, self.samples = sampling_rate, (2 * frames * sampling_rate + rate) // (2 * rate)
        self.is_lost, self.sound = np.zeros(frames, bool), 1 + np.arange(frames, dtype=np.float32)
        for begin, length in lost:
            self.is_lost[begin : begin + length] = True
        for begin, length in silent:
            self.sound[begin : begin + length] = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def blocks(self, frames):
        edges = {*range(0, len(self.sound), frames), len(self.sound), *(1 + np.flatnonzero(np.diff(self.is_lost)))}
        for first, last in pairwise(sorted(edges)):
            sound = None if self.is_lost[first] else self.sound[first:last]
            yield Block(
                first, last - first, sound, None if sound is None else "fake", "" if sound is not None else "lost"
            )


STRETCHES = st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 1500)), max_size=5)


@settings(max_examples=100)
@given(
    rate=st.sampled_from([1000, 1500, 441, 3000, 250]),
    frames=st.integers(1, 6000),
    lost=STRETCHES,
    silent=STRETCHES,
    window=st.integers(1, 1500),
    share=st.floats(0.05, 1),
)
def test_every_instant_is_in_a_window_or_in_the_table_with_a_reason(rate, frames, lost, silent, window, share):
    sampling_rate, grid = 1000, WindowGrid(window, max(1, round(share * window)))
    fake = FakeReader(rate, sampling_rate, frames, lost, silent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "RecordingReader", lambda *args: fake)
        *found, reading = read_windows("x", grid, sampling_rate, Stopwatch())
    duration_s = frames / rate
    scored = [
        (a / sampling_rate, b / sampling_rate) for one in found for a, b in zip(one.starts, one.ends, strict=True)
    ]
    listed = [(part.start_s, part.end_s) for part in (*reading.losses, *reading.silences)]
    assert all(part.reason for part in (*reading.losses, *reading.silences))
    assert reading.windows == len(scored)
    assert bool(scored) or bool(reading.losses)
    # To half a sample, to which the resampler rounds lengths.
    reached_s, sample_s = 0.0, 1.001 / sampling_rate
    for begin_s, end_s in sorted(scored + listed):
        assert begin_s <= reached_s + sample_s
        reached_s = max(reached_s, end_s)
    assert reached_s >= duration_s - sample_s
    # And nothing is in both.
    for begin_s, end_s in listed:
        assert 0 <= begin_s < end_s <= duration_s + sample_s
        assert not any(first < end_s - sample_s and last > begin_s + sample_s for first, last in scored)
    if rate == sampling_rate:
        heard = np.where(fake.is_lost, np.nan, fake.sound)
        for one in found:
            for begin, end, sound in zip(one.starts, one.ends, one.sound, strict=True):
                assert begin >= 0
                missing = window - (end - begin)
                expected = np.pad(heard[begin:end], (missing // 2, missing - missing // 2), mode="symmetric")
                np.testing.assert_array_equal(sound, expected)
                quiet = np.diff(np.flatnonzero(np.concatenate([[1], heard[begin:end], [1]])) - 1, prepend=-1)
                assert quiet.max() <= min(0.25 * sampling_rate, grid.least_samples)


def test_a_file_that_changes_while_it_is_read_has_failed(tmp_path):
    path = write(tmp_path / "a.wav", chirps(10))
    items = read_source(Source(str(path)), GRID, RATE, Stopwatch())
    next(items)
    os.utime(path, (1, 1))
    *_, reading = items
    assert not reading.is_final
    assert "changed" in reading.losses[0].reason


def test_a_file_that_goes_away_while_it_is_read_has_failed(tmp_path):
    path = write(tmp_path / "a.wav", chirps(10))
    items = read_source(Source(str(path)), GRID, RATE, Stopwatch())
    next(items)
    path.unlink()
    *_, reading = items
    assert not reading.is_final
    assert "No such file" in reading.losses[0].reason


def test_an_unforeseen_exception_fails_its_recording_only(tmp_path, monkeypatch, caplog):
    source = Source(str(write(tmp_path / "a.wav", chirps(3))))

    def fail(*args):
        raise fault

    monkeypatch.setattr(RecordingReader, "blocks", fail)
    fault = ZeroDivisionError("by zero")
    with caplog.at_level("DEBUG", "kenya_birds"):
        (reading,) = read_source(source, GRID, RATE, Stopwatch())
    assert [loss.reason for loss in reading.losses] == ["ZeroDivisionError: by zero"]
    assert [record.levelname for record in caplog.records if record.exc_info] == ["DEBUG"]
    for fault in (KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(fault)):
            list(read_source(source, GRID, RATE, Stopwatch()))


def test_a_name_that_is_not_unicode_has_failed(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    soundfile.write(os.fsencode(path), chirps(1), RATE, format="WAV")
    (reading,) = read_source(Source(path), GRID, RATE, Stopwatch())
    assert "Unicode" in reading.losses[0].reason


@pytest.mark.parametrize(
    "waveform",
    [np.zeros((2, 100)), np.zeros(0), np.array([0.0, np.nan]), np.zeros(100, dtype=np.int32)],
)
def test_an_array_that_is_no_waveform_is_an_error(waveform):
    with pytest.raises(UserError, match="waveform"):
        list(read_array(waveform, RATE, GRID, RATE))
