"""Table formats of detections: CSV, Kaleidoscope, JSON and Parquet; all output files are replaced together."""

import contextlib
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Protocol, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import split_protocol

from kenya_birds.files import as_utf8, partial_of, replace
from kenya_birds.formulas import safe_path, safe_text
from kenya_birds.inference.detections import SCORE_DIGITS, RecordingInfo, Row, When, decimal_s


class Closable(Protocol):
    """An object with `close`."""

    def close(self) -> None:
        """Closes it; further calls do nothing."""


F = TypeVar("F", bound=Closable)


class Outputs:
    """Output files of one folder, written under temporary names until `commit` renames all of them.

    A context manager: files that are not committed are removed at its end.

    Args:
        folder: The folder; created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._partials: dict[Path, Path] = {}
        self._open: list[Closable] = []

    def __enter__(self) -> "Outputs":
        """Creates the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes open files and removes files that are not committed."""
        for file in reversed(self._open):
            # Closing may fail too if the disk is full.
            with contextlib.suppress(OSError):
                file.close()
        for partial in self._partials.values():
            partial.unlink(missing_ok=True)

    def open(self, name: str) -> TextIO:
        """Opens a text file in UTF-8 with LF; characters that cannot be encoded are escaped.

        Args:
            name: Path in the folder, separated by `/`.
        """
        file = open(self._partial(name), "w", encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115
        return self._keep(file)

    def open_parquet(self, name: str, schema: pa.Schema) -> pq.ParquetWriter:
        """Opens a Parquet file.

        Args:
            name: See `open`.
            schema: Schema of the file.
        """
        return self._keep(pq.ParquetWriter(self._partial(name), schema, compression="zstd"))

    def _keep(self, file: F) -> F:
        self._open = [*(other for other in self._open if not getattr(other, "closed", False)), file]
        return file

    def _partial(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partials[path] = partial_of(path)
        return self._partials[path]

    def commit(self) -> list[Path]:
        """Renames all files to their final names, replacing existing files.

        Returns:
            The files in the order in which they were opened.
        """
        for file in self._open:
            file.close()
        paths = list(self._partials)
        # On Windows a file that is open in a program such as Excel cannot be replaced. Then no file is replaced.
        for path in filter(os.path.exists, paths):
            try:
                replace(path, path)
            except PermissionError as error:
                raise PermissionError(
                    error.errno, f"{path.name} cannot be replaced; close the program in which it is open"
                ) from None
        for path in paths:
            replace(self._partials.pop(path), path)
        return paths


SCORED_COLUMNS = ("recording", "start_s", "end_s", "code", "common_name", "scientific_name", "score")
NOVELTY_COLUMN = "novelty"
KALEIDOSCOPE_COLUMNS = (
    "INDIR",
    "FOLDER",
    "IN FILE",
    "OFFSET",
    "DURATION",
    "scientific_name",
    "common_name",
    "confidence",
)
# Key of the Parquet file's metadata for model and settings, as JSON.
METADATA_KEY = b"kenya_birds.metadata"
RECORDINGS_TABLE = "recordings.csv"
# Sound that was not analysed.
FAILED_FILE = "failed.csv"
RUN_FILE = "run.json"
FAILED_COLUMNS = ("recording", "status", "start_s", "end_s", "reason")
ROW_GROUP_ROWS = 1 << 16


class TableWriter(Protocol):
    """Writer of one format."""

    def begin(self, info: RecordingInfo) -> None:
        """Starts the next recording."""

    def write(self, row: Row) -> None:
        """Writes a detection of the current recording."""

    def close(self) -> None:
        """Writes the end of the file."""


class _LineFeedRows:
    """Target of `csv.writer` that ends rows in LF instead of CR LF."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(f"{row[:-2]}\n")


def csv_writer(file: TextIO) -> Any:
    """Returns a writer of CSV rows that end in LF, with quotation marks around cells that contain LF or CR.

    With `lineterminator="\\n"`, Python's writer does not quote a CR, which readers take as the end of a row.

    Args:
        file: The open file.
    """
    return csv.writer(_LineFeedRows(file), lineterminator="\r\n")


