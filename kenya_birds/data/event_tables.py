"""Reads tables of events (detections or annotations) that other programs write, in one form.

Raven selection tables, Audacity labels, Kaleidoscope, BirdNET-Analyzer (CSV, Raven, Kaleidoscope, Audacity, Parquet),
this package's own tables, and plain CSV files with columns for file, start and end.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
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
TEXTS = ("recording", "code", "scientific_name", "common_name", "label")
# Names of columns in lower case, the most exact first: a Raven table over several recordings has times in the joined
# sound in "Begin Time (s)" and times in the recording in "File Offset (s)".
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
# What programs add to a recording's name for the table that lies beside it.
_TABLE_ENDINGS = re.compile(
    r"((\.BirdNET)?(\.selection\.table|\.results)|\.Table\.\d+\.selections|\.selections|_labels?|\.labels)$",
    re.IGNORECASE,
)
SUFFIXES = (".csv", ".txt", ".tsv", ".parquet")
# A spreadsheet would take a text that begins so for a formula; our CSV files put an apostrophe before it.
_GUARDED = re.compile(r"'[=+\-@\t\r]")


@dataclass(frozen=True)
class EventTable:
    """Events, and the recordings that their tables are about.

    Attributes:
        events: One row per event: `recording` (as the table names it, with `/`; without suffix where only the table's
            own name tells it), `start_s` and `end_s` in that recording, `code`, `scientific_name`, `common_name`,
            `label` (empty texts where the table does not have them), `score` (1 where the table has none), `low_hz`
            and `high_hz` (NaN where it has none) and `row` (`file, line N`).
        recordings: Names of recordings with or without events: of those without, the table itself is known.
    """

    events: pd.DataFrame
    recordings: frozenset[str]


def read_events(path: str | Path) -> EventTable:
    """Reads a table of events, or all the tables of a folder and its subfolders.

    Args:
        path: A file (`.csv`, `.tsv`, `.txt`, `.parquet`) or a folder of such files. A table without a column for the
            recording belongs to the recording whose name it carries: `a.wav` for `a.BirdNET.results.csv` or `a.txt`.

    Raises:
        UserError: If there is no such table, it has another form, or a cell is not what its column needs.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        tables = [table for file in files if (table := _read_file(file, is_asked_for=False)) is not None]
        if not tables:
            raise UserError(f"{path} holds no table of events: expected files that end in {', '.join(SUFFIXES)}")
        events = pd.concat([table.events for table in tables], ignore_index=True)
        return EventTable(events, frozenset().union(*(table.recordings for table in tables)))
    if not path.is_file():
        raise UserError(f"there is no table {path}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no table of events by its name: expected one of {', '.join(SUFFIXES)}")
    table = _read_file(path, is_asked_for=True)
    assert table is not None
    return table


def _read_file(path: Path, *, is_asked_for: bool) -> EventTable | None:
    """The events of one file; None if it is no table of events and only lies in a folder that was asked for."""
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
        if not is_asked_for:
            return None
        found = ", ".join(str(name) for name in table.columns if name != "row") or "none"
        raise UserError(
            f"{path} has no columns of start and end: expected for example 'Start (s)' and 'End (s)', "
            f"'Begin Time (s)' and 'End Time (s)', or 'start' and 'end'; found {found}"
        )
    events = _as_events(_one_view(table), names, path)
    own = () if "recording" in names else (_recording_of(path),)
    return EventTable(events, frozenset((*events["recording"], *own)))


def _read_text(path: Path) -> pd.DataFrame:
    """A text table as strings, with `row`, the line in the file; Audacity's labels, which have no header, get one."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    if _is_audacity(first):
        return _read_audacity(path.read_text(encoding="utf-8-sig"))
    return read_csv(path, max("\t,;", key=first.count)).reset_index()


def _is_audacity(line: str) -> bool:
    cells = line.split("\t")
    return len(cells) >= 2 and all(_is_number(cell) for cell in cells[:2])


def _read_audacity(text: str) -> pd.DataFrame:
    """Audacity's labels: start, end, label, and in BirdNET's form a confidence; a second line holds frequencies."""
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
    """The table's column for each of our names that it has."""
    found = {str(name).strip().lower(): name for name in header}
    return {
        ours: found[next(alias for alias in aliases if alias in found)]
        for ours, aliases in ALIASES.items()
        if any(alias in found for alias in aliases)
    }


def _one_view(table: pd.DataFrame) -> pd.DataFrame:
    """Raven lists a selection once for each view (waveform, spectrogram): one row of each is kept."""
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
