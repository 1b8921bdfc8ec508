"""Broken files, and what two decoders make of them."""

import io
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from archives import as_int16, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.data.audio import RecordingReader, UndecodableError, read_header
from kenya_birds.data.compressed_frames import CRC8, CRC16, find_flac_frame, flac_headers
from kenya_birds.data.compressed_frames import possible_ends as real_possible_ends
from kenya_birds.data.decoders import DecodingError, SoundfileDecoder, TooLongError
from kenya_birds.data.pyav_decoder import PyavDecoder
from kenya_birds.errors import UserError

RATE = 32_000
FRAME = 4096  # samples of a FLAC frame, as libsndfile writes it
LAST = 31  # the last frame of four seconds


def encode(samples, format_, subtype=None, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format_, subtype=subtype)
    return buffer.getvalue()


SOUND = noise(4, RATE)
FLAC = encode(SOUND, "FLAC")
WAV = encode(SOUND, "WAV")
SONG = (0.3 * np.sin(np.arange(4 * 44_100) ** 1.5 / 4000) + noise(4, 44_100) / 2e6).astype(np.float32)


def frames_of(flac, folder, block_frames=FRAME):
    """What stands before the first frame of a FLAC file, and its frames."""
    path = folder / "frames.flac"
    path.write_bytes(flac)
    with path.open("rb", buffering=0) as file:
        starts = [offset for offset, _ in flac_headers(file, block_frames)]
    ends = [*starts[1:], len(flac)]
    return flac[: starts[0]], [flac[start:end] for start, end in zip(starts, ends, strict=True)]


@pytest.fixture
def damaged(tmp_path):
    """Writes a recording of four seconds of which a function has changed the list of frames."""

    def write(change, flac=FLAC):
        head, frames = frames_of(flac, tmp_path)
        changed = change(frames)
        path = tmp_path / "damaged.flac"
        path.write_bytes(head + b"".join(frames if changed is None else changed))
        return path

    return write


def flip(frames, *indices):
    for index in indices:
        middle = len(frames[index]) // 2
        frames[index] = frames[index][:middle] + bytes([frames[index][middle] ^ 1]) + frames[index][middle + 1 :]


def lost(path, sound=SOUND, order=slice(None), window=FRAME):
    """Indices of the windows, side by side, that one reader refuses; the others hold the right sound."""
    refused = set()
    with RecordingReader(path) as reader:
        for index in list(range(-(-len(sound) // window)))[order]:
            start = index * window
            samples = min(window, len(sound) - start)
            try:
                found = reader.read(start, samples)
            except UndecodableError:
                refused.add(index)
            else:
                np.testing.assert_array_equal(as_int16(found), sound[start : start + samples])
    return refused


# Both decoders


LOSSLESS = [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "PCM_32")]
LOSSLESS += [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("W64", "PCM_16"), ("AU", "PCM_16")]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("format_", "subtype"), LOSSLESS)
def test_both_decoders_give_the_same_samples(tmp_path, format_, subtype, channels):
    path = tmp_path / "sound"
    sound = np.stack([noise(3, 44_100, seed) for seed in range(channels)], axis=1)
    path.write_bytes(encode(sound, format_, subtype, 44_100))
    one, other = SoundfileDecoder(path), PyavDecoder(path)
    assert (one.sample_rate_hz, one.channels) == (other.sample_rate_hz, other.channels) == (44_100, channels)
    for first, last in ((0, 1000), (100_000, 132_300), (50_000, 60_000), (132_299, 132_300), (0, 132_300)):
        ((start, found),) = other.read(first, last)
        assert start == first
        np.testing.assert_array_equal(found, one.read(first, last))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("format_", "subtype"), [("MP3", None), ("OGG", "VORBIS")])
def test_both_decoders_put_lossy_sound_at_the_same_place(tmp_path, format_, subtype, channels):
    path = tmp_path / "sound"
    path.write_bytes(encode(np.stack([SONG, SONG[::-1]], axis=1)[:, :channels], format_, subtype, 44_100))
    whole = SoundfileDecoder(path).read(0, len(SONG))
    decoder = PyavDecoder(path)
    assert decoder.count() == len(SONG)
    for first, last in ((0, 1000), (50_000, 60_000), (20_000, 21_000), (176_000, 176_400), (0, 176_400)):
        ((start, found),) = decoder.read(first, last)
        assert start == first
        assert np.abs(found - whole[first:last]).max() < 1e-5
    if channels == 1:
        assert np.corrcoef(whole, SONG)[0, 1] > 0.99