class RecordingsTable:
    """Writer of `recordings.csv`: analysed recordings, with their length and number of detections."""

    def __init__(self, outputs: Outputs) -> None:
        self._file = outputs.open(RECORDINGS_TABLE)
        self._csv = csv_writer(self._file)
        self._csv.writerow(("recording", "duration_s", *When._fields[:2], "detections", *When._fields[2:], "channel"))
        self._info: RecordingInfo | None = None
        self._detections = 0

    def begin(self, info: RecordingInfo) -> None:
        """See `TableWriter`."""
        self._end()
        self._info, self._detections = info, 0

    def write(self, row: Row) -> None:
        """See `TableWriter`."""
        self._detections += 1

    def close(self) -> None:
        """See `TableWriter`."""
        self._end()

    def _end(self) -> None:
        if self._info is not None:
            duration_s = decimal_s(self._info.duration_us)
            local_time, utc_time, site, *others = self._info.when(0).texts()
            channel = "" if self._info.channel is None else self._info.channel
            row = (local_time, utc_time, self._detections, safe_text(site), *others, channel)
            self._csv.writerow((safe_path(self._info.recording), duration_s, *row))


class CsvTable:
    """Writer of a CSV with one row per detection.

    Spreadsheets run a cell that begins with `=`, `+`, `-` or `@` as a formula. Paths of recordings that begin with
    such a character are therefore prefixed with `./`, and names of species with an apostrophe, which marks text.
    """

    def __init__(self, outputs: Outputs, stem: str, novelty: bool) -> None:
        self._csv = csv_writer(outputs.open(f"{stem}.csv"))
        self._novelty = novelty
        self._csv.writerow((*SCORED_COLUMNS, *((NOVELTY_COLUMN,) if novelty else ()), *When._fields))
        self._path = ""

    def begin(self, info: RecordingInfo) -> None:
        """See `TableWriter`."""
        self._path = safe_path(info.recording)

    def write(self, row: Row) -> None:
        """See `TableWriter`."""
        times_s = decimal_s(row.start_us), decimal_s(row.end_us)
        names = map(safe_text, (row.detection.species, *row.names))
        local_time, utc_time, site, *others = row.when.texts()
        times = local_time, utc_time, safe_text(site), *others
        novelty = (f"{row.detection.novelty:.4f}",) if self._novelty else ()
        scored = f"{row.detection.score:.{SCORE_DIGITS}f}", *novelty
        self._csv.writerow((self._path, *times_s, *names, *scored, *times))

    def close(self) -> None:
        """See `TableWriter`."""


class KaleidoscopeTable:
    """Writer of the first columns of BirdNET-Analyzer's table for Kaleidoscope, which depend on the detection."""

    def __init__(self, outputs: Outputs, stem: str) -> None:
        self._csv = csv_writer(outputs.open(f"{stem}.id.csv"))
        self._csv.writerow(KALEIDOSCOPE_COLUMNS)
        self._where: tuple[str, ...] = ()

    def begin(self, info: RecordingInfo) -> None:
        """See `TableWriter`."""
        self._where = tuple(map(safe_path, _folders_and_name(info.recording)))

    def write(self, row: Row) -> None:
        """See `TableWriter`."""
        times_s = decimal_s(row.start_us), decimal_s(row.end_us - row.start_us)
        names = safe_text(row.names.scientific_name), safe_text(row.names.common_name)
        self._csv.writerow((*self._where, *times_s, *names, f"{row.detection.score:.4f}"))

    def close(self) -> None:
        """See `TableWriter`."""


def _folders_and_name(recording: str) -> tuple[str, str, str]:
    """Returns the path of a recording's grandparent folder, the name of its folder, and its file name."""
    protocol, rest = split_protocol(recording)
    if protocol is None:
        path = PurePath(recording)
        return str(path.parent.parent), path.parent.name, path.name
    folder, _, name = rest.rpartition("/")
    parent, slash, last = folder.rpartition("/")
    # A URL without a host (memory:///a.wav) begins with a slash.
    return (f"{protocol}://{parent or slash}", last, name) if slash else (f"{protocol}://{folder}", "", name)


