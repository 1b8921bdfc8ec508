"""Finds the recordings of detections, also after they were moved."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from fsspec.core import split_protocol

from kenya_birds.data.audio import read_header
from kenya_birds.data.recording_matching import RecordingFinder
from kenya_birds.data.sound_files import find_sound
from kenya_birds.errors import UserError

SAME_LENGTH_S = 0.01


def find_recordings(
    names: pd.Series, folder: Path | None, lengths_s: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Finds the recordings of detections, also after they were moved.

    A moved recording is the file with its name whose last folders are the same, or else the only one with its name, or
    the only one of these with its length. A file with the name and the last folder of another recording is not it,
    because recorders name files by their time, so sites share names.

    Args:
        names: Paths or URLs of the recordings in the table.
        folder: Folder to search for recordings that are not at their path; None: none.
        lengths_s: Length of each recording when it was analysed, where it is known.

    Returns:
        Path or URL of each recording.

    Raises:
        UserError: If a recording is not found, it is uncertain which file it is, or one file matches two recordings.
    """
    found = {name: name for name in names if split_protocol(name)[0] is not None or Path(name).is_file()}
    missing = [name for name in dict.fromkeys(names) if name not in found]
    if not missing:
        return found
    if folder is None:
        raise UserError(
            f"{len(missing)} recordings of the sample are not where they were analysed, such as {missing[0]}: run "
            "this in the same folder as kenya-birds detect, or give the folder that they are in now with --recordings"
        )
    paths = {Path(one.path).relative_to(folder).as_posix(): one.path for one in find_sound(folder).found}
    finder = RecordingFinder(paths)
    owners: dict[tuple[str, ...], set[str]] = {}
    for name in (*names, *(lengths_s or {})):
        owners.setdefault(_last_parts(name), set()).add(name)
    for name in missing:
        path = name.replace("\\", "/")
        match = finder.find(path.lstrip("/"))
        if match.recording is None:
            match = finder.find(path.rpartition("/")[2])
        alike = match.others if match.recording is None else (match.recording,)
        alike = tuple(one for one in alike if name in owners.get(_last_parts(one), {name})) or alike
        if len(alike) > 1 and lengths_s and name in lengths_s:
            alike = tuple(one for one in alike if _has_length(paths[one], lengths_s[name]))
        if len(alike) != 1:
            what = (
                f"several files may be it: {' and '.join(alike[:2])}" if alike else "no file has its name and length"
            )
            raise UserError(f"the recording {name} is not found in {folder} ({what}): move it there under its name")
        found[name] = str(paths[alike[0]])
        others = owners.get(_last_parts(alike[0]), {name})
        if name not in others:
            raise _both(sorted([name, min(others)]), found[name])
    first: dict[str, str] = {}
    for name, path in found.items():
        if (other := first.setdefault(path, name)) != name:
            raise _both([other, name], path)
    return found


def _both(names: list[str], path: str) -> UserError:
    return UserError(
        f"the recordings {names[0]} and {names[1]} cannot both be {path}: give a folder that contains both, in "
        "subfolders with the names that they had"
    )


def _last_parts(path: str) -> tuple[str, ...]:
    """The name of a file and of its folder."""
    return tuple(path.replace("\\", "/").split("/")[-2:])


def _has_length(path: str, length_s: float) -> bool:
    try:
        return abs(read_header(Path(path)).duration_s - length_s) <= SAME_LENGTH_S
    except UserError:
        return False