@pytest.mark.parametrize(("format_", "tolerance"), [("FLAC", 0), ("WAV", 0), ("MP3", 1e-5)])
def test_pyav_reads_windows_of_a_long_recording_in_any_order(tmp_path, format_, tolerance):
    path = write(tmp_path, encode(noise(90, 16_000), format_, rate=16_000))
    whole = SoundfileDecoder(path).read(0, 90 * 16_000)
    decoder = PyavDecoder(path)
    starts = np.random.default_rng(0).integers(0, len(whole) - 50_000, 25)
    for start in (*starts, *np.sort(starts), *range(0, 400_000, 40_000)):
        ((first, found),) = decoder.read(start, start + 50_000)
        assert first == start
        assert np.abs(found - whole[start : start + 50_000]).max() <= tolerance


def test_a_reader_tells_which_decoder_gave_the_last_window(damaged):
    with RecordingReader(damaged(lambda frames: frames.insert(5, bytes(3000)))) as reader:
        assert reader.decoder is None
        reader.read(0, 100)
        assert reader.decoder == "soundfile"
        reader.read(0, 6 * FRAME)
        assert reader.decoder == "PyAV"
        reader.read(-200, 100)
        assert reader.decoder is None


def test_a_decoder_that_stops_short_gives_way_to_the_other(damaged, monkeypatch):
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **settings: read(*args, **settings)[:-1])
    path = damaged(lambda frames: None)
    assert lost(path) == set()
    with RecordingReader(path, 22_050) as reader:
        found = reader.read(1000, 5000)
        assert reader.decoder == "PyAV"
    monkeypatch.undo()
    with RecordingReader(path, 22_050) as reader:
        np.testing.assert_array_equal(reader.read(1000, 5000), found)


# Damaged FLAC


def drop(frames, *indices):
    return [frame for index, frame in enumerate(frames) if index not in indices]


def zero(frames, first, last):
    frames[first:last] = [bytes(len(b"".join(frames[first:last])))]


def garble(frames, first, last):
    frames[first:last] = [np.random.default_rng(0).bytes(len(b"".join(frames[first:last])))]


