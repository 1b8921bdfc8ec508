"""Where the recordings of an archive lie: in its folder `soundscape_data/`, or anywhere, as `recordings.csv` says."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import pandas as pd

from kenya_birds.data.audio import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ, AudioHeader, read_header
from kenya_birds.data.csv_table import read_table
from kenya_birds.data.decoders import MAX_FRAMES
from kenya_birds.data.same_recording import recording_key, spellings
from kenya_birds.errors import UserError
from kenya_birds.files import ANNOTATIONS_FILE, RECORDINGS_FOLDER, RECORDINGS_TABLE, write_table
from kenya_birds.values import first_names

PLACE_COLUMNS = {"Filename": "recording", "Folder": "folder"}
HEADER_COLUMNS = {
    "Frames": "frames",
    "Sampling Rate (Hz)": "sample_rate_hz",
    "Channels": "channels",
    "Size (bytes)": "size",
    "Modified (ns)": "modified_ns",
}
# In a joined archive: the path below the folder, if it is not the recording's name, and the archive it comes from.
JOINED_COLUMNS = {"File": "file", "Archive": "archive"}


@dataclass(frozen=True)
class KeptHeader:
    """A header that was read before, and the state of its file then.

    Attributes:
        header: The header.
        size: Size of the file in bytes.
        modified_ns: Time of its last change.
    """

    header: AudioHeader
    size: int
    modified_ns: int

    @classmethod
    def read(cls, path: Path) -> "KeptHeader":
        """Reads a recording's header.

        Raises:
            UserError: If the file cannot be read as audio, or has no samples.
        """
        header = read_header(path)
        status = os.stat(path)
        return cls(header, status.st_size, status.st_mtime_ns)

    def is_of(self, path: Path) -> bool:
        """Whether the file has not changed since."""
        try:
            status = os.stat(path)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified_ns)


@dataclass(frozen=True)
class Place:
    """A row of `recordings.csv`.

    Attributes:
        recording: Name of the recording, with `/` between folders.
        folder: A folder.
        file: Path below it, with `/`.
        archive: The archive that the recording comes from; empty: this one.
        kept: The header; None if it cannot be read.
    """

    recording: str
    folder: Path
    file: str
    archive: str = ""
    kept: KeptHeader | None = None


@dataclass(frozen=True)
class RecordingPlaces:
    """The recordings of an archive.

    Attributes:
        source: The folder `soundscape_data`, or the table `recordings.csv`.
        paths: Every file in that folder, or recording of that table, by its name there. Names in the table have `/`
            between folders.
        kept: Headers in the table.
        archive_of: In a joined archive, the archive that each recording comes from.
    """

    source: Path
    paths: dict[str, Path]
    kept: dict[str, KeptHeader] = field(default_factory=dict)
    archive_of: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data_dir: Path) -> "RecordingPlaces":
        """Finds the recordings of an archive; `recordings.csv` comes first.

        Raises:
            UserError: If the table cannot be read, or a folder of it does not exist.
        """
        path = data_dir / RECORDINGS_TABLE
        if not path.is_file():
            folder = data_dir / RECORDINGS_FOLDER
            return cls(folder, {name: folder / name for name in sorted(os.listdir(folder))})
        table = read_table(path, PLACE_COLUMNS, {**HEADER_COLUMNS, **JOINED_COLUMNS})
        table["file"] = table["file"].where(table["file"] != "", table["recording"])
        for column in ("recording", "file"):
            for row in table[[not is_inside(name) for name in table[column]]].itertuples():
                raise UserError(
                    f"{path} line {row.row}: '{getattr(row, column)}' is not a path below its folder: expected one "
                    "such as site1/a.wav"
                )
        repeated = table[table["recording"].map(recording_key).duplicated()]
        if len(repeated):
            raise UserError(f"{path} line {repeated['row'].iloc[0]}: this recording is listed twice: remove one line")
        for row in table.drop_duplicates("folder").itertuples():
            if not row.folder or not (data_dir / str(row.folder)).is_dir():
                raise UserError(
                    f"{path} line {row.row}: the folder of the recordings '{row.folder}' does not exist: connect its "
                    "disk, or replace this path in the column Folder by the new one"
                )
        # A relative folder is below the archive.
        places = zip(table["recording"], table["folder"], table["file"], strict=True)
        paths = {name: data_dir / folder / file for name, folder, file in places}
        origins = table[table["archive"] != ""]
        return cls(path, paths, _kept(table), dict(zip(origins["recording"], origins["archive"], strict=True)))

    @property
    def is_table(self) -> bool:
        """Whether `recordings.csv` lists the recordings; all of them have been annotated, also those without calls."""
        return self.source.name == RECORDINGS_TABLE

    def find(self, names: Iterable[str]) -> dict[str, str]:
        """Finds recordings by their exact names or by another spelling (see `recording_key`).

        Args:
            names: As in a table.

        Returns:
            The name in `paths` by the name in the table, without recordings that do not exist or are elsewhere: a name
            such as `../a.wav` is none of the archive, even if there is such a file.
        """
        found = spellings(self.paths, names, None if self.is_table else self.source)

        def is_here(file: str) -> bool:
            # `Path.exists` raises if a name is too long.
            return (file in self.paths or is_inside(file)) and os.path.exists(self.path(file))

        return {name: file for name, file in found.items() if is_here(file)}

    def path(self, name: str) -> Path:
        """Returns the path of a recording."""
        return self.paths.get(name) or self.source / name

    def header(self, name: str) -> AudioHeader:
        """Returns the header of a recording: that of the table if the file has not changed, else it is read.

        Raises:
            UserError: If the file cannot be read as audio, or has no samples.
        """
        kept = self.kept.get(name)
        return kept.header if kept is not None and kept.is_of(self.path(name)) else read_header(self.path(name))

    def missing(self, names: list[str]) -> str:
        """Says where recordings were expected that were not found, and what to do.

        Args:
            names: At least one name.
        """
        shown = first_names(names)
        if not self.is_table:
            return f"are not in {self.source}: {shown}: download them, or remove their rows from {ANNOTATIONS_FILE}"
        if len(spellings(self.paths, names)) < len(names):
            return f"are not in {self.source}: {shown}: add them there"
        return (
            f"do not exist: {self.path(names[0])}{', ...' if len(names) > 1 else ''}: put them back, or correct their "
            f"paths in {self.source}"
        )


def is_inside(name: str) -> bool:
    """Whether a name is a path below a folder, with `/`, on any system."""
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts)) and "\\" not in name and not PureWindowsPath(name).drive


def write_places(places: Iterable[Place], path: Path) -> None:
    """Writes `recordings.csv`, sorted by recording.

    Args:
        places: The rows.
        path: The table; an existing file is replaced.
    """
    rows = []
    for place in sorted(places, key=lambda place: place.recording):
        kept = place.kept
        header: tuple[int | str, ...] = ("",) * len(HEADER_COLUMNS)
        if kept is not None:
            about = kept.header
            header = (about.frames, about.sample_rate_hz, about.channels, kept.size, kept.modified_ns)
        file = "" if place.file == place.recording else place.file
        rows.append((place.recording, str(place.folder), *header, file, place.archive))
    table = pd.DataFrame(rows, columns=[*PLACE_COLUMNS, *HEADER_COLUMNS, *JOINED_COLUMNS])
    unused = [column for column in JOINED_COLUMNS if not table[column].astype(bool).any()]
    write_table(table.drop(columns=unused), path)


def _kept(table: pd.DataFrame) -> dict[str, KeptHeader]:
    """Returns the headers in a table; one that no recording can have is left out, and read from the file later."""
    numbers = table[list(HEADER_COLUMNS.values())]
    is_whole = numbers.apply(lambda column: column.str.fullmatch("[0-9]{1,19}")).all(axis=1)
    rows = zip(table.loc[is_whole, "recording"], numbers[is_whole].to_numpy().tolist(), strict=True)
    kept = {}
    for name, texts in rows:
        frames, rate_hz, channels, size, modified_ns = map(int, texts)
        if 0 < frames <= MAX_FRAMES and MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ and channels:
            kept[name] = KeptHeader(AudioHeader(frames, rate_hz, channels), size, modified_ns)
    return kept
