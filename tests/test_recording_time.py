import csv
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow.parquet as pq
import pytest
from detecting import run_in_folder, save_model
from recorder_files import AUDIOMOTH, comment, guano, write_wav

from kenya_birds import cli
from kenya_birds.data.recorder_header import RecorderHeader
from kenya_birds.data.recording_time import find_time_and_place, log_headers, parse_time_zone
from kenya_birds.errors import UserError
from kenya_birds.inference.activity import plot_activity
from kenya_birds.inference.plots import draw_section

NAIROBI = parse_time_zone("Africa/Nairobi")
ZERO = timedelta(0)
NAME = "KEN_001_20211207_153852.flac"
CLOCK = datetime(2021, 12, 7, 15, 38, 52)


def times(name, start="", zone=None, after=ZERO):
    return find_time_and_place(name, header=RecorderHeader(start, source="GUANO"), time_zone=zone).times(after)


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "start", "zone", "local", "in_utc"),
    [
        # The name alone, as without headers.
        (NAME, "", None, CLOCK, None),
        ("a.wav", "", NAIROBI, None, None),
        # The header alone.
        ("a.wav", "2021-12-07T15:38:52", None, CLOCK, None),
        ("a.wav", "2021-12-07T15:38:52Z", None, None, utc(2021, 12, 7, 15, 38, 52)),
        ("a.wav", "2021-12-07T15:38:52+03:00", None, CLOCK, utc(2021, 12, 7, 12, 38, 52)),
        # Name and header state the same time of the clock; the header knows its time zone.
        (NAME, "2021-12-07T15:38:52Z", None, None, utc(2021, 12, 7, 15, 38, 52)),
        (NAME, "2021-12-07T15:38:55+03:00", None, CLOCK, utc(2021, 12, 7, 12, 38, 52)),
        # A recorder on local clocks, whose place is known.
        (NAME, "", NAIROBI, CLOCK, utc(2021, 12, 7, 12, 38, 52)),
        (NAME, "2021-12-07T12:38:52Z", NAIROBI, CLOCK, utc(2021, 12, 7, 12, 38, 52)),
        # A recorder on UTC, whose place is known.
        (NAME, "2021-12-07T15:38:52Z", NAIROBI, datetime(2021, 12, 7, 18, 38, 52), utc(2021, 12, 7, 15, 38, 52)),
        ("SSW_001_20211207_153852Z.flac", "", NAIROBI, datetime(2021, 12, 7, 18, 38, 52),
         utc(2021, 12, 7, 15, 38, 52)),
        # Clocks that are said to be on UTC have no local time.
        (NAME, "", UTC, None, utc(2021, 12, 7, 15, 38, 52)),
        # The name wins.
        (NAME, "2021-12-08T15:38:52+03:00", None, CLOCK, None),
    ],
)  # fmt: skip
def test_local_time_and_utc_follow_from_name_header_and_time_zone(name, start, zone, local, in_utc):
    assert times(name, start, zone) == (local, in_utc)


def test_local_times_pass_through_the_change_of_the_clocks():
    berlin = parse_time_zone("Europe/Berlin")
    # Clocks went from 02:00 to 03:00 on 28 March 2021.
    local, in_utc = times("20210328_013000.wav", zone=berlin, after=timedelta(hours=1))
    assert (local, in_utc) == (datetime(2021, 3, 28, 3, 30), utc(2021, 3, 28, 1, 30))


def test_names_and_headers_that_disagree_are_counted_and_logged_in_one_line(caplog):
    headers = {
        NAME: RecorderHeader("2021-12-07T15:38:52Z"),
        "KEN_002_20211207_153852.flac": RecorderHeader("2021-12-08T10:00:00Z", source="GUANO"),
        "a.wav": RecorderHeader(faults=("GUANO: the place '91 0' is not on Earth",)),
    }
    log_headers((name, header, find_time_and_place(name, header=header)) for name, header in headers.items())
    assert caplog.messages == [
        "The names and headers of 1 of 3 recordings state different times; the name is used (first: "
        "KEN_002_20211207_153852.flac, GUANO states 2021-12-08T10:00:00Z)",
        "The headers of 1 of 3 recordings have a time or place that is not used (first: a.wav: GUANO: the place '91 "
        "0' is not on Earth)",
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Africa/Nairobbi", "did you mean Africa/Nairobi?"),
        ("nairobi", "did you mean Africa/Nairobi?"),
        ("Kenya/Nairobi", "did you mean Africa/Nairobi?"),
        ("rome", "did you mean Europe/Rome?"),
        ("gmt", "did you mean GMT?"),
        ("EAT", "or +03:00; abbreviations are not known: give a place or an offset"),
        ("SAST", "or +03:00; abbreviations are not known: give a place or an offset"),
        ("GMT+3", "or +03:00; abbreviations are not known: give a place or an offset"),
        ("+25:00", "expected a name such as Africa/Nairobi, or +03:00"),
        ("../etc/passwd", "expected a name such as Africa/Nairobi"),
        ("", "expected a name such as Africa/Nairobi"),
        ("x" * 300, "expected a name such as Africa/Nairobi"),
    ],
)
def test_a_time_zone_that_does_not_exist_is_an_error_with_the_nearest_name(text, hint):
    with pytest.raises(UserError) as error:
        parse_time_zone(text)
    assert hint in str(error.value)


