"""Reads folders of species: recordings whose species is known by their folder, without times."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from kenya_birds.data.archive import UNKNOWN_SPECIES
from kenya_birds.data.event_tables import DECIMALS, tables_in
from kenya_birds.data.import_report import NOT_TAKEN, NOTE, Findings
from kenya_birds.data.import_rows import find_recordings
from kenya_birds.data.import_tables import FOLDERS, ImportSettings, without_path
from kenya_birds.data.recording_places import KeptHeader
from kenya_birds.data.signal_parts import SignalPart, find_signal
from kenya_birds.data.sound_files import is_hidden, is_named_as_sound
from kenya_birds.data.species_names import NameMap, SpeciesOfNames, plain_name, species_of_names
from kenya_birds.errors import UserError
from kenya_birds.files import SPECIES_FILE

# Settings that are for tables alone.
OF_TABLES = ("recordings", "species_column", "columns", "all_recordings")


@dataclass(frozen=True)
class FolderSpecies:
    """What is known from folders of species.

    Attributes:
        calls: `recording`, `start_s`, `end_s`, `low_hz`, `high_hz`, `species`, `annotator`, `source` and `weak` of
            each part with signal, by recording and time.
        species: See `SpeciesOfNames`.
        headers: Header of each recording with signal.
        names: `name` of each folder, `code`, and `count`, the number of its recordings.
    """

    calls: pd.DataFrame
    species: pd.DataFrame
    headers: dict[str, KeptHeader]
    names: pd.DataFrame


def is_of_folders(settings: ImportSettings) -> bool:
    """Whether the source is read as folders of species.

    By default it is if its subfolders hold sound and nothing that may be a table, and it has no sound or table of its
    own, apart from a `species.csv` and the map of the settings.
    """
    source = settings.source
    if settings.form is not None:
        return settings.form == FOLDERS
    if not source.is_dir() or any(getattr(settings, name) for name in OF_TABLES):
        return False
    known = {path.resolve() for path in (source / SPECIES_FILE, settings.names) if path is not None}
    if any(table.resolve() not in known for table in tables_in(source)) or _has_sound(source):
        return False
    return any(_has_sound(source / name) for name in _folders(source))


def read_folders(settings: ImportSettings, names: NameMap | None, findings: Findings) -> FolderSpecies:
    """Finds the species of each folder, and the parts with signal of each recording in it.

    A folder's name may be a code, a scientific or a common name, also with `_` between words. What is in subfolders of
    a species' folder belongs to it too.

    Args:
        settings: The settings; `source` is the folder of the folders.
        names: Codes of names. If it is complete, folders that are not in it are not taken.
        findings: What is not taken is added.

    Raises:
        UserError: If a setting is for tables, or the source is not a folder.
    """
    for name in OF_TABLES:
        if getattr(settings, name):
            raise UserError(f"{name} is for tables of annotations: leave it out with folders of species")
    if not settings.source.is_dir():
        raise UserError(f"{settings.source} is a file: expected a folder with a folder for each species")
    files = _by_folder(settings.source, findings)
    found = _species_of(files, names, findings)
    codes = {name: code for name, code in zip(files, found.codes, strict=True) if code is not None}
    listed = pd.DataFrame(
        [(name, codes.get(name, ""), len(files[name])) for name in files], columns=["name", "code", "count"]
    )
    taken = [(folder, recording) for folder in codes for recording in files[folder]]
    headers: dict[str, KeptHeader] = {}
    rows = []
    for (folder, recording), result in zip(taken, _read_all(settings, [one for _, one in taken]), strict=True):
        if isinstance(result, UserError):
            detail = without_path(str(result), str(settings.source / recording))
            findings.add(NOT_TAKEN, "a recording cannot be read", recording=recording, detail=detail)
            continue
        kept, parts = result
        if not parts:
            findings.add(NOT_TAKEN, "no signal was found in a recording", recording=recording)
            continue
        headers[recording] = kept
        # Rounded down, as no time may be past the end.
        last_s = int(kept.header.duration_s * 10**DECIMALS) / 10**DECIMALS
        for part in parts:
            times_s = (min(round(time_s, DECIMALS), last_s) for time_s in (part.start_s, part.end_s))
            about = (codes[folder], settings.annotator, f"folder {folder}", "yes")
            rows.append((recording, *times_s, part.low_hz, part.high_hz, *about))
    columns = ["recording", "start_s", "end_s", "low_hz", "high_hz", "species", "annotator", "source", "weak"]
    calls = pd.DataFrame(rows, columns=columns)
    species = found.species[found.species["species"].isin(calls["species"])]
    order = listed.sort_values("count", ascending=False, kind="stable")
    return FolderSpecies(calls.sort_values(["recording", "start_s"], kind="stable"), species, headers, order)


def _has_sound(folder: Path) -> bool:
    with suppress(OSError):  # a folder that cannot be read is a finding of the search for recordings
        return any(map(is_named_as_sound, os.listdir(folder)))
    return False


def _folders(source: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(source) if entry.is_dir() and not is_hidden(entry.name))


def _by_folder(source: Path, findings: Findings) -> dict[str, list[str]]:
    """Recordings by the name of the species' folder."""
    files: dict[str, list[str]] = defaultdict(list)
    for recording in find_recordings((), (), source, findings).every:
        folder, slash, _ = recording.partition("/")
        if slash:
            files[folder].append(recording)
        else:
            findings.add(NOT_TAKEN, "a recording is in no folder of a species", recording=recording)
    for name in _folders(source):
        if name not in files:
            findings.add(NOTE, "a folder has no sound", file=name)
    return dict(sorted(files.items()))


def _species_of(files: Mapping[str, Sequence[str]], names: NameMap | None, findings: Findings) -> SpeciesOfNames:
    """The species of each folder; None as code of those that are not taken."""
    labels = [_label(name, names) for name in files]
    table = pd.DataFrame({"label": labels, "count": [len(of) for of in files.values()]})
    found = species_of_names(table.assign(code="", scientific_name="", common_name=""), names)
    for number, (folder, recordings) in enumerate(files.items()):
        detail = f"{len(recordings)} recordings"
        if number in found.uncertain:
            finding = "the name of a folder is uncertain"
            detail = f"{detail}: {found.uncertain[number]}"
        elif number in found.unmapped:
            finding = "the name of a folder is not in the map"
        elif found.codes[number] is None:
            finding = "the name of a folder has no code in the map"
        elif found.codes[number] == UNKNOWN_SPECIES:
            finding = "a folder is of unknown birds"
        else:
            continue
        findings.add(NOT_TAKEN, finding, file=folder, detail=detail)
        found.codes[number] = None
    return found


def _label(folder: str, names: NameMap | None) -> str:
    """The name that a folder stands for: `Turdus_merula` is Turdus merula, unless the map has it as it is."""
    if " " in folder or (names is not None and plain_name(folder) in names.codes):
        return folder
    return folder.replace("_", " ")


def _read_all(
    settings: ImportSettings, recordings: Sequence[str]
) -> list[tuple[KeptHeader, list[SignalPart]] | UserError]:
    """Header and parts with signal of recordings, several at a time."""

    def read(name: str) -> tuple[KeptHeader, list[SignalPart]] | UserError:
        path = settings.source / name
        try:
            return KeptHeader.read(path), find_signal(path, settings.channel, settings.signal_db)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(read, recordings)
        return list(tqdm(found, total=len(recordings), desc="Finding signal", unit="recording", disable=None))
