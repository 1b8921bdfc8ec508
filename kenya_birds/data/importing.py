"""Imports annotations of other programs: makes an archive whose recordings stay where they are."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kenya_birds.data.archive import (
    ANNOTATION_COLUMNS,
    BOX_COLUMNS,
    SPECIES_COLUMNS,
    UNKNOWN_SPECIES,
    VERIFIED,
    VERIFIED_COLUMNS,
    WEAK_COLUMN,
)
from kenya_birds.data.event_tables import events_of
from kenya_birds.data.import_report import NOT_TAKEN, NOTE, Findings
from kenya_birds.data.import_rows import (
    RECORDING_IS_LOST,
    find_recordings,
    listed_recordings,
    with_checked_times,
    with_marks,
    with_recordings,
    with_species,
    without_repetitions,
)
from kenya_birds.data.import_tables import (
    ImportSettings,
    check_settings,
    path_below,
    read_names,
    read_tables,
    without_path,
)
from kenya_birds.data.recording_places import KeptHeader, Place, write_places
from kenya_birds.data.species_folders import is_of_folders, read_folders
from kenya_birds.errors import UserError
from kenya_birds.files import ANNOTATIONS_FILE, RECORDINGS_TABLE, SPECIES_FILE, write_table
from kenya_birds.folders import check_new_folder, users_folder
from kenya_birds.values import counted

REPORT_FILE = "import_report.csv"
COLUMNS = {
    **{name: column for name, column in ANNOTATION_COLUMNS.items() if column != "species"},
    **BOX_COLUMNS,
    "Species eBird Code": "species",
    "Annotator": "annotator",
    "Source": "source",
}


@dataclass(frozen=True)
class ImportResult:
    """Result of an import.

    Attributes:
        archive: The new archive.
        annotations: The annotations that were taken; with the column `weak` if there are weak ones, and `verified` and
            `model` if there are checked detections.
        species: `scientific_name`, `species`, `common_name`.
        recordings: Header by recording.
        names: `name`, `code`, `count`: the names of the tables or folders and their codes, with the number of
            annotations or recordings; an empty code: left out.
        findings: What was not taken or was changed.
    """

    archive: Path
    annotations: pd.DataFrame
    species: pd.DataFrame
    recordings: dict[str, KeptHeader]
    names: pd.DataFrame
    findings: Findings


def import_annotations(output: str | Path, settings: ImportSettings) -> ImportResult:
    """Makes an archive from annotations of other programs: `annotations.csv`, `species.csv`, `recordings.csv`.

    From folders of species (see `species_folders`), the parts of recordings with signal become weak annotations.
    Recordings are not copied: `recordings.csv` says where they are, and keeps their headers. The archive is written
    completely or not at all.

    Args:
        output: New or empty folder.
        settings: What is imported, and how.

    Raises:
        UserError: If nothing can be taken, a file of the settings cannot be read, or the folder is not empty.
    """
    output = Path(output)
    check_new_folder(output)
    check_settings(settings)
    findings = Findings()
    result = (
        _of_folders(output, settings, findings) if is_of_folders(settings) else _of_tables(output, settings, findings)
    )
    _write(result, settings.root.resolve())
    return result


def _of_folders(output: Path, settings: ImportSettings, findings: Findings) -> ImportResult:
    found = read_folders(settings, read_names(settings, findings), findings)
    if found.calls.empty:
        lines = [" ".join(line.split()) for line in findings.format()]
        raise UserError(
            f"no recording of {settings.source} can be taken: expected a folder with sound for each species"
            f"{'; ' if lines else ''}{'; '.join(lines[:3])}"
        )
    return ImportResult(output, found.calls, found.species, found.headers, found.names, findings)


def _of_tables(output: Path, settings: ImportSettings, findings: Findings) -> ImportResult:
    tables = read_tables(settings, findings)
    names = read_names(settings, findings)
    events = events_of(tables)
    files = [path_below(table.path, settings.source) for table in tables]
    events["file"] = np.array(files, dtype=object)[events["table"]] if len(events) else ""
    found = find_recordings(tables, files, settings.root, findings)
    calls, silent, annotated = with_recordings(with_marks(events), tables, files, found, findings)
    silent |= listed_recordings(settings.tables, found, findings) - annotated
    if settings.all_recordings:
        silent |= set(found.every) - annotated
    headers = read_headers(sorted({*calls["recording"], *silent}), settings.root, findings)
    calls = with_checked_times(calls, headers, findings)
    calls, species, listed = with_species(calls, names, findings)
    calls = without_repetitions(calls, findings)
    called = set(calls["recording"])
    kept = called | (silent & set(headers))
    # Recordings that cannot be read have been told.
    _note_recordings(kept, called, set(found.every) - (silent - set(headers)), annotated, findings)
    if calls.empty:
        raise UserError(_why_nothing(settings, findings))
    calls["annotator"] = calls["annotator"].where(calls["annotator"] != "", settings.annotator)
    calls["source"] = [f"{file}, line {line}" for file, line in zip(calls["file"], calls["line"], strict=True)]
    calls = calls.sort_values(["recording", "start_s", "end_s"], kind="stable").reset_index(drop=True)
    for columns in (WEAK_COLUMN, VERIFIED_COLUMNS):
        if not calls[list(columns.values())].astype(bool).any(axis=None):
            calls = calls.drop(columns=list(columns.values()))
    return ImportResult(output, calls, species, {name: headers[name] for name in kept}, listed, findings)


def format_import(result: ImportResult) -> str:
    """Returns a summary for the terminal: what was taken, the names and their codes, and the findings."""
    hours = sum(kept.header.duration_s for kept in result.recordings.values()) / 3600
    silent = set(result.recordings) - set(result.annotations["recording"])
    unknown = int((result.annotations["species"] == UNKNOWN_SPECIES).sum())
    lines = [
        f"{result.archive}: {counted(len(result.annotations), 'annotation')} ({unknown} of unknown birds) of "
        f"{len(result.species)} species in {counted(len(result.recordings), 'recording')} ({hours:.2f} h), "
        f"{len(silent)} of them without a call",
    ]
    if "verified" in result.annotations:
        answers = result.annotations["verified"].value_counts()
        told = ", ".join(f"{answers[answer]} {answer}" for answer in VERIFIED if answer and answer in answers)
        lines.append(f"some of them are checked detections: {told}")
    if "weak" in result.annotations and result.annotations["weak"].all():
        signal_h = (result.annotations["end_s"] - result.annotations["start_s"]).sum() / 3600
        lines = [
            f"{result.archive}: folders of {len(result.species)} species with {len(result.recordings)} recordings "
            f"({hours:.2f} h); {len(result.annotations)} parts with signal ({signal_h:.2f} h) have weak labels",
        ]
    for name, code, count in result.names.to_numpy().tolist():
        meaning = "" if name == code else f" -> {code}" if code else ", left out"
        lines.append(f"{count:>10}  {name or '(no name)'}{meaning}")
    lines += result.findings.format()
    return "\n".join(line.encode("unicode_escape").decode() if not line.isprintable() else line for line in lines)


def _why_nothing(settings: ImportSettings, findings: Findings) -> str:
    """Returns the error for an import without an annotation."""
    lines = [" ".join(line.split()) for line in findings.format()]
    if any(finding == RECORDING_IS_LOST for _, _, _, _, finding, _ in findings.rows):
        return (
            f"no annotation of {settings.source} can be taken: the recordings of its tables are not in "
            f"{settings.root}; give their folder with --recordings ({lines[0]})"
        )
    return f"no annotation of {settings.source} can be taken: {'; '.join(lines[:3]) or 'its tables have no rows'}"


def read_headers(names: Sequence[str], root: Path, findings: Findings) -> dict[str, KeptHeader]:
    """Reads the headers of recordings, several at a time.

    Args:
        names: Paths of the recordings below `root`.
        root: Their folder.
        findings: Recordings that cannot be read are added.

    Returns:
        The headers by name.
    """

    def read(name: str) -> KeptHeader | UserError:
        try:
            return KeptHeader.read(root / name)
        except UserError as error:
            return error

    headers = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read_all = tqdm(
            pool.map(read, names), total=len(names), desc="Reading headers", unit="recording", disable=None
        )
        for name, header in zip(names, read_all, strict=True):
            if isinstance(header, UserError):
                detail = without_path(str(header), str(root / name))
                findings.add(NOT_TAKEN, "a recording cannot be read", recording=name, detail=detail)
            else:
                headers[name] = header
    return headers


def _note_recordings(
    kept: Iterable[str], called: set[str], every: Iterable[str], annotated: set[str], findings: Findings
) -> None:
    for name in sorted(set(kept) - called):
        findings.add(NOTE, "a recording has no call", recording=name)
    for name in sorted(set(every) - set(kept)):
        finding = "a recording has no annotation and is not in the archive; if it has no call, give --all_recordings"
        if name in annotated:
            finding = "a recording is not in the archive, because no annotation of it was taken"
        findings.add(NOTE, finding, recording=name)


def _write(result: ImportResult, root: Path) -> None:
    marks = {name: ours for name, ours in {**WEAK_COLUMN, **VERIFIED_COLUMNS}.items() if ours in result.annotations}
    with users_folder(result.archive, f"the archive {result.archive}") as partial:
        for rows, columns, name in (
            (result.species, SPECIES_COLUMNS, SPECIES_FILE),
            (result.annotations, COLUMNS | marks, ANNOTATIONS_FILE),
        ):
            write_table(rows[list(columns.values())].set_axis(list(columns), axis=1), partial / name)
        places = [Place(name, root, name, kept=kept) for name, kept in result.recordings.items()]
        write_places(places, partial / RECORDINGS_TABLE)
        result.findings.write(partial / REPORT_FILE)
