"""Numbers as people and programs write them: with decimal points or decimal commas, or as hours:minutes:seconds."""

import numpy as np
import pandas as pd

_EVIDENT_POINT = r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]+|[+-]?[0-9]{1,3}(?:,[0-9]{3}){2,}"
_EVIDENT_COMMA = r"[+-]?[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+"
_CLOCK = r"([0-9]+):([0-5]?[0-9]):([0-5]?[0-9](?:[.,][0-9]+)?)"
# 1,234 is 1.234 or 1234.
_EITHER = r"[+-]?[1-9][0-9]{0,2},[0-9]{3}"
# 1.234 is 1.234, or 1234 beside decimal commas.
EITHER_POINT = r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+"


def parse_numbers(texts: pd.DataFrame, table: np.ndarray, has_commas: np.ndarray) -> pd.DataFrame:
    """Reads numbers with decimal points or decimal commas.

    A comma is a decimal comma if the text has one meaning only (`0,5`; `1.234,5`), or if other numbers of the same
    table have decimal commas and none has a decimal point. Where the other numbers have decimal points, commas
    separate thousands. So do points (`1.234`) if other numbers of the same column have decimal commas and none has a
    decimal point. Text that has two meanings (`1,234` alone, or `1.234` beside both) is not read.
    `0:01:02.5` and `0:01:02,5` are 62.5 s.

    Args:
        texts: Columns of texts, without spaces around them.
        table: Number of the table of each row, from 0, shape `(rows,)`.
        has_commas: Whether a table is known to be from a program with decimal commas, shape `(tables,)`.

    Returns:
        Finite floats with the same columns and index; NaN where a text is not a number or has two meanings.
    """
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype(float)
    texts = texts.astype(str)
    with_comma = texts.apply(lambda column: column.str.contains(",", regex=False))
    if with_comma.any(axis=None):
        has_point = np.zeros(len(has_commas), dtype=bool)
        has_comma = has_commas.copy()
        kinds = {}
        for name in map(str, texts):
            column = texts[name]
            comma = with_comma[name]
            point, continental, either = (
                comma & column.str.fullmatch(kind) for kind in (_EVIDENT_POINT, _EVIDENT_COMMA, _EITHER)
            )
            any_point = column.str.contains(".", regex=False)
            single = comma & (column.str.count(",") == 1) & ~any_point & ~either
            decimal_comma, plain_point = continental | single, any_point & ~comma
            either_point = plain_point & column.str.fullmatch(EITHER_POINT)
            either_point &= _in_tables(decimal_comma, table, len(has_commas))
            numbers.loc[either_point, name] = np.nan
            is_thousand_point = either_point & ~_in_tables(plain_point & ~either_point, table, len(has_commas))
            kinds[name] = point, decimal_comma | is_thousand_point, either
            has_comma |= _tables_with(decimal_comma, table, len(has_commas))
            has_point |= _tables_with(point | (plain_point & ~is_thousand_point), table, len(has_commas))
        commas_only, points_only = has_comma & ~has_point, has_point & ~has_comma
        for name, (point, comma, either) in kinds.items():
            is_decimal = comma | (either & commas_only[table])
            is_thousand = point | (either & points_only[table])
            for which, removed in ((is_decimal, "."), (is_thousand, ",")):
                read = texts.loc[which, name].str.replace(removed, "", regex=False).str.replace(",", ".", regex=False)
                numbers.loc[which, name] = pd.to_numeric(read, errors="coerce").to_numpy(dtype=float)
    for name in map(str, texts):
        if texts[name].str.contains(":", regex=False).any():
            clock = texts[name].str.extract(f"^{_CLOCK}$")
            parts = clock.apply(lambda part: part.str.replace(",", ".", regex=False)).astype(float)
            numbers[name] = numbers[name].fillna(parts[0] * 3600 + parts[1] * 60 + parts[2])
    return numbers.where(np.isfinite(numbers))


def _tables_with(is_there: pd.Series, table: np.ndarray, tables: int) -> np.ndarray:
    """Whether a text is in each table, shape `(tables,)`."""
    found = np.zeros(tables, dtype=bool)
    np.logical_or.at(found, table, is_there.to_numpy())
    return found


def _in_tables(is_there: pd.Series, table: np.ndarray, tables: int) -> np.ndarray:
    """Whether a text is in the table of each row, shape `(rows,)`."""
    return _tables_with(is_there, table, tables)[table]
