import json
import struct
from datetime import UTC, datetime, timedelta

import guano as guano_library
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder_files import AUDIOMOTH, chunk, comment, guano, wamd, write_flac, write_wav

from kenya_birds.data.audio import read_header
from kenya_birds.data.recorder_header import NO_HEADER, RecorderHeader, read_recorder_header


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (AUDIOMOTH.format(time="10:25:00 04/12/2020", zone=""), "2020-12-04T10:25:00Z"),
        (AUDIOMOTH.format(time="10:25:00 04/12/2020", zone="+3"), "2020-12-04T10:25:00+03:00"),
        (AUDIOMOTH.format(time="10:25:00.500 04/12/2020", zone="-3:30"), "2020-12-04T10:25:00-03:30"),
        ("Recorded at 10:25:00 04/12/2020 by AudioMoth 24 at gain setting 2", "2020-12-04T10:25:00Z"),  # firmware 1.0
        (
            "opso_metadata" + json.dumps({"comment": "x", "recording_start_time": "2024-05-28T10:00:00+00:00"}),
            "2024-05-28T10:00:00Z",
        ),
        ("opso_metadata" + json.dumps({"comment": AUDIOMOTH.format(time="10:25:00 04/12/2020", zone="")}),
         "2020-12-04T10:25:00Z"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["before", "after"])
def test_the_comment_of_an_audiomoth_has_day_before_month_and_its_offset_from_utc(tmp_path, text, start, place):
    header = read_recorder_header(write_wav(tmp_path / "a.wav", **{place: comment(text)}))
    assert (header.start, header.faults) == (start, ())


def test_guano_has_time_and_place_and_its_own_library_reads_the_same(tmp_path):
    path = write_wav(tmp_path / "a.wav", after=guano(Timestamp="2021-12-07T15:38:52+03:00", Loc_Position="-1.25 36.8"))
    header = read_recorder_header(path)
    assert header == RecorderHeader("2021-12-07T15:38:52+03:00", -1.25, 36.8, "GUANO")
    library = guano_library.GuanoFile(str(path))
    assert library["Timestamp"] == header.time
    assert library["Loc Position"] == (header.latitude, header.longitude)


@pytest.mark.parametrize(
    ("time", "place", "expected"),
    [
        ("2014-04-02 22:59:14-05:00", "WGS84,42.5,N,77.25,W,310", ("2014-04-02T22:59:14-05:00", 42.5, -77.25)),
        ("2014-04-02 22:59:14.000", "WGS84, 1.5, S, 36.5, E", ("2014-04-02T22:59:14", -1.5, 36.5)),
        ("2014-04-02 22:59:14", "WGS84,-1.5,36.5", ("2014-04-02T22:59:14", -1.5, 36.5)),
        ("2014-04-02 22:59:14", "", ("2014-04-02T22:59:14", None, None)),
    ],
)
def test_fields_of_wildlife_acoustics(tmp_path, time, place, expected):
    header = read_recorder_header(write_wav(tmp_path / "a.wav", before=wamd(time, place)))
    assert (header.start, header.latitude, header.longitude) == expected
    assert (header.source, header.faults) == ("Wildlife Acoustics", ())


def test_comments_of_frontier_labs_in_flac(tmp_path):
    path = write_flac(
        tmp_path / "a.flac", {"SensorLocation": "-27.3888+152.8811", "RecordingStart": "2021-12-07T15:38:52+1000"}
    )
    assert read_header(path).duration_s == 1
    assert read_recorder_header(path) == RecorderHeader(
        "2021-12-07T15:38:52+10:00", -27.3888, 152.8811, "Frontier Labs"
    )
    old = {"RecordingStart": "2021-12-07 15:38:52", "SensorLocation": "unknown"}  # firmware 3.08
    header = read_recorder_header(write_flac(tmp_path / "b.flac", old))
    assert (header.start, header.latitude) == ("2021-12-07T15:38:52", None)


def test_an_audiomoth_recording_that_was_compressed_keeps_its_time(tmp_path):
    path = write_flac(tmp_path / "a.flac", {"comment": AUDIOMOTH.format(time="10:25:00 04/12/2020", zone="")})
    assert read_recorder_header(path).start == "2020-12-04T10:25:00Z"


