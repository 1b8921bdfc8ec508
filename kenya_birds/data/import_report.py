"""What an import took, changed and left out, with file and line."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kenya_birds.files import write_table
from kenya_birds.formulas import guard_columns

# Effects of a finding, the most serious first.
NOT_TAKEN, CHANGED, NOTE = "not taken", "changed", "note"
COLUMNS = ("effect", "file", "line", "recording", "finding", "detail")


@dataclass
class Findings:
    """Findings of an import.

    Attributes:
        rows: `effect`, `file`, `line` (None: the whole file), `recording`, `finding` and `detail` of each.
    """

    rows: list[tuple[str, str, int | None, str, str, str]] = field(default_factory=list)

    def add(
        self,
        effect: str,
        finding: str,
        *,
        file: str = "",
        line: int | None = None,
        recording: str = "",
        detail: str = "",
    ) -> None:
        """Adds a finding about a file, a row, a recording or a name."""
        self.rows.append((effect, file, line, recording, finding, detail))

    def add_rows(self, effect: str, finding: str, events: pd.DataFrame, detail: Iterable[str] | None = None) -> None:
        """Adds a finding about each row of a table.

        Args:
            effect: The effect.
            finding: The finding, the same for all rows.
            events: `file`, `line` and `recording`.
            detail: Text of each row.
        """
        details = [""] * len(events) if detail is None else list(detail)
        rows = zip(events["file"], events["line"], events["recording"], details, strict=True)
        self.rows += [(effect, file, int(line), recording, finding, text) for file, line, recording, text in rows]

    def table(self) -> pd.DataFrame:
        """Returns all findings as a table."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS)).astype({"line": "Int64"})

    def write(self, path: Path) -> None:
        """Writes all findings as CSV; an existing file is replaced."""
        table = self.table()
        guard_columns(table, paths=["file", "recording"], texts=["detail"])
        write_table(table, path)

    def format(self) -> list[str]:
        """Returns one line for each kind of finding: how many, and the first."""
        lines = []
        table = self.table()
        order = pd.Categorical(table["effect"], [NOT_TAKEN, CHANGED, NOTE], ordered=True)
        for (effect, finding), rows in table.assign(effect=order).groupby(["effect", "finding"], observed=True):
            first = rows.iloc[0]
            line = "" if pd.isna(first["line"]) else f" line {first['line']}"
            where = [text for text in (f"{first['file']}{line}", first["recording"], first["detail"]) if text]
            start = "" if len(rows) == 1 else "first: "
            lines.append(f"{effect:>10}: {len(rows):>6}  {finding} ({start}{', '.join(where)})")
        return lines
