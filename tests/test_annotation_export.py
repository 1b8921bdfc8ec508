"""Annotations that are written for another program and imported again are the same."""

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import edit, noise, write_archive
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kenya_birds import UserError
from kenya_birds.cli import main
from kenya_birds.data.annotation_export import export_annotations
from kenya_birds.data.archive import read_archive
from kenya_birds.data.importing import ImportSettings, import_annotations

RECORDINGS = ("a.wav", "a.flac", "site1/a.wav", "site1/b_labels.wav", "site 2/c.d.wav")
HEADER = "Filename,Start Time (s),End Time (s),Low Freq (Hz),High Freq (Hz),Species eBird Code,Annotator"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Recordings of 10 s in folders."""
    folder = tmp_path_factory.mktemp("sound")
    for seed, name in enumerate(RECORDINGS):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, noise(10, seed=seed), 8_000)
    return folder


def archive_of(folder, sound, rows, name="archive"):
    """An archive of (recording, start, end, low, high, code, annotator); all recordings are in it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "birds.csv"
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    table.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    (folder / "species.csv").write_text(
        "Scientific Name,Species eBird Code,Common Name\nAsio otus,owl1,Eared Owl\n,lark2,Lark\n", encoding="utf-8"
    )
    chosen = ImportSettings(table, recordings=sound, all_recordings=True)
    return import_annotations(folder / name, chosen).archive


def content(archive):
    """The rows of an archive without their source, its species and its recordings."""
    rows = pd.read_csv(archive / "annotations.csv", keep_default_na=False, dtype=str).drop(columns="Source")
    others = [(archive / name).read_text(encoding="utf-8") for name in ("species.csv", "recordings.csv")]
    return sorted(map(tuple, rows.to_numpy().tolist())), *others