@pytest.mark.parametrize(
    ("note", "fault"),
    [
        (guano(Timestamp="2021-02-30T10:00:00"), "GUANO: the time '2021-02-30T10:00:00' does not exist"),
        (guano(Timestamp="2021-12-07T25:00:00"), "GUANO: the time '2021-12-07T25:00:00' does not exist"),
        (guano(Timestamp="2021-12-07T10:00:00+25:00"), "'2021-12-07T10:00:00+25:00' does not exist"),
        (guano(Timestamp="07.12.2021 10 Uhr"), "cannot be read: expected a time such as 2021-12-07T15:38:52+03:00"),
        (guano(Timestamp="1970-01-01T00:00:10Z"), "the clock was not set"),
        (guano(Loc_Position="91.0 36.8"), "the place '91.0 36.8' is not on Earth"),
        (guano(Loc_Position="-1.25 190"), "the place '-1.25 190' is not on Earth"),
        (guano(Loc_Position="0.0 0.0"), "the place '0.0 0.0' means that there was no satellite signal"),
        (guano(Loc_Position="1,25 36,8"), "the place '1,25 36,8' cannot be read"),
        (guano(Loc_Position="nan 36.8"), "the place 'nan 36.8' cannot be read"),
        (guano(Loc_Position="36.8"), "the place '36.8' cannot be read"),
        (comment("Aufgenommen um 10:25 am 4.12.2020 von AudioMoth 24"), "its comment has an unknown form"),
        (comment("opso_metadata{broken"), "its comment is not valid JSON"),
        (comment("opso_metadata" + '{"a":' * 20_000), "its comment is not valid JSON"),
        (comment(AUDIOMOTH.format(time="10:25:00 31/02/2020", zone="")), "'2020-02-31T10:25:00Z' does not exist"),
    ],
)
def test_values_that_cannot_be_are_left_out_and_named(tmp_path, note, fault):
    header = read_recorder_header(write_wav(tmp_path / "a.wav", after=note))
    assert fault in "".join(header.faults)
    assert header == RecorderHeader(faults=header.faults)


def test_a_good_time_stays_where_the_place_is_wrong(tmp_path):
    note = guano(Timestamp="2021-12-07T15:38:52Z", Loc_Position="-1.25 1e3")
    header = read_recorder_header(write_wav(tmp_path / "a.wav", after=note))
    assert (header.start, header.latitude) == ("2021-12-07T15:38:52Z", None)
    assert "'-1.25 1e3' cannot be read" in header.faults[0]


def test_of_two_notes_that_disagree_the_first_in_the_order_is_used(tmp_path):
    moth = comment(AUDIOMOTH.format(time="10:25:00 04/12/2020", zone=""))
    agreeing = write_wav(tmp_path / "a.wav", moth, guano(Timestamp="2020-12-04T13:25:20+03:00"))
    assert read_recorder_header(agreeing) == RecorderHeader("2020-12-04T13:25:20+03:00", source="GUANO")
    other = read_recorder_header(write_wav(tmp_path / "b.wav", moth, guano(Timestamp="2020-12-04T13:27:00+03:00")))
    assert other.start == "2020-12-04T13:27:00+03:00"
    assert other.faults == (
        "GUANO states 2020-12-04T13:27:00+03:00 and AudioMoth 2020-12-04T10:25:00Z: the first is used",
    )
    # The time of one and the place of the other.
    both = read_recorder_header(write_wav(tmp_path / "c.wav", moth, guano(Loc_Position="-1.25 36.8")))
    assert both == RecorderHeader("2020-12-04T10:25:00Z", -1.25, 36.8, "AudioMoth")


def test_a_truncated_chunk_is_named_and_what_is_there_is_read(tmp_path):
    path = write_wav(tmp_path / "a.wav", after=guano(Timestamp="2021-12-07T15:38:52Z", Note="n" * 100))
    path.write_bytes(path.read_bytes()[:-50])
    header = read_recorder_header(path)
    assert header.start == "2021-12-07T15:38:52Z"
    assert header.faults == ("GUANO: 50 bytes are missing at its end",)


def test_chunks_are_found_behind_sound_whose_size_in_the_header_is_wrong(tmp_path):
    path = write_wav(tmp_path / "a.wav", before=guano(Timestamp="2021-12-07T15:38:52Z"))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 2**32 - 1)  # a stream
    path.write_bytes(data)
    assert read_recorder_header(path).start == "2021-12-07T15:38:52Z"


def test_files_without_a_recorder_s_header_have_no_faults(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_bytes(b"not sound")
    write_wav(tmp_path / "plain.wav", comment("a walk in the forest"), chunk(b"id3 ", b"ID3\3"))
    for name in ("empty.wav", "text.wav", "plain.wav"):
        assert read_recorder_header(tmp_path / name) == NO_HEADER
    assert read_recorder_header(tmp_path / "missing.wav").faults == ("No such file or directory",)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([b"LIST", b"guan", b"wamd"]), data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_no_bytes_in_a_header_raise_an_error(tmp_path, name, data, cut):
    path = write_wav(tmp_path / "a.wav", after=chunk(name, b"INFO" * (name == b"LIST") + data))
    path.write_bytes(path.read_bytes()[: max(60, path.stat().st_size - cut)])
    header = read_recorder_header(path)
    assert RecorderHeader.of(json.loads(json.dumps(vars(header)))) == header


@settings(max_examples=80)
@given(
    start=st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31)), hours=st.integers(-12, 14), moth=st.booleans()
)
def test_a_time_comes_back_from_each_format(tmp_path_factory, start, hours, moth):
    start = start.replace(microsecond=0)
    path = tmp_path_factory.mktemp("a") / "a.wav"
    if moth:
        note = comment(AUDIOMOTH.format(time=f"{start:%H:%M:%S %d/%m/%Y}", zone=f"{hours:+d}" if hours else ""))
    else:
        note = guano(Timestamp=f"{start.isoformat()}{hours:+03d}:00")
    found = read_recorder_header(write_wav(path, note)).time
    assert found.replace(tzinfo=None) == start
    assert found.astimezone(UTC).replace(tzinfo=None) == start - timedelta(hours=hours)
