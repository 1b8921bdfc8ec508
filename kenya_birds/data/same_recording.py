"""Recognition of identical recordings, by their names and by their sound."""

import hashlib
import logging
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pandas as pd
import soundfile

from kenya_birds.data.pyav_decoder import FORMATS
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

# Number of places, spread evenly, and number of samples at each place that are compared.
PLACES, PLACE_FRAMES = 4, 4096
# Number of packets that are compared in lossy files: a few seconds from the beginning.
PACKETS = 256
# Encoded silence repeats a few packets; packets of sound are almost all different.
FEWEST_PACKETS = 8
SHOWN_GROUPS = 5


def recording_key(name: str) -> str:
    """Returns a normalised form of a recording's file name, equal for all its spellings.

    An accented letter is one character in some tables and file systems (NFC), and two in others (NFD). Suffixes differ
    in case: recorders write `.WAV`, programs `.wav`.

    Args:
        name: File name, without its folder.
    """
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}" if stem else suffix


def spellings(files: Iterable[str], names: Iterable[str], folder: Path | None = None) -> dict[str, str]:
    """Finds the files of recordings, by their exact names or by another spelling (see `recording_key`).

    Args:
        files: Names of the files.
        names: Names as in a table.
        folder: Folder of the files: a file system that ignores case finds more names there.

    Returns:
        The file's name by the name in the table, without recordings that have no file, or several files in other
        spellings.
    """
    there, by_key = set(files), defaultdict(list)
    for file in there:
        by_key[recording_key(file)].append(file)
    found = {}
    for name in names:
        alike = by_key.get(recording_key(name), [])
        if name in there or (folder is not None and len(alike) != 1 and os.path.exists(folder / name)):
            found[name] = name
        elif len(alike) == 1:
            found[name] = alike[0]
    return found


def with_names_of(table: pd.DataFrame, recordings: Iterable[str]) -> pd.DataFrame:
    """Returns a table with the archive's spelling of each recording's name (see `recording_key`).

    Args:
        table: Table with a column `recording`.
        recordings: The archive's recordings; other recordings keep their names.
    """
    spelling = {recording_key(name): name for name in recordings}
    return table.assign(recording=[spelling.get(recording_key(name), name) for name in table["recording"]])


def sound_fingerprint(path: str | Path) -> str | None:
    """Returns a text that is equal for files with the same sound, whatever their names and tags.

    For lossless formats (FLAC, WAV, AIFF, ...) it is a hash of the length, the sampling rate and samples at four
    places, independent of the format. For other formats it is a hash of the first packets, so it identifies copies of
    one encoded file. Only a small part of the file is read.

    Args:
        path: The recording.

    Returns:
        The fingerprint; None if the file cannot be read, or the compared places are silent.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # Reading a pipe would block.
    return _fingerprint(os.fspath(path), status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def file_identity(path: Path) -> tuple[str, int, int, str | None]:
    """Returns what identifies a recording's file in a cache: name, size, time of the last change, and fingerprint."""
    status = path.stat()
    return (path.name, status.st_size, status.st_mtime_ns, sound_fingerprint(path))


def sound_fingerprints(paths: Iterable[Path]) -> list[str | None]:
    """Returns `sound_fingerprint` of each file, several in parallel."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(sound_fingerprint, paths))


def same_sound(fingerprints: Mapping[str, str | None]) -> list[list[str]]:
    """Returns groups of two or more recordings with the same sound, sorted by name.

    Args:
        fingerprints: By the recordings' names.
    """
    groups = defaultdict(list)
    for name in sorted(fingerprints):
        if fingerprints[name] is not None:
            groups[fingerprints[name]].append(name)
    return sorted(names for names in groups.values() if len(names) > 1)


def joined(annotations: pd.DataFrame, groups: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Merges recordings with the same sound: their annotations get the name of the first recording of the group.

    Args:
        annotations: Table with a column `recording`.
        groups: See `same_sound`; recordings without annotations are ignored.
    """
    first_of = _first_of(groups, set(annotations["recording"]))
    if not first_of:
        return annotations
    pairs = [[first, name] for name, first in first_of.items()]
    logger.warning("Recordings that belong together stay in one split: %s", format_groups(pairs))
    names = annotations["recording"]
    return annotations.assign(recording=names.map(first_of).fillna(names))


