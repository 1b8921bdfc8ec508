"""Joins archives: one archive with the annotations of several. The recordings stay where they are."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kenya_birds.data.archive import (
    ANNOTATION_COLUMNS,
    NO_CODE,
    SPECIES_COLUMNS,
    UNKNOWN_SPECIES,
    Archive,
    archive_fingerprint,
    read_archive,
)
from kenya_birds.data.csv_table import read_csv
from kenya_birds.data.recording_places import KeptHeader, Place, RecordingPlaces, write_places
from kenya_birds.errors import UserError
from kenya_birds.files import ANNOTATIONS_FILE, RECORDINGS_TABLE, SPECIES_FILE, check_layouts, write_table
from kenya_birds.fingerprints import code_fingerprint
from kenya_birds.folders import check_new_folder, users_folder
from kenya_birds.locks import shared_lock

logger = logging.getLogger(__name__)

FOLDER = "kenya_birds_joined"
FILENAME, CODE = "Filename", "Species eBird Code"


@dataclass
class JoinedArchive:
    """Result of `join_archives`.

    Attributes:
        path: The new archive.
        annotations: Number of annotations by the name of each archive.
        recordings: Number of recordings by the name of each archive.
        species: Number of species in all.
        renamed: `(archive, code, new code)` of species that another archive has under another code.
        renames: `(archive, code, name, name in the joined archive)` of codes with several scientific names.
    """

    path: Path
    annotations: dict[str, int] = field(default_factory=dict)
    recordings: dict[str, int] = field(default_factory=dict)
    species: int = 0
    renamed: list[tuple[str, str, str]] = field(default_factory=list)
    renames: list[tuple[str, str, str, str]] = field(default_factory=list)

    def format(self) -> str:
        """A summary: what each archive gave, and which codes were changed."""
        lines = [f"{sum(self.annotations.values())} annotations of {self.species} species in {self.path}"]
        lines += [
            f"  {name}: {count} annotations in {self.recordings[name]} recordings"
            for name, count in self.annotations.items()
        ]
        lines += [f"  {name}: {old} is {new}: same scientific name" for name, old, new in self.renamed]
        lines += [
            f"  {name}: {code} is {own!r} there, and {other!r} in an earlier archive: taken as one species"
            for name, code, own, other in self.renames
        ]
        return "\n".join(lines)


def join_archives(archives: Sequence[str | Path], output: str | Path) -> JoinedArchive:
    """Writes one archive with the recordings, annotations and species of several.

    A recording is called `ARCHIVE/NAME` in it, with the name of its archive's folder; `recordings.csv` has the paths.
    Two species are one if they have the same code (upper and lower case are equal), or the same scientific name. The
    first archive's code and names are used. The archive is written completely or not at all.

    Args:
        archives: Two or more archives.
        output: A new or empty folder.

    Raises:
        UserError: If an archive cannot be read or is given twice, or the folder is not empty or cannot be written.
    """
    folders, output = [Path(path) for path in archives], Path(output)
    check_new_folder(output)
    check_layouts(folders)
    joined, species = JoinedArchive(output), _Species()
    tables, places = [], []
    for name, folder in zip(_names(folders), folders, strict=True):
        logger.info("Reading the archive %s ...", folder)
        archive = read_archive(folder)
        codes = species.add(name, archive.species, joined)
        own = _places(name, archive)
        table = _annotations(name, archive, codes)
        joined.annotations[name], joined.recordings[name] = len(table), len(own)
        tables.append(table)
        places += own
    joined.species = len(species.rows)
    with users_folder(output, f"the archive {output}") as partial:
        write_table(pd.concat(tables, ignore_index=True).fillna(""), partial / ANNOTATIONS_FILE)
        write_table(pd.DataFrame(species.rows, columns=list(SPECIES_COLUMNS)), partial / SPECIES_FILE)
        write_places(places, partial / RECORDINGS_TABLE)
    return joined


def one_archive(archives: Sequence[str | Path], cache_dir: str | Path | None = None) -> Path:
    """One archive for a command that is given one or several: several are joined in the cache, and found there again.

    Args:
        archives: One archive or more.
        cache_dir: Folder of the cache; by default that of `datasets`.

    Returns:
        The archive, or the joined one.

    Raises:
        UserError: See `join_archives`.
    """
    folders = [Path(path) for path in archives]
    if len(folders) == 1:
        return folders[0]
    check_layouts(folders)
    from datasets import config  # takes a second, which a single archive does not need

    made_from = [(str(folder.resolve()), archive_fingerprint(folder)) for folder in folders]
    key = hashlib.sha256(json.dumps([made_from, code_fingerprint(__name__)]).encode()).hexdigest()[:16]
    path = Path(cache_dir or config.HF_DATASETS_CACHE).expanduser() / FOLDER / key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with shared_lock(path.with_suffix(".lock"), f"the joined archive {path}"):
            if not path.is_dir():
                logger.info("%s", join_archives(folders, path).format())
    except OSError as error:
        raise UserError(f"the archives cannot be joined in the cache {path.parent}: {error}") from None
    return path


def divide_each(
    annotations: pd.DataFrame,
    archive_of: Mapping[str, str],
    same_sound: Sequence[Sequence[str]],
    divide: Callable[[pd.DataFrame], pd.DataFrame],
    least: int,
) -> pd.DataFrame:
    """Divides the recordings of each archive of a joined one by itself, so that every part has its share of each.

    The recordings are divided together if one archive has too few of them (recordings that stay together count once),
    or two archives have the same sound.

    Args:
        annotations: `recording` and `species`, of the joined archive.
        archive_of: Name of the archive by recording (see `Archive.archive_of`); empty for a single archive.
        same_sound: Groups of recordings that stay together, such as those of `Archive.same_sound`.
        divide: Divides annotations: returns a table with `recording`.
        least: Smallest number of recordings that can be divided.

    Returns:
        The rows of all tables, sorted by recording.
    """
    names = annotations["recording"].map(archive_of)
    parts = [part for _, part in annotations.groupby(names, sort=True)]
    if len(parts) < 2:
        return divide(annotations)
    group_of = {name: number for number, group in enumerate(same_sound) for name in group}
    units = annotations["recording"].map(lambda name: group_of.get(name, name))
    counts = units.groupby(names).nunique()
    few = counts.index[counts < least].tolist()
    shared = [group for group in same_sound if len({archive_of.get(name) for name in group}) > 1]
    if few or shared:
        why = f"{shared[0][0]} is {shared[0][1]}" if shared else f"{few[0]} has fewer than {least} that can be divided"
        logger.warning("The recordings of all archives are divided together: %s", why)
        return divide(annotations)
    return pd.concat([divide(part) for part in parts]).sort_values("recording").reset_index(drop=True)


class _Species:
    """The species of the joined archive.

    Attributes:
        rows: Scientific name, code and common name.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self._by_code: dict[str, tuple[str, str]] = {}
        self._by_name: dict[str, str] = {}

    def add(self, archive: str, species: pd.DataFrame, joined: JoinedArchive) -> dict[str, str]:
        """Adds the species of an archive; returns the code of each in the joined archive, and tells what changed."""
        codes = {}
        before = dict(self._by_name)
        for code, row in species.iterrows():
            name = " ".join(str(row["scientific_name"]).split())
            known = self._by_code.get(str(code).casefold())
            if known is not None:
                codes[str(code)], other = known
                if name and other and name.casefold() != other.casefold():
                    joined.renames.append((archive, str(code), name, other))
            elif name and name.casefold() in before:
                codes[str(code)] = before[name.casefold()]
                joined.renamed.append((archive, str(code), codes[str(code)]))
            else:
                codes[str(code)] = str(code)
                self.rows.append((name, str(code), str(row["common_name"])))
                self._by_code[str(code).casefold()] = str(code), name
                if name:
                    self._by_name.setdefault(name.casefold(), str(code))
        return codes


