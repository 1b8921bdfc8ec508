"""CSV tables written by people: each cell is read as text, each row with its line number in the file."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from kenya_birds.errors import UserError

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_csv(path: str | Path, delimiter: str = ",") -> pd.DataFrame:
    """Reads all columns of a CSV as text without surrounding spaces; blank rows are skipped.

    Missing cells at the end of a row are empty. `NA`, `null` and the like are read as plain text.

    Args:
        path: The table, in UTF-8, with or without a byte order mark.
        delimiter: Separator between cells. With tabs, quotation marks are plain text, as Raven writes them.

    Returns:
        The columns. The index is `row`, the line on which a row begins; the header begins on line 1.

    Raises:
        UserError: If the file cannot be read, has no header, or a row has more cells than the header.
    """
    path = Path(path)
    rows = _rows(path, delimiter)
    _, header = next(rows, (1, []))
    if not any(header):
        raise UserError(f"{path} is empty: expected a header, and a row for each line of the table")
    if (
        delimiter == ","
        and len(header) == 1
        and (found := next((mark for mark in _SEPARATORS if mark in header[0]), None))
    ):
        raise UserError(
            f"{path} has {_SEPARATORS[found]} between its columns: expected commas, and a point in decimal numbers; "
            "save it as CSV (UTF-8) with commas"
        )
    lines, cells = [], []
    for line, row in rows:
        if not any(row):
            continue
        if any(row[len(header) :]):
            raise UserError(
                f"{path} line {line} has {len(row)} cells and the header has {len(header)}: expected a point in "
                "decimal numbers, and quotation marks around text with commas"
            )
        lines.append(line)
        cells.append((row + [""] * len(header))[: len(header)])
    return pd.DataFrame(cells, columns=header, index=pd.Index(lines, name="row", dtype="int64")).astype(str)


def read_table(path: str | Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Reads some columns of a CSV and renames them (see `read_csv`).

    Args:
        path: The table.
        columns: New name by the name in the file.

    Returns:
        The columns in this order, after `row`.

    Raises:
        UserError: If the file cannot be read as a table, or a column is missing or occurs twice.
    """
    table = read_csv(path)
    names = list(table.columns)
    missing = [column for column in columns if column not in names]
    if missing:
        raise UserError(f"{path} has no column {missing}: expected {list(columns)}, found {names}")
    repeated = [column for column in columns if names.count(column) > 1]
    if repeated:
        raise UserError(f"{path} has the column {repeated[0]!r} twice: remove or rename one")
    table = table[list(columns)].rename(columns=dict(columns)).reset_index()
    return table[(table[list(columns.values())] != "").any(axis=1)].reset_index(drop=True)


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if delimiter == "\t":
                reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
            else:
                reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                yield line, [cell.strip() for cell in cells]
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a UTF-8 table of comma-separated values: {error}") from None
    except csv.Error as error:
        raise UserError(f"{path} line {line} is not a row of comma-separated values: {error}") from None
