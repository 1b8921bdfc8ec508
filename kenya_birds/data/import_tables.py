"""Tables and names of species that an import reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kenya_birds.data.csv_table import parse_any_table, read_table
from kenya_birds.data.event_tables import OWN_TABLES, tables_in
from kenya_birds.data.import_report import NOT_TAKEN, NOTE, Findings
from kenya_birds.data.recording_places import PLACE_COLUMNS
from kenya_birds.data.species_names import NameMap, read_name_map
from kenya_birds.data.table_cells import KINDS, SPECIES, SUFFIXES, NoColumnError, NoEventsError, TableCells, read_cells
from kenya_birds.defaults import SIGNAL_DB
from kenya_birds.errors import UserError
from kenya_birds.files import RECORDINGS_TABLE, SPECIES_FILE, name_digest, read_text

CROWSETTA = "crowsetta:"
FOLDERS = "folders"
# In the output of detect: its folders of tables, and its tables of all recordings.
DETECTIONS = ("raven", "audacity", *OWN_TABLES)
NOT_EVENTS = "is not a table of annotations"
_OTHER_NAMES = "; if it has them under other names, give --columns start=COLUMN,end=COLUMN,recording=COLUMN"
_DIGEST = re.compile(r"-([0-9a-f]{10})$")


@dataclass(frozen=True)
class ImportSettings:
    """What is imported, and how.

    Attributes:
        source: A table, or a folder of tables with all its subfolders, or a folder with a folder for each species.
        recordings: Folder of the recordings; by default that of `source`.
        form: One of `KINDS`, `folders` (see `species_folders`), or `crowsetta:NAME`; by default every table is read as
            what it is.
        species_column: The only column with names of species.
        columns: The table's name of a column by ours (see `table_cells.ALIASES`).
        names: Table of names and codes (see `read_name_map`).
        annotator: Who annotated, where the tables do not say it.
        all_recordings: Takes recordings without a table too, as recordings without a call.
        channel: Folders of species: channel in which signal is searched (see `RecordingReader`).
        signal_db: Folders of species: how much louder signal is than the noise (see `find_signal`).
    """

    source: Path
    recordings: Path | None = None
    form: str | None = None
    species_column: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    names: Path | None = None
    annotator: str = ""
    all_recordings: bool = False
    channel: str | None = None
    signal_db: float = SIGNAL_DB

    def __post_init__(self) -> None:
        """Makes paths of texts."""
        for name in ("source", "recordings", "names"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))

    @property
    def tables(self) -> Path:
        """Folder of the tables."""
        return self.source if self.source.is_dir() else self.source.parent

    @property
    def names_file(self) -> Path:
        """The map of names: the `species.csv` beside the tables if none is given."""
        return self.names or self.tables / SPECIES_FILE

    @property
    def root(self) -> Path:
        """Folder of the recordings."""
        return self.recordings or self.tables


def check_settings(settings: ImportSettings) -> None:
    """Raises `UserError` if the source or the folder of recordings does not exist."""
    if not settings.source.exists():
        raise UserError(f"there is no {settings.source}: expected a table of annotations, or a folder with tables")
    if not settings.root.is_dir():
        raise UserError(f"there is no folder {settings.root}: expected the folder of the recordings")
    is_known = settings.form in (None, FOLDERS, *KINDS) or str(settings.form).startswith(CROWSETTA)
    if not is_known:
        raise UserError(
            f"there is no format '{settings.form}': expected {', '.join(KINDS)}, {FOLDERS} or {CROWSETTA}NAME"
        )


def read_tables(settings: ImportSettings, findings: Findings) -> list[TableCells]:
    """Reads the tables of the source.

    Args:
        settings: The settings.
        findings: Files that are not read are added.

    Raises:
        UserError: If no table can be read.
    """
    source = settings.source
    if str(settings.form).startswith(CROWSETTA):
        from kenya_birds.data.crowsetta_tables import read_crowsetta

        return read_crowsetta(source, str(settings.form).removeprefix(CROWSETTA), findings)
    if not source.is_dir() and source.suffix.lower() not in SUFFIXES:
        raise UserError(f"{source} does not have the suffix of a table: expected one of {', '.join(SUFFIXES)}")
    paths = _paths(source, findings) if source.is_dir() else [source]
    tables = []
    for path in paths:
        name = path_below(path, source)
        try:
            table = _with_species_column(read_cells(path, settings.columns), settings)
        except UserError as error:
            if not source.is_dir():
                raise UserError(f"{error}{_OTHER_NAMES if isinstance(error, NoEventsError) else ''}") from None
            effect, finding = NOT_TAKEN, "a table cannot be read"
            if isinstance(error, NoEventsError):
                if _is_read_otherwise(path, settings):
                    continue
                effect, finding = NOTE, NOT_EVENTS
            elif isinstance(error, NoColumnError):
                finding = "a table lacks a column"
            findings.add(effect, finding, file=name, detail=without_path(str(error), str(path)))
            continue
        if settings.form is not None and settings.form not in table.kinds:
            findings.add(NOT_TAKEN, f"a table is not of {settings.form}", file=name, detail=f"it is of {table.kind}")
            continue
        if table.encoding not in ("UTF-8", "UTF-16", "binary"):
            findings.add(NOTE, "a table is not in UTF-8", file=name, detail=f"it was read as {table.encoding}")
        # What is imported are annotations of people: how sure they were does not count, and may be a word.
        tables.append(replace(table, cells={name: cells for name, cells in table.cells.items() if name != "score"}))
    if not tables:
        first = "; ".join(" ".join(line.split()) for line in findings.format()[:2])
        first += _OTHER_NAMES if NOT_EVENTS in {row[4] for row in findings.rows} else ""
        raise UserError(
            f"{source} has no table of annotations that can be read: expected files that end in "
            f"{', '.join(SUFFIXES)}{f'; {first}' if first else ''}; if each of its folders has the recordings of "
            f"a species, give --from {FOLDERS}"
        )
    return _with_digests(tables)


def _with_digests(tables: Sequence[TableCells]) -> list[TableCells]:
    """Names the recordings of tables of `detect` whose names end in a digest, as of `a.wav` and `a.flac`."""
    listed: dict[Path, dict[str, str]] = {}
    named = []
    for table in tables:
        end = _DIGEST.search(table.own)
        above = table.path.absolute().parents if end else ()
        folder = next((folder for folder in above if (folder / RECORDINGS_TABLE).is_file()), None)
        if folder is not None and folder not in listed:
            names = _recordings_of_detect(folder) or ()
            # The table of recordings has ./=a.wav for =a.wav, which a spreadsheet would run.
            listed[folder] = {name_digest(text): name for name in names for text in (name, name.removeprefix("./"))}
        recording = listed[folder].get(end[1]) if end and folder is not None else None
        named.append(table if recording is None else replace(table, named=recording.replace("\\", "/")))
    return named


def _paths(source: Path, findings: Findings) -> list[Path]:
    """Returns the files of a folder that may be tables of annotations; notes folders that are left out.

    Raises:
        UserError: If the folder has all tables of `detect`: only the user knows which one was corrected.
    """
    if _recordings_of_detect(source) is not None:
        there = [str(source / name) for name in DETECTIONS if (source / name).exists()]
        given = f"{' or '.join(there)}, whichever you corrected" if there else "the table in it that you corrected"
        raise UserError(f"{source} is the output of kenya-birds detect: give {given}")
    files = [path for path in tables_in(source) if not _is_of_archive(path, source)]
    inner = {folder for path in files for folder in path.relative_to(source).parents[:-1]}
    found = {folder for folder in inner if _recordings_of_detect(source / folder) is not None}
    for folder in sorted(found):
        finding = (
            "is the output of kenya-birds detect, which nobody has checked: if you corrected a table of it, give that"
        )
        findings.add(NOTE, finding, file=folder.as_posix())
    return [path for path in files if found.isdisjoint(path.relative_to(source).parents)]


def _recordings_of_detect(folder: Path) -> list[str] | None:
    """Returns the recordings that `detect` lists in its output folder; None: it is another folder."""
    try:
        text, _ = read_text(folder / RECORDINGS_TABLE)
        table = parse_any_table(text, folder)
    except (OSError, ValueError, UserError):
        return None
    if not {"recording", "detections"} <= set(table.header):
        return None
    return [row[table.header.index("recording")] for row in table.rows]


def _is_of_archive(path: Path, source: Path) -> bool:
    """Whether a file is in an imported archive below the source."""
    return (
        path.parent != source and (path.parent / RECORDINGS_TABLE).is_file() and (path.parent / SPECIES_FILE).is_file()
    )


def _is_read_otherwise(path: Path, settings: ImportSettings) -> bool:
    """Whether a file is the map of names, or the list of recordings of an archive."""
    if settings.names_file.is_file() and path.samefile(settings.names_file):
        return True
    if path != settings.tables / RECORDINGS_TABLE:
        return False
    try:
        read_table(path, PLACE_COLUMNS)
    except UserError:
        return False
    return True


def _with_species_column(table: TableCells, settings: ImportSettings) -> TableCells:
    column = settings.species_column
    if column is not None and table.header:
        label = read_cells(table.path, {**settings.columns, "label": column}).cells["label"]
        others = {name: cells for name, cells in table.cells.items() if name not in SPECIES}
        return replace(table, cells={**others, "label": label}, columns={**table.columns, "label": column})
    if table.lines and not any(name in table.cells for name in SPECIES):
        raise NoColumnError(
            f"{table.path} has no column of species that is known: give --species_column; the columns are "
            f"{', '.join(table.header)}"
        )
    return table


def read_names(settings: ImportSettings, findings: Findings) -> NameMap | None:
    """Reads the map of names; the `species.csv` beside the tables is one too.

    Args:
        settings: The settings.
        findings: A `species.csv` that cannot be read is added.

    Raises:
        UserError: If the map of the settings cannot be read.
    """
    if settings.names is not None:
        return read_name_map(settings.names)
    if not settings.names_file.is_file():
        return None
    try:
        return read_name_map(settings.names_file)
    except UserError as error:
        findings.add(
            NOTE,
            "is not a list of species, and was not read",
            file=SPECIES_FILE,
            detail=without_path(str(error), str(settings.names_file)),
        )
        return None


def path_below(path: Path, folder: Path) -> str:
    """Returns a path below a folder, with `/`; the name of a file that was given itself."""
    return path.relative_to(folder).as_posix() if path != folder else path.name


def without_path(message: str, path: str) -> str:
    """Returns a message without the path at its start."""
    return message.removeprefix(path).strip().removeprefix(":").strip()
