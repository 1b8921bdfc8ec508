"""Numbers as people and programs write them: with decimal points or decimal commas, or as hours:minutes:seconds."""

import numpy as np
import pandas as pd

_EVIDENT_POINT = r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]+|[+-]?[0-9]{1,3}(?:,[0-9]{3}){2,}"
_EVIDENT_COMMA = r"[+-]?[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+"
_CLOCK = r"([0-9]+):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]+)?)"
# 1,234 is 1.234 or 1234.
_EITHER = r"[+-]?[1-9][0-9]{0,2},[0-9]{3}"
# 1.234 is 1.234, or 1234 beside decimal commas.
_EITHER_POINT = r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+"


def parse_numbers(texts: pd.DataFrame, table: np.ndarray, has_commas: np.ndarray) -> pd.DataFrame:
    """Reads numbers with decimal points or decimal commas.

    A comma is a decimal comma if the text has one meaning only (`0,5`; `1.234,5`), or if other numbers of the same
    table have decimal commas and none has a decimal point. Where the other numbers have decimal points, commas
    separate thousands. So do points (`1.234`) if other numbers have decimal commas and none has a decimal point. Text
    that has two meanings (`1,234` alone, or `1.234` beside both) is not read. `0:01:02.5` is 62.5 s.

    Args:
        texts: Columns of texts, without spaces around them.
        table: Number of the table of each row, from 0, shape `(rows,)`.
        has_commas: Whether a table is known to be from a program with decimal commas, shape `(tables,)`.

    Returns:
        Finite floats with the same columns and index; NaN where a text is not a number or has two meanings.
    """
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype(float)
    texts = texts.astype(str)
    for name in map(str, texts):
        if texts[name].str.contains(":", regex=False).any():
            parts = texts[name].str.extract(f"^{_CLOCK}$").astype(float)
            numbers[name] = numbers[name].fillna(parts[0] * 3600 + parts[1] * 60 + parts[2])
    with_comma = texts.apply(lambda column: column.str.contains(",", regex=False))
    if with_comma.any(axis=None):
        has_point = np.zeros(len(has_commas), dtype=bool)
        has_evident_comma = np.zeros(len(has_commas), dtype=bool)
        kinds = {}
        for name in map(str, texts):
            column = texts[name]
            comma = with_comma[name]
            point, continental, either = (
                comma & column.str.fullmatch(kind) for kind in (_EVIDENT_POINT, _EVIDENT_COMMA, _EITHER)
            )
            any_point = column.str.contains(".", regex=False)
            either_point = any_point & ~comma & column.str.fullmatch(_EITHER_POINT)
            single = comma & (column.str.count(",") == 1) & ~any_point & ~either
            kinds[name] = point, continental | single, either, either_point
            np.logical_or.at(has_evident_comma, table, (continental | single).to_numpy())
            np.logical_or.at(has_point, table, (point | (any_point & ~comma & ~either_point)).to_numpy())
        has_comma = has_commas | has_evident_comma
        commas_only, points_only = has_comma & ~has_point, has_point & ~has_comma
        for name, (point, comma, either, either_point) in kinds.items():
            beside_commas = either_point & has_evident_comma[table]
            numbers.loc[beside_commas, name] = np.nan
            is_decimal = comma | (either & commas_only[table]) | (beside_commas & ~has_point[table])
            is_thousand = point | (either & points_only[table])
            for which, removed in ((is_decimal, "."), (is_thousand, ",")):
                read = texts.loc[which, name].str.replace(removed, "", regex=False).str.replace(",", ".", regex=False)
                numbers.loc[which, name] = pd.to_numeric(read, errors="coerce").to_numpy(dtype=float)
    return numbers.where(np.isfinite(numbers))
