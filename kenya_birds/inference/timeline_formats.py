"""Formats for programs that show detections on a timeline: Raven's selection tables and Audacity's labels."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import takewhile
from pathlib import PurePosixPath
from typing import IO

from kenya_birds.files import is_portable_name, name_digest
from kenya_birds.inference.detections import RecordingInfo, Row, decimal_s, sample_us
from kenya_birds.inference.table_formats import Outputs

# BirdNET-Analyzer's columns in its order, with the scientific name, then columns for other programs.
RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Common Name",
    "Species Code",
    "Scientific Name",
    "Confidence",
    "Begin Path",
    "File Offset (s)",
    "Begin File",
    "Delta Time (s)",
)
MAX_NAME_BYTES = 120  # of a file or folder; file systems allow 255
MAX_PATH_CHARACTERS = 140  # in the folder of the tables; Windows allows 260 in total


class RavenTables:
    """Writer of a selection table for all recordings in sequence, and one for each recording.

    Raven has no quoting, so tabs and line ends in names become spaces.
    """

    def __init__(
        self, outputs: Outputs, stem: str, recordings: Sequence[RecordingInfo], frequencies_hz: tuple[float, float]
    ) -> None:
        self._outputs = outputs
        self._names = file_names([info.recording for info in recordings])
        self._frequencies_hz = [f"{one:.1f}" for one in frequencies_hz]
        self._all = _RavenTable(outputs.open(f"{stem}.selections.txt"))
        self._list = outputs.open(f"{stem}.list.txt")
        self._begin = self._end = Fraction(0)
        self._end_us = 0
        self._one: _RavenTable | None = None
        self._path = self._file = ""

    def begin(self, info: RecordingInfo) -> None:
        """See `TableWriter`."""
        self.close()
        self._begin, self._end = self._end, self._end + info.duration
        self._end_us = sample_us(0, 1, self._end)
        # Raven has another working directory.
        is_file = info.is_here and "://" not in info.recording
        self._path = plain_text(os.path.abspath(info.recording) if is_file else info.recording)
        self._file = re.split(r"[/\\\\]", self._path)[-1]
        self._list.write(f"{self._path}\n")
        self._one = _RavenTable(self._outputs.open(f"raven/{self._names[info.recording]}.selections.txt"))

    def write(self, row: Row) -> None:
        """See `TableWriter`."""
        assert self._one is not None  # begin() was called
        # Each rounded once from where it is, so that no error adds up along the recordings.
        found = row.detection
        start_us = sample_us(found.start_sample, found.sample_rate_hz, self._begin)
        end_us = sample_us(found.end_sample, found.sample_rate_hz, self._begin)
        names = [plain_text(text) for text in (row.names.common_name, found.species, row.names.scientific_name)]
        for table, times_us in (
            (self._all, (start_us, min(end_us, self._end_us))),
            (self._one, (row.start_us, row.end_us)),
        ):
            table.write(
                *map(decimal_s, times_us),
                *self._frequencies_hz,
                *names,
                f"{found.score:.4f}",
                self._path,
                decimal_s(row.start_us),
                self._file,
                decimal_s(row.end_us - row.start_us),
            )

    def close(self) -> None:
        """See `TableWriter`."""
        if self._one is not None:
            self._one.file.close()


class _RavenTable:
    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self._selections = 0
        file.write("\t".join(RAVEN_COLUMNS) + "\n")

    def write(self, *cells: str) -> None:
        self._selections += 1
        self.file.write("\t".join((str(self._selections), "Spectrogram 1", "1", *cells)) + "\n")


class AudacityLabels:
    """Writer of a label file for each recording: start, end, common name with score."""

    def __init__(self, outputs: Outputs, recordings: Sequence[RecordingInfo]) -> None:
        self._outputs = outputs
        self._names = file_names([info.recording for info in recordings])
        self._file: IO[str] | None = None

    def begin(self, info: RecordingInfo) -> None:
        """See `TableWriter`."""
        self.close()
        self._file = self._outputs.open(f"audacity/{self._names[info.recording]}.txt")

    def write(self, row: Row) -> None:
        """See `TableWriter`."""
        assert self._file is not None  # begin() was called
        label = f"{plain_text(row.names.common_name)} {row.detection.score:.2f}"
        self._file.write(f"{decimal_s(row.start_us)}\t{decimal_s(row.end_us)}\t{label}\n")

    def close(self) -> None:
        """See `TableWriter`."""
        if self._file is not None:
            self._file.close()


@lru_cache(maxsize=4096)  # names of species occur in many rows
def plain_text(text: str) -> str:
    """Returns a text as a cell between tabs: one line, without a leading quote, which readers would interpret."""
    text = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text)
    return "'" + text[1:] if text.startswith('"') else text


def file_names(recordings: Sequence[str]) -> dict[str, str]:
    """Returns a file name without suffix for each recording: the recording's name, in its folders.

    Common folders of all recordings are removed. If two names would be equal (recordings that differ only in their
    suffix, case or Unicode form), a part of the path's SHA-256 is appended.

    Args:
        recordings: Paths or URLs, each once.

    Returns:
        By recording, a relative path with `/` that has no `..`.
    """
    folders = {}
    for recording in recordings:
        parts = [part for part in recording.replace(os.sep, "/").split("/") if part not in ("", ".", "..")]
        folders[recording] = [_safe_name(part) for part in parts[:-1]]
    first, last = (choose(folders.values(), default=[]) for choose in (min, max))
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    names = {
        recording: _short_path(parts[shared:], _safe_name(PurePosixPath(recording.replace(os.sep, "/")).stem))
        for recording, parts in folders.items()
    }
    taken = Counter(map(_name_key, names.values()))
    return {
        recording: name if taken[_name_key(name)] == 1 else f"{name}-{name_digest(recording)}"
        for recording, name in names.items()
    }


def _short_path(folders: Sequence[str], name: str) -> str:
    """Returns the path of a file in folders; if it is too long for Windows, a hash replaces the folders."""
    path = "/".join([*folders, name])
    return path if len(path) <= MAX_PATH_CHARACTERS else f"{name_digest('/'.join(folders))}/{name}"


def _name_key(name: str) -> str:
    """Returns a key that is equal for names that are one file on some file system (case, Unicode forms)."""
    return unicodedata.normalize("NFC", name).casefold()


def _safe_name(name: str) -> str:
    """Returns a name that is valid on every file system."""
    safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]', "_", name).strip(" .") or "_"
    if len(safe.encode()) > MAX_NAME_BYTES:
        safe = safe.encode()[: MAX_NAME_BYTES - 11].decode(errors="ignore") + f"-{name_digest(name)}"
    return safe if is_portable_name(safe) else f"_{safe}"  # such as `con` on Windows
