import csv
import gc
import json
import os
import re
import resource
import tracemalloc
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.data.event_tables import read_events
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.defaults import TABLE_FORMATS
from kenya_birds.errors import UserError
from kenya_birds.inference import output_tables
from kenya_birds.inference.detections import Detection, RecordingInfo, decimal_s, sample_us
from kenya_birds.inference.output_tables import write_tables
from kenya_birds.inference.run_report import RunFiles
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.table_reader import read_detections
from kenya_birds.inference.timeline_formats import MAX_NAME_BYTES, file_names

DOCS = Path(__file__).parent.parent / "docs"
RATE = 32_000
NAMES = {"combul2": SpeciesNames("Common Bulbul", "Pycnonotus barbatus"), "x": SpeciesNames("x", "")}
MORNING, NIGHT, SILENT = "site/KEN_001_20211207_063000.flac", "site/KEN_001_20211207_235959.flac", "site/other.wav"
INFOS = [
    RecordingInfo(MORNING, 44_100 * 60 + 1, 44_100),
    RecordingInfo(SILENT, RATE * 10, RATE),
    RecordingInfo(NIGHT, RATE * 60, RATE),
]
ROWS = [
    Detection(MORNING, 0, 96_000, RATE, "combul2", 0.75),
    Detection(MORNING, 0, 96_000, RATE, "x", 0.5),
    Detection(MORNING, 1_824_001, 1_920_001, RATE, "combul2", 0.123456789),
    Detection(NIGHT, 32_000, 128_000, RATE, "x", 1.0),
]
ABOUT = {"model": "birds", "settings": {"threshold": None}}


def write(folder, formats=TABLE_FORMATS, infos=INFOS, rows=ROWS, names=NAMES):
    written = write_tables(
        folder, formats, infos, rows, species_names=names, frequencies_hz=(150.0, 15_000.0), metadata=ABOUT
    )
    return written.files


def lines(path, delimiter):
    return [dict(row) for row in csv.DictReader(path.open(encoding="utf-8", newline=""), delimiter=delimiter)]


def test_every_format_makes_its_files_and_nothing_else(tmp_path):
    made = write(tmp_path / "new" / "out")
    found = {path.relative_to(tmp_path / "new" / "out").as_posix() for path in (tmp_path / "new").rglob("*.*")}
    stems = ("KEN_001_20211207_063000", "KEN_001_20211207_235959", "other")
    assert found == {
        "recordings.csv",
        *(f"detections.{end}" for end in ("selections.txt", "list.txt", "csv", "parquet", "json", "id.csv")),
        *(f"raven/{stem}.selections.txt" for stem in stems),
        *(f"audacity/{stem}.txt" for stem in stems),
    }
    assert sorted(made) == sorted(path for path in (tmp_path / "new" / "out").rglob("*.*"))


@given(st.integers(0, 10**10), st.sampled_from([1, 22_050, 44_100, 48_000, 128]), st.fractions(0, 10**6))
def test_times_are_rounded_to_microseconds_and_halves_to_even(sample, rate_hz, begin_s):
    assert sample_us(sample, rate_hz, begin_s) == round((begin_s + Fraction(sample, rate_hz)) * 1_000_000)
    assert sample_us(sample, 2_000_000) == round(Fraction(sample, 2))


def test_time_and_place_are_found_once_for_a_row_of_all_tables(tmp_path, monkeypatch):
    found = []
    when = RecordingInfo.when
    monkeypatch.setattr(RecordingInfo, "when", lambda info, after_us: found.append(after_us) or when(info, after_us))
    write(tmp_path)
    # Each recording is also listed in recordings.csv and JSON.
    assert len(found) == len(ROWS) + 2 * len(INFOS)


