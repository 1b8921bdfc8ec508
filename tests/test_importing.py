"""Annotations of other programs become an archive whose recordings stay where they are."""

import codecs
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds import UserError
from kenya_birds.cli import main
from kenya_birds.data.archive import archive_fingerprint, read_archive
from kenya_birds.data.check import check_archive
from kenya_birds.data.importing import ImportSettings, format_import, import_annotations
from kenya_birds.data.number_texts import parse_numbers
from kenya_birds.data.recording_matching import RecordingFinder
from kenya_birds.data.table_cells import read_cells

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
RATE, SECONDS = 8_000, 10


def record(folder, *names, rate=RATE):
    """Recordings of 10 s of noise."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, noise(SECONDS, rate, seed), rate)


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def raven(*rows):
    """A selection table of (start, end, species), each a box from 1000 to 2000 Hz."""
    lines = (f"{n}\tSpectrogram 1\t1\t{a}\t{b}\t1000\t2000\t{name}\n" for n, (a, b, name) in enumerate(rows, 1))
    return RAVEN + "".join(lines)


def taken(result, *columns):
    """The annotations as the archive has them."""
    table = pd.read_csv(result.archive / "annotations.csv", keep_default_na=False, dtype=str)
    names = {"recording": "Filename", "start": "Start Time (s)", "end": "End Time (s)", "code": "Species eBird Code"}
    names |= {"low": "Low Freq (Hz)", "high": "High Freq (Hz)", "who": "Annotator", "source": "Source"}
    rows = table[[names[column] for column in columns or ("recording", "start", "end", "code")]]
    return [tuple(row) for row in rows.to_numpy().tolist()]


def found(result, effect="not taken"):
    """(file, line, finding) of each finding with this effect."""
    rows = result.findings.rows
    return [(file, line, finding) for one, file, line, _, finding, _ in rows if one == effect]


@pytest.fixture
def do_import(tmp_path):
    def run(source=tmp_path / "in", **settings):
        return import_annotations(tmp_path / "archive", ImportSettings(source, **settings))

    return run


# Formats


def test_raven_tables_beside_recordings_in_subfolders(tmp_path, do_import):
    record(tmp_path / "in", "site1/a.wav", "site2/a.wav", "site2/b.wav")
    write(tmp_path / "in/site1/a.Table.1.selections.txt", raven((1.5, 2.5, "WOTH"), (3, 4, "EATO")))
    write(tmp_path / "in/site2/a.Table.1.selections.txt", raven((5, 6, "WOTH")))
    result = do_import()
    assert taken(result) == [
        ("site1/a.wav", "1.5", "2.5", "WOTH"),
        ("site1/a.wav", "3.0", "4.0", "EATO"),
        ("site2/a.wav", "5.0", "6.0", "WOTH"),
    ]
    assert taken(result, "low", "high", "source")[0] == ("1000.0", "2000.0", "site1/a.Table.1.selections.txt, line 2")
    assert found(result) == []
    archive = read_archive(result.archive)
    assert sorted(archive.headers) == ["site1/a.wav", "site2/a.wav"]
    assert archive.recording_path("site2/a.wav") == tmp_path / "in/site2/a.wav"
    assert check_archive(result.archive).is_usable
    # Nothing is copied.
    assert sorted(path.name for path in result.archive.iterdir()) == [
        "annotations.csv",
        "import_report.csv",
        "recordings.csv",
        "species.csv",
    ]


def test_paths_may_be_texts(tmp_path):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.Table.1.selections.txt", raven((1.5, 2.5, "WOTH")))
    write(tmp_path / "names.csv", "name,code\nWOTH,woothr\n")
    texts = {"recordings": str(tmp_path / "in"), "names": str(tmp_path / "names.csv")}
    result = import_annotations(str(tmp_path / "archive"), ImportSettings(str(tmp_path / "in"), **texts))
    assert taken(result) == [("a.wav", "1.5", "2.5", "woothr")]


def test_hidden_files_are_not_tables_and_raven_tables_may_have_commas(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.csv", raven((1, 2, "owl")).replace("\t", ","))
    # macOS writes such files on disks of other systems.
    (tmp_path / "in/._a.csv").write_bytes(b"\0\5\x16\7")
    write(tmp_path / "in/.trash/a.txt", raven((3, 4, "owl")))
    result = do_import(form="raven")
    assert taken(result, "start", "low") == [("1.0", "1000.0")]
    assert result.findings.rows == []


def test_audacity_labels_with_frequencies_and_points(tmp_path, do_import):
    record(tmp_path / "in", "a.flac")
    write(tmp_path / "in/a.txt", "1.0\t2.0\tSP\n\\\t1500.5\t3000\n4.0\t4.0\tCRER\n\\\t-1\t-1\n")
    result = do_import()
    assert taken(result, "start", "end", "low", "high", "code") == [
        ("1.0", "2.0", "1500.5", "3000.0", "SP"),
        ("4.0", "4.0", "", "", "CRER"),
    ]
    assert read_archive(result.archive).annotations["center_s"].tolist() == [1.5, 4.0]


def test_kaleidoscope_names_folders_and_another_suffix(tmp_path, do_import):
    record(tmp_path / "in", "site1/a.flac", "site2/a.flac")
    header = "INDIR,FOLDER,IN FILE,OFFSET,DURATION,TOP1MATCH,MANUAL ID\n"
    rows = "C:\\data,site1,a.wav,1,2,XXXX,owl\nC:\\data,site2,a.wav,3,2,XXXX,lark\n"
    write(tmp_path / "in/id.csv", header + rows)
    result = do_import()
    assert taken(result) == [("site1/a.flac", "1.0", "3.0", "owl"), ("site2/a.flac", "3.0", "5.0", "lark")]
    assert "has another suffix than the table says" in format_import(result)


def test_birdnet_labels_have_two_names(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.BirdNET.results.txt", "0\t3\tTurdus merula_Common Blackbird\t0.9\n")
    result = do_import(form="birdnet")
    assert taken(result) == [("a.wav", "0.0", "3.0", "Turdus merula")]
    assert result.species.to_numpy().tolist() == [["Turdus merula", "Turdus merula", "Common Blackbird"]]


def test_a_csv_with_columns_and_names_of_its_own(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    text = "clip,Begin,Finish,kind,by\na.wav,1,2,Amsel,Ann\na.wav,3,4,Wind,\na.wav,5,6,Who,\n"
    table = write(tmp_path / "in/t.csv", text)
    names = write(tmp_path / "names.csv", "name,code,scientific_name\namsel,eurbla,Turdus merula\nWind,\n")
    columns = {"recording": "clip", "start_s": "Begin", "end_s": "Finish", "annotator": "by"}
    result = do_import(table, columns=columns, species_column="kind", names=names, annotator="Bob")
    assert taken(result, "start", "code", "who") == [("1.0", "eurbla", "Ann"), ("5.0", "????", "Bob")]
    assert result.species.to_numpy().tolist() == [["Turdus merula", "eurbla", "Amsel"]]
    assert found(result) == [("t.csv", 3, "a name has no code in the map, so its annotations were left out")]
    assert found(result, "changed") == [("t.csv", 4, "a name is not in the map and was taken as an unknown bird")]
    text = format_import(result)
    assert "1  Amsel -> eurbla" in text
    assert "1  Wind, left out" in text
    assert "1  Who -> ????" in text


def test_crowsetta_reads_further_formats(tmp_path, do_import):
    pytest.importorskip("crowsetta")
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.csv", "onset_s,offset_s,label\n1.0,2.0,owl\n3.0,4.0,lark\n")
    with pytest.raises(UserError, match="crowsetta has no format 'x': expected one of"):
        do_import(form="crowsetta:x")
    result = do_import(form="crowsetta:simple-seq")
    assert taken(result) == [("a.wav", "1.0", "2.0", "owl"), ("a.wav", "3.0", "4.0", "lark")]


def test_an_imported_archive_can_be_imported_again(tmp_path, do_import):
    record(tmp_path / "in", "site1/a.wav")
    write(tmp_path / "in/site1/a.txt", raven((1.25, 2.5, "WOTH")))
    result = do_import()
    again = import_annotations(tmp_path / "again", ImportSettings(result.archive, recordings=tmp_path / "in"))
    assert taken(again) == taken(result)


def test_weak_labels_and_checked_detections_of_an_archive_stay_what_they_are(tmp_path, do_import):
    record(tmp_path / "in/soundscape_data", "a.wav", "b.wav")
    rows = ["a.wav,1,2,owl,yes,,", "b.wav,3,4,owl,,absent,m", "b.wav,6,7,owl,,unsure,m", "b.wav,8,9,jay,,present,m"]
    header = "Filename,Start Time (s),End Time (s),Species eBird Code,Weak,Verified,Model\n"
    write(tmp_path / "in/annotations.csv", header + "\n".join(rows))
    write(tmp_path / "in/species.csv", "Scientific Name,Species eBird Code,Common Name\nA a,owl,Owl\nB b,jay,Jay\n")
    result = do_import()
    assert "some of them are checked detections: 1 present, 1 absent, 1 unsure" in format_import(result)
    before, after = read_archive(tmp_path / "in"), read_archive(result.archive)
    columns = ["start_s", "end_s", "species", "weak"]
    assert after.annotations[columns].equals(before.annotations[columns])
    assert after.absent[["start_s", "species"]].equals(before.absent[["start_s", "species"]])
    assert after.weak == {"soundscape_data/a.wav"}
    assert after.verified == {"soundscape_data/b.wav": "m"}
    # Another program's column of this name is not ours, and a value that is none is told.
    write(tmp_path / "t.csv", "file,start,end,species,Verified\na.wav,1,2,owl,absent\n")
    other = import_annotations(tmp_path / "2", ImportSettings(tmp_path / "t.csv", recordings=tmp_path / "in"))
    assert len(taken(other)) == 1
    write(tmp_path / "in/annotations.csv", header + rows[0] + "\nb.wav,3,4,owl,,maybe,m")
    wrong = import_annotations(tmp_path / "3", ImportSettings(tmp_path / "in"))
    assert "'Verified' is 'maybe', expected present, absent, unsure or nothing" in format_import(wrong)


def test_detections_below_the_folder_are_no_annotations(tmp_path, do_import):
    record(tmp_path / "in/sound", "a.wav", "b.wav")
    write(tmp_path / "in/labels/a.txt", "1\t2\towl\n")
    found_rows = "recording,start_s,end_s,code,score\nsound/b.wav,3,6,jay,0.9\n"
    write(tmp_path / "in/runs/found/detections.csv", found_rows)
    write(tmp_path / "in/runs/found/recordings.csv", "recording,duration_s,detections\nsound/b.wav,10,1\n")
    write(tmp_path / "in/site/recordings.csv", "file,date\na.wav,today\n")  # a table of somebody's own
    write(tmp_path / "in/site/detections.csv", "file,start,end,species\na.wav,5,6,owl\n")
    write(tmp_path / "in/runs/found/audacity/b.txt", "3\t6\tjay\n")
    result = do_import()
    assert taken(result, "recording", "code") == [("sound/a.wav", "owl")] * 2
    (note,) = [file for file, _, finding in found(result, "note") if "nobody has checked" in finding]
    assert note == "runs/found"
    runs = tmp_path / "in/runs/found"
    chosen = import_annotations(tmp_path / "2", ImportSettings(runs / "detections.csv", recordings=tmp_path / "in"))
    assert taken(chosen, "recording", "code") == [("sound/b.wav", "jay")]


# How tables are written


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_separators_and_line_ends(encoding, delimiter, end, tmp_path):
    lines = [["file", "start", "end", "species"], [r"C:\data\a.wav", "1.5", "2.5", "Grünspecht"]]
    path = write(tmp_path / "t.csv", end.join(delimiter.join(line) for line in lines) + end, encoding)
    cells = read_cells(path)
    assert cells.cells["label"] == ["Grünspecht"]
    assert cells.lines == [2]


def test_decimal_commas(tmp_path, do_import):
    record(tmp_path / "in", "a.wav", "b.wav")
    write(tmp_path / "in/a.txt", raven((1.5, 2.25, "WOTH")).replace("1.5", "1,5").replace("2.25", "2,250"))
    write(tmp_path / "in/b.csv", "start;end;species\n1,500;2,750;WOTH\n")
    assert taken(do_import(), "recording", "start", "end") == [("a.wav", "1.5", "2.25"), ("b.wav", "1.5", "2.75")]


def test_a_number_with_two_meanings_is_told_and_not_taken(tmp_path, do_import):
    record(tmp_path / "in", "a.wav", "b.wav")
    write(tmp_path / "in/a.txt", "1,234\t2,345\towl\n")
    write(tmp_path / "in/b.txt", "1.5\t2.5\towl\n")
    result = do_import()
    assert taken(result, "recording") == [("b.wav",)]
    assert found(result) == [("a.txt", 1, "a row cannot be read")]
    assert "'start' is '1,234', expected a number with a decimal point" in format_import(result)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 99_999_999), min_size=1, max_size=5))
def test_decimal_commas_and_points_give_the_same_numbers(numbers):
    texts = pd.DataFrame({"start_s": [f"{number / 10_000:.4f}" for number in numbers]})
    one_table, unknown = np.zeros(len(texts), dtype=int), np.array([False])
    points = parse_numbers(texts, one_table, unknown)
    assert points["start_s"].tolist() == [number / 10_000 for number in numbers]
    commas = texts.apply(lambda column: column.str.replace(".", ","))
    pd.testing.assert_frame_equal(parse_numbers(commas, one_table, unknown), points)


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1,234", "0,5"], [1.234, 0.5]),
        (["1,234", "0.5"], [1234, 0.5]),
        (["1,234.5", "1,234,567"], [1234.5, 1_234_567]),
        (["1.234,5", "1,234"], [1234.5, 1.234]),
        (["1,234"], [np.nan]),
        (["1,234", "0,5", "0.5"], [np.nan, 0.5, 0.5]),
        (["1.200", "1.203,5"], [1200, 1203.5]),
        (["1.200", "12,5"], [1200, 12.5]),
        (["1.200", "12,5", "12.5"], [np.nan, 12.5, 12.5]),
        (["1.200", "12.5", "1,203,000"], [1.2, 12.5, 1_203_000]),
        (["0:01:02.5", "1:00:00", "1:30", "0:61:00"], [62.5, 3600, np.nan, np.nan]),
        (["0:01:02,5", "1,25"], [62.5, 1.25]),
        (["inf", "nan", "1e999", "", "1,2,3", "-1e-3"], [np.nan] * 5 + [-0.001]),
    ],
)
def test_a_comma_has_the_meaning_that_the_other_numbers_of_the_table_show(texts, numbers):
    read = parse_numbers(pd.DataFrame({"start_s": texts}), np.zeros(len(texts), dtype=int), np.array([False]))
    np.testing.assert_array_equal(read["start_s"], numbers)


def test_points_of_thousands_are_shown_by_the_numbers_of_the_same_column():
    times = pd.DataFrame({"start_s": ["12.345", "15.678", "0.125"], "low_hz": ["1,5", "", ""]})
    read = parse_numbers(times, np.zeros(3, dtype=int), np.array([False]))
    assert read["start_s"].tolist() == [12.345, 15.678, 0.125]
    english = pd.DataFrame({"start_s": ["12.345", "15.678"], "low_hz": ["1,200", "2,500"]})
    read = parse_numbers(english, np.zeros(2, dtype=int), np.array([False]))
    assert read.to_numpy().tolist() == [[12.345, 1200], [15.678, 2500]]
    assert parse_numbers(english, np.zeros(2, dtype=int), np.array([True]))["low_hz"].isna().all()


# Bad input


def test_rows_without_one_meaning_are_told_with_file_and_line(tmp_path, do_import):
    record(tmp_path / "in", "a.wav", "site1/b.wav")
    rows = [
        "a.wav,1,2,owl",
        "lost.wav,1,2,owl",
        "a.wav,one,2,owl",
        "a.wav,3,2,owl",
        "a.wav,11,12,owl",
        "a.wav,-2,-1,owl",
        "site9/b.wav,1,2,owl",
        "a.wav,1,2,OWL",
        "a.wav,9,12,owl",
        "D:\\x\\site1\\b.wav,1,2,owl",
    ]
    write(tmp_path / "in/t.csv", "\n".join(["file,start,end,species", *rows]) + "\n")
    result = do_import()
    assert taken(result) == [
        ("a.wav", "1.0", "2.0", "owl"),
        ("a.wav", "9.0", "10.0", "owl"),
        ("site1/b.wav", "1.0", "2.0", "owl"),
    ]
    assert sorted(found(result), key=lambda row: row[1]) == [
        ("t.csv", 3, "its recording is not there"),
        ("t.csv", 4, "a row cannot be read"),
        ("t.csv", 5, "a row cannot be read"),
        ("t.csv", 6, "is past the end of its recording"),
        ("t.csv", 7, "is before its recording"),
        ("t.csv", 8, "its recording is not there"),
        ("t.csv", 9, "repeats an earlier annotation"),
    ]
    report = pd.read_csv(result.archive / "import_report.csv", keep_default_na=False)
    assert "a recording of this name is at site1/b.wav: its folder differs" in report["detail"].tolist()
    assert "'start' is 'one', expected a number" in report["detail"].tolist()
    assert found(result, "changed") == [("t.csv", 10, "was cut at the start or end of its recording")]


def test_no_cell_of_the_report_is_a_formula_in_a_spreadsheet(tmp_path, do_import):
    record(tmp_path / "in", "=cmd.wav")
    write(tmp_path / "in/=t.csv", "file,start,end,species\n=cmd.wav,1,2,owl\n=cmd.wav,1,x,owl\n+lost.wav,1,2,owl\n")
    result = do_import()
    report = pd.read_csv(result.archive / "import_report.csv", keep_default_na=False)
    assert {"./=t.csv"} == {*report["file"]}
    assert "./+lost.wav" in {*report["recording"]}
    assert not report["detail"].str.match(r"[=+\-@]").any()


def test_columns_that_an_import_does_not_need_cost_no_row(tmp_path, do_import):
    record(tmp_path / "in", "a.wav", "b.wav")
    rows = [
        "a.wav,1,2,owl,high,NA,NA",
        "a.wav,3,4,owl,0.5,low,900",
        "a.wav,5,6,NA,,100,900",
        "b.wav,NA,NA,NA,NA,NA,NA",
    ]
    header = "file,start,end,species,Confidence,low_freq_hz,high_freq_hz\n"
    write(tmp_path / "in/t.csv", header + "\n".join(rows))
    result = do_import()
    assert taken(result, "recording", "start", "code", "low", "high") == [
        ("a.wav", "1.0", "owl", "", ""),
        ("a.wav", "3.0", "owl", "", "900.0"),
        ("a.wav", "5.0", "????", "100.0", "900.0"),
    ]
    assert found(result) == []
    assert found(result, "changed") == [("t.csv", 3, "a frequency cannot be read, and was left out")]
    assert sorted(result.recordings) == ["a.wav", "b.wav"]  # R writes NA: nothing is in b.wav


def test_a_given_duration_replaces_a_column_that_looks_like_the_end(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/t.csv", "file,start,length,end time,species\na.wav,1,0.5,06:30:00,owl\n")
    assert taken(do_import(columns={"duration_s": "length"}), "start", "end") == [("1.0", "1.5")]


def test_an_empty_end_is_the_start_and_the_duration(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/t.csv", "file,start,end,duration,species\na.wav,1,,0.5,owl\na.wav,2,3,9,owl\n")
    assert taken(do_import(), "start", "end") == [("1.0", "1.5"), ("2.0", "3.0")]


def test_a_point_at_the_end_of_a_recording_is_in_it(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.txt", "10\t10\towl\n10.04\t10.04\tlark\n9\t10\towl\n")
    result = do_import()
    assert taken(result, "start", "end") == [("9.0", "10.0"), ("9.999999", "9.999999"), ("9.999999", "9.999999")]
    assert len(read_archive(result.archive).annotations) == 3


def test_of_two_columns_with_one_name_the_first_is_read(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.csv", "start,end,species,species\n1,2,owl,lark\n")
    assert taken(do_import(), "code") == [("owl",)]


def test_a_name_that_a_table_cannot_have_is_told(tmp_path, do_import):
    record(tmp_path / "in", " a.wav", "b.wav")
    write(tmp_path / "in/t.csv", "file,start,end,species\na.wav,1,2,owl\nb.wav,1,2,owl\n")
    result = do_import(all_recordings=True)
    assert sorted(read_archive(result.archive).headers) == ["b.wav"]
    assert "the name of a recording cannot be written in a table" in format_import(result)


def test_frequencies_that_the_recording_cannot_have(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    rows = ["1,2,1000,5000", "3,4,4500,6000", "5,6,3000,2000"]
    write(tmp_path / "in/a.csv", "\n".join(["start,end,low_hz,high_hz,species", *(f"{row},owl" for row in rows)]))
    result = do_import()
    assert taken(result, "start", "low", "high") == [("1.0", "1000.0", "4000.0"), ("3.0", "", ""), ("5.0", "", "")]
    assert [line for _, line, _ in found(result, "changed")] == [3, 4, 2]


def test_an_empty_table_is_a_recording_without_a_call(tmp_path, do_import):
    record(tmp_path / "in", "a.wav", "b.wav", "c.wav", "d.wav")
    write(tmp_path / "in/a.txt", raven((1, 2, "owl")))
    write(tmp_path / "in/b.txt", RAVEN)
    write(tmp_path / "in/t.csv", "file,start,end,species\nc.wav,,,\n")
    result = do_import()
    assert sorted(result.recordings) == ["a.wav", "b.wav", "c.wav"]
    assert sorted(read_archive(result.archive).headers) == ["a.wav", "b.wav", "c.wav"]
    shutil.rmtree(result.archive)
    assert sorted(do_import(all_recordings=True).recordings) == ["a.wav", "b.wav", "c.wav", "d.wav"]


def test_a_recording_whose_annotations_were_not_taken_is_not_one_without_a_call(tmp_path, do_import):
    record(tmp_path / "in", *(f"site1/{name}.wav" for name in "abcdef"), "site2/e.wav")
    write(tmp_path / "in/site1/a.txt", raven((1, 2, "owl")))
    write(tmp_path / "in/site1/b.txt", raven(("one", 2, "owl")))
    write(tmp_path / "in/t.csv", "file,start,end,species\nc.wav,11,12,owl\nD.WAV,x,y,owl\ne.wav,1,2,owl\n")
    result = do_import(all_recordings=True)
    assert sorted(result.recordings) == ["site1/a.wav", "site1/f.wav"]
    notes = [
        (recording, finding) for _, _, _, recording, finding, _ in result.findings.rows if "not in the arch" in finding
    ]
    names = [*(f"site1/{name}.wav" for name in "bcde"), "site2/e.wav"]
    assert notes == [
        (name, "a recording is not in the archive, because no annotation of it was taken") for name in names
    ]


def test_a_recording_with_an_empty_table_and_rejected_calls_is_not_one_without_a_call(tmp_path, do_import):
    record(tmp_path / "in", "a.wav", "b.wav")
    write(tmp_path / "in/a.txt", "")
    write(tmp_path / "in/t.csv", "file,start,end,species\na.wav,99,100,owl\nb.wav,1,2,owl\n")
    assert sorted(do_import().recordings) == ["b.wav"]


def test_two_tables_of_one_recording_are_read_and_their_repetitions_counted_once(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.Table.1.selections.txt", raven((1, 2, "owl"), (3, 4, "owl")))
    write(tmp_path / "in/a.Table.2.selections.txt", raven((1, 2, "owl"), (5, 6, "lark")))
    result = do_import()
    assert len(taken(result)) == 3
    assert found(result) == [("a.Table.2.selections.txt", 2, "repeats an earlier annotation")]
    assert "has several tables, all were read" in format_import(result)


def test_names_that_differ_in_case_or_blanks_are_one_species(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    names = ["Tree Pipit", "Tree Pipit", "tree  pipit", "TREE PIPIT"]
    write(tmp_path / "in/a.txt", "".join(f"{n}\t{n + 0.5}\t{name}\n" for n, name in enumerate(names)))
    result = do_import()
    assert {code for (code,) in taken(result, "code")} == {"Tree Pipit"}
    assert "names that differ in case or blanks are one species" in format_import(result)


def test_the_same_species_under_several_names_gets_one_code(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    header = "file,start,end,code,scientific_name,common_name\n"
    rows = "a.wav,1,2,eurbla,Turdus merula,Blackbird\na.wav,3,4,,turdus merula,\na.wav,5,6,,,BLACKBIRD\n"
    write(tmp_path / "in/t.csv", header + rows)
    assert [code for (code,) in taken(do_import(), "code")] == ["eurbla"] * 3


def test_one_name_for_two_species_is_told_and_becomes_an_unknown_bird(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    header = "file,start,end,code,scientific_name,common_name\n"
    rows = [
        "a.wav,1,2,amerob,Turdus migratorius,Robin",
        "a.wav,2,3,eurrob,Erithacus rubecula,Robin",
        "a.wav,3,4,,,Robin",
        "a.wav,4,5,amerob,Turdus migratorius,Robin",
        "a.wav,5,6,amerob,Petroica phoenicea,Robin",
    ]
    write(tmp_path / "in/t.csv", header + "\n".join(rows))
    result = do_import()
    assert [code for (code,) in taken(result, "code")] == ["amerob", "eurrob", "????", "amerob", "????"]
    finding = "a name is uncertain and was taken as an unknown bird"
    assert found(result, "changed") == [("t.csv", 4, finding), ("t.csv", 6, finding)]
    assert "may be amerob or eurrob" in format_import(result)


def test_the_best_name_of_a_row_decides_and_a_label_of_several_species_names_none(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    rows = [
        "a.wav,1,2,Turdus merula,,Aves",
        "a.wav,2,3,Parus major,,Aves",
        "a.wav,3,4,,Tawny Owl,song",
        "a.wav,4,5,,Wood Thrush,song",
        "a.wav,5,6,,,song",
        "a.wav,6,7,,,GTIT",
        "a.wav,7,8,Parus major,,GTIT",
    ]
    write(tmp_path / "in/t.csv", "file,start,end,scientific_name,common_name,label\n" + "\n".join(rows))
    result = do_import()
    codes = ["Turdus merula", "Parus major", "Tawny Owl", "Wood Thrush", "????", "Parus major", "Parus major"]
    assert [code for (code,) in taken(result, "code")] == codes
    assert dict(zip(result.species["species"], result.species["common_name"], strict=True)) == {
        "Turdus merula": "Turdus merula",
        "Parus major": "GTIT",
        "Tawny Owl": "Tawny Owl",
        "Wood Thrush": "Wood Thrush",
    }
    assert ("Parus major", "Parus major", 2) in result.names.itertuples(index=False, name=None)
    assert "may be Tawny Owl or Wood Thrush" in format_import(result)


@pytest.mark.parametrize("given", [True, False])
def test_files_that_are_read_for_names_and_recordings_are_not_noted_as_other_tables(tmp_path, do_import, given):
    record(tmp_path / "in", "a.wav", "b.wav")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    write(tmp_path / "in/recordings.csv", "Filename,Folder\nb.wav,.\n")
    names = write(tmp_path / "in" / ("names.csv" if given else "species.csv"), "name,code\nowl,striow1\n")
    result = do_import(names=names if given else None)
    assert taken(result, "recording", "code") == [("a.wav", "striow1")]
    assert [finding for _, _, finding in found(result, "note")] == ["a recording has no call"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("name,code\nowl,a\nOWL,b\n", r"line 3: 'OWL' has the code 'b', and 'a' on line 2"),
        (
            "name,code\nowl,a\nkauz,A\n",
            r"line 3: the code 'A' differs from 'a' on line 2 in upper and lower case only",
        ),
        ("first,second\n", "expected name and code, or the columns of species.csv"),
    ],
)
def test_a_map_without_one_meaning_is_refused(names, message, tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    with pytest.raises(UserError, match=message):
        do_import(names=write(tmp_path / "names.csv", names))
    assert not (tmp_path / "archive").exists()


def test_recordings_of_the_same_name_in_two_folders_are_told(tmp_path, do_import):
    record(tmp_path / "in", "site1/a.wav", "site2/a.wav", "b.wav")
    write(tmp_path / "tables/t.csv", "file,start,end,species\na.wav,1,2,owl\nb.wav,1,2,owl\n")
    result = do_import(tmp_path / "tables", recordings=tmp_path / "in")
    assert taken(result, "recording") == [("b.wav",)]
    assert "it may be site1/a.wav or site2/a.wav" in format_import(result)


def test_tables_in_a_folder_of_their_own(tmp_path, do_import):
    record(tmp_path / "in", "recordings/a.wav")
    write(tmp_path / "in/tables/a.txt", "1\t2\towl\n")
    assert taken(do_import(), "recording") == [("recordings/a.wav",)]


def test_a_table_whose_recording_is_gone_does_not_take_that_of_another_site(tmp_path, do_import):
    record(tmp_path / "in", "site2/a.wav")
    for site in ("site1", "site2"):
        write(tmp_path / f"in/{site}/a.txt", f"1\t2\t{site}\n")
    result = do_import()
    assert taken(result, "recording", "code") == [("site2/a.wav", "site2")]
    assert found(result) == [("site1/a.txt", 1, "its recording is not there")]


@pytest.mark.parametrize(
    ("tables", "recordings"),
    [
        # The recording of one table is lost, and the other site has no tables.
        (["site1/a.txt", "site1/b.txt"], ["site1/b.wav", "site2/a.wav", "site2/b.wav"]),
        # Tables and recordings are in two trees.
        (
            ["labels/site1/a.txt", "labels/site1/b.txt"],
            ["sound/site1/b.wav", "sound/site2/a.wav", "sound/site2/b.wav"],
        ),
        (["labels/site1/a.txt", "labels/site2/a.txt"], ["sound/site2/a.wav"]),
    ],
)
def test_folders_of_sites_are_the_same_in_two_trees(tmp_path, do_import, tables, recordings):
    record(tmp_path / "in", *recordings)
    for table in tables:
        write(tmp_path / "in" / table, "1\t2\towl\n")
    result = do_import(all_recordings=True)
    assert taken(result, "recording") == [(recordings[0],)]
    assert found(result) == [(tables[0], 1, "its recording is not there")]


@pytest.mark.parametrize(
    ("tables", "recordings"),
    [
        (["tables/a.txt"], ["recordings/a.wav"]),
        (["tables/a.txt"], ["recordings/a.wav", "tables/clips/owl.wav"]),  # sound that somebody cut out
        (["data/labels/a.txt"], ["audio/a.wav", "data/templates/x.wav"]),
        (["tables/a.txt", "recordings/logs/notes.txt"], ["recordings/a.wav"]),
        (["site1/data/a.txt"], ["site1/wav/a.wav", "site2/data/b.wav"]),
        (["anna/site1/a.txt", "bob/site1/a.txt"], ["sound/site1/a.wav"]),
        (["anna/a.txt", "bob/a.txt"], ["sound/a.wav"]),
    ],
)
def test_tables_may_lie_in_another_tree_than_recordings(tmp_path, do_import, tables, recordings):
    record(tmp_path / "in", *recordings)
    for number, table in enumerate(tables):
        write(tmp_path / "in" / table, "" if "notes" in table else f"1\t2\towl{number}\n")
    assert set(taken(do_import(), "recording")) == {(recordings[0],)}


def test_of_a_table_of_several_sites_and_the_recordings_of_one_its_own_rows_are_taken(tmp_path, do_import):
    record(tmp_path / "sound/site1", "a.wav", "b.wav")
    rows = ["site1/a.wav,1,2,owl", "site2/a.wav,3,4,jay", "site2/b.wav,5,6,jay", "D:\\old\\site1\\a.wav,7,8,owl"]
    table = write(tmp_path / "t.csv", "file,start,end,species\n" + "\n".join(rows))
    result = do_import(table, recordings=tmp_path / "sound/site1")
    assert taken(result) == [("a.wav", "1.0", "2.0", "owl"), ("a.wav", "7.0", "8.0", "owl")]
    where = "site2/a.wav, the recording with this name is in the folder site1, not in site2"
    assert f"its recording is in another folder (first: t.csv line 3, {where})" in format_import(result)
    # The row may be one of b.wav, so this is no recording without a call.
    assert sorted(do_import_again(tmp_path, table, all_recordings=True).recordings) == ["a.wav"]


def do_import_again(tmp_path, table, **settings):
    return import_annotations(
        tmp_path / "again", ImportSettings(table, recordings=tmp_path / "sound/site1", **settings)
    )


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        # As recorders write: a folder of the card, or of the day, is innermost.
        (["site1/Data/a.wav", "site2/Data/b.wav"], ["site2/Data/b.wav"]),
        # Drives and folders above that of the site may differ: recordings were moved.
        (["D:/x/site1/Data/a.wav", "//nas/y/site1/Data/b.wav"], []),
        (["D:/old/Data/a.wav", "E:/new/Data/b.wav"], []),
    ],
)
def test_names_show_which_folders_above_the_recordings_a_table_means(tmp_path, do_import, rows, lost):
    record(tmp_path / "sound/site1/Data", "a.wav", "b.wav")
    lines = "".join(f"{name},1,2,owl\n" for name in rows)
    result = do_import(
        write(tmp_path / "t.csv", f"file,start,end,species\n{lines}"), recordings=tmp_path / "sound/site1"
    )
    assert [row[3] for row in result.findings.rows if row[0] == "not taken"] == lost


def test_names_with_other_folders_may_mean_one_moved_recording(tmp_path, do_import):
    record(tmp_path / "sound", "a.wav")
    rows = ["C:\\anna\\a.wav,7,8,owl", "/home/bob/a.wav,9,10,owl"]
    result = do_import(
        write(tmp_path / "t.csv", "file,start,end,species\n" + "\n".join(rows)), recordings=tmp_path / "sound"
    )
    assert taken(result, "recording", "start") == [("a.wav", "7.0"), ("a.wav", "9.0")]


def test_paths_do_not_leave_the_folder_of_the_recordings(tmp_path, do_import):
    record(tmp_path, "in/a.wav", "other/b.wav")
    write(
        tmp_path / "in/t.csv",
        f"file,start,end,species\na.wav,1,2,owl\n../other/b.wav,1,2,owl\n{tmp_path}/other/b.wav,1,2,owl\n",
    )
    result = do_import()
    assert taken(result, "recording") == [("a.wav",)]
    assert [line for _, line, _ in found(result)] == [3, 4]


def test_nothing_is_written_if_nothing_can_be_taken_or_the_folder_is_not_empty(tmp_path, do_import):
    write(tmp_path / "in/a.txt", raven((1, 2, "owl")))
    with pytest.raises(UserError, match=r"are not in .*in; give their folder with --recordings"):
        do_import()
    assert not (tmp_path / "archive").exists()
    record(tmp_path / "in", "a.wav")
    kept = write(tmp_path / "archive/annotations.csv", "mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        do_import()
    assert kept.read_text() == "mine"
    with pytest.raises(UserError, match="there is no"):
        import_annotations(tmp_path / "new", ImportSettings(tmp_path / "nowhere"))


def test_an_archive_can_be_made_in_the_working_folder(tmp_path, monkeypatch):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_annotations(".", ImportSettings(tmp_path / "in"))
    assert len(read_archive(tmp_path / "here").annotations) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "in"]


def test_a_table_without_a_known_column_of_species_says_which_columns_it_has(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.csv", "start,end,Vogel\n1,2,Amsel\n")
    with pytest.raises(UserError, match="give --species_column; the columns are start, end, Vogel"):
        do_import()
    assert taken(do_import(species_column="Vogel"), "code") == [("Amsel",)]
    shutil.rmtree(tmp_path / "archive")
    # Of several tables, those without the column are told, and the others are taken.
    write(tmp_path / "in/a.txt", raven((3, 4, "owl")))
    result = do_import(species_column="Vogel")
    assert taken(result, "code") == [("Amsel",)]
    assert found(result) == [("a.txt", None, "a table lacks a column")]
    with pytest.raises(UserError, match=r"a.csv has no column 'Art': found start, end, Vogel"):
        import_annotations(tmp_path / "new", ImportSettings(tmp_path / "in/a.csv", species_column="Art"))


@pytest.mark.parametrize("source", ["in/a.csv", "in"])
def test_a_table_whose_times_have_other_names_says_how_to_give_them(tmp_path, do_import, source):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.csv", "Datei;Beginn;Ende;Art\na.wav;1;2;Amsel\n")
    told = "found Datei, Beginn, Ende, Art.*; if .* give --columns start=COLUMN,end=COLUMN,recording=COLUMN"
    with pytest.raises(UserError, match=told):
        do_import(tmp_path / source)
    columns = {"start_s": "Beginn", "end_s": "Ende", "recording": "Datei", "label": "Art"}
    assert taken(do_import(tmp_path / source, columns=columns), "code") == [("Amsel",)]


def test_a_recording_that_cannot_be_read_is_told_once_if_all_are_taken(tmp_path, do_import):
    record(tmp_path / "in", "a.wav", "c.wav")
    write(tmp_path / "in/b.wav", "no sound")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    result = do_import(all_recordings=True)
    assert found(result) == [("", None, "a recording cannot be read")]
    assert found(result, "note") == [("", None, "a recording has no call")]


def test_recordings_and_tables_that_cannot_be_read_are_told(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/b.wav", "no sound")
    write(tmp_path / "in/t.csv", "file,start,end,species\na.wav,1,2,owl\nb.wav,1,2,owl\n")
    write(tmp_path / "in/broken.csv", "file,start,end,species\na.wav,1,5,2,5,owl\n")
    (tmp_path / "in/image.txt").write_bytes(codecs.BOM_UTF16_LE + b"\0")
    result = do_import()
    assert taken(result, "recording") == [("a.wav",)]
    assert {(file, finding) for file, _, finding in found(result)} == {
        ("", "a recording cannot be read"),
        ("broken.csv", "a table cannot be read"),
        ("image.txt", "a table cannot be read"),
    }


# The archive


def test_a_moved_folder_is_an_error_that_says_what_to_do(tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    archive = do_import().archive
    before = archive_fingerprint(archive)
    (tmp_path / "in").rename(tmp_path / "disk")
    with pytest.raises(
        UserError, match=r"recordings.csv line 2: the folder of the recordings '.*in' does not exist: con"
    ):
        read_archive(archive)
    table = archive / "recordings.csv"
    table.write_text(table.read_text().replace(str((tmp_path / "in").resolve()), str(tmp_path / "disk")))
    assert read_archive(archive).recording_path("a.wav") == tmp_path / "disk/a.wav"
    assert archive_fingerprint(archive) != before
    (tmp_path / "disk/a.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 1 annotated recordings do not exist: .*a\.wav"):
        read_archive(archive)
    assert not check_archive(archive).is_usable


@pytest.mark.parametrize("name", ["../a.wav", "/a.wav", "x/../../a.wav", "C:/a.wav", "x\\\\a.wav", ""])
def test_recordings_of_a_table_are_below_their_folder(name, tmp_path, do_import):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    archive = do_import().archive
    table = archive / "recordings.csv"
    table.write_text(table.read_text().replace("a.wav", name))
    with pytest.raises(UserError, match="is not a path below its folder"):
        read_archive(archive)


def test_headers_are_kept_and_read_again_when_the_file_has_changed(tmp_path, do_import, monkeypatch):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    archive = do_import().archive
    with monkeypatch.context() as patch:
        patch.setattr("kenya_birds.data.recording_places.read_header", None)
        assert read_archive(archive).headers["a.wav"].frames == RATE * SECONDS
    soundfile.write(tmp_path / "in/a.wav", noise(4), RATE)
    assert read_archive(archive).headers["a.wav"].frames == 4 * RATE


@pytest.mark.parametrize(
    ("column", "number"),
    [("Frames", "9" * 30), ("Frames", "9" * 19), ("Frames", "0"), ("Sampling Rate (Hz)", "0"), ("Channels", "0")],
)
def test_a_kept_header_that_no_recording_has_is_read_again(tmp_path, do_import, column, number):
    record(tmp_path / "in", "a.wav")
    write(tmp_path / "in/a.txt", "1\t2\towl\n")
    archive = do_import().archive
    table = pd.read_csv(archive / "recordings.csv", dtype=str)
    table[column] = number
    table.to_csv(archive / "recordings.csv", index=False)
    header = read_archive(archive).headers["a.wav"]
    assert (header.frames, header.sample_rate_hz, header.channels) == (RATE * SECONDS, RATE, 1)


def test_the_command_imports_and_refuses_in_one_line(tmp_path, capsys):
    record(tmp_path / "in", "a.wav")
    table = write(tmp_path / "in/t.csv", 'clip,"Begin, s",End,bird\na.wav,1,2,owl\n')
    words = ["import", str(table), "--output", str(tmp_path / "archive"), "--columns"]
    main([*words, "recording=clip,start=Begin, s,species=bird"])
    assert "1 annotation (" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "archive")
    with pytest.raises(SystemExit) as ended:
        main([*words, "begin=clip"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "--columns has 'begin=clip': expected NAME=COLUMN" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("is_of_table", [True, False])
@pytest.mark.parametrize("inner", ["", "/data"])
def test_many_sites_with_the_same_file_names_are_told_apart_quickly(is_of_table, inner):
    sites = [f"site{number:04}{inner}" for number in range(3_000)]
    finder = RecordingFinder([f"recordings/{site}/a.wav" for site in sites], [f"tables/{site}/a" for site in sites])
    begin_s = time.process_time()
    for site in sites:
        match = finder.find(f"{site}/a", f"tables/{site}", is_of_table=is_of_table)
        assert match.recording == f"recordings/{site}/a.wav"
    assert time.process_time() - begin_s < 5
    # Without a folder that tells, no recording is chosen.
    assert finder.find("a", "tables", is_of_table=is_of_table).others == tuple(
        f"recordings/{one}/a.wav" for one in sites
    )
