"""Annotations of one recording, for pictures beside its detections."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from kenya_birds.data.archive import BOX_COLUMNS, UNKNOWN_SPECIES, read_archive
from kenya_birds.data.event_tables import read_events
from kenya_birds.data.recording_matching import RecordingFinder
from kenya_birds.data.table_cells import SPECIES
from kenya_birds.errors import UserError
from kenya_birds.inference.detections import name_in

COLUMNS = ("start_s", "end_s", *BOX_COLUMNS.values(), "label")


def annotations_of(recording: str | Path, source: str | Path) -> pd.DataFrame:
    """Reads the annotations of a recording.

    Args:
        recording: The recording.
        source: An archive, or a table or folder of tables in any format of `read_events`.

    Returns:
        `start_s`, `end_s`, `low_hz` and `high_hz` (NaN if unknown), and `label`: a code, or the name in the table.

    Raises:
        UserError: If the source cannot be read or does not know the recording.
    """
    source = Path(source)
    if source.is_dir() and (source / "annotations.csv").is_file():
        archive = read_archive(source)
        real = Path(recording).resolve()
        name: str | bool | None = next((name for name, path in archive.paths.items() if path.resolve() == real), None)
        name = name or RecordingFinder(archive.headers).find(Path(recording).absolute().as_posix()).recording
        calls = pd.concat([archive.annotations, archive.unknown]).rename(columns={"species": "label"})
        calls["label"] = calls["label"].fillna(UNKNOWN_SPECIES)
    else:
        events = read_events(source).events
        path = Path(recording).absolute().as_posix().lstrip("/")
        named = _names_of(path, events["recording"].unique()) or _names_of(name_in(path), events["recording"].unique())
        if len(named) > 1 and len({PurePosixPath(one).parent for one in named}) > 1:
            raise UserError(
                f"{source} has annotations of {' and '.join(sorted(named)[:2])}: give a table of one of them"
            )
        calls = events.assign(recording=events["recording"].isin(named), label="")
        for column in SPECIES:
            calls["label"] = calls["label"].where(calls["label"] != "", events[column])
        name = True if named else None
    if name is None:
        raise UserError(f"{source} has no annotations of {name_in(str(recording))}: give those of this recording")
    return calls.loc[calls["recording"] == name, list(COLUMNS)].reset_index(drop=True)


def _names_of(path: str, names: Iterable[str]) -> list[str]:
    """Returns the names in a table that mean a recording."""
    finder = RecordingFinder([path])
    return [name for name in names if finder.find(name.lstrip("/")).recording is not None]