DAMAGES = {
    "nothing": (lambda frames: None, set()),
    "a bit is flipped": (lambda frames: flip(frames, 9), {9}),
    "bits are flipped here and there": (lambda frames: flip(frames, 3, 5, 6, 8, 28), {3, 5, 6, 8, 28}),
    "a bit is flipped in the first frame": (lambda frames: flip(frames, 0), {0}),
    "a bit is flipped in the last frame": (lambda frames: flip(frames, LAST), {LAST}),
    "a frame is not there": (lambda frames: drop(frames, 12), {12}),
    "the first frames are not there": (lambda frames: drop(frames, 0, 1), {0, 1}),
    "the last frame but one is not there": (lambda frames: drop(frames, 30), {30}),
    "the end is cut off": (lambda frames: [*frames[:20], frames[20][:-1]], set(range(20, 32))),
    "almost all is cut off": (lambda frames: [frames[0][:500]], set(range(32))),
    "frames are zeros": (lambda frames: zero(frames, 10, 14), {10, 11, 12, 13}),
    "frames are noise": (lambda frames: garble(frames, 10, 14), {10, 11, 12, 13}),
    "the middle of a frame to that of another is cut out": (
        lambda frames: [*frames[:7], frames[7][:3000] + frames[11][3000:], *frames[12:]],
        {7, 8, 9, 10, 11},
    ),
    "something stands between frames": (lambda frames: frames.insert(16, b"\xff\xf8" * 4000), set()),
    "something stands behind the last frame": (lambda frames: frames.append(bytes(9000)), set()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_damaged_is_read_and_what_is_damaged_is_refused(damaged, damage):
    change, frames = DAMAGES[damage]
    path = damaged(change)
    assert lost(path) == frames
    assert lost(path, order=slice(None, None, -1)) == frames


@pytest.mark.parametrize("damage", DAMAGES)
def test_blocks_hold_every_promised_frame_once_and_never_a_false_one(damaged, damage):
    change, frames = DAMAGES[damage]
    for block_frames in (1000, 50_000, 10**6):
        missing, at = np.zeros(len(SOUND), bool), 0
        with RecordingReader(damaged(change)) as reader:
            for block in reader.blocks(block_frames):
                assert block.start == at
                at += block.frames
                if block.sound is None:
                    assert block.decoder is None
                    assert "soundfile: " in block.reason
                    assert "PyAV: no intact sound" in block.reason
                    missing[block.start : at] = True
                else:
                    assert block.decoder in ("soundfile", "PyAV")
                    np.testing.assert_array_equal(as_int16(block.sound), SOUND[block.start : at])
        assert at == len(SOUND)
        assert set(np.flatnonzero(missing) // FRAME) == frames
        assert missing.sum() == sum(min(FRAME, len(SOUND) - index * FRAME) for index in frames)


PLACES = st.integers(90, len(FLAC) - 10)
CHANGES = st.tuples(
    st.sampled_from(["flip", "cut", "zeros", "move", "copy", "end"]), PLACES, PLACES, st.integers(1, 40_000)
)


@settings(max_examples=200)
@given(st.lists(CHANGES, min_size=1, max_size=4), st.lists(st.integers(-100, 4 * RATE), min_size=3, max_size=8))
def test_no_damage_makes_a_reader_give_other_sound_than_was_recorded(changes, starts):
    content = bytearray(FLAC)
    for kind, place, other, length in changes:
        piece = content[other : other + length]
        if kind == "flip":
            content[place : place + 1] = bytes(byte ^ 4 for byte in content[place : place + 1])
        elif kind == "end":
            del content[max(place, 5000) :]
        elif kind == "move":
            content[place:place] = piece
        else:
            content[place : place + length] = {"cut": b"", "zeros": bytes(length), "copy": piece}[kind]
    with tempfile.TemporaryDirectory() as folder, RecordingReader(write(Path(folder), content)) as reader:
        for start in starts:
            with suppress(UndecodableError):
                expected = np.pad(SOUND, (100, 2500))[100 + start : 2600 + start]
                np.testing.assert_array_equal(as_int16(reader.read(start, 2500)), expected)


def test_a_refused_window_is_named_with_its_time_and_what_the_decoders_said(damaged):
    path = damaged(lambda frames: flip(frames, 9))
    with RecordingReader(path) as reader:
        with pytest.raises(UndecodableError) as caught:
            reader.read(30_000, 10_000)
        assert str(caught.value).startswith(f"{path} cannot be decoded at 1.152 s (soundfile: ")
        assert "; PyAV: no intact sound): the file is damaged there" in str(caught.value)
        np.testing.assert_array_equal(as_int16(reader.read(20_000, 10_000)), SOUND[20_000:30_000])
        np.testing.assert_array_equal(as_int16(reader.read(41_000, 10_000)), SOUND[41_000:51_000])


@pytest.mark.parametrize(
    ("subtype", "channels", "rate"), [("PCM_24", 1, 44_100), ("PCM_16", 2, 48_000), ("PCM_24", 2, 96_000)]
)
def test_other_depths_rates_and_channels_are_read_round_damage(tmp_path, damaged, subtype, channels, rate):
    sound = np.stack([noise(3, rate, seed) for seed in range(channels)], axis=1)
    flac = encode(sound.astype(np.int32) * 65536 + 32, "FLAC", subtype, rate)
    (tmp_path / "whole.flac").write_bytes(flac)
    path = damaged(lambda frames: flip(frames, 10), flac)
    refused = []
    with RecordingReader(tmp_path / "whole.flac", RATE) as whole, RecordingReader(path, RATE) as reader:
        for start in range(0, 3 * RATE, 2000):
            try:
                found = reader.read(start, 2000)
            except UndecodableError:
                refused.append(start / RATE)
            else:
                np.testing.assert_array_equal(found, whole.read(start, 2000))
    begin_s, end_s = 10 * FRAME / rate, 11 * FRAME / rate
    margin_s = 4096 / RATE + 2000 / RATE  # the resampler's filter, and a window
    assert min(refused) >= begin_s - margin_s - 0.01
    assert max(refused) <= end_s + margin_s
    assert any(begin_s - 2000 / RATE < start < end_s for start in refused)


def test_a_missing_frame_is_not_taken_for_silence_nor_silence_for_damage(damaged):
    silent = SOUND.copy()
    silent[2 * FRAME : 9 * FRAME] = 0
    flac = encode(silent, "FLAC")
    assert lost(damaged(lambda frames: None, flac), silent) == set()
    assert lost(damaged(lambda frames: drop(frames, 5, 20), flac), silent) == {5, 20}
    assert lost(damaged(lambda frames: drop(frames, 12)), window=100) == set(
        range(12 * FRAME // 100, 13 * FRAME // 100 + 1)
    )


def test_a_long_hole_of_zeros_does_not_hold_up_the_reader(tmp_path):
    sound = noise(60, RATE)
    head, frames = frames_of(encode(sound, "FLAC"), tmp_path)
    zero(frames, 100, 400)
    path = tmp_path / "hole.flac"
    path.write_bytes(head + b"".join(frames))
    assert lost(path, sound, order=slice(None, None, 7)) == {*range(0, 469, 7)} & {*range(100, 400)}
    with RecordingReader(path) as reader:
        assert sum(block.frames for block in reader.blocks(RATE) if block.sound is None) == 300 * FRAME


def test_long_flac_is_read_without_calls_that_windows_lacks(tmp_path, damaged, monkeypatch):
    for name in ("pread", "preadv", "fork", "register_at_fork", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    sound = noise(30, RATE)
    flac = encode(sound, "FLAC")
    assert len(flac) > 2**20
    assert lost(write(tmp_path, flac), sound, window=RATE) == set()
    assert lost(damaged(lambda frames: flip(frames, 20), flac), sound, window=RATE) == {2}


# FLAC whose header is wrong


def with_length(flac, frames):
    """Sets the number of frames in a FLAC file's header; 0 stands for not known."""
    word = int.from_bytes(flac[18:26])
    return flac[:18] + (word >> 36 << 36 | frames).to_bytes(8) + flac[26:]


def without_seek_table(flac):
    """libsndfile writes two blocks: stream information, and a table or comment."""
    length = int.from_bytes(flac[43:46])
    return flac[:4] + bytes([flac[4] | 128]) + flac[5:42] + flac[46 + length :]


def test_flac_without_a_length_is_counted_up_to_a_limit(tmp_path):
    path = write(tmp_path, with_length(FLAC, 0))
    assert read_header(path, 4).frames == len(SOUND)
    with pytest.raises(TooLongError):
        read_header(path, 3.9)


def write(folder, content, name="recording.flac"):
    path = folder / name
    path.write_bytes(content)
    return path


def test_sound_within_a_header_that_promises_too_much_is_read(tmp_path):
    path = write(tmp_path, with_length(FLAC, 10 * RATE))
    assert read_header(path).duration_s == 10
    assert lost(path) == set()
    with RecordingReader(path) as reader:
        with pytest.raises(UndecodableError, match=r"cannot be decoded at 4\.000 s"):
            reader.read(3 * RATE, 2 * RATE)
        blocks = list(reader.blocks(RATE))
    assert [block.start for block in blocks if block.sound is None] == [4 * RATE]
    assert sum(block.frames for block in blocks) == 10 * RATE


def test_a_header_that_promises_all_the_samples_of_the_world_does_not_hold_up_the_reader(tmp_path):
    path = write(tmp_path, with_length(FLAC, 2**36 - 1))
    assert lost(path) == set()
    with RecordingReader(path) as reader:
        assert sum(block.frames for block in reader.blocks(RATE) if block.sound is not None) == 4 * RATE


@pytest.mark.parametrize("strip", [without_seek_table, lambda flac: flac])
def test_a_stream_without_a_length_is_measured_by_decoding_it(tmp_path, strip):
    path = write(tmp_path, strip(with_length(FLAC, 0)))
    assert read_header(path).frames == len(SOUND)
    assert lost(path) == set()
    assert lost(path, order=slice(None, None, -1)) == set()


def test_no_seek_table_is_needed(tmp_path, damaged):
    assert lost(write(tmp_path, without_seek_table(FLAC))) == set()
    assert lost(damaged(lambda frames: flip(frames, 9), without_seek_table(FLAC))) == {9}


def test_a_file_with_a_broken_header_is_refused(tmp_path):
    comment = FLAC[:42] + b"\x84\xff\xff\xff" + FLAC[46:]  # a comment longer than the file
    for content in (comment, FLAC[4:], FLAC[:30], FLAC[86:]):
        path = write(tmp_path, content)
        with pytest.raises(UserError, match=re.escape(f"{path} ")):
            RecordingReader(path)


def test_a_file_that_only_pyav_opens_is_read(tmp_path):
    path = write(tmp_path, encode(SOUND, "CAF")[: 2 * 100_000])
    with pytest.raises(DecodingError):
        SoundfileDecoder(path)
    with RecordingReader(path) as reader:
        frames = next(reader.blocks(10**6)).frames
        assert (reader.decoder, reader.encoding, reader.header.frames) == ("PyAV", "caf pcm_s16be s16", len(SOUND))
    assert 95_000 < frames < 100_000
    assert lost(path, SOUND[:frames]) == set()


def numbered_by_sample(frame, sample):
    """A FLAC frame of 4096 or fewer samples at 32 kHz, numbered by its first sample, with true checksums."""
    old = 4 + 1 + {6: 1, 7: 2}.get(frame[2] >> 4, 0)  # up to 127 frames: numbers of one byte
    number = bytes([0xE0 | sample >> 12, 0x80 | sample >> 6 & 63, 0x80 | sample & 63])
    head = frame[:1] + bytes([frame[1] | 1]) + frame[2:4] + number + frame[5:old]
    for table, size, start, end in ((CRC8, 8, old + 1, -2), (CRC16, 16, 0, 0)):
        checksum = 0
        for byte in head:
            checksum = (checksum << 8 & (1 << size) - 1) ^ table[checksum >> (size - 8) ^ byte]
        head += checksum.to_bytes(size // 8) + (frame[start:end] if end else b"")
    return head


def test_frames_may_have_any_length_where_they_are_numbered_by_sample(tmp_path):
    head, first = frames_of(encode(SOUND[:10_000], "FLAC"), tmp_path)
    _, second = frames_of(encode(SOUND[10_000:60_000], "FLAC"), tmp_path)
    frames = [numbered_by_sample(frame, index * FRAME) for index, frame in enumerate(first)]
    frames += [numbered_by_sample(frame, 10_000 + index * FRAME) for index, frame in enumerate(second)]
    path = write(tmp_path, with_length(head, 60_000) + b"".join(frames))
    np.testing.assert_array_equal(SoundfileDecoder(path).read(0, 60_000), SOUND[:60_000] / np.float32(32768))
    ((start, found),) = PyavDecoder(path).read(0, 60_000)
    assert start == 0
    np.testing.assert_array_equal(found, SOUND[:60_000] / np.float32(32768))
    path.write_bytes(with_length(head, 60_000) + b"".join(frames[:4] + frames[5:]))
    assert [(at, len(found)) for at, found in PyavDecoder(path).read(0, 60_000)] == [(0, 14_096), (18_192, 41_808)]


def test_frames_are_found_by_the_number_in_their_header(tmp_path):
    path = write(tmp_path, encode(noise(30, RATE), "FLAC"))
    with path.open("rb", buffering=0) as file:
        found = list(flac_headers(file, FRAME))
        places = {place for _, place in found}
        assert places >= set(range(0, 30 * RATE - FRAME, FRAME))
        for sample in (0, 1, 500_000, 30 * RATE - 1):
            offset = find_flac_frame(file, FRAME, sample)
            near = [place for start, place in found if offset <= start < offset + 2**16]
            assert not offset or (offset, near[0]) in found
            assert min(near) <= sample < max(near) + FRAME


def with_checksum(header):
    checksum = 0
    for byte in header:
        checksum = CRC8[checksum ^ byte]
    return header + bytes([checksum])


def test_what_only_looks_like_a_frame_header_does_not_mislead_the_search(tmp_path):
    sound = noise(60, RATE)
    head, frames = frames_of(encode(sound, "FLAC"), tmp_path)
    # Frame number 1, or 2047, in front of every third frame: the search meets them at many of its steps.
    for number in (b"\x01", b"\xdf\xbf"):
        false = with_checksum(frames[100][:4] + number) + bytes(20)
        path = write(tmp_path, head + b"".join(false * (at % 3 == 0) + frame for at, frame in enumerate(frames)))
        for start in range(RATE, 59 * RATE, 19 * RATE):
            ((first, found),) = PyavDecoder(path).read(start, start + RATE)
            assert first == start
            np.testing.assert_array_equal(found, sound[start : start + RATE] / np.float32(32768))


def test_thousands_of_false_frame_headers_do_not_make_the_search_long(tmp_path, monkeypatch):
    head, frames = frames_of(FLAC, tmp_path)
    false = with_checksum(frames[0][:4] + b"\x01") * 3000
    path = write(tmp_path, head + b"".join([*frames[:16], false, *frames[16:]]))
    searched = []

    def possible_ends(data):
        searched.append(len(data))
        return real_possible_ends(data)

    monkeypatch.setattr("kenya_birds.data.pyav_decoder.possible_ends", possible_ends)
    ((start, found),) = PyavDecoder(path).read(0, len(SOUND))
    assert start == 0
    np.testing.assert_array_equal(found, SOUND / np.float32(32768))
    assert sum(searched) < 2**23


@pytest.mark.parametrize(("index", "bits"), [(2, 0x0F), (2, 0xCF), (3, 0xB8), (3, 0x06), (3, 0x09)])
def test_headers_with_values_that_the_format_forbids_are_none(tmp_path, index, bits):
    path = write(tmp_path, FLAC)
    with path.open("rb", buffering=0) as file:
        offset, _ = next(flac_headers(file, FRAME))
    header = bytearray(FLAC[offset : offset + 5])
    header[index] = bits
    path.write_bytes(with_checksum(bytes(header)) + bytes(20))
    with path.open("rb", buffering=0) as file:
        assert not list(flac_headers(file, FRAME))
    path.write_bytes(with_checksum(FLAC[offset : offset + 5]) + bytes(20))
    with path.open("rb", buffering=0) as file:
        assert list(flac_headers(file, FRAME)) == [(0, 0)]


# WAV


def wav_of(data_bytes, content=WAV):
    at = content.index(b"data") + 4
    return content[:at] + data_bytes.to_bytes(4, "little") + content[at + 4 :]


@pytest.mark.parametrize("wrong", [WAV[: 44 + 2 * 50_000], WAV[: 44 + 2 * 50_000 + 1]])
def test_a_wav_file_that_was_cut_off_is_not_taken_for_a_short_one(tmp_path, wrong):
    path = write(tmp_path, wrong, "cut.wav")
    assert read_header(path).frames == len(SOUND)
    assert lost(path) == set(range(12, 32))
    with RecordingReader(path) as reader, pytest.raises(UndecodableError, match=r"at 1\.5\d\d s"):
        reader.read(0, 64_000)


@pytest.mark.parametrize(
    ("format_", "subtype"),
    [("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("WAV", "NMS_ADPCM_16"), ("AIFF", "IMA_ADPCM")],
)
def test_compressed_sound_in_a_wav_file_may_be_cut_off(tmp_path, format_, subtype):
    whole = encode(SOUND[:RATE], format_, subtype)
    for share in range(1, 100, 7):
        path = write(tmp_path, whole[: len(whole) * share // 100])
        with suppress(UserError), RecordingReader(path) as reader:
            assert sum(block.frames for block in reader.blocks(1000)) == reader.header.frames


def test_a_wav_file_may_promise_too_much_too_little_or_nothing(tmp_path):
    assert read_header(write(tmp_path, wav_of(10**6), "much.wav")).frames == 500_000
    assert lost(tmp_path / "much.wav") == set()
    assert read_header(write(tmp_path, wav_of(2 * 16 * FRAME), "little.wav")).frames == len(SOUND)
    assert lost(tmp_path / "little.wav") == set(range(16, 32))
    for size in (0, 0xFFFFFFFF, 0x7FFFFFFF - 36):
        path = write(tmp_path, wav_of(size), "nothing.wav")
        assert read_header(path).frames == len(SOUND)
        assert lost(path) == set()


# MP3 and Ogg, in which no sample's place is certain behind damage


def song(format_, subtype=None):
    return encode(SONG, format_, subtype, 44_100)


def near(path, sound, window=4410):
    """Starts of the windows that are read, each close to the sound."""
    read = []
    with RecordingReader(path) as reader:
        for start in range(0, len(sound), window):
            try:
                found = reader.read(start, window)
            except UndecodableError:
                continue
            assert np.abs(as_int16(found).astype(int) - sound[start : start + window]).max() <= 1
            read.append(start)
    return read


@pytest.fixture(params=["mp3", "ogg"])
def lossy(request, tmp_path):
    """Content, name, and the sound that a decoder makes of a whole file."""
    content = song("MP3") if request.param == "mp3" else song("OGG", "VORBIS")
    whole, _ = soundfile.read(write(tmp_path, content, f"whole.{request.param}"), dtype="float32")
    return content, f"broken.{request.param}", as_int16(whole).astype(int)


def test_whole_mp3_and_ogg_files_are_read(tmp_path, lossy):
    content, name, sound = lossy
    assert len(near(write(tmp_path, content, name), sound)) == 40


def test_mp3_and_ogg_are_read_up_to_damage(tmp_path, lossy):
    content, name, sound = lossy
    half = len(content) // 2
    for broken in (content[:half] + bytes(3000) + content[half + 3000 :], content[:half] + content[half + 3000 :]):
        read = near(write(tmp_path, broken, name), sound)
        assert read == list(range(0, 4410 * len(read), 4410))
        assert 10 < len(read) < 25


def test_an_mp3_or_ogg_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path, lossy):
    content, name, sound = lossy
    path = write(tmp_path, content[: len(content) // 2], name)
    read = near(path, sound[: read_header(path).frames // 4410 * 4410])
    assert 10 < len(read) < 30
    assert read == list(range(0, 4410 * len(read), 4410))
    assert (read_header(path).frames == len(sound)) == name.endswith("mp3")  # only MP3 says how long it should be


# What is not sound


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.mp3", "a.ogg", "a"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not audio", WAV[:30], b"#EXTM3U\n#EXTINF:1\nother.wav\n", b"ffconcat version 1.0\nfile other.wav\n"],
)
def test_files_without_sound_and_lists_of_other_files_are_refused(tmp_path, name, content):
    write(tmp_path, WAV, "other.wav")
    path = write(tmp_path, content, name)
    for open_recording in (read_header, RecordingReader):
        with pytest.raises(
            UserError, match=re.escape(f"{path} ") + r"(cannot be read as audio \(soundfile: .*; PyAV: )"
        ):
            open_recording(path)


@pytest.mark.parametrize(
    ("format_", "subtype"),
    [("WAV", "G721_32"), ("AU", "G721_32"), ("AU", "G723_24"), ("AU", "G723_40"), ("AIFF", "GSM610")],
)
def test_sound_that_ffmpeg_reads_as_another_codec_is_refused(tmp_path, format_, subtype):
    path = tmp_path / "sound"
    path.write_bytes(encode(SOUND[:8000], format_, subtype))
    with pytest.raises(UserError, match=f"sound is {format_} {subtype}, which cannot be read exactly: convert it to"):
        read_header(path)


def test_a_file_with_a_header_and_no_samples_is_refused(tmp_path):
    for content in (WAV[:44], encode(SOUND[:0], "WAV")):
        with pytest.raises(UserError, match="has no samples"):
            read_header(write(tmp_path, content))


def test_a_file_that_goes_away_while_it_is_read_is_an_error(damaged):
    path = damaged(lambda frames: flip(frames, 9))
    with RecordingReader(path) as reader:
        path.unlink()
        for _ in range(2):
            with pytest.raises(UndecodableError, match=r"No such file"):
                reader.read(30_000, 10_000)


def test_decoders_say_why_they_do_not_open_a_file(tmp_path):
    path = write(tmp_path, b"not audio")
    for decoder in (SoundfileDecoder, PyavDecoder):
        with pytest.raises(DecodingError, match=r"^[^:]*[^:.]$"):
            decoder(path)
