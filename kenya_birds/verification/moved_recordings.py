"""Finds the recordings of detections, also after they were moved."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from fsspec.core import split_protocol

from kenya_birds.data.audio import read_header
from kenya_birds.data.recording_matching import RecordingFinder, common_folders, stem_of
from kenya_birds.data.sound_files import find_sound
from kenya_birds.errors import UserError

SAME_LENGTH_S = 0.01


def find_recordings(
    names: pd.Series, folder: Path | None, lengths_s: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Finds the recordings of detections, also after they were moved.

    A moved recording is the file with its name whose last folders are the same, or else the only one with its name, or
    the only one of these with its length. A file whose folders agree more with another recording is not it, because
    recorders name files by their time, so sites share names.

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
    namesakes: dict[str, list[str]] = {}
    for name in dict.fromkeys((*names, *(lengths_s or {}))):
        namesakes.setdefault(stem_of(_posix(name)), []).append(name)
    for name in missing:
        path = _posix(name)
        match = finder.find(path.lstrip("/"))
        if match.recording is None:
            match = finder.find(path.rpartition("/")[2])
        alike = match.others if match.recording is None else (match.recording,)
        if len(alike) > 1 and lengths_s and name in lengths_s:
            alike = tuple(one for one in alike if _has_length(paths[one], lengths_s[name]))
        if len(alike) != 1:
            what = (
                f"several files may be it: {' and '.join(alike[:2])}" if alike else "no file has its name and length"
            )
            raise UserError(f"the recording {name} is not found in {folder} ({what}): move it there under its name")
        found[name] = str(paths[alike[0]])
        place = Path(found[name]).absolute().as_posix()
        agreeing = {one: common_folders(_posix(one), place) for one in namesakes[stem_of(path)]}
        other = max(agreeing, key=agreeing.__getitem__)
        if agreeing[other] > agreeing[name]:
            raise UserError(
                f"the recording {name} is not found in {folder} ({found[name]} is in the folder of {other}): move it "
                "there, in a subfolder with the name that it had"
            )
    first: dict[str, str] = {}
    for name, path in found.items():
        place = path if split_protocol(path)[0] is not None else str(Path(path).resolve())
        if (other := first.setdefault(place, name)) != name:
            raise UserError(
                f"the recordings {other} and {name} cannot both be {path}: give a folder that contains both, in "
                "subfolders with the names that they had"
            )
    return found


def _posix(name: str) -> str:
    return name.replace("\\", "/")


def _has_length(path: str, length_s: float) -> bool:
    try:
        return abs(read_header(Path(path)).duration_s - length_s) <= SAME_LENGTH_S
    except UserError:
        return False
