"""Annotations of an archive as tables of other programs, from which `importing` makes the same archive again."""

import logging
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from kenya_birds.data.archive import (
    ANNOTATION_COLUMNS,
    BOX_COLUMNS,
    NO_CODE,
    UNKNOWN_SPECIES,
    VERIFIED_COLUMNS,
    WEAK_COLUMN,
    as_seconds,
)
from kenya_birds.data.csv_table import read_csv, read_table
from kenya_birds.data.recording_places import RecordingPlaces
from kenya_birds.data.table_cells import recording_of
from kenya_birds.errors import UserError
from kenya_birds.files import ANNOTATIONS_FILE, RECORDINGS_TABLE, SPECIES_FILE, check_layout, write_table
from kenya_birds.folders import check_new_folder, users_folder
from kenya_birds.values import TRUE

logger = logging.getLogger(__name__)

Form = Literal["raven", "audacity", "csv"]
# The columns of the collections of soundscapes on Zenodo.
CSV_COLUMNS = (
    "Filename",
    "Start Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Species eBird Code",
)
RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Species"),
    "Annotator",
)
_AUDACITY = ("start_s", "end_s", "species")
_TIDY = str.maketrans("\t\r\n", "   ")


def export_annotations(data_dir: str | Path, output: str | Path, form: Form) -> list[Path]:
    """Writes the annotations of an archive for another program, with `species.csv`.

    `raven`: a selection table for each recording, in its folders, with the code in the column `Species`. `audacity`: a
    label file for each recording. Recordings without a call get an empty table. `csv`: `annotations.csv` with
    `CSV_COLUMNS`, and the archive's `recordings.csv` if there is one. All rows are written, also those that
    `read_archive` skips, so that they can be corrected.

    Args:
        data_dir: The archive.
        output: New or empty folder. It is written completely or not at all.
        form: The form.

    Returns:
        The files.

    Raises:
        UserError: If the archive cannot be read, a time is not a number, or the folder is not empty or cannot be
            written.
    """
    data_dir, output = Path(data_dir), Path(output)
    check_new_folder(output)
    check_layout(data_dir)
    places = RecordingPlaces.of(data_dir)
    optional = {**BOX_COLUMNS, **WEAK_COLUMN, **VERIFIED_COLUMNS, "Annotator": "annotator"}
    table = read_table(data_dir / ANNOTATIONS_FILE, ANNOTATION_COLUMNS, optional)
    for column in ("start_s", "end_s"):
        as_seconds(table, column, data_dir / ANNOTATIONS_FILE)
    for column in BOX_COLUMNS.values():
        table[column] = table[column].where(pd.to_numeric(table[column], errors="coerce").notna(), "")
    if weak := table.loc[table["weak"].str.lower().isin(TRUE), "recording"].nunique():
        logger.warning(
            "%d recordings have weak labels, which the tables do not say: annotate all their calls before they are "
            "imported again",
            weak,
        )
    verified = set(table.loc[table["verified"] != "", "recording"])
    if verified:
        logger.warning(
            "%d recordings with checked detections are not written: the rest of their sound is unknown", len(verified)
        )
        table = table[~table["recording"].isin(verified)]
    names = sorted(table["recording"].unique())
    files = places.find(names)
    if missing := [name for name in names if name not in files]:
        raise UserError(f"{len(missing)} of {len(names)} annotated recordings {places.missing(missing)}")
    table["recording"] = table["recording"].map(files)
    left_out = set(places.find(sorted(verified)).values())
    table["species"] = table["species"].replace(NO_CODE, UNKNOWN_SPECIES)
    with users_folder(output, str(output)) as partial:
        shutil.copyfile(data_dir / SPECIES_FILE, partial / SPECIES_FILE)
        if form == "csv":
            columns = {**ANNOTATION_COLUMNS, **BOX_COLUMNS}
            rows = table[[columns[name] for name in CSV_COLUMNS]].set_axis(list(CSV_COLUMNS), axis=1)
            rows.to_csv(partial / ANNOTATIONS_FILE, index=False, lineterminator="\n")
            if left_out and places.is_table:
                listed = read_csv(places.source)
                write_table(listed[~listed["Filename"].isin(left_out)], partial / RECORDINGS_TABLE)
            elif places.is_table:
                shutil.copyfile(places.source, partial / RECORDINGS_TABLE)
        else:
            silent = set(places.paths) - left_out if places.is_table else set()
            _write_tables(table, sorted(silent | set(table["recording"])), places, form, partial)
    return sorted(path for path in output.rglob("*") if path.is_file())


def _write_tables(
    table: pd.DataFrame, recordings: list[str], places: RecordingPlaces, form: Form, folder: Path
) -> None:
    """Writes a table of each recording."""
    rows_of = table.groupby("recording").indices
    stems = Counter(_stem(name).casefold() for name in recordings)
    for name in recordings:
        ending = ".Table.1.selections.txt" if form == "raven" else ".txt"
        path = folder / f"{_stem(name)}{ending}"
        # The table of a.wav is a.txt, unless there is an a.flac too, or the name ends as those of tables do.
        if stems[_stem(name).casefold()] > 1 or recording_of(path) != PurePosixPath(_stem(name)).name:
            path = folder / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = table.iloc[rows_of[name]] if name in rows_of else table.iloc[:0]
        lines = _raven(rows, _half_rate(places, name)) if form == "raven" else _audacity(rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _half_rate(places: RecordingPlaces, name: str) -> str:
    with suppress(UserError):
        return f"{places.header(name).sample_rate_hz / 2:.1f}"
    return ""


def _raven(rows: pd.DataFrame, half_rate_hz: str) -> list[str]:
    # Raven needs frequencies: all of them, where none are known.
    every = ("0", half_rate_hz)
    lines = ["\t".join(RAVEN_COLUMNS)]
    for number, row in enumerate(rows.itertuples(), 1):
        low, high = (row.low_hz, row.high_hz) if row.low_hz and row.high_hz else every
        cells = (number, "Spectrogram 1", 1, row.start_s, row.end_s, low, high, row.species, row.annotator)
        lines.append("\t".join(str(cell).translate(_TIDY) for cell in cells))
    return lines


def _audacity(rows: pd.DataFrame) -> list[str]:
    lines = []
    for start_s, end_s, species, low_hz, high_hz in rows[[*_AUDACITY, "low_hz", "high_hz"]].to_numpy().tolist():
        lines.append(f"{start_s}\t{end_s}\t{species.translate(_TIDY)}")
        if low_hz and high_hz:
            lines.append(f"\\\t{low_hz}\t{high_hz}")
    return lines


def _stem(recording: str) -> str:
    return str(PurePosixPath(recording).with_suffix(""))