def test_offsets_are_time_zones():
    assert parse_time_zone("+03:00").utcoffset(None) == timedelta(hours=3)
    assert parse_time_zone("-0330").utcoffset(None) == -timedelta(hours=3.5)
    assert parse_time_zone("UTC") is UTC
    assert parse_time_zone(None) is None


def test_the_command_refuses_a_time_zone_before_it_looks_for_the_model(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["detect", "no model", "no recording", "--output", "found", "--time_zone", "Afrika/Nairobi"])
    assert "did you mean Africa/Nairobi?" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "birds", threshold=0.0)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "recordings"
    folder.mkdir()
    moth = comment(AUDIOMOTH.format(time="03:13:00 03/05/2025", zone=""))
    write_wav(folder / "20250503_031300.WAV", moth, guano(Loc_Position="52.15 4.47"), seconds=2)
    write_wav(folder / "renamed.wav", moth, seconds=2)
    write_wav(folder / "SMM01_20250503_053000.wav", seconds=2)
    return folder


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_of_a_run_have_times_and_places_of_headers_also_after_it_resumes(model, recordings, tmp_path):
    zone = parse_time_zone("Europe/Amsterdam")
    run_in_folder(model, [recordings], tmp_path, time_zone=zone)
    first = (tmp_path / "recordings.csv").read_bytes()
    columns = ("local_time", "utc_time", "site", "date", "hour", "latitude", "longitude")
    assert [tuple(row[name] for name in columns) for row in rows(tmp_path / "recordings.csv")] == [
        ("2025-05-03T05:13:00.000", "2025-05-03T03:13:00.000Z", "", "2025-05-03", "5", "52.15", "4.47"),
        ("2025-05-03T05:30:00.000", "2025-05-03T03:30:00.000Z", "SMM01", "2025-05-03", "5", "", ""),
        ("2025-05-03T05:13:00.000", "2025-05-03T03:13:00.000Z", "", "2025-05-03", "5", "", ""),
    ]
    found = rows(tmp_path / "detections.csv")
    late = [row for row in found if float(row["start_s"]) == 1 and row["latitude"]]
    assert {row["utc_time"] for row in late} == {"2025-05-03T03:13:01.000Z"}
    assert pq.read_table(tmp_path / "detections.parquet")["latitude"].to_pylist()[0] == 52.15
    report = run_in_folder(model, [recordings], tmp_path, time_zone=zone)
    assert report.content["this_run"]["recordings"] == 0
    assert (tmp_path / "recordings.csv").read_bytes() == first


def test_activity_is_drawn_by_the_times_of_the_run(model, recordings, tmp_path):
    run_in_folder(model, [recordings], tmp_path)
    drawn = plot_activity(tmp_path / "detections.csv", tmp_path / "local.png")
    # Without a time zone only the Song Meter has local time: AudioMoths were on UTC.
    assert (drawn.clock, drawn.recordings, drawn.left_out) == ("local time", 1, 2)
    run_in_folder(model, [recordings], tmp_path, time_zone=parse_time_zone("Europe/Amsterdam"))
    drawn = plot_activity(tmp_path / "detections.csv", tmp_path / "all.png")
    assert (drawn.clock, drawn.recordings, drawn.left_out) == ("local time", 3, 0)
    assert drawn.analysed_h[5] == pytest.approx(6 / 3600)


def test_the_title_of_a_picture_has_the_time_of_the_header(recordings, tmp_path):
    found = pd.DataFrame(columns=["recording", "start_s", "end_s", "code", "common_name", "scientific_name", "score"])
    titles = [
        draw_section(recordings / name, found, 0, 2, {})[0].texts[0].get_text()
        for name in ("renamed.wav", "SMM01_20250503_053000.wav")
    ]
    assert titles[0].endswith("begun 2025-05-03 03:13:00 UTC")
    assert titles[1].endswith("begun 2025-05-03 05:30:00 local time")
