"""Writes what is heard in recordings as tables for Raven, Audacity, Kaleidoscope, spreadsheets and programs."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.inference.detections import Detection, RecordingInfo, Row
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.table_formats import (
    CsvTable,
    JsonTable,
    KaleidoscopeTable,
    Outputs,
    ParquetTable,
    RecordingsTable,
    TableWriter,
)
from kenya_birds.inference.timeline_formats import AudacityLabels, RavenTables

FORMATS = ("raven", "audacity", "csv", "parquet", "json", "kaleidoscope")
STEM = "detections"


def write_tables(
    folder: str | Path,
    formats: Sequence[str],
    recordings: Sequence[RecordingInfo],
    detections: Iterable[Detection],
    *,
    species_names: Mapping[str, SpeciesNames],
    frequencies_hz: tuple[float, float],
    metadata: Mapping[str, Any],
) -> list[Path]:
    """Writes detections in several formats in one pass, with memory that does not grow with their number.

    `recordings.csv` is always written: what was analysed, also where nothing was heard. The formats are:

    - `raven`: `detections.selections.txt`, a selection table of all recordings one after the other, with
      `detections.list.txt`, the sounds to open with it; and in `raven/` one for each recording.
    - `audacity`: in `audacity/` labels for each recording.
    - `csv`, `parquet`, `json`: `detections.csv` and so on.
    - `kaleidoscope`: `detections.id.csv`, with the columns that BirdNET-Analyzer writes for Kaleidoscope.

    Same rows, same bytes. Files get their names together when all are complete; if something fails, those that were
    there before stay as they were. Those of recordings that are not listed any more stay too. Times are rounded once,
    to a microsecond; a detection ends where its recording does at the latest, whichever rate its samples were counted
    at.

    Args:
        folder: Where to write; made if it is not there.
        formats: Which of `FORMATS`.
        recordings: All that were analysed, in the order in which they stand in the tables.
        detections: Of these recordings in the same order, in each recording in the order of their starts.
        species_names: Names by code (see `species_names`).
        frequencies_hz: Lowest and highest frequency that the model hears: Raven draws boxes.
        metadata: What is to be known about them, such as model and settings, for Parquet and JSON; must be JSON.

    Returns:
        The files, in order.

    Raises:
        UserError: If a format is unknown or a file cannot be written.
        ValueError: If detections are out of order, or of a recording or species that is not listed.
    """
    check_formats(formats)
    folder = Path(folder)
    about = json.dumps(metadata, ensure_ascii=False, allow_nan=False, sort_keys=True)
    if len({info.recording for info in recordings}) != len(recordings):
        raise ValueError("a recording is listed twice")
    try:
        with contextlib.ExitStack() as stack:
            outputs = stack.enter_context(Outputs(folder))
            makers: dict[str, Callable[[], TableWriter]] = {
                "raven": lambda: RavenTables(outputs, STEM, recordings, frequencies_hz),
                "audacity": lambda: AudacityLabels(outputs, recordings),
                "csv": lambda: CsvTable(outputs, STEM),
                "parquet": lambda: ParquetTable(outputs, STEM, about),
                "json": lambda: JsonTable(outputs, STEM, about, recordings),
                "kaleidoscope": lambda: KaleidoscopeTable(outputs, STEM),
            }
            writers: list[TableWriter] = [RecordingsTable(outputs)]
            writers += [makers[name]() for name in FORMATS if name in formats]
            _write(writers, recordings, detections, species_names)
            return outputs.commit()
    except OSError as error:
        raise UserError(
            f"the tables in {folder} cannot be written: {error}; make room, or give a folder that can be written to"
        ) from None


def check_formats(formats: Sequence[str]) -> None:
    """Raises `UserError` if a format is unknown; to be known before long work."""
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise UserError(f"there is no format {', '.join(unknown)}: choose from {', '.join(FORMATS)}")


def _write(
    writers: Sequence[TableWriter],
    recordings: Sequence[RecordingInfo],
    detections: Iterable[Detection],
    names: Mapping[str, SpeciesNames],
) -> None:
    rest = iter(detections)
    found = next(rest, None)
    for info in recordings:
        for writer in writers:
            writer.begin(info)
        last = 0
        while found is not None and found.recording == info.recording:
            if found.start_sample < last:
                raise ValueError(f"{found} begins before the one in front of it")
            if found.species not in names:
                raise ValueError(f"{found} is of a species without names")
            last = found.start_sample
            row = Row.of(found, info, names[found.species])
            for writer in writers:
                writer.write(row)
            found = next(rest, None)
    if found is not None:
        raise ValueError(f"{found} is of no recording that follows in the list")
    for writer in writers:
        writer.close()