def _names(folders: Sequence[Path]) -> list[str]:
    """Name of each archive: that of its folder, with a number where two are equal."""
    names: list[str] = []
    for folder in folders:
        name = plain = Path(os.path.abspath(folder)).name or "archive"
        number = 1
        while name.casefold() in {taken.casefold() for taken in names}:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def _annotations(name: str, archive: Archive, codes: Mapping[str, str]) -> pd.DataFrame:
    """The annotations as they are in the archive's table, with the names of the joined archive."""
    table = read_csv(archive.data_dir / ANNOTATIONS_FILE)
    # `read_table` ignores columns that are unnamed or repeated, and rows with text in other columns alone.
    table = table.loc[:, (table.columns != "") & ~table.columns.duplicated()]
    table = table[(table[list(ANNOTATION_COLUMNS)] != "").any(axis=1)].reset_index(drop=True)
    found = RecordingPlaces.of(archive.data_dir).find(sorted(set(table[FILENAME])))
    table[FILENAME] = [f"{name}/{found[file]}" for file in table[FILENAME]]
    known = {**codes, UNKNOWN_SPECIES: UNKNOWN_SPECIES, NO_CODE: NO_CODE}
    table[CODE] = table[CODE].map(known)
    order = [*ANNOTATION_COLUMNS, *(column for column in table.columns if column not in ANNOTATION_COLUMNS)]
    return table[order]


def _places(name: str, archive: Archive) -> list[Place]:
    """Where the recordings of an archive are; those that cannot be read have no header."""
    places = []
    for recording, path in sorted(archive.paths.items()):
        header = None
        if recording in archive.headers:
            status = os.stat(path)
            header = KeptHeader(archive.headers[recording], status.st_size, status.st_mtime_ns)
        whole = path.resolve()
        origin = "/".join([name, *filter(None, [archive.archive_of.get(recording)])])
        places.append(Place(f"{name}/{recording}", whole.parent, whole.name, origin, header))
    return places
