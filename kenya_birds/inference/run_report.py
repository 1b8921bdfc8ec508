"""Report and output files of a detection run: tables, failed.csv, run.json."""

import contextlib
import csv
import datetime
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kenya_birds import __version__
from kenya_birds.data.sound_files import Skip, Skipped, count_skipped
from kenya_birds.errors import UserError
from kenya_birds.files import as_utf8, file_sha256, is_writable, read_json, replace, try_writing, write_json
from kenya_birds.fingerprints import DECODERS, MODEL, library_versions
from kenya_birds.folders import check_can_make, contents_of
from kenya_birds.formulas import safe_path
from kenya_birds.inference.analysed_stretches import analysed_stretches
from kenya_birds.inference.audio_stream import Reading
from kenya_birds.inference.detections import Detection, RecordingInfo
from kenya_birds.inference.output_tables import write_tables
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.table_formats import (
    FAILED_COLUMNS,
    FAILED_FILE,
    RECORDINGS_TABLE,
    RUN_FILE,
    Outputs,
    csv_writer,
)
from kenya_birds.values import counted

STATE_FOLDER = ".kenya_birds"
TABLES_FILE = "tables.json"
# Status of skipped digital silence, which is not a failure.
SILENT = "silent"


@dataclass(frozen=True)
class RunCost:
    """Time and processes of a run.

    Attributes:
        wall_s: Seconds for the analysis.
        spent_s: Seconds of all threads by part of the work.
        processes: Number of processes.
        threads: Number of computing threads of each process.
        backend_check: Comparison of the backend with torch (see `BackboneCheck`); None: there was none.
    """

    wall_s: float
    spent_s: Mapping[str, float]
    processes: int
    threads: int
    backend_check: Mapping[str, Any] | None = None

    def describe(self, analysed_s: float) -> dict[str, Any]:
        """The part of `run.json` about time.

        Args:
            analysed_s: Seconds of sound that were analysed.
        """
        busy_s = sum(self.spent_s.values())
        return {
            "hours": analysed_s / 3600,
            "wall_s": self.wall_s,
            "times_real_time": analysed_s / self.wall_s if self.wall_s else 0.0,
            "processes": self.processes,
            "scoring_threads": self.threads,
            "share_of_busy_time": {part: spent / busy_s if busy_s else 0.0 for part, spent in self.spent_s.items()},
            "busy_s": dict(self.spent_s),
            "backend_check": None if self.backend_check is None else dict(self.backend_check),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


@dataclass
class RunReport:
    """Report of a run.

    Attributes:
        content: Content of `run.json`.
        failures: Rows of `failed.csv`.
    """

    content: dict[str, Any]
    failures: Sequence[tuple[str, ...]]

    @classmethod
    def of(
        cls,
        readings: Mapping[str, Reading],
        *,
        new: set[str],
        cost: RunCost,
        about: Mapping[str, Any],
        skipped: Sequence[Skipped] = (),
        packages: Sequence[str] = (),
    ) -> "RunReport":
        """Makes the report of a run, without the counts of detections.

        Args:
            readings: Result of the reading of each recording.
            new: Recordings that this run analysed itself.
            cost: Time of their analysis, and its processes.
            about: Model and settings.
            skipped: Files that the search skipped. Those that the user may want are among the failures.
            packages: Further packages whose versions are stated.
        """
        failures = [row for name, reading in readings.items() for row in _unscored(name, reading)]
        failures += [(left.path, "skipped", "", "", left.reason) for left in skipped if left.skip.is_loss]
        analysed_s = {name: _analysed_s(reading) for name, reading in readings.items()}
        new_s = sum(seconds for name, seconds in analysed_s.items() if name in new)
        at_fault = [reading for reading in readings.values() if reading.losses]
        silent = [reading for reading in readings.values() if reading.silences]
        content = {
            **about,
            "recordings": len(readings),
            "analysed": sum(reading.windows > 0 for reading in readings.values()),
            "failed": sum(not reading.windows for reading in at_fault),
            "partly_read": sum(reading.windows > 0 for reading in at_fault),
            "digital_silence": {
                "recordings": len(silent),
                "hours": sum(reading.silence_s for reading in silent) / 3600,
            },
            "skipped": {
                skip.value: {"count": count, "first": as_utf8(first)}
                for skip, (count, first) in count_skipped(skipped).items()
            },
            "hours": sum(analysed_s.values()) / 3600,
            "this_run": {"recordings": len(new), **cost.describe(new_s)},
            "versions": {
                "kenya_birds": __version__,
                "python": platform.python_version(),
                **library_versions((*MODEL, *DECODERS, *packages)),
            },
        }
        return cls(content, failures)

    @property
    def exit_code(self) -> int:
        """0 if every recording was analysed completely, apart from digital silence; else 3."""
        return 3 if any(status != SILENT for _, status, *_ in self.failures) else 0

    @property
    def analysed(self) -> str:
        """Number of recordings that were analysed, of how many, and hours of analysed sound, in words."""
        content = self.content
        found = counted(content["recordings"], "recording")
        of = "" if content["analysed"] == content["recordings"] else f"{content['analysed']} of "
        return f"{of}{found}, {content['hours']:.2f} h"

    @property
    def faults(self) -> str:
        """Numbers of recordings that were not analysed completely, and amount of digital silence, in words."""
        content, silence = self.content, self.content["digital_silence"]
        lost = [f"{left['count']} {skip}" for skip, left in content["skipped"].items() if Skip(skip).is_loss]
        faults = []
        if content["failed"] or content["partly_read"]:
            faults.append(f"{counted(content['failed'], 'recording')} failed, {content['partly_read']} partly read")
        if lost:
            faults.append(f"skipped: {', '.join(lost)}")
        if silence["recordings"]:
            faults.append(
                f"digital silence was not scored: {silence['hours']:.2f} h in "
                f"{counted(silence['recordings'], 'recording')}"
            )
        return "; ".join(faults)

    def __str__(self) -> str:
        """Returns a summary for the terminal."""
        content, now = self.content, self.content["this_run"]
        detections = content["detections"]
        lines = [
            f"{self.analysed}: {counted(sum(detections.values()), 'detection')}",
            *(f"  {count:7d}  {code}" for code, count in detections.items()),
        ]
        if now["recordings"]:
            parts = ", ".join(f"{part} {share:.0%}" for part, share in now["share_of_busy_time"].items() if share)
            speed = f"{now['times_real_time']:.0f} times real time"
            lines.append(f"{now['hours']:.2f} h in {now['wall_s']:.1f} s, {speed} ({parts})")
        if check := now["backend_check"]:
            settings = content["settings"]
            lines.append(
                f"{settings['backend']}, {settings['precision']}: scores differ from torch in float32 by up to "
                f"{check['largest_score_difference']:.1g}, {check['changed_detections']} scores are on the other side "
                f"of their threshold, and {check['detections']} reach it with torch (first {check['windows']} windows)"
            )
        if self.failures:
            lines.append(f"{self.faults}: {FAILED_FILE}")
        return "\n".join(lines)


class RunFiles:
    """Output folder of a run.

    Args:
        folder: A new or empty folder, or the folder of an earlier run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_folder = folder / STATE_FOLDER

    def check(self) -> None:
        """Raises `UserError` if the folder is a file, cannot be created, or has other content than an earlier run."""
        with self.writing():
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"{self.folder} is not a folder: give another --output")
            if self.folder.is_dir() and not self.state_folder.is_dir() and contents_of(self.folder):
                raise UserError(f"{self.folder} is not empty and not from an earlier run: give another --output")
            if self.folder.is_dir() and is_writable(self.folder, for_folders=True):
                return
        check_can_make(self.folder)

    def prepare(self) -> None:
        """Creates the folder.

        Raises:
            UserError: See `check`.
        """
        self.check()
        with self.writing():
            self.state_folder.mkdir(parents=True, exist_ok=True)
            try_writing(self.state_folder)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns a full or unplugged disk into a `UserError`."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written to ({error.strerror or error}): correct that and run the same "
                "command again to resume with the unfinished recordings"
            ) from None

    def check_unchanged(self) -> None:
        """Raises `UserError` if tables of an earlier run were edited, so that a user's changes would be lost."""
        for name, digest in self._tables().items():
            if self._has_changed(name, digest):
                raise UserError(
                    f"{self.folder / name} was edited after an earlier run, and this run would replace it: move it "
                    "away, or give another --output"
                )

    def recordings(self) -> list[str]:
        """Returns the recordings in the tables of an earlier run, as the tables name them."""
        path = self.folder / RECORDINGS_TABLE
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return [row["recording"] for row in csv.DictReader(file)]

    def is_edited(self, name: str) -> bool:
        """Returns whether a table was edited after the run that wrote it; False if this is unknown."""
        digest = self._tables().get(name)
        return digest is not None and self._has_changed(name, digest)

    def _has_changed(self, name: str, digest: str) -> bool:
        path = self.folder / name
        return path.is_file() and file_sha256(path) != digest

    def write(
        self,
        report: RunReport,
        recordings: Sequence[RecordingInfo],
        detections: Iterable[Detection],
        formats: Sequence[str],
        names: Mapping[str, SpeciesNames],
        frequencies_hz: tuple[float, float],
        *,
        novelty: bool = False,
    ) -> None:
        """Writes the tables, then the other files.

        Args:
            report: The report; the detections by species are added to it, and `undetected`, the species that can be
                detected, is reduced to those without detections.
            recordings: Recordings of the tables.
            detections: Detections in the order of the recordings.
            formats: See `write_tables`.
            names: Names by code.
            frequencies_hz: Lowest and highest frequency of the model's input.
            novelty: See `write_tables`.
        """
        about = {name: report.content[name] for name in ("model", "model_sha256", "settings", "versions")}
        with self.writing():
            before = self._tables()
            with self._replacing(before):
                written = write_tables(
                    self.folder,
                    formats,
                    recordings,
                    detections,
                    species_names=names,
                    frequencies_hz=frequencies_hz,
                    metadata=about,
                    novelty=novelty,
                )
                with Outputs(self.folder) as outputs:
                    write_failures(outputs.open(FAILED_FILE), report.failures)
                    files = [*written.files, *outputs.commit()]
            report.content["detections"] = written.counts
            could_be = report.content["undetected"].items()
            report.content["undetected"] = {code: names for code, names in could_be if not written.counts.get(code)}
            tables = {path.relative_to(self.folder).as_posix(): file_sha256(path) for path in files}
            for name in set(before) - set(tables):
                (self.folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # ends at the first folder that is not empty
                    for folder in (self.folder / name).parents:
                        folder.rmdir()
            write_json(tables, self.state_folder / TABLES_FILE)
            write_json(report.content, self.folder / RUN_FILE)

    @contextlib.contextmanager
    def _replacing(self, tables: Mapping[str, str]) -> Iterator[None]:
        """Keeps the list of an earlier run's tables right while they are replaced, also if that fails half-way.

        A killed process leaves no list: nobody knows then which tables it has replaced.
        """
        listed, aside = self.state_folder / TABLES_FILE, self.state_folder / f"{TABLES_FILE}.old"
        if listed.is_file():
            replace(listed, aside)
        states = {name: _state(self.folder / name) for name in tables}
        try:
            yield
        except BaseException:
            kept = {name: tables[name] for name, state in states.items() if _state(self.folder / name) == state}
            with contextlib.suppress(OSError):
                if kept == tables and aside.is_file():  # needs no space on a full disk
                    replace(aside, listed)
                else:
                    write_json(kept, listed)
            raise
        finally:
            aside.unlink(missing_ok=True)

    def _tables(self) -> dict[str, str]:
        """Returns the digests of an earlier run's tables by name; names outside the folder are ignored."""
        path = self.state_folder / TABLES_FILE
        if not path.is_file():
            return {}
        digests = read_json(path)
        root = Path(os.path.realpath(self.folder))
        return {
            name: str(digest)
            for name, digest in digests.items()
            if Path(os.path.realpath(self.folder / name)).is_relative_to(root)
        }


def _state(path: Path) -> tuple[int, int, int] | None:
    """Returns what changes when a file is replaced; None if it is missing."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def _analysed_s(reading: Reading) -> float:
    gaps = [
        (part.start_s, math.inf if part.end_s is None else part.end_s) for part in (*reading.losses, *reading.silences)
    ]
    return sum(end_s - start_s for start_s, end_s in analysed_stretches(reading.duration_s, gaps))


def _unscored(recording: str, reading: Reading) -> list[tuple[str, ...]]:
    """Returns the rows of `failed.csv`, in order of time."""
    parts = [("partly read" if reading.windows else "failed", loss) for loss in reading.losses]
    parts += [(SILENT, silence) for silence in reading.silences]
    return [
        (recording, status, f"{part.start_s:.6f}", "" if part.end_s is None else f"{part.end_s:.6f}", part.reason)
        for status, part in sorted(parts, key=lambda row: row[1].start_s)
    ]


def write_failures(file: TextIO, failures: Sequence[tuple[str, ...]]) -> None:
    """Writes the table of sound that was not analysed.

    Args:
        file: The open CSV.
        failures: Rows with the columns `FAILED_COLUMNS`.
    """
    table = csv_writer(file)
    table.writerow(FAILED_COLUMNS)
    table.writerows((safe_path(recording), *others) for recording, *others in failures)
