"""CSV tables written by people: each cell is read as text, each row with its line number in the file."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kenya_birds.errors import UserError

# Those of tables of any program; where two occur equally often, the first.
SEPARATORS = "\t,;"
_SEPARATOR_NAMES = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class TextTable:
    """Cells of a text table, without surrounding spaces; blank rows are skipped.

    Attributes:
        header: Names of the columns.
        rows: Cells of each row, as many as the header has; missing cells at the end of a row are empty.
        lines: The line of the file on which each row begins.
        delimiter: Separator between cells.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    delimiter: str = ","


def parse_table(text: str, path: str | Path, delimiter: str = ",") -> TextTable:
    """Splits a text into cells.

    Args:
        text: The text.
        path: Its file, for messages.
        delimiter: Separator between cells. With tabs, quotation marks are plain text, as Raven writes them, but those
            around a whole cell are removed: R and Excel write them.

    Raises:
        UserError: If the text has no header, a row has more cells than the header, or quotation marks do not match.
    """
    rows = _rows(io.StringIO(text, newline=""), path, delimiter)
    header = next((cells for _, cells in rows if any(cells)), [])
    if not header:
        raise UserError(f"{path} is empty: expected a header, and a row for each line of the table")
    if (
        delimiter == ","
        and len(header) == 1
        and (found := next((mark for mark in _SEPARATOR_NAMES if mark in header[0]), None))
    ):
        raise UserError(
            f"{path} has {_SEPARATOR_NAMES[found]} between its columns: expected commas, and a point in decimal "
            "numbers; save it as CSV (UTF-8) with commas"
        )
    table = TextTable(header, [], [], delimiter)
    for line, row in rows:
        if not any(row):
            continue
        if any(row[len(header) :]):
            raise UserError(
                f"{path} line {line} has {len(row)} cells and the header has {len(header)}: expected a point in "
                "decimal numbers, and quotation marks around text with commas"
            )
        table.lines.append(line)
        table.rows.append((row + [""] * len(header))[: len(header)])
    return table


def parse_any_table(text: str, path: str | Path) -> TextTable:
    """Splits a text into cells, at commas, semicolons or tabs: whichever its header has most of.

    A first line such as `sep=;`, which Excel writes and hides, names another separator.

    Args:
        text: The text.
        path: Its file, for messages.

    Raises:
        UserError: See `parse_table`.
    """
    first, _, rest = text.partition("\n")
    named = re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE)
    if named is None:
        header = next((line for line in text.splitlines() if line.strip()), "")
        return parse_table(text, path, max(SEPARATORS, key=header.count))
    return parse_table("\n" + rest, path, named[1])  # the blank line keeps the numbers of the lines


def read_csv(path: str | Path, delimiter: str = ",") -> pd.DataFrame:
    """Reads all columns of a CSV as text (see `TextTable`). `NA`, `null` and the like are read as plain text.

    Args:
        path: The table, in UTF-8, with or without a byte order mark.
        delimiter: See `parse_table`.

    Returns:
        The columns. The index is `row`, the line on which a row begins.

    Raises:
        UserError: If the file cannot be read, has no header, or a row has more cells than the header.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{path} is in UTF-16: save it as CSV UTF-8 (comma delimited)")
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a UTF-8 table of comma-separated values: {error}") from None
    table = parse_table(text, path, delimiter)
    index = pd.Index(table.lines, name="row", dtype="int64")
    return pd.DataFrame(table.rows, columns=table.header, index=index).astype(str)


def read_table(
    path: str | Path, columns: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Reads some columns of a CSV and renames them (see `read_csv`).

    Args:
        path: The table.
        columns: New name by the name in the file.
        optional: The same for columns that the table may lack; their cells are then empty.

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
    more = dict(optional or {})
    repeated = [column for column in (*columns, *more) if names.count(column) > 1]
    if repeated:
        raise UserError(f"{path} has the column {repeated[0]!r} twice: remove or rename one")
    table = table.assign(**{column: "" for column in more if column not in names})
    table = table[[*columns, *more]].rename(columns={**columns, **more}).reset_index()
    return table[(table[list(columns.values())] != "").any(axis=1)].reset_index(drop=True)


def _rows(file: io.StringIO, path: str | Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    line = 1
    try:
        if delimiter == "\t":
            reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
        for cells in reader:
            texts = [cell.strip() for cell in cells]
            yield line, [_unquoted(text) for text in texts] if delimiter == "\t" else texts
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path} line {line} is not a row of comma-separated values: {error}") from None


def _unquoted(text: str) -> str:
    """Removes quotation marks around a whole cell; those inside it are doubled then, or escaped by R."""
    inner = text[1:-1]
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', "").replace('\\"', "")
    return inner.replace('""', '"').replace('\\"', '"').strip() if is_quoted else text
