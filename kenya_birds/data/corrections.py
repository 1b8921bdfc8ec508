"""Training archives from detections that a person has corrected."""

import os
import unicodedata
from pathlib import Path, PurePath

import pandas as pd

from kenya_birds.data.archive import (
    ANNOTATION_COLUMNS,
    ANNOTATIONS_FILE,
    RECORDINGS_FOLDER,
    SPECIES_COLUMNS,
    SPECIES_FILE,
    UNKNOWN_SPECIES,
)
from kenya_birds.errors import UserError
from kenya_birds.files import is_new_or_empty, link_or_copy, write_table

NAMES = ("common_name", "scientific_name")


def write_archive(table: pd.DataFrame, folder: str | Path) -> Path:
    """Writes an archive from a table of annotations: its recordings, `annotations.csv` and `species.csv`.

    Recordings are linked if the file system supports it, and copied otherwise. If two recordings have the same name,
    the names of their folders are added in front. A row without a code is an unknown bird. `annotations.csv` is
    written last.

    Args:
        table: `recording` (path of a file), `start_s`, `end_s`, `code`, `common_name` and `scientific_name`, as
            `kenya_birds.inference.table_reader.read_detections` returns them; other columns are ignored.
        folder: The archive's folder, new or empty.

    Returns:
        `folder`.

    Raises:
        UserError: If the table is empty, a recording does not exist, or the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if table.empty:
        raise UserError("the table has no rows: expected at least one annotation")
    if not is_new_or_empty(folder):
        raise UserError(f"{folder} is not empty: give a new folder for the archive")
    table = table.assign(code=table["code"].str.strip().replace("", UNKNOWN_SPECIES))
    missing = [recording for recording in table["recording"].unique() if not Path(recording).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the table's recordings do not exist: {', '.join(map(repr, missing[:3]))}"
            f"{', ...' if len(missing) > 3 else ''}; run this in the folder from which they were analysed, or move "
            "them to the paths in the table"
        )
    # A table may have two paths for one file.
    table = table.assign(recording=[os.path.abspath(recording) for recording in table["recording"]])
    names = _file_names(list(table["recording"].unique()))
    try:
        (folder / RECORDINGS_FOLDER).mkdir(parents=True, exist_ok=True)
        for recording, name in names.items():
            link_or_copy(Path(recording), folder / RECORDINGS_FOLDER / name)
    except OSError as error:
        raise UserError(f"the archive {folder} cannot be written: {error}") from None
    species = table[table["code"] != UNKNOWN_SPECIES].rename(columns={"code": "species"})
    # Rows added by hand may have only a code.
    known = {name: species[species[name] != ""].groupby("species")[name].first() for name in NAMES}
    codes = sorted(species["species"].unique())
    species = pd.DataFrame(
        {
            "species": codes,
            "common_name": [known["common_name"].get(code, code) for code in codes],
            "scientific_name": [known["scientific_name"].get(code, "") for code in codes],
        }
    )
    annotations = table.assign(recording=table["recording"].map(names)).rename(columns={"code": "species"})
    for rows, columns, name in (
        (species, SPECIES_COLUMNS, SPECIES_FILE),
        (annotations, ANNOTATION_COLUMNS, ANNOTATIONS_FILE),
    ):
        write_table(rows[list(columns.values())].set_axis(list(columns), axis=1), folder / name)
    return folder


def _file_names(recordings: list[str]) -> dict[str, str]:
    """Returns a unique file name for each path: its own, with as many folders in front as necessary."""
    parts = {recording: PurePath(recording.replace("\\", "/")).parts for recording in recordings}
    depth = dict.fromkeys(recordings, 1)
    while True:
        names = {recording: "_".join(parts[recording][-depth[recording] :]) for recording in recordings}
        places: dict[str, list[str]] = {}
        for recording, name in names.items():
            places.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(recording)
        meeting = [one for same in places.values() if len(same) > 1 for one in same]
        deeper = [one for one in meeting if depth[one] < len(parts[one])]
        if not meeting:
            return {recording: name.replace("/", "").replace(":", "") for recording, name in names.items()}
        if not deeper:
            raise UserError(f"{' and '.join(meeting[:2])} cannot both be in one folder: rename one of them")
        for one in deeper:
            depth[one] += 1
