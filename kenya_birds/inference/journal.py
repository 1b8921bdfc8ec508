"""Journal of finished recordings, from which interrupted runs resume: one file for each recording."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kenya_birds.data.recorder_header import RecorderHeader
from kenya_birds.errors import UserError
from kenya_birds.files import read_json, replace, write_json
from kenya_birds.inference.audio_stream import Reading
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.sources import FileState
from kenya_birds.inference.windows import UnscoredSound

logger = logging.getLogger(__name__)

FOLDER = "journal"
MADE_WITH_FILE = "made_with.json"
MAX_SHOWN_CHARACTERS = 30
METADATA = b"kenya_birds"
SCHEMA = pa.schema(
    [
        ("start_sample", pa.int64()),
        ("end_sample", pa.int64()),
        ("species", pa.string()),
        ("score", pa.float64()),
        ("novelty", pa.float64()),
    ]
)
ROWS_AT_ONCE = 10_000


class Journal:
    """Journal of finished recordings, as Parquet files that are written atomically.

    A record has a recording's detections, the `Reading`, the size and time of its file, and a key. It is reused if the
    key and the file are unchanged.

    Args:
        folder: Folder of the journal; created if it does not exist.
        made_with: Everything except the recording that affects detections: model, settings, code, libraries. Must be
            JSON.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made_with = json.loads(json.dumps(made_with))  # as it is read again: lists, no tuples
        self._made_with_path = folder / MADE_WITH_FILE
        self._key = journal_key(made_with)

    def changes(self) -> list[str]:
        """Returns what has changed since the last run, such as `torch 2.12.0 -> 2.12.1`; empty if nothing."""
        if not any(self._folder.glob("*.parquet")):
            return []
        try:
            before = read_json(self._made_with_path)
        except UserError:  # the records are from an older version of this package
            return ["the version of kenya_birds"]
        names = [name for name in {**before, **self._made_with} if before.get(name) != self._made_with.get(name)]
        return [_change(name, before.get(name), self._made_with.get(name)) for name in names]

    def sign(self) -> None:
        """Saves `made_with` of the following records."""
        write_json(self._made_with, self._made_with_path)

    def begin(self, recording: str, sample_rate_hz: int) -> "JournalWriter":
        """Starts a new record of a recording; the old one remains until the new one is finished.

        Args:
            recording: The recording.
            sample_rate_hz: Sampling rate in which its detections are counted.
        """
        about = {"key": self._key, "recording": recording, "sample_rate_hz": sample_rate_hz}
        return JournalWriter(self._path(recording), about)

    def find(self, recording: str, state: FileState | None) -> Reading | None:
        """Returns the `Reading` of a recording if its record can be reused, else None.

        Args:
            recording: The recording.
            state: Current state of its file.
        """
        reading = self.read(recording)
        return reading if reading is not None and reading.is_final and reading.state == state else None

    def read(self, recording: str) -> Reading | None:
        """Returns the `Reading` of a recording; None without a record with this journal's key."""
        try:
            about = json.loads(pq.read_metadata(self._path(recording)).metadata[METADATA])
            if about["key"] != self._key or about["recording"] != recording:
                return None
            stored = about["reading"]
            losses, silences = (
                tuple(UnscoredSound(**part) for part in stored.pop(name)) for name in ("losses", "silences")
            )
            state, header = stored.pop("state"), RecorderHeader.of(stored.pop("header"))
            return Reading(
                **stored,
                losses=losses,
                silences=silences,
                state=FileState(**state) if state else None,
                header=header,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            logger.warning("The journal's record of %s cannot be read, analysing it again: %s", recording, error)
            return None

    def detections(self, recording: str) -> Iterator[Detection]:
        """Yields the detections of a recording, in order.

        Raises:
            OSError: If the recording has no record.
        """
        with pq.ParquetFile(self._path(recording)) as file:
            sample_rate_hz = json.loads(file.metadata.metadata[METADATA])["sample_rate_hz"]
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for start, end, *found in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield Detection(recording, start, end, sample_rate_hz, *found)

    def clean(self) -> None:
        """Removes incomplete records."""
        for path in self._folder.glob("*.partial"):
            path.unlink(missing_ok=True)

    def _path(self, recording: str) -> Path:
        return (
            self._folder / f"{hashlib.sha256(recording.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
        )


class JournalWriter:
    """Writer of one record.

    Args:
        path: Path of the finished record.
        about: Its metadata, without the `Reading`.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self._partial = path.with_suffix(".partial")
        self._about = about
        self._rows: list[Detection] = []
        self._file = self._partial.open("wb")
        self._writer = pq.ParquetWriter(self._file, SCHEMA, compression="zstd", write_statistics=False)

    def close(self) -> None:
        """Removes an unfinished record."""
        with contextlib.suppress(OSError):  # the disk may be full
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, detections: Sequence[Detection]) -> None:
        """Adds detections."""
        self._rows += detections
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def finish(self, reading: Reading) -> None:
        """Finishes the record, and flushes it to the disk.

        Args:
            reading: Result of reading the recording.
        """
        self._flush()
        about = {**self._about, "reading": asdict(reading)}
        self._writer.add_key_value_metadata({METADATA: json.dumps(about)})
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        replace(self._partial, self._path)

    def _flush(self) -> None:
        if self._rows:
            columns = [[getattr(found, field.name) for found in self._rows] for field in SCHEMA]
            self._writer.write_table(pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA))
            self._rows = []


def journal_key(made_with: Mapping[str, Any]) -> str:
    """Returns a hash of model, settings, code and library versions."""
    text = json.dumps(made_with, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _change(name: str, before: Any, now: Any) -> str:
    words = [json.dumps(value).strip('"') for value in (before, now)]
    return name if max(map(len, words)) > MAX_SHOWN_CHARACTERS else f"{name} {words[0]} -> {words[1]}"


def hash_files(paths: Sequence[Path]) -> str:
    """Returns the SHA-256 of the names and contents of files; missing files are skipped."""
    total = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