def test_one_line_says_that_many_detections_are_written(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    write(tmp_path)
    assert not caplog.messages
    monkeypatch.setattr(output_tables, "MANY", 3)
    write(tmp_path)
    assert caplog.messages == ["Writing the tables of more than 3 detections"]


@pytest.mark.parametrize("name", TABLE_FORMATS)
def test_same_rows_same_bytes_alone_or_with_other_formats(tmp_path, name):
    write(tmp_path / "all")
    for path in write(tmp_path / "one", [name]):
        assert path.read_bytes() == (tmp_path / "all" / path.relative_to(tmp_path / "one")).read_bytes()
        if path.suffix != ".parquet":
            assert b"\r" not in path.read_bytes()


def test_the_csv_holds_names_scores_and_local_times(tmp_path):
    write(tmp_path, ["csv"])
    rows = lines(tmp_path / "detections.csv", ",")
    assert list(rows[2].values()) == [
        MORNING, "57.000031", "60.000023", "combul2", "Common Bulbul", "Pycnonotus barbatus", "0.123457",
        "2021-12-07T06:30:57.000", "", "KEN_001", "2021-12-07", "6", "", "",
    ]  # fmt: skip
    assert (rows[3]["local_time"], rows[3]["date"], rows[3]["hour"]) == ("2021-12-08T00:00:00.000", "2021-12-08", "0")


def test_a_detection_never_ends_after_its_recording(tmp_path):
    write(tmp_path)
    end_s = (44_100 * 60 + 1) / 44_100
    assert float(lines(tmp_path / "detections.csv", ",")[2]["end_s"]) == pytest.approx(end_s, abs=5e-7)
    assert pd.read_parquet(tmp_path / "detections.parquet")["end_s"][2] == round(end_s, 6)


def test_recordings_without_detections_are_listed_too(tmp_path):
    write(tmp_path, [])
    rows = lines(tmp_path / "recordings.csv", ",")
    assert [(row["recording"], row["duration_s"], row["detections"]) for row in rows] == [
        (MORNING, "60.000023", "3"),
        (SILENT, "10.000000", "0"),
        (NIGHT, "60.000000", "1"),
    ]
    assert [row["local_time"] for row in rows] == ["2021-12-07T06:30:00.000", "", "2021-12-07T23:59:59.000"]
    assert [(row["date"], row["hour"]) for row in rows] == [("2021-12-07", "6"), ("", ""), ("2021-12-07", "23")]


def test_a_recording_named_in_utc_has_no_local_time(tmp_path):
    name = "UHH_001_S01_20161121_150000Z.flac"
    write(tmp_path, infos=[RecordingInfo(name, RATE * 60, RATE)], rows=[Detection(name, RATE, 2 * RATE, RATE, "x", 1)])
    row = lines(tmp_path / "detections.csv", ",")[0]
    assert (row["local_time"], row["utc_time"]) == ("", "2016-11-21T15:00:01.000Z")
    row = pd.read_parquet(tmp_path / "detections.parquet").iloc[0]
    assert pd.isna(row["local_time"])
    assert row["utc_time"] == datetime(2016, 11, 21, 15, 0, 1, tzinfo=UTC)


def test_an_offset_gives_both_times_and_a_pattern_the_site(tmp_path):
    names = ("20211207T233852+0300_REC.flac", "=north 07.12.2021 23-38.wav")
    pattern = NamePattern("%site %d.%m.%Y %H-%M")
    infos = [RecordingInfo(name, RATE * 3600, RATE, name_pattern=pattern) for name in names]
    write(tmp_path, infos=infos, rows=[Detection(name, 1800 * RATE, 1801 * RATE, RATE, "x", 1) for name in names])
    rows = lines(tmp_path / "detections.csv", ",")
    assert [tuple(row.values())[-7:-2] for row in rows] == [
        ("2021-12-08T00:08:52.000", "2021-12-07T21:08:52.000Z", "", "2021-12-08", "0"),
        ("2021-12-08T00:08:00.000", "", "'=north", "2021-12-08", "0"),
    ]
    assert pq.read_table(tmp_path / "detections.parquet")["site"].to_pylist() == [None, "=north"]
    assert lines(tmp_path / "recordings.csv", ",")[0]["utc_time"] == "2021-12-07T20:38:52.000Z"


def test_parquet_has_types_names_samples_and_metadata(tmp_path):
    write(tmp_path, ["parquet"])
    table = pq.read_table(tmp_path / "detections.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        **dict.fromkeys(
            ("recording", "code", "common_name", "scientific_name", "site"),
            "dictionary<values=string, indices=int32, ordered=0>",
        ),
        "start_s": "double",
        "end_s": "double",
        "score": "float",
        "local_time": "timestamp[us]",
        "utc_time": "timestamp[us, tz=UTC]",
        "date": "date32[day]",
        "hour": "int8",
        "latitude": "double",
        "longitude": "double",
        "start_sample": "int64",
        "end_sample": "int64",
        "sample_rate_hz": "int32",
    }
    assert json.loads(table.schema.metadata[b"kenya_birds.metadata"]) == ABOUT
    again = [
        Detection(row["recording"], row["start_sample"], row["end_sample"], RATE, row["code"], row["score"])
        for row in table.to_pylist()
    ]
    assert again == [replace(row, score=float(np.float32(row.score))) for row in ROWS]
    assert table["local_time"][2].as_py() == datetime(2021, 12, 7, 6, 30, 57, 31)


