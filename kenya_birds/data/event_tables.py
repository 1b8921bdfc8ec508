"""Tables of events (detections or annotations) of several programs, read into one format.

Supported: Raven selection tables, Audacity labels, Kaleidoscope, BirdNET-Analyzer (CSV, Raven, Kaleidoscope, Audacity,
Parquet), this package's own tables, and plain CSV files with columns for file, start and end.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kenya_birds.data.csv_table import read_csv
from kenya_birds.errors import UserError

COLUMNS = (
    "recording",
    "start_s",
    "end_s",
    "code",
    "scientific_name",
    "common_name",
    "label",
    "score",
    "low_hz",
    "high_hz",
    "row",
)
SPECIES = ("code", "scientific_name", "common_name", "label")
TEXTS = ("recording", *SPECIES)
# Tables of all recordings that `kenya-birds detect` writes, the most exact first.
OWN_TABLES = ("detections.parquet", "detections.csv", "detections.selections.txt")
# Names of columns in lower case, the most exact first. In a Raven table of several recordings, "Begin Time (s)" is the
# time in the joined sound, and "File Offset (s)" the time in the recording.
ALIASES = {
    "recording": (
        "recording",
        "begin path",
        "begin file",
        "in file",
        "file",
        "filename",
        "file name",
        "audiofilename",
        "audio_file",
        "filepath",
        "path",
    ),
    "start_s": ("start_s", "file offset (s)", "start (s)", "start time (s)", "begin time (s)", "offset", "start"),
    "end_s": ("end_s", "end (s)", "end time (s)", "end"),
    "duration_s": ("duration_s", "delta time (s)", "duration"),
    "code": ("code", "species code", "species ebird code", "ebird_code"),
    "scientific_name": ("scientific_name", "scientific name"),
    "common_name": ("common_name", "common name"),
    "label": ("species", "label:species", "label", "annotation", "manual id", "top1match", "class", "tag"),
    "score": ("score", "confidence", "top1dist", "probability"),
    "low_hz": ("low_hz", "low freq (hz)", "low_freq_hz"),
    "high_hz": ("high_hz", "high freq (hz)", "high_freq_hz"),
}
# Endings that programs add to a recording's name to name its table.
_TABLE_ENDINGS = re.compile(
    r"((\.BirdNET)?(\.selection\.table|\.results)|\.Table\.\d+\.selections|\.selections|_labels?|\.labels)$",
    re.IGNORECASE,
)
SUFFIXES = (".csv", ".txt", ".tsv", ".parquet")
# Spreadsheets read text that begins with these characters as a formula; our CSV files prefix it with an apostrophe.
_GUARDED = re.compile(r"'[=+\-@\t\r]")


@dataclass(frozen=True)
class EventTable:
    """Events and their recordings.

    Attributes:
        events: One row per event: `recording` (as in the table, with `/`; without suffix if it is taken from the
            table's file name), `start_s` and `end_s` in that recording, `code`, `scientific_name`, `common_name`,
            `label` (empty if missing in the table), `score` (1 if missing), `low_hz` and `high_hz` (NaN if missing)
            and `row` (`file, line N`).
        recordings: Names of all recordings, including recordings whose table has no events.
    """

    events: pd.DataFrame
    recordings: frozenset[str]


def read_events(path: str | Path) -> EventTable:
    """Reads a table of events, or all the tables of a folder and its subfolders.

    `kenya-birds detect` writes the same detections in several formats: of its folder one table is read.

    Args:
        path: A file (`.csv`, `.tsv`, `.txt`, `.parquet`) or a folder of such files. If a table has no column for the
            recording, its file name is used: `a.BirdNET.results.csv` and `a.txt` belong to `a.wav`.

    Raises:
        UserError: If there is no such table, its format is unknown, a cell is not a number where one is expected, or
            two tables of a folder contain the same event.
    """
    path = Path(path)
    if path.is_dir():
        own = [path / name for name in OWN_TABLES if (path / name).is_file()]
        files = own[:1] or sorted(
            file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        read = {file: table for file in files if (table := _read_file(file, is_required=False)) is not None}
        tables = list(read.values())
        if not tables:
            raise UserError(f"{path} contains no table of events: expected files that end in {', '.join(SUFFIXES)}")
        _check_no_event_twice(read)
        events = pd.concat([table.events for table in tables], ignore_index=True)
        return EventTable(events, frozenset().union(*(table.recordings for table in tables)))
    if not path.is_file():
        raise UserError(f"there is no table {path}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} does not have the suffix of a table: expected one of {', '.join(SUFFIXES)}")
    table = _read_file(path, is_required=True)
    assert table is not None
    return table


def _check_no_event_twice(tables: Mapping[Path, EventTable]) -> None:
    """Raises `UserError` if two files contain the same event, as a folder with several formats of one result does."""
    events = pd.concat([table.events.assign(file=str(path)) for path, table in tables.items()], ignore_index=True)
    # Some formats name the recording by its path, others by its name alone.
    events["recording"] = [PurePosixPath(name).stem.casefold() for name in events["recording"]]
    times = events[["start_s", "end_s"]].round(3)
    for name in SPECIES:
        named = events[name] != ""
        keys = events.loc[named, ["recording", name, "file"]].join(times).drop_duplicates()
        repeated = keys[keys.duplicated(["recording", name, "start_s", "end_s"], keep=False)]
        if len(repeated):
            first = repeated.iloc[0]
            same = repeated[(repeated[["recording", name, "start_s", "end_s"]] == first.drop("file")).all(axis=1)]
            raise UserError(
                f"{same['file'].iloc[0]} and {same['file'].iloc[1]} contain the same event ({first[name]} at "
                f"{first['start_s']:g} s of {first['recording']}): give one table, or a folder with one format"
            )


def _read_file(path: Path, *, is_required: bool) -> EventTable | None:
    """Returns the events of one file; None if it is not a table of events and not required."""
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path).to_pandas()
            table.insert(0, "row", range(1, len(table) + 1))
        else:
            table = _read_text(path)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table ({type(error).__name__}: {error})") from None
    names = _columns(table.columns)
    if "start_s" not in names or not {"end_s", "duration_s"} & names.keys():
        if not is_required:
            return None
        found = ", ".join(str(name) for name in table.columns if name != "row") or "none"
        raise UserError(
            f"{path} has no start and end columns: expected for example 'Start (s)' and 'End (s)', "
            f"'Begin Time (s)' and 'End Time (s)', or 'start' and 'end'; found {found}"
        )
    events = _as_events(_one_view(table), names, path)
    own = () if "recording" in names else (_recording_of(path),)
    return EventTable(events, frozenset((*events["recording"], *own)))


def _read_text(path: Path) -> pd.DataFrame:
    """Reads a text table as strings, with `row`, the line in the file. Audacity's labels have no header."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    if _is_audacity(first):
        return _read_audacity(path.read_text(encoding="utf-8-sig"))
    return read_csv(path, max("\t,;", key=first.count)).reset_index()


def _is_audacity(line: str) -> bool:
    cells = line.split("\t")
    return len(cells) >= 2 and all(_is_number(cell) for cell in cells[:2])


def _read_audacity(text: str) -> pd.DataFrame:
    """Reads Audacity's labels: start, end, label, a confidence (BirdNET), and frequencies in a second line."""
    events: list[dict[str, Any]] = []
    for line, content in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in content.split("\t")]
        if cells[0] == "\\" and events:
            events[-1] |= dict(zip(("low_hz", "high_hz"), cells[1:3], strict=False))
        elif content.strip():
            names = ("start_s", "end_s", "label", "score")
            events.append({"row": line, **dict(zip(names, cells, strict=False))})
    columns = ["row", "start_s", "end_s", "label", "score", "low_hz", "high_hz"]
    table = pd.DataFrame(events, columns=columns, dtype=object).fillna("")
    return table if table["score"].ne("").any() else table.drop(columns="score")


