"""Cells of tables of events of several programs, as text, under common names of columns."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kenya_birds.data.csv_table import parse_any_table
from kenya_birds.errors import UserError
from kenya_birds.files import read_text

SUFFIXES = (".csv", ".txt", ".tsv", ".parquet")
KINDS = ("raven", "audacity", "kaleidoscope", "birdnet", "csv")
SPECIES = ("code", "scientific_name", "common_name", "label")
TEXTS = ("recording", *SPECIES, "annotator")
# Columns of the annotations of an archive that say what kind of annotation a row is (see `archive.WEAK_COLUMN`).
MARKS = ("weak", "verified", "model")
NUMBERS = ("start_s", "end_s", "duration_s", "begin_s", "score", "low_hz", "high_hz")
# Names of columns in lower case, the most exact first. In a Raven table of several recordings, "Begin Time (s)" is the
# time in the joined sound, and "File Offset (s)" the time in the recording.
ALIASES = {
    "recording": (
        *("recording", "begin path", "begin file", "in file", "file", "filename", "file name", "audiofilename"),
        *("audio_file", "filepath", "path", "sound file", "soundfile", "wav", "file_name"),
    ),
    "start_s": (
        *("start_s", "file offset (s)", "start (s)", "start time (s)", "begin time (s)", "onset", "onset_s", "offset"),
        *("start", "start_time", "start time", "begin", "begin_time", "begin time", "min_t"),
    ),
    "end_s": (
        *("end_s", "end (s)", "end time (s)", "end", "end_time", "end time", "finish", "stop", "max_t", "offset_s"),
    ),
    "duration_s": ("duration_s", "delta time (s)", "duration", "duration (s)"),
    "code": ("code", "species code", "species ebird code", "ebird_code", "ebird code", "species_code"),
    "scientific_name": ("scientific_name", "scientific name"),
    "common_name": ("common_name", "common name", "english name", "vernacular name"),
    "label": (
        *("species", "label:species", "species name", "species_name", "label", "annotation", "manual id", "top1match"),
        *("class", "tag", "primary_label"),
    ),
    "score": ("score", "confidence", "top1dist", "probability"),
    "low_hz": ("low_hz", "low freq (hz)", "low_freq_hz", "low frequency (hz)", "min_f", "low_f", "freq_low"),
    "high_hz": ("high_hz", "high freq (hz)", "high_freq_hz", "high frequency (hz)", "max_f", "high_f", "freq_high"),
    "annotator": ("annotator", "observer", "annotated by", "annotated_by", "analyst", "reviewer", "user"),
}
_FOLDERS = ("indir", "folder")
_TABLE_ENDINGS = re.compile(
    r"((\.BirdNET)?(\.selection\.table|\.results)|\.Table\.\d+(\.selections)?|[._]?\.selections|[._-]selections"
    r"|[._-]labels?|[._-]annotations?)$",
    re.IGNORECASE,
)
# A number as a text may write it, with a decimal point or a decimal comma.
NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]+)?")


class NoEventsError(UserError):
    """Raised for a table that is not a table of events."""


class NoColumnError(UserError):
    """Raised for a table that lacks a column that the user named, or every known column of species."""


@dataclass(frozen=True)
class TableCells:
    """A table of events as text.

    Attributes:
        path: Its file.
        kind: One of `KINDS`, or a format of crowsetta.
        encoding: Such as `UTF-8`.
        delimiter: Separator between cells; empty if the file is not a text.
        header: Names of its columns; empty for Audacity's labels.
        columns: The table's name of a column by the name in `TEXTS`, `MARKS` and `NUMBERS`.
        cells: Cells of the known columns, by the same names.
        lines: The line of the file, or number of the row, of each event.
        named: The recording that the table's own name means; None: that name without its ending.
    """

    path: Path
    kind: str
    encoding: str
    delimiter: str
    header: list[str]
    columns: dict[str, str]
    cells: dict[str, list[str]]
    lines: list[int]
    named: str | None = None

    @property
    def own(self) -> str:
        """Name of the recording by the table's own name."""
        return recording_of(self.path) if self.named is None else self.named

    @property
    def recording(self) -> str | None:
        """Name of the recording by the table's own name; None if a column names the recordings of its rows."""
        return None if self.cells.get("recording") else self.own

    @property
    def kinds(self) -> set[str]:
        """All kinds of which the table is one: BirdNET writes tables for the other programs too."""
        more = {"birdnet"} if "score" in self.columns else set()
        return {self.kind, *more, *({"csv"} if self.header else ())}


def recording_of(path: Path) -> str:
    """Returns the name of the recording, without suffix, to which a table belongs by its name."""
    return _TABLE_ENDINGS.sub("", path.stem)