def test_json_is_one_document(tmp_path):
    write(tmp_path, ["json"])
    content = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert content["metadata"] == ABOUT
    assert [row["recording"] for row in content["recordings"]] == [MORNING, SILENT, NIGHT]
    assert content["detections"][2] == {
        "recording": MORNING,
        "start_s": 57.000031,
        "end_s": 60.000023,
        "code": "combul2",
        "common_name": "Common Bulbul",
        "scientific_name": "Pycnonotus barbatus",
        "score": 0.123457,
        "local_time": "2021-12-07T06:30:57.000",
        "utc_time": None,
        "site": "KEN_001",
        "date": "2021-12-07",
        "hour": 6,
        "latitude": None,
        "longitude": None,
    }
    assert [row["date"] for row in content["recordings"]] == ["2021-12-07", None, "2021-12-07"]


def test_a_run_in_which_nothing_was_heard_gives_tables_that_can_be_read(tmp_path):
    write(tmp_path, rows=[])
    assert json.loads((tmp_path / "detections.json").read_text())["detections"] == []
    for name in ("detections.csv", "detections.parquet", "detections.selections.txt", "raven/other.selections.txt"):
        assert read_detections(tmp_path / name).empty
    assert (tmp_path / "audacity" / "other.txt").read_bytes() == b""


def test_raven_s_table_of_many_recordings_counts_on_over_those_without_detections(tmp_path):
    write(tmp_path, ["raven"])
    rows = lines(tmp_path / "detections.selections.txt", "\t")
    assert list(rows[3].items()) == [
        ("Selection", "4"),
        ("View", "Spectrogram 1"),
        ("Channel", "1"),
        ("Begin Time (s)", "71.000023"),
        ("End Time (s)", "74.000023"),
        ("Low Freq (Hz)", "150.0"),
        ("High Freq (Hz)", "15000.0"),
        ("Common Name", "x"),
        ("Species Code", "x"),
        ("Scientific Name", ""),
        ("Confidence", "1.0000"),
        ("Begin Path", os.path.abspath(NIGHT)),
        ("File Offset (s)", "1.000000"),
        ("Begin File", "KEN_001_20211207_235959.flac"),
        ("Delta Time (s)", "3.000000"),
    ]
    sounds = (tmp_path / "detections.list.txt").read_text().splitlines()
    assert sounds == [os.path.abspath(info.recording) for info in INFOS]


