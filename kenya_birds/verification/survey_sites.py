"""Table of the sites of a survey, and the site of each recording."""

import fnmatch
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from kenya_birds.data.csv_table import parse_any_table, parse_table
from kenya_birds.data.table_cells import NUMBER
from kenya_birds.errors import UserError
from kenya_birds.files import read_text
from kenya_birds.values import Kind, Latitude, Longitude

SITE, PATTERN = "site", "recordings"
DEGREES = {"latitude": Kind.of(Latitude), "longitude": Kind.of(Longitude)}
_THOUSANDS = re.compile("[+-]?[0-9]{1,3}(,[0-9]{3})*")


@dataclass(frozen=True)
class Sites:
    """Table of the sites of a survey.

    Attributes:
        path: Its file.
        table: Column `site`, and other columns, which are kept for the output; texts.
        patterns: Pattern of the recordings of each site; empty text: those of `recordings.csv`. Empty list: no site
            has a pattern.
    """

    path: Path
    table: pd.DataFrame
    patterns: list[str]

    @classmethod
    def read(cls, path: str | Path) -> "Sites":
        """Reads a CSV with a column `site`, and optional columns `recordings`, `latitude` and `longitude`.

        The CSV may have commas, semicolons (then also decimal commas) or tabs, and any usual encoding. Upper and lower
        case of these names are equal.

        Raises:
            UserError: If the table cannot be read, or a site is empty or occurs twice.
        """
        path = Path(path)
        table = _read(path)
        if SITE not in table:
            raise UserError(f"{path} has no column {SITE}: found {', '.join(table.columns)}")
        for row, site in table[SITE].items():
            if not site:
                raise UserError(f"{path} line {row} has no site")
        twice = table.index[table[SITE].duplicated()]
        if len(twice):
            raise UserError(
                f"{path} line {twice[0]} has the site {table[SITE][twice[0]]} a second time: expected once"
            )
        for name, kind in DEGREES.items():
            for row, text in table.get(name, pd.Series(dtype=str)).items():
                if text:
                    kind.parse(f"{path} line {row}: {name}", text)
        patterns = [pattern.replace("\\", "/") for pattern in table.get(PATTERN, [])]
        return cls(path, table, patterns)

    @property
    def names(self) -> list[str]:
        """The sites in the order of the table."""
        return self.table[SITE].tolist()

    def site_of(self, recording: str, own: str | None) -> str | None:
        """Returns the site of a recording: the one whose pattern matches, or else its own; None if neither is listed.

        Args:
            recording: Its path.
            own: Its site in `recordings.csv`.

        Raises:
            UserError: If the patterns of two sites match.
        """
        path = recording.replace("\\", "/")
        found = [site for site, pattern in self._matchers.items() if pattern.match(path)]
        if len(found) > 1:
            raise UserError(f"{self.path}: the recording {recording} matches the patterns of {' and '.join(found)}")
        if found:
            return found[0]
        return own if own in self._places and own not in self._matchers else None

    def place(self, site: str) -> tuple[float | None, float | None]:
        """Returns latitude and longitude of a site, as far as the table has them."""
        return self._places[site]

    @cached_property
    def _matchers(self) -> dict[str, re.Pattern[str]]:
        """The compiled pattern of each site that has one; fnmatch keeps few patterns compiled."""
        return {
            site: re.compile("|".join(map(fnmatch.translate, (pattern, f"*/{pattern}"))))
            for site, pattern in zip(self.names, self.patterns, strict=False)
            if pattern
        }

    @cached_property
    def _places(self) -> dict[str, tuple[float | None, float | None]]:
        degrees = (
            [float(text) if text else None for text in self.table.get(name, [""] * len(self.table))]
            for name in ("latitude", "longitude")
        )
        return dict(zip(self.names, zip(*degrees, strict=True), strict=True))


def _read(path: Path) -> pd.DataFrame:
    """Reads the cells of the table as texts; the index is the line on which a row begins."""
    try:
        text, _ = read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of sites: {error}; save it as CSV (UTF-8)") from None
    cells = parse_any_table(text, path)
    if len(cells.header) == 1:  # no separator to choose
        cells = parse_table(text, path)
    names = [_known_name(name, cells.header) for name in cells.header]
    if twice := [name for name in (SITE, PATTERN, *DEGREES) if names.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]} twice: remove or rename one")
    for at, name in enumerate(names):
        if cells.delimiter == "," or name in (SITE, PATTERN):
            continue
        numbers = [row[at] for row in cells.rows if row[at]]
        # With tabs, a comma may divide thousands; with semicolons, it is a decimal comma.
        may_divide = cells.delimiter == "\t" and all(_THOUSANDS.fullmatch(number) for number in numbers)
        if name in DEGREES or (all(map(NUMBER.fullmatch, numbers)) and not may_divide):
            for row in cells.rows:
                row[at] = row[at].replace(",", ".")
    return pd.DataFrame(cells.rows, columns=names, index=cells.lines).astype(str)


def _known_name(name: str, header: list[str]) -> str:
    """Returns the name of the column of sites or degrees in lower case, unless the table has both."""
    lower = name.lower()
    return lower if lower in (SITE, *DEGREES) and lower not in header else name
