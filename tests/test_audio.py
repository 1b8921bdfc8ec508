import io
import os
import re
from contextlib import suppress

import av
import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
import soxr
from archives import noise
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kenya_birds.data.audio import (
    AudioHeader,
    RecordingReader,
    UndecodableError,
    decode_wav,
    encode_wav,
    read_header,
)
from kenya_birds.data.decoders import SoundfileDecoder
from kenya_birds.data.pyav_decoder import PyavDecoder
from kenya_birds.errors import UserError

RATE = 32_000


def write(path, samples, rate=RATE, subtype="PCM_16"):
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def read(path, start, samples, rate=RATE):
    with RecordingReader(path, rate) as reader:
        return reader.read(start, samples)


def padded(whole, start, samples):
    """The window of a recording that is silent before its start and after its end."""
    margin = abs(start) + samples
    return np.pad(whole, margin)[margin + start : margin + start + samples]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    samples = noise(2, RATE)
    return write(tmp_path_factory.mktemp("audio") / "mono.flac", samples), samples


# At its own rate


@settings(max_examples=60)
@given(start=st.integers(-70_000, 70_000), samples=st.integers(0, 70_000))
@example(start=0, samples=64_000)
@example(start=-1, samples=64_002)
def test_sixteen_bits_come_back_exactly_with_zeros_outside(recording, start, samples):
    path, whole = recording
    np.testing.assert_array_equal(32768 * read(path, start, samples), padded(whole, start, samples))


def test_windows_may_be_read_in_any_order(recording):
    path, whole = recording
    with RecordingReader(path, RATE) as reader:
        for start in (50_000, 0, 63_999, 20_000, 20_000):
            np.testing.assert_array_equal(32768 * reader.read(start, 100), padded(whole, start, 100))


def test_full_scale_comes_back_exactly(tmp_path):
    extremes = np.array([-32768, 32767, -1, 0, 1] * 100, dtype=np.int16)
    np.testing.assert_array_equal(32768 * read(write(tmp_path / "a.wav", extremes), 0, 500), extremes)


def test_several_channels_become_their_mean(tmp_path):
    channels = np.stack([noise(1, RATE, seed) for seed in (1, 2)], axis=1)
    mono = read(write(tmp_path / "stereo.flac", channels), 100, 1000)
    np.testing.assert_array_equal(32768 * mono, channels[100:1100].mean(axis=1))


def test_finer_sound_keeps_its_resolution_and_louder_sound_is_not_clipped(tmp_path):
    floats = np.array([0.25, 1.4 / 32768, 1e-20, 1.5, -300], dtype=np.float32)
    np.testing.assert_array_equal(read(write(tmp_path / "float.wav", floats, subtype="FLOAT"), 0, 5), floats)
    fine = np.array([1, -3, (3 << 16) + 5, -(2**23), 2**23 - 1])
    found = read(write(tmp_path / "fine.flac", (fine << 8).astype(np.int32), subtype="PCM_24"), 0, 5)
    np.testing.assert_array_equal(found, fine / 2**23)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_samples_that_are_no_sound_are_refused_and_their_neighbours_are_read(tmp_path, wrong):
    sound = np.full(100, 0.5, dtype=np.float32)
    sound[50] = wrong
    with RecordingReader(write(tmp_path / "a.wav", sound, subtype="FLOAT")) as reader:
        with pytest.raises(UndecodableError, match=r"not numbers, or far beyond full scale"):
            reader.read(40, 20)
        assert (reader.read(51, 49) == 0.5).all()
        assert [(block.start, block.sound is None) for block in reader.blocks(100)] == [
            (0, False),
            (50, True),
            (51, False),
        ]


# At another rate


@pytest.fixture(scope="module", params=[8_000, 22_050, 44_100, 48_000, 96_000, 44_099])
def other_rate(request, tmp_path_factory):
    """A stereo recording of 3 s at another rate, and the mean of its channels."""
    rate = request.param
    channels = np.stack([noise(3, rate, seed) for seed in (1, 2)], axis=1)
    path = write(tmp_path_factory.mktemp("audio") / "other.flac", channels, rate)
    return path, rate, channels.mean(axis=1) / 32768