def documented(page, name):
    """The columns that the page names in the row of a file."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    return [column for code in re.findall("`([^`]+)`", row)[1:] for column in code.split(",")]


def test_the_columns_are_those_that_the_page_on_tables_names(tmp_path):
    write(tmp_path)
    for name in ("recordings.csv", "detections.csv"):
        assert list(pd.read_csv(tmp_path / name)) == documented("tables.md", name)
    expected = documented("tables.md", "detections.csv") + documented("tables.md", "detections.parquet")
    assert sorted(pq.read_schema(tmp_path / "detections.parquet").names) == sorted(expected)
    assert list(json.loads((tmp_path / "detections.json").read_text())) == documented("tables.md", "detections.json")
    header = (tmp_path / "detections.selections.txt").read_text().splitlines()[0].split("\t")
    for code in ("Begin Time (s)", "File Offset (s)", "Begin Path", "Scientific Name", "Begin File", "Delta Time (s)"):
        assert f"`{code}`" in (DOCS / "tables.md").read_text(encoding="utf-8")
        assert code in header


def test_raven_s_table_of_one_recording_starts_at_its_begin(tmp_path):
    write(tmp_path, ["raven"])
    (row,) = lines(tmp_path / "raven" / "KEN_001_20211207_235959.selections.txt", "\t")
    assert (row["Selection"], row["Begin Time (s)"], row["File Offset (s)"]) == ("1", "1.000000", "1.000000")


def test_another_program_reads_the_selection_tables(tmp_path):
    import crowsetta

    write(tmp_path, ["raven"])
    path = tmp_path / "detections.selections.txt"
    boxes = crowsetta.formats.bbox.Raven.from_file(path, annot_col="Common Name").to_bbox()
    assert [(box.onset, box.offset, box.low_freq, box.high_freq, box.label) for box in boxes] == [
        (0, 3, 150, 15_000, "Common Bulbul"),
        (0, 3, 150, 15_000, "x"),
        (57.000031, 60.000023, 150, 15_000, "Common Bulbul"),
        (71.000023, 74.000023, 150, 15_000, "x"),
    ]


def test_audacity_s_labels_are_begin_end_and_name_with_score(tmp_path):
    write(tmp_path, ["audacity"])
    assert (tmp_path / "audacity" / "KEN_001_20211207_063000.txt").read_text() == (
        "0.000000\t3.000000\tCommon Bulbul 0.75\n0.000000\t3.000000\tx 0.50\n"
        "57.000031\t60.000023\tCommon Bulbul 0.12\n"
    )


def test_kaleidoscope_s_table_divides_the_path(tmp_path):
    infos = [RecordingInfo("/data/site/a.wav", RATE * 60, RATE)]
    write(tmp_path, ["kaleidoscope"], infos, [Detection("/data/site/a.wav", 16_000, 112_000, RATE, "combul2", 0.5)])
    assert (tmp_path / "detections.id.csv").read_text() == (
        "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,common_name,confidence\n"
        "/data,site,a.wav,0.500000,3.000000,Pycnonotus barbatus,Common Bulbul,0.5000\n"
    )


@pytest.mark.parametrize(
    ("recording", "where"),
    [
        ("https://h.org/data/2021/site/a.wav", ("https://h.org/data/2021", "site", "a.wav")),
        ("https://h.org/site/a.wav", ("https://h.org", "site", "a.wav")),
        ("https://h.org:8080/a.wav", ("https://h.org:8080", "", "a.wav")),
        ("s3://bucket/site/a b.wav", ("s3://bucket", "site", "a b.wav")),
        ("memory:///rec/a.wav", ("memory:///", "rec", "a.wav")),
        ("memory:///a.wav", ("memory://", "", "a.wav")),
        ("site/a.wav", (".", "site", "a.wav")),
        ("a.wav", (".", "", "a.wav")),
    ],
)
def test_the_folders_of_a_url_are_those_of_the_url(tmp_path, recording, where):
    info = RecordingInfo(recording, RATE * 60, RATE)
    write(tmp_path, ["kaleidoscope"], [info], [Detection(recording, 0, RATE, RATE, "combul2", 0.5)])
    (row,) = lines(tmp_path / "detections.id.csv", ",")
    assert (row["INDIR"], row["FOLDER"], row["IN FILE"]) == where


def test_times_are_exact_after_twelve_hours_of_windows_that_overlap_by_2_9_s(tmp_path):
    # Three recordings of 12 h whose length is no whole number of microseconds, the last windows of each.
    hop, length, frames = 3_200, 96_000, 12 * 3600 * RATE + 1
    infos = [RecordingInfo(f"{name}.wav", frames, RATE) for name in "abc"]
    firsts = [n * hop for n in range((frames - length) // hop - 5, (frames - length) // hop + 1)]
    rows = [Detection(info.recording, at, at + length, RATE, "x", 1) for info in infos for at in firsts]
    write(tmp_path, ["csv", "raven", "parquet", "audacity"], infos, rows)
    combined = lines(tmp_path / "detections.selections.txt", "\t")
    table = lines(tmp_path / "detections.csv", ",")
    for place, (row, in_csv, in_raven) in enumerate(zip(rows, table, combined, strict=True)):
        start = Fraction(row.start_sample, RATE)
        before = Fraction(frames, RATE) * (place // len(firsts))
        assert Fraction(in_csv["start_s"]) == start  # whole tenths of a second
        assert Fraction(in_csv["end_s"]) == start + 3
        assert in_raven["File Offset (s)"] == in_csv["start_s"]
        assert abs(Fraction(in_raven["Begin Time (s)"]) - before - start) <= Fraction(1, 2_000_000)
        assert abs(Fraction(in_raven["End Time (s)"]) - before - start - 3) <= Fraction(1, 2_000_000)
    assert pq.read_table(tmp_path / "detections.parquet")["start_s"].to_pylist() == [row.start_s for row in rows]
    assert [line.split("\t")[0] for line in (tmp_path / "audacity/c.txt").read_text().splitlines()] == [
        row["start_s"] for row in table[-len(firsts) :]
    ]


@given(samples=st.integers(0, 10**11), rate=st.sampled_from([8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 256_000]))
def test_a_written_time_names_its_sample(samples, rate):
    written = decimal_s(sample_us(samples, rate))
    assert len(written.split(".")[1]) == 6
    assert round(Fraction(written) * rate) == samples


@pytest.mark.parametrize(("name", "digits"), [("csv", 6), ("parquet", 6), ("selections.txt", 4)])
def test_a_table_can_be_read_again(tmp_path, name, digits):
    write(tmp_path)
    found = read_detections(tmp_path / f"detections.{name}")
    for row, again in zip(ROWS, found.to_dict("records"), strict=True):
        where = os.path.abspath(row.recording) if name == "selections.txt" else row.recording
        end_s = min(row.end_s, {info.recording: float(info.duration) for info in INFOS}[row.recording])
        assert (again["recording"], again["code"]) == (where, row.species)
        assert (again["common_name"], again["scientific_name"]) == NAMES[row.species]
        assert again["start_s"] == pytest.approx(row.start_s, abs=5e-7)
        assert again["end_s"] == pytest.approx(end_s, abs=2e-6)
        assert again["score"] == pytest.approx(row.score, abs=10.0**-digits)


def test_scores_of_parquet_are_those_of_csv(tmp_path):
    scores = [0.1, 0.197305, 0.300001, 0.7, 0.999999]
    write(tmp_path, ["csv", "parquet"], rows=[replace(ROWS[0], score=score) for score in scores])
    for name in ("csv", "parquet"):
        assert read_detections(tmp_path / f"detections.{name}")["score"].tolist() == scores
        assert read_events(tmp_path / f"detections.{name}").events["score"].tolist() == scores


def test_a_selection_drawn_by_hand_in_raven_is_read_too(tmp_path):
    write(tmp_path, ["raven"])
    path = tmp_path / "detections.selections.txt"
    cells = path.read_text().splitlines()[-1].split("\t")
    cells[10] = ""
    path.write_text(path.read_text() + "\t".join(cells) + "\n")
    assert read_detections(path)["score"].tolist()[-1] == 1


ODD = ["tab\there.wav", "line\nend.wav", '"quoted".wav', "nel\x85.wav", "spaß 🐦.wav", "bad\udcff.wav", "a,b;c.wav"]


def test_no_name_of_a_file_breaks_a_table(tmp_path):
    import crowsetta

    infos = [RecordingInfo(name, RATE * 9, RATE) for name in ODD]
    rows = [Detection(name, n * RATE, (n + 3) * RATE, RATE, "x", 0.5) for name in ODD for n in range(3)]
    names = {"x": SpeciesNames('"Odd"\tbird', "Avis\nrara")}
    for path in write(tmp_path, infos=infos, rows=rows, names=names):
        if path.suffix != ".parquet":
            path.read_text(encoding="utf-8")
    for name in ("csv", "parquet", "selections.txt"):
        assert len(read_detections(tmp_path / f"detections.{name}")) == len(rows)
    assert read_detections(tmp_path / "detections.csv")["recording"][::3].tolist() == [
        name.replace("\udcff", "\\udcff") for name in ODD
    ]
    assert len(crowsetta.formats.bbox.Raven.from_file(
        tmp_path / "detections.selections.txt", annot_col="Common Name").to_bbox()) == len(rows)  # fmt: skip
    assert len((tmp_path / "detections.list.txt").read_text().splitlines()) == len(ODD)
    assert len(list((tmp_path / "raven").iterdir())) == len(ODD)


@pytest.mark.parametrize("begin", "=+-@")
def test_no_cell_of_the_csv_is_a_formula(tmp_path, begin):
    recording = f"{begin}1.wav"
    names = {f"{begin}c": SpeciesNames(f"{begin}A1", f"{begin}B1")}
    infos = [RecordingInfo(recording, RATE * 9, RATE)]
    write(tmp_path, infos=infos, rows=[Detection(recording, 0, RATE, RATE, f"{begin}c", 0.5)], names=names)
    for path in (tmp_path / "detections.csv", tmp_path / "detections.id.csv", tmp_path / "recordings.csv"):
        for row in csv.reader(path.open()):
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    (again,) = read_detections(tmp_path / "detections.csv").to_dict("records")
    assert Path(again["recording"]) == Path(recording)  # "./x" is "x"
    assert (again["code"], again["common_name"]) == (f"{begin}c", f"{begin}A1")


def test_names_with_line_ends_stay_in_one_cell(tmp_path):
    recording = "a\rb\r\nc\nd.wav"
    row = Detection(recording, 0, RATE, RATE, "x", 0.5)
    write(tmp_path, infos=[RecordingInfo(recording, RATE * 9, RATE)], rows=[row])
    assert read_detections(tmp_path / "detections.csv")["recording"].tolist() == [recording]
    for name in ("detections.csv", "recordings.csv"):
        assert [line["recording"] for line in lines(tmp_path / name, ",")] == [recording]
    assert [line["IN FILE"] for line in lines(tmp_path / "detections.id.csv", ",")] == [recording]


def test_files_of_recordings_lie_in_folders_as_the_recordings_do():
    assert file_names(["/d/s1/a.flac", "/d/s2/a.flac", "/d/s2/n/b.wav"]) == {
        "/d/s1/a.flac": "s1/a",
        "/d/s2/a.flac": "s2/a",
        "/d/s2/n/b.wav": "s2/n/b",
    }
    assert file_names(["/d/s1/a.flac"]) == {"/d/s1/a.flac": "a"}
    assert file_names([]) == {}


def test_recordings_that_differ_in_their_ending_or_capitals_only_are_kept_apart():
    names = list(file_names(["a.wav", "a.flac", "A.mp3", "../a.wav", "b.wav"]).values())
    assert len({name.casefold() for name in names}) == 5
    assert names[-1] == "b"
    assert all(name.casefold().startswith("a-") for name in names[:-1])


@given(
    st.lists(
        st.lists(st.sampled_from([*"aA./\\:*? \t\n~é🐦\udcff", "..", "/../"]), min_size=1, max_size=12).map("".join),
        unique=True,
        max_size=8,
    )
)
def test_no_recording_s_file_leaves_the_folder_or_meets_another(recordings):
    names = file_names(recordings)
    assert len({name.casefold() for name in names.values()}) == len(recordings)
    for name in names.values():
        assert not Path(name).is_absolute()
        for part in name.split("/"):
            assert part not in ("", ".", "..")
            assert len(part.encode()) <= MAX_NAME_BYTES + 11


def test_paths_stay_below_what_windows_has_room_for():
    deep = "/".join(f"a folder of some length {n}" for n in range(9))
    names = file_names(["/d/x.flac", f"/d/{deep}/{'long' * 20}.flac", f"/d/{deep}/2/{'long' * 20}.flac"])
    assert len(set(names.values())) == 3
    assert max(map(len, names.values())) < 140
    assert all(name.endswith("long") for name in list(names.values())[1:])


def test_names_that_only_differ_in_how_accents_are_written_do_not_meet():
    names = file_names(["caf\u00e9.wav", "cafe\u0301.wav", "CAF\u00c9.wav"])
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names.values()}) == 3


def test_a_table_that_is_open_in_a_program_on_windows_leaves_all_as_they_were(tmp_path, monkeypatch):
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    replace = os.replace

    def locked(source, target):
        if Path(target).name == "recordings.csv":
            raise PermissionError(13, "The process cannot access the file because it is being used")
        replace(source, target)

    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(UserError, match=r"recordings\.csv cannot be replaced; close the program in which it is open"):
        write(tmp_path, rows=[])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_the_folder_of_a_run_may_have_files_of_finder_and_explorer(tmp_path):
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / name).touch()
    RunFiles(tmp_path).prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".DS_Store", ".kenya_birds", "Thumbs.db"]


def test_no_file_has_a_name_that_windows_reserves():
    names = file_names(["con/a.wav", "Aux.wav", "nul .x/com1.wav", "console.wav"])
    assert list(names.values()) == ["_con/a", "_Aux", "_nul .x/_com1", "console"]


def test_a_name_as_long_as_file_systems_allow_makes_files_too(tmp_path):
    long = "ü" * 125 + ".wav"
    write(tmp_path, infos=[RecordingInfo(long, RATE, RATE)], rows=[])
    assert len(list((tmp_path / "audacity").iterdir())) == 1


def test_what_goes_wrong_midway_leaves_the_old_tables_and_no_rest(tmp_path):
    made = write(tmp_path)
    before = {path: path.read_bytes() for path in made}

    def broken():
        yield from ROWS[:2]
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write(tmp_path, rows=broken())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([ROWS[3], ROWS[0]], "a recording that is not listed, or is out of order"),
        ([ROWS[2], ROWS[0]], "begins before"),
        ([Detection(MORNING, 0, 1, RATE, "nobody", 1)], "without names"),
        ([Detection("nowhere.wav", 0, 1, RATE, "x", 1)], "a recording that is not listed, or is out of order"),
    ],
)
def test_rows_out_of_order_are_refused(tmp_path, rows, reason):
    with pytest.raises(ValueError, match=reason):
        write(tmp_path, rows=rows)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_recording_listed_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        write(tmp_path, infos=[INFOS[0], INFOS[0]], rows=[])


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="no format xls"):
        write(tmp_path, ["csv", "xls"])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["none.csv", "empty.csv", "other.csv", "other.txt", "other.parquet", "other.xls"])
def test_what_is_no_table_of_detections_is_refused(tmp_path, name):
    (tmp_path / "empty.csv").write_text("")
    for ending in ("csv", "txt", "parquet", "xls"):
        (tmp_path / f"other.{ending}").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="table of detections"):
        read_detections(tmp_path / name)


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("kenya_birds.inference.table_formats.ROW_GROUP_ROWS", 200)
    info = RecordingInfo("a.wav", RATE * 10**6, RATE)

    def peak(number):
        gc.collect()  # what other tests left is not collected in the middle of one measurement, and counted in another
        tracemalloc.start()
        write(tmp_path, infos=[info], rows=(Detection("a.wav", n, n + 9, RATE, "x", 0.5) for n in range(number)))
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)
    assert peak(2_500) < 1.2 * peak(500)
    assert pq.ParquetFile(tmp_path / "detections.parquet").num_row_groups == 3


@pytest.mark.parametrize("name", [name for name in TABLE_FORMATS if name != "audacity"])
def test_a_disk_that_is_full_leaves_the_old_tables_and_no_rest(tmp_path, name):
    made = write(tmp_path, [name])
    before = {path: path.read_bytes() for path in made}
    many = [Detection(MORNING, n, n + 9, RATE, "x", n / 9000) for n in range(9000)]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            write(tmp_path, [name], rows=many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