def separated(table: pd.DataFrame, annotations: pd.DataFrame, groups: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Returns the splits or folds of all recordings, from a table for `joined` annotations.

    Args:
        table: `recording`, and `split` or `fold`.
        annotations: The annotations before `joined`.
        groups: See `same_sound`.

    Returns:
        The table, sorted by recording.
    """
    first_of = _first_of(groups, set(annotations["recording"]))
    if not first_of:
        return table
    by_name = table.set_index("recording")
    others = by_name.loc[list(first_of.values())].set_axis(list(first_of), axis="index").rename_axis("recording")
    return pd.concat([by_name, others]).sort_index().reset_index()


def check_undivided(table: pd.DataFrame, groups: Sequence[Sequence[str]]) -> None:
    """Raises `UserError` if recordings with the same sound are in different splits or folds.

    Args:
        table: `recording`, and `split` or `fold`.
        groups: See `same_sound`.
    """
    column = "fold" if "fold" in table else "split"
    part_of = dict(zip(table["recording"], table[column], strict=True))
    divided = [
        [f"{name} ({part_of[name]})" for name in names if name in part_of]
        for names in groups
        if len({part_of[name] for name in names if name in part_of}) > 1
    ]
    if divided:
        raise UserError(
            f"the table of {column}s separates recordings with the same sound, so that a model would be tested on its "
            f"training data: {format_groups(divided)}: put them into one {column}"
        )


def format_groups(groups: Sequence[Sequence[str]]) -> str:
    """Formats the names for a message."""
    more = f"; and {len(groups) - SHOWN_GROUPS} more" if len(groups) > SHOWN_GROUPS else ""
    return "; ".join(" and ".join(names) for names in groups[:SHOWN_GROUPS]) + more


def _first_of(groups: Sequence[Sequence[str]], recordings: set[str]) -> dict[str, str]:
    """Maps each recording to the first one of its group, for groups within `recordings`; first ones are not mapped."""
    kept = [[name for name in names if name in recordings] for names in groups]
    return {name: names[0] for names in kept for name in names[1:]}


@lru_cache(maxsize=100_000)
def _fingerprint(path: str, size: int, mtime_ns: int) -> str | None:
    # Decoders may raise any exception for a damaged file, which then has no fingerprint.
    with suppress(Exception), soundfile.SoundFile(path) as file:
        if _is_lossless(file):
            return _of_samples(file)
    with suppress(Exception):
        return _of_packets(path)
    return None


def _is_lossless(file: soundfile.SoundFile) -> bool:
    return file.format not in ("OGG", "MP3", "MPEG") and file.subtype.startswith(("PCM_", "FLOAT", "DOUBLE", "ALAC"))


def _of_samples(file: soundfile.SoundFile) -> str | None:
    number = min(PLACE_FRAMES, file.frames)
    if not number:
        return None
    digest = hashlib.sha256(f"{file.frames} {file.samplerate} {file.channels}".encode())
    is_silent = True
    for place in range(PLACES):
        file.seek((file.frames - number) * (2 * place + 1) // (2 * PLACES))
        sound = file.read(number, dtype="float64", always_2d=True)
        if len(sound) < number:
            return None
        is_silent = is_silent and np.ptp(sound) == 0
        digest.update(sound.tobytes())
    return None if is_silent else f"samples-{digest.hexdigest()[:32]}"


def _of_packets(path: str) -> str | None:
    packets = []
    # FFmpeg also reads play lists, which open other files and addresses.
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
        if not container.streams.audio:
            return None
        for packet in container.demux(container.streams.audio[0]):
            packets.append(bytes(packet))
            if len(packets) == PACKETS:
                break
    if len(set(packets)) < max(FEWEST_PACKETS, len(packets) / 2):
        return None
    return f"packets-{hashlib.sha256(b''.join(packets)).hexdigest()[:32]}"
