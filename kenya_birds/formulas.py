"""Cells of CSV tables that spreadsheets would read as formulas."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Spreadsheets read text that begins with these characters as a formula.
FORMULA = re.compile(r"[=+\-@\t\r]")


def safe_path(path: str) -> str:
    """Returns a path that spreadsheets do not read as a formula: with `./` in front, which is the same file."""
    return f"./{path}" if FORMULA.match(path) else path


def safe_text(text: str) -> str:
    """Returns a text that spreadsheets do not read as a formula: with an apostrophe in front."""
    return f"'{text}" if FORMULA.match(text) else text


def guard_columns(table: "pd.DataFrame", paths: Iterable[str], texts: Iterable[str]) -> None:
    """Guards columns of a table in place; empty cells stay empty.

    Args:
        table: The table.
        paths: Names of columns of paths (see `safe_path`).
        texts: Names of columns of other texts (see `safe_text`).
    """
    for names, guard in ((paths, safe_path), (texts, safe_text)):
        for name in names:
            table[name] = table[name].map(guard, na_action="ignore")


def unguarded_text(text: str) -> str:
    """Returns a text without the apostrophe of `safe_text`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text[1:]) else text
