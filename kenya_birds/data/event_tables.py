"""Tables of events (detections or annotations) of several programs, read into one format.

Supported: Raven selection tables, Audacity labels, Kaleidoscope, BirdNET-Analyzer (CSV, Raven, Kaleidoscope, Audacity,
Parquet), this package's own tables, and plain CSV files with columns for file, start and end.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.number_texts import EITHER_POINT, parse_numbers
from kenya_birds.data.sound_files import is_hidden
from kenya_birds.data.table_cells import (
    MARKS,
    NUMBERS,
    SPECIES,
    SUFFIXES,
    TEXTS,
    NoEventsError,
    TableCells,
    read_cells,
)
from kenya_birds.errors import UserError

COLUMNS = (
    "recording",
    "start_s",
    "end_s",
    "code",
    "scientific_name",
    "common_name",
    "label",
    "annotator",
    "score",
    "low_hz",
    "high_hz",
    "row",
)
# Tables of all recordings that `kenya-birds detect` writes, the most exact first.
OWN_TABLES = ("detections.parquet", "detections.csv", "detections.selections.txt")
# Of computed times: microseconds, less than a sample.
DECIMALS = 6
# How programs write that there is no number (in lower case), and no name: R writes NA.
NO_NUMBER = ("", "na", "n/a", "nan", "none", "null", "-")
NO_NAME = ("", "NA", "N/A", "nan", "NaN", "-")
SAME_S = 1e-3
# Spreadsheets read text that begins with these characters as a formula; our CSV files prefix it with an apostrophe.
_GUARDED = re.compile(r"'[=+\-@\t\r]")


@dataclass(frozen=True)
class EventTable:
    """Events and their recordings.

    Attributes:
        events: One row per event: `recording` (as in the table, with `/`; without suffix if it is taken from the
            table's file name), `start_s` and `end_s` in that recording, `code`, `scientific_name`, `common_name`,
            `label`, `annotator` (empty if missing in the table), `score` (1 if missing), `low_hz` and `high_hz` (NaN
            if missing) and `row` (`file, line N`).
        recordings: Names of all recordings, including recordings whose table has no events.
    """

    events: pd.DataFrame
    recordings: frozenset[str]


def tables_in(folder: Path) -> list[Path]:
    """Returns the files of a folder and its subfolders that may be tables, sorted; hidden ones are left out.

    `kenya-birds detect` writes the same detections in several formats: of its folder one table is returned.
    """
    own = [folder / name for name in OWN_TABLES if (folder / name).is_file()]
    files = (
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(map(is_hidden, file.relative_to(folder).parts))
    )
    return own[:1] or sorted(files)


def read_events(path: str | Path) -> EventTable:
    """Reads a table of events, or all the tables of a folder and its subfolders.

    Args:
        path: A file (`.csv`, `.tsv`, `.txt`, `.parquet`) or a folder of such files (see `tables_in`). If a table has
            no column for the recording, its file name is used: `a.BirdNET.results.csv` and `a.txt` belong to `a.wav`.

    Raises:
        UserError: If there is no such table, its format is unknown, a cell is not a number where one is expected, or
            two tables of a folder contain the same event.
    """
    path = Path(path)
    if path.is_dir():
        tables = []
        for file in tables_in(path):
            with suppress(NoEventsError):
                tables.append(read_cells(file))
        if not tables:
            raise UserError(f"{path} contains no table of events: expected files that end in {', '.join(SUFFIXES)}")
    else:
        if not path.is_file():
            raise UserError(
                f"there is no table {path}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder"
            )
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path} does not have the suffix of a table: expected one of {', '.join(SUFFIXES)}")
        tables = [read_cells(path)]
    events = events_of(tables)
    wrong = events[(events["problem"] != "") | (events["frequency_problem"] != "")]
    if len(wrong):
        first = wrong.iloc[0]
        problem = first.problem or first.frequency_problem
        raise UserError(f"{tables[first.table].path} line {first.line}: {problem}")
    if len(tables) > 1:
        _check_no_event_twice(events, [str(table.path) for table in tables])
    own = (table.recording for table in tables if table.recording is not None)
    return EventTable(events[list(COLUMNS)], frozenset((*events["recording"], *own)))


def events_of(tables: Sequence[TableCells]) -> pd.DataFrame:
    """Returns the events of tables; all of them are converted together, which is fast for many small tables.

    Args:
        tables: See `read_cells`.

    Returns:
        `COLUMNS`, `MARKS` and, in the order of the tables: `table` (its number), `line`, `problem` (the reason for
        which the row cannot be used, or an empty text; its times may be NaN), `frequency_problem` (why a frequency
        cannot be read, which is then NaN) and `is_blank` (whether times and species are empty).
    """
    table = np.repeat(np.arange(len(tables)), [len(one.lines) for one in tables])
    events = pd.DataFrame(index=range(len(table)))
    for name in (*TEXTS, *MARKS):
        texts = pd.Series(_column(tables, name), dtype=object).astype(str)
        events[name] = texts.str[1:].where(texts.str.match(_GUARDED), texts).str.strip()
    own = np.array([one.own for one in tables], dtype=object)
    events["recording"] = events["recording"].str.replace("\\", "/", regex=False)
    written = pd.DataFrame({name: pd.Series(_column(tables, name), dtype=object) for name in NUMBERS}).astype(str)
    cells = written.mask(written.apply(lambda column: column.str.lower().isin(NO_NUMBER)), "")
    numbers = parse_numbers(cells, table, np.array([one.delimiter == ";" for one in tables], dtype=bool))
    recordings, numbers["start_s"] = _with_drawn(tables, table, events["recording"], cells, numbers)
    events["recording"] = np.where(recordings == "", own[table] if len(own) else "", recordings)
    no_end = _has_column(tables, table, "duration_s") & (cells["end_s"] == "")
    times = {"start_s": True, "end_s": ~no_end, "duration_s": no_end, "begin_s": True}
    has_score = ~written["score"].isin(["", "nan", "None"])
    problem = _wrong_cells(tables, table, written, numbers, {**times, "score": has_score})
    frequencies = {name: cells[name] != "" for name in ("low_hz", "high_hz")}
    frequency_problem = _wrong_cells(tables, table, written, numbers, frequencies)
    events[["start_s", "end_s", "score", "low_hz", "high_hz"]] = numbers[
        ["start_s", "end_s", "score", "low_hz", "high_hz"]
    ]
    # In a Raven table of several recordings, the end is a time in the joined sound.
    moved = numbers["begin_s"].notna() & numbers["end_s"].notna()
    of_file_s = (numbers["end_s"] + numbers["start_s"] - numbers["begin_s"]).round(DECIMALS)
    events["end_s"] = numbers["end_s"].where(~moved, of_file_s)
    events["end_s"] = events["end_s"].where(~no_end, (numbers["start_s"] + numbers["duration_s"]).round(DECIMALS))
    events["score"] = events["score"].fillna(1.0)
    lines = np.array([line for one in tables for line in one.lines], dtype=np.int64)
    events = events.assign(table=table, line=lines)
    for row in np.flatnonzero((events["end_s"] < events["start_s"]) & (problem == "")).tolist():
        problem[row] = f"ends before it starts ({events['start_s'][row]:g} s, {events['end_s'][row]:g} s)"
    names = [one.path.name for one in tables]
    events["row"] = [
        f"{names[number]}, line {line}" for number, line in zip(table.tolist(), lines.tolist(), strict=True)
    ]
    blank = (cells[["start_s", "end_s", "duration_s"]] == "").all(axis=1) & events[list(SPECIES)].isin(NO_NAME).all(
        axis=1
    )
    events = events.assign(problem=problem, frequency_problem=frequency_problem, is_blank=blank)
    return events[[*COLUMNS, *MARKS, "table", "line", "problem", "frequency_problem", "is_blank"]]


def _has_column(tables: Sequence[TableCells], table: np.ndarray, name: str) -> np.ndarray:
    """Whether the table of each row has a column, shape `(rows,)`."""
    return np.array([name in one.columns for one in tables], dtype=bool)[table]


def _wrong_cells(
    tables: Sequence[TableCells],
    table: np.ndarray,
    cells: pd.DataFrame,
    numbers: pd.DataFrame,
    needed: Mapping[str, Any],
) -> pd.Series:
    """Returns what is wrong with the first needed number of each row that cannot be read, or an empty text.

    Args:
        tables: The tables.
        table: Number of the table of each row.
        cells: Cells with numbers, as text.
        numbers: The numbers.
        needed: By column, whether its number is needed in each row.
    """
    problem = pd.Series("", index=cells.index, dtype=object)
    for name, is_needed in needed.items():
        wrong = numbers[name].isna() & _has_column(tables, table, name) & is_needed
        for row in np.flatnonzero(wrong & (problem == "")).tolist():
            mark = " with a decimal point" if "," in cells[name][row] else ""
            if re.fullmatch(EITHER_POINT, cells[name][row]):
                mark = " with one meaning: other cells of the column have decimal commas and decimal points"
            column = tables[table[row]].columns[name]
            problem[row] = f"'{column}' is '{cells[name][row]}', expected a number{mark}"
    return problem


def _with_drawn(
    tables: Sequence[TableCells], table: np.ndarray, recording: pd.Series, cells: pd.DataFrame, numbers: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Returns recordings and starts, also of selections that somebody drew in Raven, which leaves measurements empty.

    In a table of a single recording, the time in the joined sound is that in the recording. The other rows show that a
    table is one. Without other rows it is one, unless its name is that of a table of all recordings.

    Args:
        tables: The tables.
        table: Number of the table of each row, in order.
        recording: Recordings as in the tables.
        cells: Cells with numbers, as text.
        numbers: The numbers.
    """
    names, start_s = recording.to_numpy(dtype=object, copy=True), numbers["start_s"].to_numpy(copy=True)
    begin_s = numbers["begin_s"].to_numpy()
    is_of_raven = ~np.isnan(begin_s)
    lacks_start = is_of_raven & (cells["start_s"] == "").to_numpy()
    drawn = lacks_start | (is_of_raven & (names == ""))
    is_moved = is_of_raven & ~lacks_start & ~(np.abs(start_s - begin_s) <= SAME_S)
    for number in np.unique(table[drawn]).tolist():
        rows = slice(*np.searchsorted(table, (number, number + 1)))
        written = set(names[rows][is_of_raven[rows] & ~drawn[rows]])
        is_single = len(written) == 1 or (not written and tables[number].path.name not in OWN_TABLES)
        if not is_single or is_moved[rows].any():
            continue
        name = written.pop() if written else ""
        filled = drawn[rows] & np.isin(names[rows], ["", name])
        names[rows][filled] = name
        start_s[rows] = np.where(filled & lacks_start[rows], begin_s[rows], start_s[rows])
    return names, start_s


def _column(tables: Sequence[TableCells], name: str) -> list[str]:
    """Returns the cells of one column of all tables, empty where a table does not have it."""
    return [cell for one in tables for cell in one.cells.get(name, [""] * len(one.lines))]


def _first_alike(names: Iterable[str]) -> dict[str, str]:
    """Returns the first of the names that may mean the same recording, by name.

    Some formats name the recording by its path, others by its name alone: folders must agree as far as both are known.
    """
    paths = {name: PurePosixPath(name.casefold()) for name in names}
    parts = {name: (path.stem, *path.parts[-2::-1]) for name, path in paths.items()}
    found: dict[str, str] = {}
    first = ""
    for name in sorted(parts, key=lambda name: parts[name]):
        if not found or parts[name][: len(parts[first])] != parts[first]:
            first = name
        found[name] = first
    return found


def _check_no_event_twice(events: pd.DataFrame, files: Sequence[str]) -> None:
    """Raises `UserError` if two files contain the same event, as a folder with several formats of one result does."""
    events = events.assign(
        recording=events["recording"].map(_first_alike(events["recording"].unique())),
        file=np.array(files, dtype=object)[events["table"]],
    )
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