@settings(max_examples=15)
@given(start=st.integers(-100_000, 100_000), samples=st.integers(1, 100_000))
@example(start=-500, samples=1000)
@example(start=95_500, samples=1000)
def test_a_window_is_what_the_recording_between_silences_resampled_has_there(other_rate, start, samples):
    path, rate, sound = other_rate
    whole = soxr.resample(np.pad(sound, 4 * rate), rate, RATE)
    window = read(path, start, samples)
    assert np.abs(window - whole[4 * RATE + start : 4 * RATE + start + samples]).max() <= 1e-5
    # The filter rings past the edges; 0.1 s away there is silence.
    far = ~padded(np.ones(len(whole) - 8 * RATE + 6400, bool), start + 3200, samples)
    assert np.abs(window[far]).max(initial=0) < 1e-7


def test_away_from_the_edges_a_window_is_what_the_recording_alone_resampled_has_there(other_rate):
    path, rate, sound = other_rate
    whole = soxr.resample(sound, rate, RATE)
    assert len(whole) == 3 * RATE
    for start in (50, 12_345, 40_000, 94_000):
        assert np.abs(read(path, start, 1950) - whole[start : start + 1950]).max() <= 1e-5


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_a_tone_keeps_its_frequency_level_and_phase(tmp_path, rate):
    def tone(at):
        return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * at) / at)

    window = read(write(tmp_path / "tone.wav", tone(rate), rate), 20_011, 5_000)
    assert np.abs(window - tone(RATE)[20_011:25_011]).max() < 1e-4


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_click_stays_at_its_time(tmp_path, rate):
    click = np.zeros(2 * rate, dtype=np.int16)
    click[rate] = 20_000
    assert np.abs(read(write(tmp_path / "click.flac", click, rate), RATE - 777, 2000)).argmax() == 777


# What cannot be read


def test_the_header_is_told(tmp_path):
    path = write(tmp_path / "a.flac", np.zeros((96_000, 2), np.int16), 48_000)
    assert read_header(path) == AudioHeader(frames=96_000, sample_rate_hz=48_000, channels=2)
    assert read_header(path).duration_s == 2.0


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.raw"])
@pytest.mark.parametrize("open_recording", [read_header, lambda path: RecordingReader(path, RATE)])
def test_a_file_that_is_not_audio_is_named(tmp_path, name, open_recording):
    path = tmp_path / name
    path.write_text("not audio")
    for _ in ("not audio", "missing"):
        with pytest.raises(UserError, match=re.escape(f"{path} cannot be read as audio")):
            open_recording(path)
        path.unlink(missing_ok=True)


def test_a_file_whose_header_cannot_be_used_is_closed(tmp_path, monkeypatch):
    closed = []
    for decoder in (SoundfileDecoder, PyavDecoder):
        monkeypatch.setattr(decoder, "close", lambda self: closed.append(type(self)))
    path = write(tmp_path / "a.wav", noise(1, RATE))
    monkeypatch.setattr("kenya_birds.data.audio.MAX_SAMPLE_RATE_HZ", RATE - 1)
    with pytest.raises(
        UserError, match=r"a\.wav has a sampling rate of 32000 Hz by its header: expected 100 to 31999 Hz"
    ):
        read_header(path)
    write(path, noise(0, RATE))
    with pytest.raises(UserError, match="has no samples"):
        read_header(path)
    assert closed == [SoundfileDecoder, SoundfileDecoder]
    monkeypatch.setattr(SoundfileDecoder, "frames", 0, raising=False)
    monkeypatch.setattr(PyavDecoder, "count", lambda self: 0)
    monkeypatch.setattr("kenya_birds.data.audio.find_sound", lambda path: None)
    with pytest.raises(UserError, match="has no samples"):
        read_header(path)
    assert closed[2:] == [SoundfileDecoder, PyavDecoder]


