"""Tables of detections for Raven, Audacity, Kaleidoscope, spreadsheets and programs."""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kenya_birds.defaults import TABLE_FORMATS
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

logger = logging.getLogger(__name__)

STEM = "detections"
# So many detections take some seconds to write.
MANY = 100_000


@dataclass(frozen=True)
class WrittenTables:
    """Tables that were written.

    Attributes:
        files: The files, in order.
        counts: Number of detections by species, from the most frequent species on.
    """

    files: list[Path]
    counts: dict[str, int]


def write_tables(
    folder: str | Path,
    formats: Sequence[str],
    recordings: Sequence[RecordingInfo],
    detections: Iterable[Detection],
    *,
    species_names: Mapping[str, SpeciesNames],
    frequencies_hz: tuple[float, float],
    metadata: Mapping[str, Any],
    novelty: bool = False,
) -> WrittenTables:
    """Writes detections in several formats in one pass, in bounded memory.

    `recordings.csv` is always written. It lists all analysed recordings, also those without detections. The formats:

    - `raven`: `detections.selections.txt`, one selection table for all recordings in sequence, with
      `detections.list.txt`, the list of sounds to open with it; and one table for each recording in `raven/`.
    - `audacity`: labels for each recording in `audacity/`.
    - `csv`, `parquet`, `json`: `detections.csv` and so on.
    - `kaleidoscope`: `detections.id.csv`, with the columns that BirdNET-Analyzer writes for Kaleidoscope.

    The same rows give the same bytes. All files are replaced together when they are complete; after an error the old
    files remain. Files of recordings that are no longer listed remain too. Times are rounded once, to a microsecond.
    Detections never end after their recording.

    Args:
        folder: Output folder; created if it does not exist.
        formats: Some of `TABLE_FORMATS`.
        recordings: All analysed recordings, in the order of the tables.
        detections: Detections in the order of the recordings, and by start within each recording.
        species_names: Names by code (see `species_names`).
        frequencies_hz: Lowest and highest frequency of the model's input, for the boxes in Raven.
        metadata: Information such as model and settings, for Parquet and JSON; must be JSON.
        novelty: Whether CSV, Parquet and JSON have the column `novelty`.

    Returns:
        The files, and the number of detections of each species.

    Raises:
        UserError: If a format is unknown or a file cannot be written.
        ValueError: If detections are out of order, or their recording or species is not listed.
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
                "csv": lambda: CsvTable(outputs, STEM, novelty),
                "parquet": lambda: ParquetTable(outputs, STEM, about, novelty),
                "json": lambda: JsonTable(outputs, STEM, about, recordings, novelty),
                "kaleidoscope": lambda: KaleidoscopeTable(outputs, STEM),
            }
            writers: list[TableWriter] = [RecordingsTable(outputs)]
            writers += [makers[name]() for name in TABLE_FORMATS if name in formats]
            counts = _write(writers, recordings, detections, species_names)
            return WrittenTables(outputs.commit(), counts)
    except OSError as error:
        raise UserError(
            f"the tables in {folder} cannot be written: {error}; free disk space, or give a writable folder"
        ) from None


def check_formats(formats: Sequence[str]) -> None:
    """Raises `UserError` if a format is unknown; call this before long work."""
    unknown = sorted(set(formats) - set(TABLE_FORMATS))
    if unknown:
        raise UserError(f"there is no format {', '.join(unknown)}: expected {', '.join(TABLE_FORMATS)}")


def _write(
    writers: Sequence[TableWriter],
    recordings: Sequence[RecordingInfo],
    detections: Iterable[Detection],
    names: Mapping[str, SpeciesNames],
) -> dict[str, int]:
    """Writes all rows; returns the number of detections by species, from the most frequent species on."""
    counts: Counter[str] = Counter()
    rest = _announced(detections)
    found = next(rest, None)
    for info in recordings:
        for writer in writers:
            writer.begin(info)
        last = 0
        while found is not None and found.recording == info.recording:
            if found.start_sample < last:
                raise ValueError(f"{found} begins before the previous detection")
            if found.species not in names:
                raise ValueError(f"{found} has a species without names")
            last = found.start_sample
            counts[found.species] += 1
            row = Row.of(found, info, names[found.species])
            for writer in writers:
                writer.write(row)
            found = next(rest, None)
    if found is not None:
        raise ValueError(f"{found} has a recording that is not listed, or is out of order")
    for writer in writers:
        writer.close()
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _announced(detections: Iterable[Detection]) -> Iterator[Detection]:
    """Yields the detections, and logs once that there are many."""
    for number, found in enumerate(detections, 1):
        if number == MANY + 1:
            logger.info("Writing the tables of more than %s detections", f"{MANY:,}")
        yield found
