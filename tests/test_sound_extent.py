"""Files whose header tells of more or less sound than they hold."""

import io
import os
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from archives import as_int16, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.data import sound_extent
from kenya_birds.data.audio import RecordingReader, UndecodableError, read_header
from kenya_birds.data.sound_extent import LAYOUTS, SoundBytes, find_sound
from kenya_birds.errors import UserError

RATE = 32_000
SOUND = noise(4, RATE)
FLOATS = SOUND / np.float32(32768)
BYTES = SOUND.astype("<i2").tobytes()
HALF = len(BYTES) // 2
UNKNOWN = 0xFFFFFFFF


def chunk(name, content, size=None, pad=True):
    size = len(content) if size is None else size
    return name + struct.pack("<I", size) + content + b"\0" * (pad and len(content) % 2)


def riff(*chunks, size=None, name=b"RIFF"):
    content = b"WAVE" + b"".join(chunks)
    return name + struct.pack("<I", len(content) if size is None else size) + content


FMT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
DATA = chunk(b"data", BYTES)
NOTE = chunk(b"LIST", b"INFOICMT" + struct.pack("<I", 60) + b"abc " * 15)
GUANO = chunk(b"guan", b"GUANO|Version: 1.0\nx")
JUNK = np.random.default_rng(0).bytes(2**18)