def _columns(header: Iterable[Any]) -> dict[str, str]:
    """Returns the table's column by our name, for the names that the table has."""
    found = {str(name).strip().lower(): name for name in header}
    return {
        ours: found[next(alias for alias in aliases if alias in found)]
        for ours, aliases in ALIASES.items()
        if any(alias in found for alias in aliases)
    }


def _one_view(table: pd.DataFrame) -> pd.DataFrame:
    """Keeps one row of each selection: Raven lists it once for each view (waveform, spectrogram)."""
    if not {"Selection", "View"} <= set(table.columns):
        return table
    order = table["View"].str.contains("Waveform", case=False).astype(int).sort_values(kind="stable").index
    keys = [name for name in ("Selection", "Begin Path", "Begin File") if name in table]
    return table.loc[order].drop_duplicates(keys).sort_index()


def _as_events(table: pd.DataFrame, names: dict[str, str], path: Path) -> pd.DataFrame:
    events = pd.DataFrame(index=table.index)
    for name in TEXTS:
        texts = table[names[name]].fillna("").astype(str) if name in names else pd.Series("", index=table.index)
        events[name] = texts.str[1:].where(texts.str.match(_GUARDED), texts).str.strip()
    events["recording"] = events["recording"].str.replace("\\", "/").replace("", _recording_of(path))
    for name in ("start_s", "end_s", "duration_s", "score", "low_hz", "high_hz"):
        if name in names:
            events[name] = _numbers(table, names[name], path, may_be_empty=name in ("score", "low_hz", "high_hz"))
    if "end_s" not in names:
        events["end_s"] = events["start_s"] + events["duration_s"]
    elif names["start_s"].lower() == "file offset (s)" and (begin := _columns(["Begin Time (s)"])["start_s"]) in table:
        events["end_s"] += events["start_s"] - _numbers(table, begin, path)
    for name, default in (("score", 1.0), ("low_hz", float("nan")), ("high_hz", float("nan"))):
        events[name] = events[name].fillna(default) if name in events else default
    events["row"] = [f"{path.name}, line {row}" for row in table["row"]]
    backwards = events[(events["end_s"] < events["start_s"])]
    if not backwards.empty:
        first = backwards.iloc[0]
        raise UserError(f"{path}: {first.row} ends before it starts ({first.start_s:g} s, {first.end_s:g} s)")
    return events[list(COLUMNS)].reset_index(drop=True)


def _numbers(table: pd.DataFrame, column: str, path: Path, *, may_be_empty: bool = False) -> pd.Series:
    texts = table[column].astype(str)
    numbers = pd.to_numeric(texts, errors="coerce")
    wrong = ~numbers.abs().lt(float("inf"))
    if may_be_empty:
        wrong &= ~texts.isin(["", "nan", "None"])
    if wrong.any():
        first = table.loc[wrong].iloc[0]
        raise UserError(f"{path} line {first['row']}: '{column}' is '{first[column]}', expected a number")
    return numbers.astype(float)


def _recording_of(path: Path) -> str:
    return _TABLE_ENDINGS.sub("", path.stem)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
