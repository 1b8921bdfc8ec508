"""Annotations in the formats that crowsetta reads, such as TextGrid files of Praat."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kenya_birds.data.import_report import NOT_TAKEN, Findings
from kenya_birds.data.table_cells import TableCells
from kenya_birds.errors import UserError
from kenya_birds.extras import check_extra

COLUMNS = ("recording", "start_s", "end_s", "label", "low_hz", "high_hz")


def read_crowsetta(source: Path, name: str, findings: Findings) -> list[TableCells]:
    """Reads annotation files with crowsetta.

    Args:
        source: A file, or a folder with files that have the format's suffix.
        name: Name of the format in crowsetta, such as `textgrid`.
        findings: Files that cannot be read are added.

    Raises:
        UserError: If crowsetta is not installed or has no such format, or no file can be read.
    """
    check_extra("crowsetta", f"--from crowsetta:{name}")
    import crowsetta

    known = crowsetta.formats.as_list()
    if name not in known:
        raise UserError(f"crowsetta has no format '{name}': expected one of {', '.join(known)}")
    form = crowsetta.formats.by_name(name)
    suffixes = (form.ext,) if isinstance(form.ext, str) else tuple(form.ext)
    files = [source]
    if source.is_dir():
        files = sorted(
            file for file in source.rglob("*") if file.name.lower().endswith(tuple(map(str.lower, suffixes)))
        )
    tables = []
    for file in files:
        try:
            rows = list(_rows(form.from_file(file)))
        except Exception as error:  # crowsetta raises errors of the libraries behind it
            detail = f"{type(error).__name__}: {' '.join(str(error).split())}"
            shown = file.relative_to(source).as_posix() if file != source else file.name
            findings.add(NOT_TAKEN, "crowsetta cannot read a file", file=shown, detail=detail)
            continue
        cells = {column: [row[column] for row in rows] for column in COLUMNS}
        if not any(cells["recording"]):
            del cells["recording"]
        columns = {column: column for column in cells}
        tables.append(TableCells(file, name, "UTF-8", "", [], columns, cells, list(range(1, len(rows) + 1))))
    if not tables:
        first = f"; {' '.join(findings.format()[0].split())}" if findings.rows else ""
        raise UserError(f"{source} has no file of the format {name} that can be read ({', '.join(suffixes)}){first}")
    return tables


def _rows(read: Any) -> Iterator[dict[str, str]]:
    """The events of a file: boxes, or the segments of sequences."""
    annotations = read.to_annot()
    for annotation in annotations if isinstance(annotations, list) else [annotations]:
        path = str(getattr(annotation, "notated_path", None) or "")
        common = {"recording": path, "low_hz": "", "high_hz": ""}
        for box in getattr(annotation, "bboxes", None) or []:
            frequencies = {"low_hz": str(box.low_freq), "high_hz": str(box.high_freq)}
            yield {
                **common,
                **frequencies,
                "start_s": str(box.onset),
                "end_s": str(box.offset),
                "label": str(box.label),
            }
        sequences = getattr(annotation, "seq", None) or []
        for sequence in sequences if isinstance(sequences, list) else [sequences]:
            for segment in sequence.segments:
                times = {"start_s": str(segment.onset_s), "end_s": str(segment.offset_s)}
                yield {**common, **times, "label": str(segment.label)}