@pytest.mark.parametrize("subtype", ["PCM_16", "GSM610"])
@pytest.mark.parametrize("rate", [1, 99, 10_000_001, 2**31 - 1])
def test_a_sampling_rate_that_no_recorder_has_is_refused(tmp_path, subtype, rate):
    path = write(tmp_path / "a.wav", noise(1, RATE), subtype=subtype)
    content = path.read_bytes()
    path.write_bytes(content[:24] + rate.to_bytes(4, "little") + content[28:])
    with pytest.raises(UserError, match=f"sampling rate of {rate} Hz by its header|cannot be read as audio"):
        RecordingReader(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are looked up there")
def test_no_file_stays_open(tmp_path):
    whole = write(tmp_path / "whole.wav", noise(1, RATE)).read_bytes()
    flac = write(tmp_path / "whole.flac", noise(1, RATE)).read_bytes()
    zero = whole[:40] + bytes(4) + whole[44:]
    before = len(os.listdir("/proc/self/fd"))
    failures = []  # with their tracebacks, which keep what stands in them alive
    for content in (
        whole,
        flac,
        whole[:44],
        whole[:30],
        zero,
        zero[:44],
        flac[:90],
        flac[:60_000],
        b"",
        b"fLaC",
        b"no",
    ):
        (tmp_path / "a.wav").write_bytes(content)
        try:
            with RecordingReader(tmp_path / "a.wav", 22_050) as reader:
                reader.read(0, 22_050)
        except UserError as error:
            failures.append(error)
    assert len(failures) >= 6
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_and_a_pipe_are_refused_at_once(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=r"expected a file, found a folder, a pipe or a device"):
            read_header(path)


def damages(content):
    half = len(content) // 2
    yield from (content[: int(len(content) * share)] for share in (0.1, 0.5, 0.9, 0.999))
    yield content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    yield content[:half] + bytes(20_000) + content[half + 20_000 :]
    yield content[:half] + content[half + 20_000 :]


@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_a_damaged_recording_gives_the_right_sound_or_an_error_that_names_it(recording, tmp_path, rate):
    path, whole = recording
    for content in damages(path.read_bytes()):
        damaged = tmp_path / "damaged.flac"
        damaged.write_bytes(content)
        errors = 0
        for start in range(0, 2 * rate - 1000, 1000):
            # A reader of its own for each window, so that none is lost to what another met.
            try:
                window = read(damaged, start, 1000, rate)
            except UserError as error:
                message = str(error)
                errors += 1
            else:
                expected = padded(whole, start, 1000) / 32768 if rate == RATE else read(path, start, 1000, rate)
                np.testing.assert_array_equal(window, expected)
        assert errors
        assert re.search(r"damaged\.flac cannot be decoded at \d\.\d{3} s \(", message)


def test_the_time_of_the_damage_is_told_in_the_recording_s_own_time(tmp_path):
    path = write(tmp_path / "a.wav", noise(2, 48_000), 48_000)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 60_000])
    with RecordingReader(path, RATE) as reader:
        with pytest.raises(
            UndecodableError, match=r"cannot be decoded at 1\.250 s \(the header states 72000 more bytes .*\): "
        ):
            reader.read(20_000, 40_000)
        assert reader.read(20_000, 1000).any()


def test_a_reader_survives_a_window_that_it_refuses(recording, tmp_path):
    path, whole = recording
    for content in damages(path.read_bytes()):
        damaged = tmp_path / "damaged.flac"
        damaged.write_bytes(content)
        alone, together = set(), set()
        for start in range(0, 2 * RATE, 1000):
            with RecordingReader(damaged, RATE) as reader, suppress(UndecodableError):
                reader.read(start, 1000)
                alone.add(start)
        with RecordingReader(damaged, RATE) as reader:
            for start in range(0, 2 * RATE, 1000):
                with suppress(UndecodableError):
                    np.testing.assert_array_equal(32768 * reader.read(start, 1000), whole[start : start + 1000])
                    together.add(start)
        assert alone == together


# In blocks


@pytest.mark.parametrize("block_frames", [7, 999, 10_000, 10**9])
def test_blocks_are_the_whole_recording_at_its_own_rate(tmp_path, block_frames):
    channels = np.stack([noise(0.1, 44_100, seed) for seed in (1, 2)], axis=1)
    with RecordingReader(write(tmp_path / "a.flac", channels, 44_100), RATE) as reader:
        blocks = list(reader.blocks(block_frames))
    assert [block.start for block in blocks] == list(range(0, 4410, block_frames))
    assert {block.decoder for block in blocks} == {"soundfile"}
    assert {block.reason for block in blocks} == {""}
    sound = np.concatenate([block.sound for block in blocks])
    assert sound.dtype == np.float32
    np.testing.assert_array_equal(32768 * sound, channels.mean(axis=1))