class JsonTable:
    """Writer of one JSON document with `metadata`, `recordings` and `detections`, one item per line."""

    def __init__(
        self, outputs: Outputs, stem: str, about: str, recordings: Sequence[RecordingInfo], novelty: bool
    ) -> None:
        self._file = outputs.open(f"{stem}.json")
        self._novelty = novelty
        self._file.write(f'{{"metadata": {about},\n"recordings": [')
        for place, info in enumerate(recordings):
            content = {
                "recording": as_utf8(info.recording),
                "duration_s": info.duration_us / 1e6,
                **info.when(0).as_json(),
            }
            self._write_item(content, place == 0)
        self._file.write('],\n"detections": [')
        self._is_first = True

    def begin(self, info: RecordingInfo) -> None:
        """See `TableWriter`."""

    def write(self, row: Row) -> None:
        """See `TableWriter`."""
        content = {
            "recording": as_utf8(row.info.recording),
            "start_s": row.start_us / 1e6,
            "end_s": row.end_us / 1e6,
            "code": row.detection.species,
            **row.names._asdict(),
            "score": round(row.detection.score, SCORE_DIGITS),
            **({NOVELTY_COLUMN: row.detection.novelty} if self._novelty else {}),
            **row.when.as_json(),
        }
        self._write_item(content, self._is_first)
        self._is_first = False

    def close(self) -> None:
        """See `TableWriter`."""
        self._file.write("]}\n")

    def _write_item(self, content: dict[str, Any], is_first: bool) -> None:
        self._file.write(("\n" if is_first else ",\n") + json.dumps(content, ensure_ascii=False, allow_nan=False))


class ParquetTable:
    """Writer of a Parquet file with typed columns, in groups of rows."""

    def __init__(self, outputs: Outputs, stem: str, about: str, novelty: bool) -> None:
        self._novelty = novelty
        text = pa.dictionary(pa.int32(), pa.string())
        self._schema = pa.schema(
            {
                "recording": text,
                "start_s": pa.float64(),
                "end_s": pa.float64(),
                "code": text,
                "common_name": text,
                "scientific_name": text,
                "score": pa.float32(),
                **({NOVELTY_COLUMN: pa.float32()} if novelty else {}),
                "local_time": pa.timestamp("us"),
                "utc_time": pa.timestamp("us", tz="UTC"),
                "site": text,
                "date": pa.date32(),
                "hour": pa.int8(),
                "latitude": pa.float64(),
                "longitude": pa.float64(),
                "start_sample": pa.int64(),
                "end_sample": pa.int64(),
                "sample_rate_hz": pa.int32(),
            },
            metadata={METADATA_KEY: about.encode()},
        )
        self._columns: list[list[Any]] = [[] for _ in self._schema]
        self._writer = outputs.open_parquet(f"{stem}.parquet", self._schema)

    def begin(self, info: RecordingInfo) -> None:
        """See `TableWriter`."""

    def write(self, row: Row) -> None:
        """See `TableWriter`."""
        found = row.detection
        local_time, utc_time, site, *others = row.when
        values = (
            as_utf8(row.info.recording),
            row.start_us / 1e6,
            row.end_us / 1e6,
            *map(as_utf8, (found.species, *row.names)),
            found.score,
            *((found.novelty,) if self._novelty else ()),
            local_time,
            utc_time,
            None if site is None else as_utf8(site),
            *others,
            found.start_sample,
            found.end_sample,
            found.sample_rate_hz,
        )
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        if len(self._columns[0]) == ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """See `TableWriter`."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._columns[0]:
            arrays = [pa.array(values, field.type) for values, field in zip(self._columns, self._schema, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
            self._columns = [[] for _ in self._schema]
