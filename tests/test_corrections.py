"""Tables of detections that somebody corrected become archives to train on."""

import csv

import pandas as pd
import pytest
from archives import RATE, noise
from soundfile import write as write_sound

from kenya_birds.data.archive import read_archive
from kenya_birds.data.event_tables import events_of
from kenya_birds.data.import_tables import ImportSettings
from kenya_birds.data.importing import import_annotations
from kenya_birds.data.table_cells import read_cells
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


def archive_of(tables, tmp_path):
    """The archive of corrected tables, and the table of what the import has found."""
    result = import_annotations(tmp_path / "corrected", ImportSettings(tables, recordings=tmp_path))
    return read_archive(result.archive), result.findings.table()


@pytest.mark.parametrize(
    "name", ["detections.csv", "detections.parquet", "detections.selections.txt", "raven"], ids=str
)
def test_every_table_of_detections_becomes_an_archive(found, tmp_path, name):
    archive, _ = archive_of(found / name, tmp_path)
    assert archive.annotations["recording"].unique().tolist() == list(RECORDINGS[:2])
    # The recording without a detection has an empty table of its own.
    assert len(archive.headers) == 2 + (name == "raven")
    assert archive.annotations["center_s"].tolist() == [4.5, 4.5, 10.5, 10.5] * 2
    assert archive.set_aside.empty
    assert archive.species.loc["combul2"].tolist() == ["Pycnonotus barbatus", "Common Bulbul"]
    assert archive.species.loc["x"].tolist() == ["", "=x"]


def test_a_recording_without_a_row_in_the_spreadsheet_is_taken_with_all_recordings(found, tmp_path):
    settings = ImportSettings(found / "detections.csv", recordings=tmp_path, all_recordings=True)
    archive = read_archive(import_annotations(tmp_path / "corrected", settings).archive)
    assert sorted(archive.headers) == list(RECORDINGS)


def test_the_folder_of_detect_does_not_say_which_of_its_tables_was_corrected(found, tmp_path):
    with pytest.raises(
        UserError, match=r"found is the output of kenya-birds detect: give .*raven or .*detections.csv"
    ):
        archive_of(found, tmp_path)
    assert not (tmp_path / "corrected").exists()


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
        third["Species Code"] = "????"
        drawn = {**dict.fromkeys(first, ""), "Selection": "5", "View": "Spectrogram 1", "Species Code": "combul2"}
        drawn |= {"Begin Time (s)": "14.25", "End Time (s)": "15.75"}
        return [one | {"Notes": "checked"} for one in (first | {"View": "Waveform 1"}, first, second, third, drawn)]

    path = rewritten(found / "raven" / "site1" / "20211207_053000.selections.txt", correct)
    table = read_detections(path)
    assert table["score"].tolist() == [0.5, 0.5, 0.5, 1.0]
    assert table["end_s"].iloc[-1] == 15.75
    archive, findings = archive_of(path, tmp_path)
    assert archive.annotations["species"].tolist() == ["combul2", "grnwoo1", "combul2"]
    assert archive.annotations["center_s"].tolist() == [4.5, 4.5, 15.0]
    assert archive.species.at["grnwoo1", "common_name"] == "Green Woodhoopoe"
    assert len(archive.unknown) == 1
    assert not (findings["effect"] == "not taken").any()


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


DRAWN = {"Selection": "99", "Begin Time (s)": "14.25", "End Time (s)": "15.75"}
LACKING = {"Begin Path": "", "Begin File": "", "File Offset (s)": "", "Delta Time (s)": ""}


@pytest.mark.parametrize(
    ("kept", "path"),
    [(8, RECORDINGS[0]), (8, ""), (4, RECORDINGS[1]), (0, "")],
    ids=["path", "none", "other", "alone"],
)
def test_a_selection_in_the_table_of_many_recordings_is_not_guessed(found, tmp_path, kept, path):
    def draw(rows):
        return [*rows[:kept], rows[0] | DRAWN | LACKING | {"Begin Path": path}]

    table = rewritten(found / "detections.selections.txt", draw)
    (wrong,) = events_of([read_cells(table)]).query("problem != ''").to_dict("records")
    assert (wrong["line"], wrong["problem"]) == (kept + 2, "'File Offset (s)' is '', expected a number")


