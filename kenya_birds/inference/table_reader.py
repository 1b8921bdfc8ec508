"""Reader of tables of detections: this package's CSV and Parquet, and Raven selection tables."""

import codecs
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kenya_birds.errors import UserError
from kenya_birds.files import read_text
from kenya_birds.formulas import FORMULA
from kenya_birds.inference.detections import SCORE_DIGITS

COLUMNS = ("recording", "start_s", "end_s", "code", "common_name", "scientific_name", "score")
# Their names in a selection table; `end_s` is computed.
RAVEN = {
    "recording": "Begin Path",
    "start_s": "File Offset (s)",
    "code": "Species Code",
    "common_name": "Common Name",
    "scientific_name": "Scientific Name",
    "score": "Confidence",
}
RAVEN_TIMES = ("Begin Time (s)", "End Time (s)")
TEXTS = ("recording", "code", "common_name", "scientific_name")
NUMBERS = ("start_s", "end_s", "score")


def read_detections(path: str | Path) -> pd.DataFrame:
    """Reads a table of detections.

    Args:
        path: A table of `write_tables`: `.csv`, `.parquet`, or Raven's `.txt`, for one or several recordings. The
            table may have been edited in Raven or a spreadsheet; additional columns are ignored. A selection without a
            score, drawn by hand, gets the score 1. In the table of a single recording it needs no path.

    Returns:
        `recording`, `start_s`, `end_s` (in the recording), `code`, `common_name`, `scientific_name`, `score`.

    Raises:
        UserError: If the file cannot be read, or is not such a table.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_raven}
    if path.suffix not in readers:
        raise UserError(f"{path} is not the name of a table of detections: expected one of {', '.join(readers)}")
    try:
        table = readers[path.suffix](path)
        first_row = 1 if path.suffix == ".parquet" else 2
        numbers = to_numbers(table[list(NUMBERS)], first_row)
        table = table[list(COLUMNS)].assign(**{name: numbers[name] for name in NUMBERS})
    except (OSError, ValueError, KeyError, csv.Error, pa.ArrowException) as error:
        told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} cannot be read as a table of detections ({told}): give a CSV, Parquet or Raven table that "
            "kenya-birds detect wrote"
        ) from None
    return table.reset_index(drop=True)


def to_numbers(cells: pd.DataFrame, first_row: int = 2) -> pd.DataFrame:
    """Returns cells as numbers, float64.

    Args:
        cells: Columns of texts or numbers, with the index of the table.
        first_row: Row of the first line with cells; 2: after a header.

    Raises:
        ValueError: If a cell is no number, or is NaN or infinite; with row and column.
    """
    try:
        numbers = cells.astype("float64")
    except (TypeError, ValueError):
        for name in cells:
            for at, cell in zip(cells.index.tolist(), cells[name], strict=True):
                try:
                    float(cell)
                except (TypeError, ValueError):
                    raise ValueError(f"row {at + first_row} has the {name} {cell!r}, expected a number") from None
        raise
    values = numbers.to_numpy()
    for at, column in np.argwhere(~np.isfinite(values))[:1].tolist():
        row, name = int(cells.index[at]) + first_row, str(cells.columns[column])
        raise ValueError(f"row {row} has the {name} {values[at, column]}, expected a number")
    return numbers


def csv_separator(path: Path) -> str:
    """Returns the separator of a CSV of `detect`: spreadsheets with decimal commas save semicolons."""
    with path.open("rb") as file:
        header = file.readline()
    return ";" if b";" in header and b"," not in header else ","


def csv_encoding(path: Path) -> str:
    """Returns the encoding of a table: UTF-8, or the one that `read_text` finds."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while part := file.read(1 << 20):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return {"UTF-16": "utf-16", "Windows-1252": "cp1252"}.get(read_text(path)[1], "latin-1")
    return "utf-8-sig"


def read_cells(path: Path, numbers: Sequence[str]) -> pd.DataFrame:
    """Reads the cells of a CSV of `detect` as texts, also after a spreadsheet has saved it.

    Args:
        path: The CSV, in any usual encoding.
        numbers: Columns with numbers; a decimal comma becomes a point.
    """
    separator = csv_separator(path)
    table = _read_texts(path, sep=separator)
    if separator == ";":
        for name in set(numbers) & set(table.columns):
            table[name] = table[name].str.replace(",", ".")
    return table


def _read_texts(path: Path, **how: Any) -> pd.DataFrame:
    table: pd.DataFrame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding=csv_encoding(path), **how)
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells for names of rows
        raise ValueError("its rows have more cells than its header")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    table = read_cells(path, NUMBERS)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    for name in TEXTS[1:]:
        guarded = table[name].str.startswith("'") & table[name].str[1:].str.match(FORMULA)
        table[name] = table[name].str[1:].where(guarded, table[name])
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    table = pq.read_table(path, columns=list(COLUMNS)).to_pandas().astype(dict.fromkeys(TEXTS, str))
    # The file has scores in float32: a score at a threshold has to reach it, as in the CSV.
    return table.assign(score=table["score"].astype("float64").round(SCORE_DIGITS))


def _read_raven(path: Path) -> pd.DataFrame:
    table = _read_texts(path, sep="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in (*RAVEN.values(), *RAVEN_TIMES) if name not in table]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    if {"View", "Selection"} <= set(table):  # Raven saves a row for each view of a selection
        is_waveform = table["View"].str.startswith("Waveform")
        table = table[~(is_waveform & table["Selection"].isin(table.loc[~is_waveform, "Selection"]))]
    table = table.rename(columns={raven: name for name, raven in RAVEN.items()})
    table["score"] = table["score"].replace("", "1")
    times = to_numbers(table[list(RAVEN_TIMES)])
    begin_s, end_s = (times[name] for name in RAVEN_TIMES)
    _fill_in(table, begin_s)
    return table.assign(end_s=(to_numbers(table[["start_s"]])["start_s"] + end_s - begin_s).round(6))


def _fill_in(table: pd.DataFrame, begin_s: pd.Series) -> None:
    """Fills in recording and offset of selections drawn by hand, if the table has a single recording."""
    drawn = (table["recording"] == "") | (table["start_s"] == "")
    if not drawn.any():
        return
    recordings = table.loc[table["recording"] != "", "recording"].unique()
    written = table[~drawn]
    is_one = len(recordings) == 1 and np.allclose(written["start_s"].astype(float), begin_s[~drawn], atol=1e-3)
    if not is_one:
        row = table.index[drawn][0] + 2
        raise ValueError(
            f"line {row} has no Begin Path or File Offset (s): fill them in, or use a recording's own table"
        )
    table.loc[drawn, "recording"] = recordings[0]
    table.loc[drawn, "start_s"] = begin_s[drawn].astype(str)