def read_cells(path: Path, columns: Mapping[str, str] | None = None) -> TableCells:
    """Reads a table.

    Args:
        path: A file that ends in one of `SUFFIXES`.
        columns: The table's name of a column by the name in `TEXTS` and `NUMBERS`, for columns with other names than
            those in `ALIASES`.

    Raises:
        NoEventsError: If the table has no columns for start and end.
        NoColumnError: If it has no column of `columns`.
        UserError: If the file cannot be read as a table.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path).to_pandas()
            is_filled = table.notna()
            # The shortest text of a float32 is the number that was written: 0.123457, not 0.12345699965953827.
            for name in table.select_dtypes("float32"):
                table[name] = table[name].to_numpy().astype(str)
            texts = table.astype(object).where(is_filled, "").astype(str)
            rows = texts.to_numpy().tolist()
            return _with_header(
                path, "binary", "", [str(name) for name in table], rows, list(range(1, len(rows) + 1)), columns
            )
        text, encoding = read_text(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table ({type(error).__name__}: {error})") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    # Labels have no header: an empty file has none.
    if _is_audacity(first) or (not first and path.suffix.lower() == ".txt"):
        return _read_audacity(path, encoding, text)
    table = parse_any_table(text, path)
    return _with_header(path, encoding, table.delimiter, table.header, table.rows, table.lines, columns)


def _with_header(
    path: Path,
    encoding: str,
    delimiter: str,
    header: list[str],
    rows: list[list[str]],
    lines: list[int],
    columns: Mapping[str, str] | None,
) -> TableCells:
    names = _columns(path, header, columns or {})
    if "start_s" not in names or not {"end_s", "duration_s"} & names.keys():
        raise NoEventsError(
            f"{path} has no start and end columns: expected for example 'Start (s)' and 'End (s)', "
            f"'Begin Time (s)' and 'End Time (s)', or 'start' and 'end'; found {', '.join(header) or 'none'}"
        )
    # Of several columns with one name, the first is read.
    numbered = list(enumerate(header))[::-1]
    found = {name.strip().lower(): index for index, name in numbered}
    place = {name: index for index, name in numbered}
    rows, lines = _one_view(rows, lines, found, place.get(names.get("recording", "")))
    cells = {ours: [row[place[theirs]] for row in rows] for ours, theirs in names.items()}
    if names.get("recording", "").lower() == "in file":
        folders = [found[name] for name in _FOLDERS if name in found]
        cells["recording"] = [
            "/".join([*(row[at] for at in folders if row[at]), row[place[names["recording"]]]]) for row in rows
        ]
    return TableCells(path, _kind(found), encoding, delimiter, header, names, cells, lines)


def _kind(found: Mapping[str, int]) -> str:
    if {"in file", "offset"} <= found.keys():
        return "kaleidoscope"
    if "begin time (s)" in found:
        return "raven"
    return "birdnet" if {"start (s)", "end (s)", "confidence"} <= found.keys() else "csv"


def _columns(path: Path, header: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns the table's column by our name, for the names that the table has."""
    found: dict[str, str] = {}
    for name in header:
        found.setdefault(name.strip().lower(), name)
    names = {
        ours: found[next(alias for alias in aliases if alias in found)]
        for ours, aliases in ALIASES.items()
        if any(alias in found for alias in aliases)
    }
    if {"filename", "species ebird code"} <= found.keys():
        # People have columns of their own for what they have verified, without a model.
        marks = MARKS if {"verified", "model"} <= found.keys() else MARKS[:1]
        names |= {mark: found[mark] for mark in marks if mark in found}
    # crowsetta and others have onset and offset; Kaleidoscope's offset is a start.
    if {"onset", "offset"} <= found.keys() and "end_s" not in names:
        names["end_s"] = found["offset"]
    for ours, theirs in given.items():
        if theirs.strip().lower() not in found:
            raise NoColumnError(f"{path} has no column '{theirs}': found {', '.join(found.values()) or 'none'}")
        names[ours] = found[theirs.strip().lower()]
    if "duration_s" in given and "end_s" not in given:
        names.pop("end_s", None)  # such as the time of day at which the recording ends
    if names.get("start_s", "").lower() == "file offset (s)" and "begin time (s)" in found:
        names["begin_s"] = found["begin time (s)"]
    return names


def _one_view(
    rows: list[list[str]], lines: list[int], found: Mapping[str, int], recording: int | None
) -> tuple[list[list[str]], list[int]]:
    """Keeps one row of each selection: Raven lists it once for each view (waveform, spectrogram).

    In joined tables the numbers of selections repeat, but not with the same recording and times.
    """
    if not {"selection", "view"} <= found.keys():
        return rows, lines
    columns = ("selection", "begin path", "begin file", "begin time (s)", "end time (s)")
    keys = [found[name] for name in columns if name in found] + ([] if recording is None else [recording])
    views: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for number, row in enumerate(rows):
        views.setdefault(tuple(row[at] for at in keys), {}).setdefault(row[found["view"]].lower(), []).append(number)
    chosen = []
    for of_view in views.values():
        # Rows of one view are different selections, also if their numbers and times are equal.
        most = max(of_view, key=lambda view: (len(of_view[view]), not view.startswith("waveform")))
        chosen += of_view[most]
    chosen.sort()
    return [rows[number] for number in chosen], [lines[number] for number in chosen]


def _is_audacity(line: str) -> bool:
    cells = line.split("\t")
    return len(cells) >= 2 and all(NUMBER.fullmatch(cell.strip()) for cell in cells[:2])


def _read_audacity(path: Path, encoding: str, text: str) -> TableCells:
    """Reads Audacity's labels: start, end, label, a confidence (BirdNET), and frequencies in a second line."""
    names = ("start_s", "end_s", "label", "score")
    events: list[dict[str, Any]] = []
    lines = []
    for line, content in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in content.split("\t")]
        if cells[0] == "\\" and events:
            # Audacity writes -1 for a frequency that is not set.
            low, high = (cell if not cell.startswith("-") else "" for cell in (*cells[1:3], "", "")[:2])
            events[-1] |= {"low_hz": low, "high_hz": high}
        elif content.strip():
            lines.append(line)
            events.append(dict(zip(names, cells, strict=False)))
    columns = (*names, "low_hz", "high_hz")
    table = {name: [event.get(name, "") for event in events] for name in columns}
    if not any(table["score"]):
        del table["score"]
    columns_there = {name: name.partition("_")[0] for name in table}  # labels have no header
    return TableCells(path, "audacity", encoding, "\t", [], columns_there, table, lines)