def test_a_call_is_drawn_where_nothing_was_detected(found, tmp_path):
    def draw(rows):
        return [rows[0] | DRAWN | LACKING]

    rewritten(found / "raven" / "site1" / "20211207_053000.selections.txt", draw)
    archive, _ = archive_of(found / "raven", tmp_path)
    of_first = archive.annotations[archive.annotations["recording"] == RECORDINGS[0]]
    assert of_first["center_s"].tolist() == [15.0]


def test_an_offset_that_is_there_is_kept(found):
    def draw(rows):
        return [*rows, rows[0] | DRAWN | {"Begin Path": "", "File Offset (s)": "10"}]

    table = rewritten(found / "raven" / "site1" / "20211207_053000.selections.txt", draw)
    events = events_of([read_cells(table)])
    assert events["start_s"].tolist()[-1] == 10
    assert events["recording"].tolist()[-1] == "20211207_053000", "by the table's name"


def test_a_corrected_code_without_names_is_taken(found, tmp_path):
    def correct(rows):
        names = {"Common Name": "", "Scientific Name": ""}
        return [row | names | {"Species Code": "combul2"} if row["Species Code"] == "x" else row for row in rows]

    archive, _ = archive_of(rewritten(found / "detections.selections.txt", correct), tmp_path)
    assert archive.annotations["species"].tolist() == ["combul2"] * 4, "both species were detected at the same times"
    assert archive.species["common_name"].tolist() == ["Common Bulbul"]


def test_a_corrected_code_that_kept_the_names_of_another_is_told(found, tmp_path):
    def correct(rows):
        return [
            row | {"Species Code": "combul2", "Scientific Name": "Avis x"} if n == 1 else row
            for n, row in enumerate(rows)
        ]

    _, findings = archive_of(rewritten(found / "detections.selections.txt", correct), tmp_path)
    (row,) = findings[findings["effect"] == "changed"].to_dict("records")
    assert "'combul2' stands for pycnonotus barbatus elsewhere, and here for Avis x" in row["detail"]


def test_a_corrected_code_that_kept_its_old_names_is_told(found, tmp_path):
    def correct(rows):
        return [{**rows[0], "Species Code": "grnwoo1"}, *rows[1:]]

    _, findings = archive_of(rewritten(found / "detections.selections.txt", correct), tmp_path)
    assert "'Pycnonotus barbatus': combul2, grnwoo1" in findings["detail"].tolist()


def test_tables_of_recordings_with_one_name_and_two_suffixes_are_of_their_recording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("=site/a.flac", "=site/a.wav", "b.wav")
    infos = [RecordingInfo(name, 20 * RATE, RATE) for name in names]
    for info in infos:
        (tmp_path / info.recording).parent.mkdir(parents=True, exist_ok=True)
        write_sound(tmp_path / info.recording, noise(20), RATE)
    rows = [Detection(name, 3 * RATE, 6 * RATE, RATE, "combul2", 0.5) for name in names]
    write_tables(
        tmp_path / "found",
        ["raven"],
        infos,
        rows,
        species_names=NAMES,
        frequencies_hz=(150.0, 4000.0),
        metadata={},
    )
    by_suffix = {read_cells(path).cells["recording"][0][-5:]: path for path in tmp_path.glob("found/raven/*/*.txt")}
    flac, wav = by_suffix[".flac"], by_suffix["a.wav"]
    header, row = flac.read_text().splitlines()
    flac.write_text(header + "\n")  # every detection was wrong
    cells = dict(zip(header.split("\t"), row.split("\t"), strict=True)) | DRAWN | LACKING
    wav.write_text(f"{header}\n" + "\t".join(cells.values()) + "\n")  # only a drawn call is left
    archive, findings = archive_of(tmp_path / "found/raven", tmp_path)
    assert not (findings["effect"] == "not taken").any()
    assert sorted(archive.headers) == sorted(names)
    drawn = archive.annotations.set_index("recording")["center_s"]
    assert drawn.to_dict() == {names[1]: 15.0, names[2]: 4.5}
