"""Tables of detections that somebody corrected become archives to train on."""

import csv

import pandas as pd
import pytest
from archives import RATE, noise
from soundfile import write as write_sound

from kenya_birds.data.archive import read_archive
from kenya_birds.data.corrections import write_archive
from kenya_birds.errors import UserError
from kenya_birds.inference.detections import Detection, RecordingInfo
from kenya_birds.inference.output_tables import write_tables
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.table_reader import read_detections

NAMES = {"combul2": SpeciesNames("Common Bulbul", "Pycnonotus barbatus"), "x": SpeciesNames("=x", "")}
RECORDINGS = ("site1/20211207_053000.wav", "site2/20211207_053000.wav", "site2/other.wav")


@pytest.fixture
def found(tmp_path, monkeypatch):
    """The folder of tables of three recordings, one of them without a detection."""
    monkeypatch.chdir(tmp_path)
    infos, rows = [], []
    for seed, recording in enumerate(RECORDINGS):
        path = tmp_path / recording
        path.parent.mkdir(exist_ok=True)
        write_sound(path, noise(20, seed=seed), RATE)
        infos.append(RecordingInfo(recording, 20 * RATE, RATE))
        if recording != RECORDINGS[2]:
            rows += [Detection(recording, n * RATE, (n + 3) * RATE, RATE, code, 0.5) for n in (3, 9) for code in NAMES]
    write_tables(
        tmp_path / "found",
        ["raven", "csv", "parquet"],
        infos,
        rows,
        species_names=NAMES,
        frequencies_hz=(150.0, 4000.0),
        metadata={},
    )
    return tmp_path / "found"


@pytest.mark.parametrize("name", ["detections.csv", "detections.parquet", "detections.selections.txt"])
def test_every_table_of_detections_becomes_an_archive(found, tmp_path, name):
    archive = read_archive(write_archive(read_detections(found / name), tmp_path / "corrected"))
    assert sorted(archive.headers) == ["site1_20211207_053000.wav", "site2_20211207_053000.wav"]
    assert archive.annotations["center_s"].tolist() == [4.5, 4.5, 10.5, 10.5] * 2
    assert archive.set_aside.empty
    assert archive.species.loc["combul2"].tolist() == ["Pycnonotus barbatus", "Common Bulbul"]
    assert archive.species.loc["x"].tolist() == ["", "=x"]
    for number, recording in enumerate(RECORDINGS[:2], start=1):
        copy = tmp_path / "corrected" / "soundscape_data" / f"site{number}_20211207_053000.wav"
        assert copy.read_bytes() == (tmp_path / recording).read_bytes()


def rewritten(path, change):
    """Changes the rows of a table as a program does that reads it and writes it again."""
    delimiter = "\t" if path.suffix == ".txt" else ","
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    rows = change(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_selection_table_that_was_corrected_in_raven(found, tmp_path):
    def correct(rows):
        first, second, third, _ = rows  # the fourth is deleted
        second["Species Code"], second["Common Name"] = "grnwoo1", "Green Woodhoopoe"
        third["Species Code"] = ""
        drawn = {**dict.fromkeys(first, ""), "Selection": "5", "View": "Spectrogram 1", "Species Code": "combul2"}
        drawn |= {"Begin Time (s)": "14.25", "End Time (s)": "15.75"}
        return [one | {"Notes": "checked"} for one in (first | {"View": "Waveform 1"}, first, second, third, drawn)]

    path = rewritten(found / "raven" / "site1" / "20211207_053000.selections.txt", correct)
    table = read_detections(path)
    assert table["score"].tolist() == [0.5, 0.5, 0.5, 1.0]
    archive = read_archive(write_archive(table, tmp_path / "corrected"))
    assert archive.annotations["species"].tolist() == ["combul2", "grnwoo1", "combul2"]
    assert archive.annotations["center_s"].tolist() == [4.5, 4.5, 15.0]
    assert archive.species.at["grnwoo1", "common_name"] == "Green Woodhoopoe"
    assert len(archive.unknown) == 1


def test_where_a_selection_is_must_be_told_in_the_table_of_many_recordings(found):
    def draw(rows):
        return [*rows, {**rows[0], "Begin Path": "", "File Offset (s)": ""}]

    path = rewritten(found / "detections.selections.txt", draw)
    with pytest.raises(UserError, match=r"line 10 has no Begin Path or File Offset \(s\): fill them in"):
        read_detections(path)


@pytest.mark.parametrize(
    "save",
    [
        lambda table, path: table.to_csv(path, index=False, encoding="utf-8-sig", lineterminator="\r\n"),
        lambda table, path: table.to_csv(path, index=False, sep=";", decimal=",", encoding="utf-8-sig"),
        lambda table, path: table.assign(right=1, notes="a; b, c").to_csv(path, index=False),
    ],
    ids=["with a mark", "with semicolons and decimal commas", "with more columns"],
)
def test_a_csv_that_a_spreadsheet_saved(found, tmp_path, save):
    expected = read_detections(found / "detections.csv")
    save(pd.read_csv(found / "detections.csv"), tmp_path / "saved.csv")
    pd.testing.assert_frame_equal(read_detections(tmp_path / "saved.csv"), expected)


def test_tables_that_name_a_recording_in_several_ways_give_it_once(found, tmp_path):
    table = read_detections(found / "detections.csv")
    other = table.assign(recording=[f"./{path}" for path in table["recording"]])
    raven = read_detections(found / "detections.selections.txt")
    archive = read_archive(write_archive(pd.concat([table, other, raven]), tmp_path / "corrected"))
    assert len(archive.headers) == 2
    assert len(archive.annotations) == 3 * len(table)


def test_names_that_differ_in_capitals_only_get_their_folders(tmp_path):
    paths = [tmp_path / name for name in ("a/b/x.wav", "c/b/X.wav", "a/y.wav")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sound(path, noise(2), RATE)
    rows = [(str(path), 0.0, 1.0, "a", "", "") for path in paths]
    columns = ["recording", "start_s", "end_s", "code", "common_name", "scientific_name"]
    archive = read_archive(write_archive(pd.DataFrame(rows, columns=columns), tmp_path / "corrected"))
    assert sorted(archive.headers) == ["a_b_x.wav", "c_b_X.wav", "y.wav"]
    assert archive.species.at["a", "common_name"] == "a"


def test_what_cannot_become_an_archive_is_refused(found, tmp_path):
    table = read_detections(found / "detections.csv")
    with pytest.raises(UserError, match="no rows"):
        write_archive(table[:0], tmp_path / "corrected")
    with pytest.raises(UserError, match="is not empty"):
        write_archive(table, found)
    (tmp_path / RECORDINGS[0]).unlink()
    with pytest.raises(UserError, match=r"1 of the table's recordings do not exist: 'site1/20211207_053000\.wav'"):
        write_archive(table, tmp_path / "corrected")
    assert not (tmp_path / "corrected").exists()