def test_a_reader_without_a_rate_reads_at_the_recording_s_own(tmp_path):
    sound = noise(0.1, 44_100)
    with RecordingReader(write(tmp_path / "a.wav", sound, 44_100)) as reader:
        assert reader.sampling_rate == 44_100
        np.testing.assert_array_equal(32768 * reader.read(0, 4410), sound)


# As clips are stored


INTEGERS = st.lists(st.integers(-32768, 32767), max_size=50).map(lambda values: np.array(values) / 32768)
FLOATS = st.lists(st.floats(-300, 300, width=32), max_size=50).map(np.array)


@given((INTEGERS | FLOATS).map(np.float32), st.sampled_from([8_000, 32_000, 44_100]))
def test_encoding_and_decoding_give_the_same_samples(samples, rate):
    decoded = decode_wav(encode_wav(samples, rate))
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, samples)


@pytest.mark.parametrize(
    ("samples", "subtype"),
    [
        (noise(0.1, RATE) / 32768, "PCM_16"),
        (np.array([-1, 32767 / 32768]), "PCM_16"),
        (np.array([0.5, 1.0]), "FLOAT"),
        (noise(0.1, RATE) / 2**23, "FLOAT"),
        (noise(0.1, RATE) / 5000, "FLOAT"),
    ],
)
def test_encoded_clips_are_wav_files_that_others_read_and_no_larger_than_they_need_to_be(samples, subtype):
    data = encode_wav(samples.astype(np.float32), RATE)
    assert soundfile.info(io.BytesIO(data)).subtype == subtype
    found, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(found, samples.astype(np.float32))


def test_clips_of_another_form_are_not_misread():
    for samples in (np.zeros((10, 2), dtype=np.int16), np.zeros(10, dtype=np.int32)):
        buffer = io.BytesIO()
        scipy.io.wavfile.write(buffer, RATE, samples)
        with pytest.raises(ValueError, match=r"expected mono WAV of int16 or float32, found int"):
            decode_wav(buffer.getvalue())


@pytest.fixture(params=["wav", "flac", "ogg", "mp3", "m4a"])
def write_stereo(request, tmp_path):
    """Writes two channels in a format that soundfile or PyAV reads."""

    def write(left, right):
        path = tmp_path / f"stereo.{request.param}"
        sound = np.stack([left, right], axis=1).astype(np.float32)
        if request.param != "m4a":
            soundfile.write(path, sound, RATE)
            return path
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=RATE)
            stream.layout = "stereo"
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), format="fltp", layout="stereo")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


def whistle(low_hz):
    time_s = np.arange(3 * RATE) / RATE
    return 0.3 * np.sin(2 * np.pi * (low_hz + 200 * time_s) * time_s)


def likeness(found, expected):
    """Correlation with the second second, which an encoder of AAC may have delayed by a frame."""
    return max(np.corrcoef(found, expected[RATE - lag : 2 * RATE - lag])[0, 1] for lag in (0, 1024, 2048))


def test_of_channels_that_cancel_each_other_the_loudest_is_read(write_stereo):
    left = whistle(1000)
    with RecordingReader(write_stereo(left, -0.95 * left)) as reader:
        assert reader.lone_channel == 0
        found = reader.read(RATE, RATE)
        assert likeness(found, left) > 0.9
        assert 0.8 < found.std() / left[RATE : 2 * RATE].std() < 1.2
        blocks = [block.sound for block in reader.blocks(RATE // 2)]
        np.testing.assert_allclose(np.concatenate(blocks)[RATE : 2 * RATE], found, atol=1e-6)


def test_other_channels_are_their_mean(write_stereo):
    left, right = whistle(1000), whistle(2000)
    for second in (right, left, np.zeros_like(left), -0.5 * left + 0.3 * right):
        with RecordingReader(write_stereo(left, second)) as reader:
            assert reader.lone_channel is None
            assert likeness(reader.read(RATE, RATE), (left + second) / 2) > 0.9
