"""Tables of an archive's recordings, species and odd annotations, for the report."""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from kenya_birds.data.archive import ANNOTATION_COLUMNS, ANNOTATIONS_FILE, Archive
from kenya_birds.data.name_pattern import NamePattern
from kenya_birds.data.recording_name import RecordingName, parse_recording_name


def recording_rows(
    archive: Archive, levels: pd.DataFrame, name_pattern: NamePattern | None = None
) -> list[dict[str, Any]]:
    """What the table of recordings shows of each: header, beginning, annotations, and level where it was measured."""
    groups = archive.annotations.groupby("recording")["species"]
    annotations, species = groups.size(), groups.nunique()
    rows = []
    for name, header in sorted(archive.headers.items()):
        known = parse_recording_name(name, name_pattern)
        rows.append(
            {
                "name": name,
                "begins": _begin(known),
                "header": header,
                "annotations": int(annotations.get(name, 0)),
                "species": int(species.get(name, 0)),
                "level": levels.loc[name] if name in levels.index else None,
            }
        )
    return rows


def _begin(known: RecordingName | None) -> str:
    if known is None or known.start is None:
        return ""
    return f"{known.local:%Y-%m-%d %H:%M}" if known.local else f"{known.utc:%Y-%m-%d %H:%M} UTC"


def species_rows(archive: Archive, counts: pd.Series) -> list[dict[Hashable, Any]]:
    """What the table of species shows of each, with those that are never annotated."""
    recordings = archive.annotations.groupby("species")["recording"].nunique()
    table = archive.species.assign(
        annotations=counts.reindex(archive.species.index, fill_value=0),
        recordings=recordings.reindex(archive.species.index, fill_value=0),
    )
    table = table.sort_index().sort_values("annotations", ascending=False, kind="stable")
    return table.reset_index(names="code").to_dict("records")


def set_aside_rows(archive: Archive) -> list[dict[str, Any]]:
    """Each reason for which annotations are set aside, with their lines."""
    return [
        {"reason": reason, "rows": rows["row"].tolist(), "recordings": rows["recording"].nunique()}
        for reason, rows in archive.set_aside.groupby("reason")
    ]


def rows_that_last(archive: Archive) -> tuple[int, pd.DataFrame]:
    """Finds the annotations, usable or not, whose start is not their end.

    Returns:
        The number of the others, and of these the `row` (line in the file), `recording`, `start_s`, `duration_s` and
        `species`, from the longest to the shortest; those that end before they start have negative durations.
    """
    table = pd.read_csv(
        archive.data_dir / ANNOTATIONS_FILE,
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
        encoding="utf-8-sig",
    )[list(ANNOTATION_COLUMNS)].rename(columns=ANNOTATION_COLUMNS)
    table = table.apply(lambda column: column.str.strip())
    table.insert(0, "row", range(2, len(table) + 2))
    table = table[table["start_s"] != ""]  # an empty line
    start_s, end_s = table["start_s"].astype(float), table["end_s"].astype(float)
    table = table.assign(start_s=start_s, duration_s=(end_s - start_s).round(6))
    lasting = table[table["duration_s"] != 0].sort_values("duration_s", ascending=False, kind="stable")
    return len(table) - len(lasting), lasting