def ds64(data_bytes):
    return chunk(b"ds64", struct.pack("<QQQI", data_bytes + 72, data_bytes, data_bytes // 2, 0))


def encode(format_, subtype="PCM_16", sound=SOUND, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format=format_, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(content, name="recording.wav"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def read(path):
    """Length by the header, and the sound that is read, which is followed by one loss or none."""
    with RecordingReader(path) as reader:
        blocks = list(reader.blocks(50_000))
        assert sum(block.frames for block in blocks) == reader.header.frames
        here = [block for block in blocks if block.sound is not None]
        assert blocks[: len(here)] == here
        sound = np.concatenate([block.sound for block in here])
        for block in blocks[len(here) :]:
            assert block.reason
        # Windows are what the blocks are.
        for start in (0, 30_000, len(sound) - 999):
            np.testing.assert_array_equal(reader.read(start, 999), sound[start : start + 999])
        if len(sound) < reader.header.frames:
            with pytest.raises(UndecodableError, match=r"cannot be decoded at \d+\.\d{3} s \(.+\): "):
                reader.read(len(sound) - 10, 20)
    return reader.header.frames, sound


HEALTHY = {
    "plain": riff(FMT, DATA),
    "notes before and behind": riff(NOTE, FMT, chunk(b"fact", bytes(4)), DATA, GUANO, NOTE),
    "many notes": riff(FMT, *[NOTE] * 300, DATA),
    "an odd note": riff(FMT, DATA, chunk(b"wamd", b"abc"), NOTE),
    "an odd note that is not aligned": riff(FMT, DATA, chunk(b"wamd", b"abc", pad=False), NOTE),
    "a note that is cut off": riff(FMT, DATA, NOTE)[:-30],
    "zeros behind": riff(FMT, DATA) + bytes(2**20),
    "a little junk behind": riff(FMT, DATA) + JUNK[:5001],
    "a tag behind": riff(FMT, DATA) + b"ID3\4\0\0" + JUNK,
    "size 0": riff(FMT, chunk(b"data", BYTES, size=0), size=0),
    "size -1": riff(FMT, chunk(b"data", BYTES, size=UNKNOWN), size=UNKNOWN),
    "size -1 but for a header": riff(FMT, chunk(b"data", BYTES, size=UNKNOWN - 36), size=UNKNOWN),
    "largest signed size": riff(FMT, chunk(b"data", BYTES, size=2**31 - 1), size=2**31 - 1),
    "largest signed size but for a header": riff(FMT, chunk(b"data", BYTES, size=2**31 - 37), size=2**31 - 1),
    "the size of the file": riff(FMT, chunk(b"data", BYTES, size=len(BYTES) + 44)),
    "the size of RIFF": riff(FMT, chunk(b"data", BYTES, size=len(BYTES) + 36)),
    "RF64": riff(ds64(len(BYTES)), FMT, chunk(b"data", BYTES, size=UNKNOWN), NOTE, size=UNKNOWN, name=b"RF64"),
    "BW64": riff(ds64(len(BYTES)), FMT, chunk(b"data", BYTES, size=UNKNOWN), NOTE, size=UNKNOWN, name=b"BW64"),
    "RF64 of a stream": riff(ds64(0), FMT, chunk(b"data", BYTES, size=UNKNOWN), size=UNKNOWN, name=b"RF64"),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_wav_file_is_read_whole_without_a_loss(write, case):
    path = write(HEALTHY[case])
    frames, sound = read(path)
    assert frames == len(SOUND)
    np.testing.assert_array_equal(sound, FLOATS)
    extent = find_sound(path)
    assert (extent.lost_bytes, extent.reason) == (0, "")


@pytest.mark.parametrize("pad", [True, False])
def test_half_a_sample_at_the_end_is_no_sample(write, pad):
    for behind in ((), (NOTE, GUANO)):
        frames, sound = read(write(riff(FMT, chunk(b"data", BYTES[:-1], pad=pad), *behind)))
        assert frames == len(sound) == len(SOUND) - 1


# Bytes of sound that are read, those that are lost, and why.
CONTRADICTIONS = {
    "a missing end": (riff(FMT, DATA)[:-1001], len(BYTES) - 1001, 1001, "the header states 1001 more bytes"),
    "a missing end behind many notes": (
        riff(FMT, *[NOTE] * 300, DATA)[:-HALF],
        HALF,
        HALF,
        "the header states 128000 more bytes of sound than the file has",
    ),
    "a missing end of RF64": (
        riff(ds64(len(BYTES)), FMT, chunk(b"data", BYTES, size=UNKNOWN), name=b"RF64")[:-HALF],
        HALF,
        HALF,
        "128000 more bytes",
    ),
    "a size that is too small": (riff(FMT, chunk(b"data", BYTES, size=HALF)), HALF, HALF, "128000 bytes follow after"),
    "a size that is too small in RF64": (
        riff(ds64(HALF), FMT, chunk(b"data", BYTES, size=UNKNOWN), name=b"RF64"),
        HALF,
        HALF,
        "they may be sound, too",
    ),
    "much junk behind": (riff(FMT, DATA, NOTE) + JUNK, len(BYTES), len(JUNK), "they may be sound, too"),
    "two data chunks": (
        riff(FMT, chunk(b"data", BYTES[:HALF]), NOTE, chunk(b"data", BYTES[HALF:])),
        HALF,
        HALF,
        "a second data chunk, which is not read",
    ),
    "two data chunks, the second cut off": (
        riff(FMT, chunk(b"data", BYTES[:HALF]), chunk(b"data", BYTES[HALF:]))[:-1000],
        HALF,
        HALF - 1000,
        "a second data chunk, which is not read",
    ),
    "two files": (riff(FMT, chunk(b"data", BYTES[:HALF])) + riff(FMT, DATA), HALF, len(BYTES) + 36, "a second file"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_sound_that_a_wav_file_does_not_have_or_does_not_name_is_lost(write, case):
    content, here_bytes, lost_bytes, reason = CONTRADICTIONS[case]
    path = write(content)
    frames, sound = read(path)
    assert frames == (here_bytes + lost_bytes) // 2
    np.testing.assert_array_equal(sound, FLOATS[: here_bytes // 2])
    with RecordingReader(path) as reader, pytest.raises(UndecodableError, match=reason):
        reader.read(0, frames)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("behind", [b"", NOTE, NOTE + GUANO])
def test_a_size_that_began_again_at_zero_is_mended(write, monkeypatch, turns, behind):
    monkeypatch.setattr(sound_extent, "WRAP_BYTES", 2**16)
    content = riff(FMT, chunk(b"data", BYTES, size=len(BYTES) - turns * 2**16)) + behind
    frames, sound = read(write(content))
    assert frames == len(SOUND)
    np.testing.assert_array_equal(sound, FLOATS)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the zeros may be written")
@pytest.mark.parametrize("declared", [lambda size: size % 2**32, lambda size: UNKNOWN, lambda size: 0])
def test_hours_beyond_the_four_gibibytes_of_a_wav_file_are_read(write, declared):
    size = 5 * 2**30
    path = write(riff(FMT, chunk(b"data", BYTES, size=declared(size))))
    os.truncate(path, 44 + size)
    with path.open("r+b") as file:
        file.seek(44 + size - len(BYTES))
        file.write(BYTES)
    assert read_header(path).frames == size // 2
    with RecordingReader(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 1000), FLOATS[:1000])
        np.testing.assert_array_equal(reader.read(size // 2 - 1000, 1000), FLOATS[-1000:])
        assert reader.decoder == "soundfile"


def test_a_data_chunk_without_samples_before_others_is_empty(write):
    for content in (riff(FMT, chunk(b"data", b""), NOTE), riff(FMT, chunk(b"data", b"")), riff(FMT, NOTE)):
        with pytest.raises(UserError, match=r"has no samples|cannot be read as audio"):
            read_header(write(content))


@pytest.mark.parametrize(
    ("tag", "channels", "bits", "format_", "subtype"),
    [
        (1, 1, 8, "WAV", "PCM_U8"),
        (1, 2, 16, "WAV", "PCM_16"),
        (1, 2, 24, "WAV", "PCM_24"),
        (1, 1, 32, "WAV", "PCM_32"),
        (3, 2, 32, "WAV", "FLOAT"),
        (3, 1, 64, "WAV", "DOUBLE"),
        (6, 1, 8, "WAV", "ALAW"),
        (7, 2, 8, "WAV", "ULAW"),
        (0xFFFE, 2, 24, "WAVEX", "PCM_24"),
    ],
)
def test_samples_are_read_alike_with_and_without_the_help_of_the_header(write, tag, channels, bits, format_, subtype):
    sound = np.stack([noise(1, 44_100, seed) for seed in range(channels)], axis=1) / 32768
    whole = encode(format_, subtype, sound, 44_100)
    at = whole.index(b"data") + 4
    expected = read(write(whole, "whole.wav"))[1]
    # libsndfile does not open two data chunks, and finds no sound where the size is 0.
    for changed in (whole[:at] + bytes(4) + whole[at + 4 :], whole + chunk(b"data", JUNK)):
        path = write(changed)
        form = find_sound(path).form
        assert (form.block_bytes, form.raw["subtype"]) == (channels * bits // 8, subtype)
        np.testing.assert_array_equal(read(path)[1], expected)
        with RecordingReader(path) as reader:
            assert reader.encoding == f"WAV {subtype}"
            assert (reader.header.channels, reader.header.sample_rate_hz) == (channels, 44_100)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("block_bytes", [0, 1, 2, 3, 4, 8])
def test_a_wrong_size_of_a_block_does_not_change_the_sound(write, block_bytes, channels):
    fmt = chunk(b"fmt ", struct.pack("<HHIIHH", 1, channels, RATE, 2 * RATE, block_bytes, 16))
    stereo = np.stack([SOUND, SOUND], axis=1)[:, :channels]
    content = riff(fmt, chunk(b"data", stereo.astype("<i2").tobytes()))
    frames, sound = read(write(content))
    assert frames == len(SOUND)
    np.testing.assert_array_equal(sound, FLOATS)
    cut = content[: 44 + HALF]
    assert read_header(write(cut)).frames == len(SOUND)


@pytest.mark.parametrize(("bits", "sample_bytes"), [(12, 2), (20, 3), (24, 4), (20, 4)])
def test_samples_with_unused_bits_are_read(write, bits, sample_bytes):
    stored = SOUND.astype("<i4") << (8 * sample_bytes - 16)
    content = b"".join(int(value).to_bytes(sample_bytes, "little", signed=True) for value in stored[:RATE])
    fmt = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, sample_bytes * RATE, sample_bytes, bits))
    frames, sound = read(write(riff(fmt, chunk(b"data", content), DATA)))
    assert frames == RATE + len(BYTES) // sample_bytes
    np.testing.assert_array_equal(sound, FLOATS[:RATE])


# Format, subtype, and how exact the length is that the header promises.
CONTAINERS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"),
    ("WAVEX", "PCM_16"), ("RF64", "PCM_24"), ("W64", "PCM_16"), ("W64", "IMA_ADPCM"), ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"), ("AIFF", "IMA_ADPCM"), ("AU", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("CAF", "FLOAT"),
    ("NIST", "PCM_16"), ("FLAC", "PCM_16"),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "subtype"), CONTAINERS)
def test_a_file_that_is_cut_off_keeps_its_length(write, format_, subtype):
    whole = encode(format_, subtype)
    frames, sound = read(write(whole, "whole"))
    assert frames == len(sound)
    for behind in (bytes(5000), JUNK[:5000]):
        assert len(read(write(whole + behind))[1]) == read_header(write(whole + behind)).frames == frames
    for end in (len(whole) // 2, len(whole) // 2 + 1, len(whole) - 300):
        cut = read(write(whole[:end]))
        assert cut[0] == frames
        assert (0.9 if end > 0.9 * len(whole) else 0.4) * frames < len(cut[1]) < frames
        np.testing.assert_array_equal(cut[1], sound[: len(cut[1])])


@pytest.mark.parametrize("format_", ["VOC", "SVX", "AVR", "MAT5", "MPC2K", "PVF", "IRCAM", "PAF", "HTK"])
def test_formats_whose_missing_end_does_not_show_are_refused(write, format_):
    with pytest.raises(
        UserError, match=r"a missing end cannot be recognised in the format .*, convert it to WAV or FLAC"
    ):
        read_header(write(encode(format_)))


def test_big_endian_wav_is_read(write):
    whole = bytearray(encode("WAV"))
    big = (
        b"RIFX"
        + struct.pack(">I", len(whole) - 8)
        + b"WAVEfmt "
        + struct.pack(">IHHIIHH", 16, 1, 1, RATE, 64_000, 2, 16)
    )
    for size in (len(BYTES), 0):
        path = write(big + b"data" + struct.pack(">I", size) + SOUND.astype(">i2").tobytes())
        np.testing.assert_array_equal(read(path)[1], FLOATS)


# FLAC, whose frames bear numbers


def with_length(flac, frames):
    """Sets the number of frames in a FLAC file's header."""
    word = int.from_bytes(flac[18:26])
    return flac[:18] + (word >> 36 << 36 | frames).to_bytes(8) + flac[26:]


@pytest.mark.parametrize("seconds", [4, 20])
@pytest.mark.parametrize("told", [1, 4096, 2 * RATE, 4 * RATE - 1 - 4096, 2**36 - 1])
def test_flac_is_counted_whose_header_cannot_be_true(write, seconds, told):
    sound = noise(seconds, RATE)
    frames, found = read(write(with_length(encode("FLAC", sound=sound), told)))
    assert frames == len(sound)
    np.testing.assert_array_equal(as_int16(found), sound)


@pytest.mark.parametrize("lengths_s", [(4, 4), (1, 4), (4, 1), (30, 30), (30, 2), (2, 30)])
def test_a_flac_file_behind_another_is_lost(write, lengths_s):
    first, second = (noise(length_s, RATE, seed) for seed, length_s in enumerate(lengths_s))
    frames, found = read(write(encode("FLAC", sound=first) + encode("FLAC", sound=second)))
    np.testing.assert_array_equal(as_int16(found), first)
    assert frames == pytest.approx(len(first) + len(second), rel=0.01)


def test_other_flac_is_not_looked_through(write):
    for content in (
        encode("FLAC"),
        encode("FLAC") + bytes(500_000),
        encode("FLAC")[:60_000],
        with_length(encode("FLAC"), 0),
    ):
        assert find_sound(write(content)) is None


# Whatever stands in a file


@pytest.mark.parametrize("format_", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC"])
def test_a_file_may_end_anywhere_in_its_header(write, format_):
    whole = encode(format_, sound=SOUND[:1000])
    for end in range(0, 130, 2):
        path = write(whole[:end])
        extent = find_sound(path)
        assert extent is None or extent.begin <= extent.end
        with suppress(UserError):
            assert read_header(path).frames <= 1000


@pytest.mark.parametrize("format_", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
def test_no_field_of_a_header_ends_the_search(write, format_):
    whole = encode(format_, "IMA_ADPCM" if format_ == "AIFF" else "PCM_16", SOUND[:1000])
    for place in range(4, 100, 2):
        for value in (bytes(4), b"\xff" * 4):
            extent = find_sound(write(whole[:place] + value + whole[place + 4 :]))
            if extent is not None:
                assert 0 <= extent.begin <= extent.end
                assert extent.frames is None or extent.promised_frames(100) >= 100


@settings(max_examples=100)
@given(
    st.sampled_from([*LAYOUTS, b".snd", b"fLaC", b"NIST_1A\n   1024\n"]),
    st.binary(max_size=200),
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=6),
    st.integers(0, 3000),
)
def test_no_bytes_mislead_the_search(magic, noise_bytes, changes, length):
    formats = {b"RIFF": "WAV", b"RF64": "RF64", b"FORM": "AIFF", b"caff": "CAF", b"riff": "W64", b".snd": "AU"}
    formats |= {b"fLaC": "FLAC", b"NIST_1A\n   1024\n": "NIST"}
    content = bytearray(encode(formats[magic], sound=SOUND[:1000]) if magic in formats else magic + noise_bytes)
    for place, value in changes:
        content[place % len(content)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        path.write_bytes(content[: max(length, 1)])
        extent = find_sound(path)
        if extent is not None:
            assert 0 <= extent.begin <= extent.end
            assert extent.lost_bytes >= 0
        try:
            with RecordingReader(path) as reader:
                assert sum(block.frames for block in reader.blocks(10**6)) == reader.header.frames
        except UserError:
            pass


def test_the_bytes_of_the_sound_are_a_file(write):
    path = write(b"head" + BYTES + b"tail")
    with SoundBytes(path, 4, 4 + len(BYTES)) as file:
        buffer = bytearray(len(BYTES) + 100)
        assert file.readinto(buffer) == len(BYTES)
        assert buffer == BYTES + bytes(100)
        assert file.readinto(buffer) == 0
        assert file.seek(-10, io.SEEK_END) == file.tell() == len(BYTES) - 10
        assert (file.seek(7), file.seek(-3, io.SEEK_CUR)) == (7, 4)
        buffer = bytearray(2)
        assert (file.readinto(buffer), bytes(buffer)) == (2, BYTES[4:6])
    path.unlink()  # which Windows refuses while it is open
