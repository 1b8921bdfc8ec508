"""Compressed recordings: whole ones are read as FFmpeg decodes them, damaged ones up to the damage."""

import io
import os
import struct
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from kenya_birds.data import compressed_frames, compressed_sound, pyav_decoder
from kenya_birds.data.audio import RecordingReader, UndecodableError, read_header
from kenya_birds.data.compressed_frames import find_missing_avi, find_ogg_damage, frame_bytes, frame_count, tag_bytes
from kenya_birds.data.decoders import TooLongError
from kenya_birds.data.pyav_decoder import PyavDecoder
from kenya_birds.data.recording_check import check_recording
from kenya_birds.errors import UserError
from kenya_birds.inference.audio_stream import Reading, Stopwatch, read_windows
from kenya_birds.inference.windows import WindowGrid


def bursts(seconds, rate, channels=1, seed=0):
    """int16 sound of shape `(frames, channels)`: noise with loud bursts, for which encoders change their blocks."""
    rng = np.random.default_rng(seed)
    frames = round(seconds * rate)
    loud = np.repeat(rng.random(frames // (rate // 10) + 1) < 0.3, rate // 10)[:frames, None]
    noise = rng.standard_normal((frames, channels))
    return np.clip(noise * np.where(loud, 9000, 90), -32768, 32767).astype(np.int16)


@cache
def encode(container, codec, rate, channels, seconds=6.0, options=(), **settings):
    """The bytes of a file that FFmpeg's encoders make."""
    layout = "mono" if channels == 1 else "stereo"
    sound = bursts(seconds, rate, channels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"
        with av.open(str(path), "w", format=container, options=dict(options)) as file:
            stream = file.add_stream(codec, rate=rate, layout=layout, options=settings)
            stream.bit_rate = 8_000 if settings.get("application") == "voip" else 64_000
            for start in range(0, len(sound), 4096):
                samples = np.ascontiguousarray(sound[start : start + 4096]).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(samples, "s16", layout)
                frame.sample_rate, frame.pts = rate, start
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        return path.read_bytes()


@cache
def vorbis(seconds=6.0, rate=32_000, channels=1, seed=0):
    """A file of Ogg Vorbis as libvorbis encodes it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, bursts(seconds, rate, channels, seed), rate, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def decoded(file):
    """Frames of all packets that can be decoded."""
    for packet in file.demux(audio=0):
        with suppress(av.FFmpegError):
            yield from packet.decode()


@cache
def ffmpeg_sound(content):
    """All samples that FFmpeg gives, mixed to mono; nothing of the package is used."""
    found = []
    with av.open(io.BytesIO(content), metadata_errors="ignore") as file:
        for frame in decoded(file):
            samples = frame.to_ndarray()
            samples = samples if frame.format.is_planar else samples.reshape(frame.samples, -1).T
            scale = 1 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.dtype.itemsize - 1)
            zero = 1 if samples.dtype.kind == "u" else 0
            found.append((samples / np.float32(scale)).astype(np.float32) - np.float32(zero))
    sound = np.concatenate(found, axis=1)
    return sound[0] if len(sound) == 1 else sound.mean(axis=0)


def write(folder, content, name="recording"):
    path = folder / name
    path.write_bytes(content)
    return path


def read_up_to_loss(path):
    """The sound before the first loss, and the block that is lost; None if nothing is."""
    sound = []
    with RecordingReader(path) as reader:
        end = 0
        for block in reader.blocks(10_000):
            assert block.start == end
            end += block.frames
            if block.sound is None:
                return np.concatenate([np.zeros(0, np.float32), *sound]), block
            sound.append(block.sound)
        assert end == reader.header.frames
    return np.concatenate(sound), None


def assert_whole(path, expected):
    found, loss = read_up_to_loss(path)
    assert loss is None
    np.testing.assert_array_equal(found, expected)
    assert read_header(path).frames == len(expected)


# Whole files


NO_COUNT = (("write_xing", "0"), ("id3v2_version", "0"))
FORMATS = {
    "mp3": ("mp3", "libmp3lame", ()),
    "mp3 without a count": ("mp3", "libmp3lame", NO_COUNT),
    "mp2": ("mp2", "mp2", ()),
    "ogg opus": ("ogg", "libopus", ()),
    "ogg flac": ("ogg", "flac", ()),
    "m4a": ("ipod", "aac", ()),
    "m4a that can be streamed": ("ipod", "aac", (("movflags", "+faststart"),)),
    "m4a without edit list": ("ipod", "aac", (("use_editlist", "0"),)),
    "fragmented mp4": ("mp4", "aac", (("movflags", "+frag_keyframe+empty_moov+default_base_moof"),)),
    "mov": ("mov", "aac", ()),
    "3gp": ("3gp", "aac", ()),
    "alac": ("ipod", "alac", ()),
    "opus in mp4": ("mp4", "libopus", ()),
    "adts": ("adts", "aac", ()),
    "webm": ("webm", "libopus", ()),
    "mkv": ("matroska", "aac", ()),
    "flac in mkv": ("matroska", "flac", ()),
    "pcm in mkv": ("matroska", "pcm_s16le", ()),
    "wma": ("asf", "wmav2", ()),
    "wavpack": ("wv", "wavpack", ()),
    "tta": ("tta", "tta", ()),
    "alac in caf": ("caf", "alac", ()),
    "amr": ("amr", "libopencore_amrnb", ()),
    "mp3 in wav": ("wav", "libmp3lame", ()),
}


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 1), (16_000, 2)])
@pytest.mark.parametrize("form", FORMATS)
def test_a_whole_file_is_read_as_ffmpeg_decodes_it(tmp_path, form, rate, channels):
    container, codec, options = FORMATS[form]
    if form == "amr":
        rate, channels = 8_000, 1
    content = encode(container, codec, rate, channels, 6, options)
    expected = ffmpeg_sound(content)
    assert len(expected) >= 5.9 * (48_000 if "opus" in codec else rate)
    path = write(tmp_path, content)
    assert_whole(path, expected)
    with RecordingReader(path) as reader:
        assert reader.header.channels == channels
        for start in (40_000, 3, 20_000, 20_001, len(expected) - 19_000):
            np.testing.assert_array_equal(
                reader.read(start, 20_000), np.pad(expected, (0, 20_000))[start : start + 20_000]
            )


def test_opus_in_mp4_for_speech_is_read_whole(tmp_path):
    # The decoder returns its last 24 samples after the last packet, again with the time stamp of that packet.
    content = encode("mp4", "libopus", 48_000, 1, 6, application="voip")
    assert_whole(write(tmp_path, content), ffmpeg_sound(content))


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_ogg_vorbis_is_read_whole(tmp_path, rate, channels):
    content = vorbis(20, rate, channels)
    expected = ffmpeg_sound(content)
    assert len(expected) == 20 * rate  # what the encoder was given
    assert_whole(write(tmp_path, content), expected)


@pytest.mark.parametrize("options", [(), NO_COUNT])
def test_mp3_of_a_variable_bitrate_is_read_whole(tmp_path, options):
    content = encode("mp3", "libmp3lame", 44_100, 1, 20, options, flags="+qscale", global_quality="472")
    expected = ffmpeg_sound(content)
    assert len(expected) >= 20 * 44_100
    assert_whole(write(tmp_path, content), expected)


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm", "avi"])
def test_the_sound_of_a_film_that_is_longer_is_read_whole(tmp_path, container):
    path = tmp_path / "film"
    sound = bursts(4, 48_000).reshape(1, -1)
    with av.open(str(path), "w", format=container) as file:
        codecs = ("libvpx", "libopus") if container == "webm" else ("mpeg4", "libmp3lame")
        picture = file.add_stream(codecs[0], rate=10, width=64, height=64)
        audio = file.add_stream(codecs[1], rate=48_000, layout="mono")
        for index in range(90):
            file.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8))))
            part = sound[:, index * 4800 : (index + 1) * 4800]
            if part.size:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), "s16", "mono")
                frame.sample_rate, frame.pts = 48_000, index * 4800
                file.mux(audio.encode(frame))
        file.mux(picture.encode(None))
        file.mux(audio.encode(None))
    assert_whole(path, ffmpeg_sound(path.read_bytes()))


def test_the_missing_end_of_an_avi_file_is_told(tmp_path):
    content = encode("avi", "libmp3lame", 16_000, 1, 8)
    whole = ffmpeg_sound(content)
    assert_whole(write(tmp_path, content), whole)
    sound, loss = read_up_to_loss(write(tmp_path, content[: int(0.7 * len(content))]))
    np.testing.assert_array_equal(sound, whole[: len(sound)])
    assert 5 * 16_000 < len(sound) < 6 * 16_000
    assert "its header promises more sound: the file is truncated" in loss.reason


def test_avi_files_of_several_parts_and_without_a_length_are_complete(tmp_path):
    def part(kind, size):
        movi = b"LIST" + size.to_bytes(4, "little") + b"movi" + bytes(96)  # chunks of odd length are padded
        content = kind + b"JUNK" + (5).to_bytes(4, "little") + bytes(6) + movi
        return b"RIFF" + (len(content) if size == 99 else size).to_bytes(4, "little") + content

    two = part(b"AVI ", 99) + part(b"AVIX", 99)
    assert find_missing_avi(write(tmp_path, two)) is None
    assert find_missing_avi(write(tmp_path, two[:-20]))[0] == len(two) - 20
    for size in (0, 2**32 - 1):
        assert find_missing_avi(write(tmp_path, part(b"AVI ", size))) is None


def test_zeros_behind_the_sound_of_an_avi_file_are_not_searched(tmp_path, monkeypatch):
    reads, read = [], compressed_frames.read_at
    monkeypatch.setattr(compressed_frames, "read_at", lambda *place: reads.append(place) or read(*place))
    zeros = bytes(100_000)
    assert find_missing_avi(write(tmp_path, b"RIFF" + len(zeros).to_bytes(4, "little") + b"AVI " + zeros)) is None
    assert len(reads) < 9


def test_a_file_is_decoded_once_for_its_length(tmp_path, monkeypatch):
    path = write(tmp_path, vorbis())
    surveys, survey = [], pyav_decoder.survey_sound
    monkeypatch.setattr(pyav_decoder, "survey_sound", lambda *args: surveys.append(1) or survey(*args))
    assert read_header(path) == read_header(path)
    assert len(surveys) == 1
    path.write_bytes(vorbis(3))
    assert read_header(path).duration_s == 3
    assert len(surveys) == 2


def test_a_file_over_a_limit_is_not_decoded_to_its_end(tmp_path, monkeypatch):
    path = write(tmp_path, vorbis(20, 8_000))
    packets, add = [], compressed_sound._Surveyor.add
    monkeypatch.setattr(compressed_sound._Surveyor, "add", lambda *args: packets.append(1) or add(*args))
    with pytest.raises(TooLongError):
        read_header(path, 5)
    at_limit = len(packets)
    assert read_header(path).duration_s == read_header(path, 20).duration_s == 20
    assert 3 * at_limit < len(packets) - at_limit


def test_windows_in_order_are_decoded_in_one_go(tmp_path, monkeypatch):
    path = write(tmp_path, vorbis(50, 8_000))
    whole = ffmpeg_sound(path.read_bytes())
    opened, decode = [], pyav_decoder.decode_sound
    monkeypatch.setattr(pyav_decoder, "decode_sound", lambda *args: opened.append(1) or decode(*args))
    with RecordingReader(path) as reader:
        for start in (*range(0, 40 * 8_000, 10_000), 45 * 8_000):
            np.testing.assert_array_equal(reader.read(start - 1000, 30_000)[1000:], whole[start : start + 29_000])
        assert len(opened) == 1
        np.testing.assert_array_equal(reader.read(5, 100), whole[5:105])
        assert len(opened) == 2


# What surrounds the sound of whole MP3 files


def id3v2(content_bytes):
    size = bytes(content_bytes >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + size + np.random.default_rng(0).bytes(content_bytes)


def ape(content_bytes):
    item = struct.pack("<II", content_bytes, 2) + b"Cover Art (Front)\0" + b"\xfe" * content_bytes
    fields = (struct.pack("<IIII8x", 2000, len(item) + 32, 1, flags) for flags in (0xA0000000, 0x80000000))
    first, last = (b"APETAGEX" + field for field in fields)
    return first + item + last


ID3V1 = b"TAG" + b"\xe9" * 125
AROUND = {
    "cover art": (id3v2(300_000), b""),
    "id3v1": (b"", ID3V1),
    "ape": (b"", ape(30_000)),
    "ape and id3v1": (b"", ape(90_000) + ID3V1),
    "lyrics": (b"", b"LYRICSBEGININD0000200LYRICS200" + ID3V1),
    "zeros behind": (b"", bytes(4096)),
    "text behind": (b"", b"downloaded from somewhere\n" * 40),
    "the rest of a frame in front": (bytes(range(200)), b""),
}


@pytest.mark.parametrize("count", [(), NO_COUNT])
@pytest.mark.parametrize("what", AROUND)
def test_tags_and_junk_around_an_mp3_are_no_damage(tmp_path, what, count):
    content = encode("mp3", "libmp3lame", 32_000, 1, 6, (*count, ("id3v2_version", "0")))
    before, behind = AROUND[what]
    expected = ffmpeg_sound(before + content + behind)
    assert 0 <= len(expected) - 192_000 < 4000
    assert_whole(write(tmp_path, before + content + behind), expected)


def test_much_behind_an_mp3_is_lost_sound_unless_its_frames_are_counted(tmp_path):
    counted = encode("mp3", "libmp3lame", 32_000, 1) + bytes(200_000)
    assert_whole(write(tmp_path, counted), ffmpeg_sound(counted))
    _, loss = read_up_to_loss(write(tmp_path, encode("mp3", "libmp3lame", 32_000, 1, 6, NO_COUNT) + bytes(200_000)))
    assert "its last 200000 bytes are not sound" in loss.reason


@pytest.mark.parametrize("between", [b"", ID3V1, id3v2(5000), ape(5000) + ID3V1 + id3v2(100)])
def test_joined_mp3s_are_read_whole(tmp_path, between):
    content = encode("mp3", "libmp3lame", 32_000, 1)
    one = ffmpeg_sound(content)
    sound, loss = read_up_to_loss(write(tmp_path, content + between + content))
    assert loss is None
    assert 2 * 192_000 <= len(sound) < 2 * 192_000 + 6000
    np.testing.assert_array_equal(sound[:190_000], one[:190_000])
    # FFmpeg leaves the encoder's delay in the second one.
    starts = [
        at for at in range(192_000, len(sound) - 190_000) if np.array_equal(sound[at:][5000:5100], one[5000:5100])
    ]
    assert len(starts) == 1


# Chained Ogg


def test_chained_ogg_is_read_whole(tmp_path):
    first, second = vorbis(3, seed=1), vorbis(4, seed=2)
    sound, loss = read_up_to_loss(write(tmp_path, first + second))
    assert loss is None
    assert 7 * 32_000 <= len(sound) < 7 * 32_000 + 1000
    np.testing.assert_array_equal(sound[: 3 * 32_000], ffmpeg_sound(first))
    np.testing.assert_array_equal(sound[-3 * 32_000 :], ffmpeg_sound(second)[-3 * 32_000 :])


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 1), (32_000, 2)])
def test_a_chain_is_read_up_to_another_rate_or_number_of_channels(tmp_path, rate, channels):
    first, second = vorbis(3), vorbis(4, rate, channels)
    path = write(tmp_path, first + second)
    sound, loss = read_up_to_loss(path)
    assert 2.8 * 32_000 < len(sound) <= 3 * 32_000
    np.testing.assert_array_equal(sound, ffmpeg_sound(first)[: len(sound)])
    assert "the rest cannot be read" in loss.reason
    assert check_recording(path).losses
    *_, reading = read_windows(path, WindowGrid(16_000, 16_000), 32_000, Stopwatch())
    assert [(part.start_s, part.end_s) for part in reading.losses] == [(len(sound) / 32_000, None)]


def test_an_mp3_is_read_up_to_another_rate(tmp_path):
    first, second = (encode("mp3", "libmp3lame", rate, 1, 6, NO_COUNT) for rate in (32_000, 48_000))
    path = write(tmp_path, first + second)
    sound, loss = read_up_to_loss(path)
    assert 5.9 * 32_000 < len(sound) < 6.1 * 32_000
    np.testing.assert_array_equal(sound, ffmpeg_sound(first)[: len(sound)])
    assert "the sound changes to 48000 Hz and 1 channels" in loss.reason
    assert 11.9 < read_header(path).duration_s < 12.2


# Damage


def zeros(content):
    half = len(content) // 2
    return content[:half] + bytes(3000) + content[half + 3000 :]


def garbage(content):
    half = len(content) // 2
    return content[:half] + np.random.default_rng(1).bytes(3000) + content[half + 3000 :]


def gap(content):
    half = len(content) // 2
    return content[:half] + content[half + 3000 :]


def half(content):
    return content[: len(content) // 2 + 7]


def empty_half(content):
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


DAMAGED = ("mp3", "mp3 without a count", "ogg opus", "ogg flac", "m4a that can be streamed", "fragmented mp4", "adts")
DAMAGED += ("webm", "wavpack", "tta", "flac in mkv", "wma")


@pytest.mark.parametrize("form", [*DAMAGED, "ogg vorbis"])
def test_a_damaged_file_is_read_up_to_the_damage(tmp_path, form):
    if form == "ogg vorbis":
        content = vorbis(20, 16_000)
    else:
        container, codec, options = FORMATS[form]
        content = encode(container, codec, 16_000 if codec != "libopus" else 48_000, 1, 10, options)
    whole = ffmpeg_sound(content)
    for damage in (zeros, garbage, gap, half, empty_half):
        path = write(tmp_path, damage(content))
        sound, loss = read_up_to_loss(path)
        np.testing.assert_array_equal(sound, whole[: len(sound)])
        assert len(sound) > len(whole) / 4, damage
        assert loss is not None, damage
        assert loss.start == len(sound)
        assert "PyAV: " in loss.reason
        with RecordingReader(path) as reader:
            frames = reader.header.frames
            assert len(sound) <= frames < len(whole) + 10_000
            np.testing.assert_array_equal(reader.read(len(sound) - 2000, 2000), whole[len(sound) - 2000 : len(sound)])
            if frames > len(sound):
                with pytest.raises(UndecodableError, match=r"PyAV: "):
                    reader.read(len(sound) - 1000, 2000)


def pages(content):
    starts = [at for at in range(len(content)) if content.startswith(b"OggS", at)]
    return [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]


def test_damage_of_ogg_is_seen_by_its_pages(tmp_path):
    whole = pages(vorbis(20, 16_000))
    assert find_ogg_damage(write(tmp_path, b"".join(whole))) is None
    assert find_ogg_damage(write(tmp_path, b"".join(whole) * 2)) is None
    assert find_ogg_damage(write(tmp_path, id3v2(2000) + b"".join(whole) + ID3V1)) is None
    at = sum(map(len, whole[:6]))
    damages = {
        "an Ogg page is missing": whole[:6] + whole[7:],
        "an Ogg page is damaged": [*whole[:6], whole[6][:-1] + bytes([whole[6][-1] ^ 1]), *whole[7:]],
        "the end of a stream is missing": whole[:6] + whole,
        "its last Ogg page is missing: the file is truncated": whole[:6],
    }
    for reason, changed in damages.items():
        assert find_ogg_damage(write(tmp_path, b"".join(changed))) == (at, reason)
    assert find_ogg_damage(write(tmp_path, b"".join([*whole[:6], whole[6][:100]]))) == (at, reason)
    assert find_ogg_damage(write(tmp_path, b"".join([*whole[:6], b"OggS" * 50, *whole[6:]])))[0] == at


@pytest.mark.parametrize("damage", ["page", "cut"])
def test_what_is_missing_of_ogg_is_in_the_check_and_in_the_reading(tmp_path, damage):
    parts = pages(vorbis(20, 16_000))
    path = write(tmp_path, b"".join(parts[:8] + (parts[9:] if damage == "page" else [])), "a.ogg")
    found = check_recording(path)
    (loss,) = found.losses
    assert 3 < loss.start_s < 17
    assert loss.start_s == found.frames_read / 16_000
    assert loss.end_s == found.duration_s == (20 if damage == "page" else loss.start_s)
    assert ("is missing" if damage == "page" else "truncated") in loss.reason
    *windows, reading = read_windows(path, WindowGrid(16_000, 16_000), 16_000, Stopwatch())
    assert isinstance(reading, Reading)
    assert len(windows) >= 1
    assert [(part.start_s, part.end_s) for part in reading.losses] == [
        (loss.start_s, 20 if damage == "page" else None)
    ]


def test_an_mp3_that_was_cut_off_in_a_frame_is_told_from_a_whole_one(tmp_path):
    content = encode("mp3", "libmp3lame", 32_000, 1, 6, NO_COUNT)
    sound, loss = read_up_to_loss(write(tmp_path, content[:-100]))
    np.testing.assert_array_equal(sound, ffmpeg_sound(content)[: len(sound)])
    assert "truncated" in loss.reason
    counted = encode("mp3", "libmp3lame", 32_000, 1)
    sound, loss = read_up_to_loss(write(tmp_path, counted[: len(counted) - 20_000]))
    np.testing.assert_array_equal(sound, ffmpeg_sound(counted)[: len(sound)])
    assert loss is not None
    assert read_header(tmp_path / "recording").frames == 192_000


# Headers of MPEG audio


def test_an_mp3_whose_header_promises_years_is_counted(tmp_path):
    content = encode("mp3", "libmp3lame", 32_000, 1)
    whole = read_header(write(tmp_path, content)).frames
    at = (content.index(b"Xing") if b"Xing" in content else content.index(b"Info")) + 8  # number of packets
    path = write(tmp_path, content[:at] + b"\x7f\xff\xff\xff" + content[at + 4 :])
    assert read_header(path).frames == pytest.approx(whole, abs=3 * 1152)  # the encoder's delay stands behind it


def test_frames_and_tags_of_mpeg_audio_are_measured():
    for rate, channels in ((8_000, 1), (22_050, 2), (32_000, 1), (44_100, 2)):
        content = encode("mp3", "libmp3lame", rate, channels, 2, NO_COUNT)
        at = count = 0
        while at < len(content):
            size = frame_bytes(content[at : at + 7])
            assert size
            at, count = at + size, count + 1
        assert at == len(content)
        counted = encode("mp3", "libmp3lame", rate, channels, 2, (("id3v2_version", "0"),))
        assert frame_count(counted[: frame_bytes(counted)]) == count
        assert frame_count(content) is None
    assert frame_bytes(b"\xff\xfb") == frame_bytes(b"RIFF1234") == frame_bytes(b"\xff\xfb\xf0\x00123") == 0
    for tag in (id3v2(700), ape(3000), ID3V1, b"LYRICSBEGINxLYRICS200"):
        assert tag_bytes(tag + b"more") == len(tag)
    assert tag_bytes(ape(10)[-32:]) == 32  # a footer
    assert tag_bytes(b"none") == 0


# Files


def test_no_file_stays_open(tmp_path):
    contents = {
        "a.mp3": encode("mp3", "libmp3lame", 32_000, 1),
        "b.ogg": half(vorbis(10)),
        "c.ogg": vorbis(3)[:3000],
        "d.m4a": encode("ipod", "aac", 32_000, 1)[:5000],
        "e.mp3": bytes(5000),
    }
    paths = [write(tmp_path, content, name) for name, content in contents.items()]
    refused = 0
    for path in paths:
        try:
            with RecordingReader(path) as reader:
                reader.read(0, 1000)
        except UserError:
            refused += 1
    assert refused == 3
    if os.path.isdir("/proc/self/fd"):
        links = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
        assert not links & {str(path.resolve()) for path in paths}
    for path in paths:
        path.unlink()  # Windows refuses this where a file is open


def test_metadata_that_are_not_utf8_do_not_matter(tmp_path):
    content = encode("adts", "aac", 32_000, 1)
    assert_whole(write(tmp_path, content + ape(300)), ffmpeg_sound(content))
    assert PyavDecoder(tmp_path / "recording").damage == ""