@pytest.mark.parametrize("form", ["raven", "audacity", "csv"])
@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(RECORDINGS),
            st.integers(0, 7_999_999),
            st.integers(0, 2_000_000),
            st.none() | st.tuples(st.integers(0, 19_999), st.integers(0, 20_000)),
            st.sampled_from(["owl1", "lark2", "????", "Tree Pipit", "1"]),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[:3],
    )
)
def test_what_goes_out_comes_back_the_same(form, sound, tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("round")
    table = []
    for recording, start_us, length_us, box, code in rows:
        # A decimal number has one shortest text.
        low, high = (None, None) if box is None else (box[0] / 10, (box[0] + box[1]) / 10)
        table.append((recording, start_us / 1e6, (start_us + length_us) / 1e6, low, high, code, ""))
    archive = archive_of(folder, sound, table)
    export_annotations(archive, folder / "out", form)
    again = import_annotations(folder / "again", ImportSettings(folder / "out", recordings=sound))
    assert content(again.archive) == content(archive)


def test_raven_tables_keep_who_annotated_and_are_read_by_crowsetta(sound, tmp_path):
    import crowsetta

    rows = [("site1/a.wav", 1.25, 2.5, 500, 1500.5, "owl1", "Ann"), ("site1/a.wav", 3, 4, None, None, "lark2", "")]
    archive = archive_of(tmp_path, sound, rows)
    export_annotations(archive, tmp_path / "out", "raven")
    table = tmp_path / "out/site1/a.Table.1.selections.txt"
    boxes = crowsetta.formats.by_name("raven").from_file(table, annot_col="Species").to_bbox()
    found = [(box.onset, box.offset, box.low_freq, box.high_freq, box.label) for box in boxes]
    assert found == [(1.25, 2.5, 500, 1500.5, "owl1"), (3, 4, 0, 4000, "lark2")]
    # A recording without a call has a table without rows.
    assert (tmp_path / "out/site 2/c.d.Table.1.selections.txt").read_text().count("\n") == 1
    # Two recordings that differ in the suffix have the tables of their whole names.
    assert (tmp_path / "out/a.flac.Table.1.selections.txt").is_file()
    again = import_annotations(tmp_path / "again", ImportSettings(tmp_path / "out", recordings=sound))
    assert content(again.archive) == content(archive)


def test_audacity_labels_have_frequencies_in_a_second_line(sound, tmp_path):
    rows = [("site1/a.wav", 1.25, 2.5, 500, 1500.5, "owl1", ""), ("site1/a.wav", 3, 3, None, None, "lark2", "")]
    export_annotations(archive_of(tmp_path, sound, rows), tmp_path / "out", "audacity")
    assert (tmp_path / "out/site1/a.txt").read_text() == "1.25\t2.5\towl1\n\\\t500.0\t1500.5\n3.0\t3.0\tlark2\n"


def test_the_csv_has_the_columns_of_the_collections_on_zenodo_and_is_an_archive(tmp_path):
    archive = write_archive(tmp_path / "archive", [("b.wav", 4.0, "owl1"), ("a.flac", (1.0, 2.5), "lark2")])
    main(["export-annotations", str(archive), "--to", "csv", "--output", str(tmp_path / "out")])
    (archive / "soundscape_data").rename(tmp_path / "out/soundscape_data")
    table = pd.read_csv(tmp_path / "out/annotations.csv")
    assert list(table) == HEADER.split(",")[:6]
    calls = read_archive(tmp_path / "out").annotations
    assert calls["center_s"].tolist() == [4.0, 1.75]
    assert np.isnan(calls["low_hz"]).all()


def test_corrections_in_an_exported_table_come_back(sound, tmp_path):
    archive = archive_of(
        tmp_path, sound, [("a.wav", 1, 2, 500, 900, "owl1", ""), ("a.wav", 3, 4, 500, 900, "owl1", "")]
    )
    export_annotations(archive, tmp_path / "out", "raven")
    edit(
        tmp_path / "out/a.wav.Table.1.selections.txt", "3.0\t4.0\t500.0\t900.0\towl1", "3.5\t4.0\t500.0\t900.0\tlark2"
    )
    again = import_annotations(tmp_path / "again", ImportSettings(tmp_path / "out", recordings=sound))
    calls = read_archive(again.archive).annotations
    assert calls[["start_s", "species"]].to_numpy().tolist() == [[1, "owl1"], [3.5, "lark2"]]


def test_nothing_is_written_into_a_folder_that_is_not_empty(tmp_path):
    archive = write_archive(tmp_path / "archive", [("a.wav", 4.0, "owl1")])
    with pytest.raises(UserError, match="is not an empty folder"):
        export_annotations(archive, archive, "raven")


@pytest.mark.parametrize("form", ["raven", "audacity", "csv"])
def test_a_recording_outside_of_the_archive_is_not_exported(form, tmp_path):
    archive = write_archive(tmp_path / "home/archive", [("a.wav", 4.0, "owl1")])
    mine = tmp_path / "home/thesis.txt"
    mine.write_text("my only copy")
    for name in ("../../thesis.txt", str(mine)):
        edit(archive / "annotations.csv", "a.wav,4.0", f"{name},4.0")
        with pytest.raises(UserError, match=r"1 of 1 annotated recordings are not in .*thesis.txt"):
            export_annotations(archive, tmp_path / "home/out", form)
        edit(archive / "annotations.csv", f"{name},4.0", "a.wav,4.0")
    assert mine.read_text() == "my only copy"
    assert not (tmp_path / "home/out").exists()


def test_cells_that_are_no_numbers_are_not_exported(sound, tmp_path):
    archive = archive_of(tmp_path, sound, [("a.wav", 1.5, 2.5, 500, 900, "owl1", "")])
    edit(archive / "annotations.csv", "500.0", "=1+1")
    export_annotations(archive, tmp_path / "out", "audacity")
    assert (tmp_path / "out/a.wav.txt").read_text() == "1.5\t2.5\towl1\n"
    edit(archive / "annotations.csv", "1.5", "=1+1")
    with pytest.raises(UserError, match=r"annotations.csv line 2, a.wav: start_s is '=1\+1', expected seconds"):
        export_annotations(archive, tmp_path / "again", "audacity")
