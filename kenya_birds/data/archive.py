"""Reads an annotated archive of soundscape recordings, in the format of Zenodo record 10943500, and checks it."""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kenya_birds.data.audio import AudioHeader, read_header
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

ANNOTATIONS_FILE = "annotations.csv"
SPECIES_FILE = "species.csv"
RECORDINGS_FOLDER = "soundscape_data"
UNKNOWN_SPECIES = "????"

ANNOTATION_COLUMNS = {
    "Filename": "recording",
    "Start Time (s)": "start_s",
    "End Time (s)": "end_s",
    "Species eBird Code": "species",
}
SPECIES_COLUMNS = {
    "Scientific Name": "scientific_name",
    "Species eBird Code": "species",
    "Common Name": "common_name",
}


@dataclass(frozen=True)
class Archive:
    """An archive whose tables and recording headers have been read.

    Attributes:
        data_dir: The archive's folder.
        annotations: One row per usable annotation: `recording` (file name), `center_s` (seconds from the start of the
            recording, the middle of the call) and `species` (eBird code), in the order of the table.
        unknown: `recording` and `center_s` of the birds that the annotators could not name (`????`).
        species: Indexed by eBird code: `scientific_name`, `common_name`.
        headers: Header of each annotated recording that can be read, by file name.
        set_aside: Annotations that cannot be used: `row` (line in the CSV, the header being line 1), `recording`,
            `reason`.
    """

    data_dir: Path
    annotations: pd.DataFrame
    unknown: pd.DataFrame
    species: pd.DataFrame
    headers: dict[str, AudioHeader]
    set_aside: pd.DataFrame

    def recording_path(self, recording: str) -> Path:
        """Path of a recording by its file name."""
        return self.data_dir / RECORDINGS_FOLDER / recording

    def species_names(self, classes: Iterable[str]) -> dict[str, dict[str, str]]:
        """Scientific and common name by eBird code, for the codes in `classes`."""
        columns = ["scientific_name", "common_name"]
        return {code: {column: str(self.species.at[code, column]) for column in columns} for code in classes}


def read_archive(data_dir: str | Path) -> Archive:
    """Reads `annotations.csv`, `species.csv` and the header of every annotated recording.

    Annotations whose centre lies outside the recording, that end before they start, whose species is marked unknown
    (`????`) or whose recording is not audio are set aside, counted and logged.

    Args:
        data_dir: Folder with `annotations.csv`, `species.csv` and `soundscape_data/`.

    Raises:
        UserError: If a file, column or recording is missing, a cell is not a number, a species is not in
            `species.csv`, or nothing usable is left.
    """
    data_dir = Path(data_dir)
    check_layout(data_dir)
    annotations = read_table(data_dir / ANNOTATIONS_FILE, ANNOTATION_COLUMNS)
    species = read_table(data_dir / SPECIES_FILE, SPECIES_COLUMNS)
    if annotations.empty:
        raise UserError(f"{data_dir / ANNOTATIONS_FILE} has no annotations: expected at least one row")
    for column in ("start_s", "end_s"):
        annotations[column] = _as_seconds(annotations, column, data_dir / ANNOTATIONS_FILE)
    species = _index_species(species, data_dir / SPECIES_FILE)

    unknown_codes = annotations[~annotations["species"].isin([*species.index, UNKNOWN_SPECIES])]
    if not unknown_codes.empty:
        first = unknown_codes.iloc[0]
        raise UserError(
            f"{data_dir / ANNOTATIONS_FILE} line {first.row}: species code '{first.species}' is not in {SPECIES_FILE} "
            f"({len(unknown_codes)} such rows): add it there, or mark the bird unknown as {UNKNOWN_SPECIES}"
        )
    recordings = sorted(annotations["recording"].unique())
    headers = _read_headers(data_dir, annotations, recordings)
    usable, unknown, set_aside = _set_aside(annotations, headers)
    if usable.empty:
        raise UserError(f"{data_dir / ANNOTATIONS_FILE}: none of its {len(set_aside)} annotations can be used")
    return Archive(data_dir, usable, unknown, species, headers, set_aside)


def select_classes(annotations: pd.DataFrame, min_annotations: int) -> list[str]:
    """The archive's label space: codes with at least `min_annotations` annotations, sorted; the index is the id.

    Taken from the whole table, never from a split of it, so that an id means the same species everywhere.

    Raises:
        UserError: If fewer than two classes remain.
    """
    counts = annotations["species"].value_counts()
    classes = sorted(counts[counts >= min_annotations].index)
    if len(classes) < 2:
        raise UserError(
            f"only {len(classes)} of {len(counts)} species have at least {min_annotations} annotations: a classifier "
            "needs two; lower min_annotations or use a larger archive"
        )
    dropped = counts[counts < min_annotations]
    if len(dropped):
        logger.warning(
            "Dropped %d of %d species with fewer than %d annotations (%d annotations): %s",
            len(dropped),
            len(counts),
            min_annotations,
            dropped.sum(),
            ", ".join(f"{code} ({count})" for code, count in sorted(dropped.items())),
        )
    return classes


