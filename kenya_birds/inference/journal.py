"""What a run has finished, kept so that a run that was killed goes on: one file for each recording."""

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

from kenya_birds.errors import UserError
from kenya_birds.files import read_json, write_json
from kenya_birds.inference.audio_stream import Reading
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.sources import FileState
from kenya_birds.inference.windows import Loss

logger = logging.getLogger(__name__)

FOLDER = "journal"
MADE_WITH_FILE = "made_with.json"
MAX_SHOWN_CHARACTERS = 30
METADATA = b"kenya_birds"
SCHEMA = pa.schema(
    [("start_sample", pa.int64()), ("end_sample", pa.int64()), ("species", pa.string()), ("score", pa.float64())]
)
ROWS_AT_ONCE = 10_000


class Journal:
    """Records of finished recordings: Parquet files that appear whole or not at all.

    A record holds a recording's detections, how its reading ended, the size and time of its file, and a key. It is
    reused if all of them are what they would be now.

    Args:
        folder: Where to keep them; made if it is not there.
        made_with: Everything on which detections depend besides the recording: model, settings, code, libraries. Must
            be JSON.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made_with = dict(made_with)
        self._made_with_path = folder / MADE_WITH_FILE
        self._key = journal_key(made_with)

    def changes(self) -> list[str]:
        """What is not as it was when records were last written, such as `torch 2.12.0 -> 2.12.1`; empty: nothing."""
        if not any(self._folder.glob("*.parquet")):
            return []
        try:
            before = read_json(self._made_with_path)
        except UserError:  # an older version of this package left the records
            return ["the version of kenya_birds"]
        names = [name for name in {**before, **self._made_with} if before.get(name) != self._made_with.get(name)]
        return [_change(name, before.get(name), self._made_with.get(name)) for name in names]

    def sign(self) -> None:
        """Writes down with what the records are made that follow."""
        write_json(self._made_with, self._made_with_path)

    def begin(self, recording: str, sample_rate_hz: int) -> "JournalWriter":
        """A writer of a new record of this recording; the old one stays until the new one is finished."""
        about = {"key": self._key, "recording": recording, "sample_rate_hz": sample_rate_hz}
        return JournalWriter(self._path(recording), about)

    def find(self, recording: str, state: FileState | None) -> Reading | None:
        """How the reading of a recording ended, if it has a record that can be reused.

        Args:
            recording: The recording.
            state: Of its file, now.
        """
        reading = self.read(recording)
        return reading if reading is not None and reading.is_final and reading.state == state else None

    def read(self, recording: str) -> Reading | None:
        """How the reading of a recording ended; None without a record with this journal's key."""
        try:
            about = json.loads(pq.read_metadata(self._path(recording)).metadata[METADATA])
            if about["key"] != self._key or about["recording"] != recording:
                return None
            said = about["reading"]
            losses, silences = (tuple(Loss(**part) for part in said.pop(name)) for name in ("losses", "silences"))
            state = said.pop("state")
            return Reading(**said, losses=losses, silences=silences, state=FileState(**state) if state else None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            logger.warning("The journal's record of %s cannot be read and is not used: %s", recording, error)
            return None

    def detections(self, recording: str) -> Iterator[Detection]:
        """The detections of a recording, in order.

        Raises:
            OSError: If it has no record.
        """
        with pq.ParquetFile(self._path(recording)) as file:
            sample_rate_hz = json.loads(file.metadata.metadata[METADATA])["sample_rate_hz"]
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for start, end, species, score in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield Detection(recording, start, end, sample_rate_hz, species, score)

    def clean(self) -> None:
        """Removes what was left of records that were never finished."""
        for path in self._folder.glob("*.partial"):
            path.unlink(missing_ok=True)

    def _path(self, recording: str) -> Path:
        return (
            self._folder / f"{hashlib.sha256(recording.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
        )


class JournalWriter:
    """Writes one record.

    Args:
        path: Where the record appears when it is finished.
        about: What is known of it before.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self._partial = path.with_suffix(".partial")
        self._about = about
        self._rows: list[Detection] = []
        self._file = self._partial.open("wb")
        self._writer = pq.ParquetWriter(self._file, SCHEMA, compression="zstd", write_statistics=False)

    def close(self) -> None:
        """Removes what was not finished."""
        with contextlib.suppress(OSError):  # the disk may be full
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, detections: Sequence[Detection]) -> None:
        """Takes detections that follow."""
        self._rows += detections
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def finish(self, reading: Reading) -> None:
        """Makes the record appear, on the disk too.

        Args:
            reading: How the recording's reading ended.
        """
        self._flush()
        about = {**self._about, "reading": asdict(reading)}
        self._writer.add_key_value_metadata({METADATA: json.dumps(about)})
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self._path)

    def _flush(self) -> None:
        if self._rows:
            columns = [[getattr(found, field.name) for found in self._rows] for field in SCHEMA]
            self._writer.write_table(pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA))
            self._rows = []


def journal_key(made_with: Mapping[str, Any]) -> str:
    """Stands for a model, settings, code and libraries: with others, detections may be others."""
    text = json.dumps(made_with, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _change(name: str, before: Any, now: Any) -> str:
    words = [json.dumps(value).strip('"') for value in (before, now)]
    return name if max(map(len, words)) > MAX_SHOWN_CHARACTERS else f"{name} {words[0]} -> {words[1]}"


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 over names and contents of files; those that are not there are left out."""
    total = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