def archive_fingerprint(data_dir: str | Path) -> str:
    """Hash of the tables' bytes and of every recording's name, size and modification time.

    Changes when the archive does, so that clips cut from it are cut again.

    Raises:
        UserError: If a table or the folder of recordings is missing.
    """
    data_dir = Path(data_dir)
    check_layout(data_dir)
    digest = hashlib.sha256()
    for table in (ANNOTATIONS_FILE, SPECIES_FILE):
        digest.update((data_dir / table).read_bytes())
    for path in sorted((data_dir / RECORDINGS_FOLDER).iterdir()):
        if not path.is_file():  # a folder, or a link to nothing
            continue
        status = path.stat()
        # A name need not be valid Unicode.
        digest.update(b"%b\0%d\0%d\0" % (os.fsencode(path.name), status.st_size, status.st_mtime_ns))
    return digest.hexdigest()[:16]


def check_layout(data_dir: Path) -> None:
    """Raises `UserError` unless the archive's folder, its two tables and its folder of recordings are there."""
    if not data_dir.is_dir():
        raise UserError(
            f"no archive at {data_dir}: expected a folder with {ANNOTATIONS_FILE}, {SPECIES_FILE} and "
            f"{RECORDINGS_FOLDER}/"
        )
    for name in (ANNOTATIONS_FILE, SPECIES_FILE):
        if not (data_dir / name).is_file():
            raise UserError(f"no {name} in {data_dir}: an archive needs it")
    if not (data_dir / RECORDINGS_FOLDER).is_dir():
        raise UserError(f"no folder {RECORDINGS_FOLDER}/ in {data_dir}: unpack the recordings there")


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Reads the named columns of a CSV as stripped strings under our names, plus `row`, the line in the file.

    Args:
        path: The table.
        columns: Our name by the file's.

    Raises:
        UserError: If the file is not a table in UTF-8, or a column is missing.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not a UTF-8 table of comma-separated values: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas would take the first cell of each row for its name
        raise UserError(f"{path} has more cells in its rows than names in its header {list(table.columns)}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(f"{path} has no column {missing}: expected {list(columns)}, found {list(table.columns)}")
    table = table[list(columns)].rename(columns=columns).apply(lambda column: column.str.strip())
    table.insert(0, "row", range(2, len(table) + 2))
    return table[(table[list(columns.values())] != "").any(axis=1)].reset_index(drop=True)


def _as_seconds(annotations: pd.DataFrame, column: str, path: Path) -> pd.Series:
    seconds = pd.to_numeric(annotations[column], errors="coerce")
    bad = annotations[seconds.isna() | seconds.isin([float("inf"), float("-inf")])]
    if not bad.empty:
        first = bad.iloc[0]
        raise UserError(
            f"{path} line {first.row}, {first.recording}: {column} is '{first[column]}', expected seconds "
            f"({len(bad)} such rows): correct it"
        )
    return seconds.astype(float)


def _index_species(species: pd.DataFrame, path: Path) -> pd.DataFrame:
    repeated = species[species["species"].duplicated()]
    if not repeated.empty:
        first = repeated.iloc[0]
        raise UserError(f"{path} line {first.row}: species code '{first.species}' stands there twice: remove one")
    return species.drop(columns="row").set_index("species")


def _read_headers(data_dir: Path, annotations: pd.DataFrame, recordings: list[str]) -> dict[str, AudioHeader]:
    folder = data_dir / RECORDINGS_FOLDER
    outside = [name for name in recordings if Path(name).name != name or "\\" in name or name in ("", ".", "..")]
    if outside:
        row = annotations.loc[annotations["recording"] == outside[0], "row"].iloc[0]
        raise UserError(
            f"{data_dir / ANNOTATIONS_FILE} line {row}: '{outside[0]}' is not a plain file name: recordings lie "
            f"directly in {RECORDINGS_FOLDER}/"
        )
    # `Path.exists` raises where a name is too long.
    missing = [name for name in recordings if not os.path.exists(folder / name)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(recordings)} annotated recordings are not in {folder}: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}: fetch them, or remove their rows from {ANNOTATIONS_FILE}"
        )
    headers = {}
    for name in recordings:
        try:
            headers[name] = read_header(folder / name)
        except UserError as error:
            logger.warning("%s", error)
    return headers


def _set_aside(
    annotations: pd.DataFrame, headers: dict[str, AudioHeader]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Splits the annotations into usable ones, unknown birds, and all that are not usable with the reason."""
    center_s = (annotations["start_s"] + annotations["end_s"]) / 2
    duration_s = annotations["recording"].map({name: header.duration_s for name, header in headers.items()})
    reason = pd.Series("", index=annotations.index)
    reason[annotations["species"] == UNKNOWN_SPECIES] = "unknown bird"
    reason[annotations["end_s"] < annotations["start_s"]] = "ends before it starts"
    reason[center_s < 0] = "before the start of the recording"
    reason[center_s >= duration_s] = "past the end of the recording"
    reason[duration_s.isna()] = "the recording cannot be read"

    annotations = annotations.assign(center_s=center_s, reason=reason)
    usable = annotations.loc[reason == "", ["recording", "center_s", "species"]]
    unknown = annotations.loc[reason == "unknown bird", ["recording", "center_s"]]
    set_aside = annotations.loc[reason != "", ["row", "recording", "reason"]]
    for why, rows in set_aside.groupby("reason"):
        logger.warning(
            "Set aside %d of %d annotations: %s (first: line %d of %s, %s)",
            len(rows),
            len(annotations),
            why,
            rows["row"].iloc[0],
            ANNOTATIONS_FILE,
            rows["recording"].iloc[0],
        )
    return usable.reset_index(drop=True), unknown.reset_index(drop=True), set_aside.reset_index(drop=True)
