"""What a detection run analysed and found: detections, recordings, and stretches that were not analysed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from kenya_birds.errors import UserError
from kenya_birds.inference.recordings_reader import RunRecordings, read_recordings
from kenya_birds.inference.run_report import FAILED_COLUMNS, FAILED_FILE
from kenya_birds.inference.table_formats import RECORDINGS_TABLE
from kenya_birds.inference.table_reader import read_cells, read_detections
from kenya_birds.verification.found_tables import table_in

V = TypeVar("V")
FAILED_TIMES = ("start_s", "end_s")


@dataclass(frozen=True)
class Survey:
    """What a detection run analysed and found.

    Attributes:
        folder: Output folder of the run.
        detections: See `read_detections`.
        run: Length, time and place of all recordings, including those without detections.
        failures: Rows of `failed.csv`, as texts.
    """

    folder: Path
    detections: pd.DataFrame
    run: RunRecordings
    failures: pd.DataFrame

    @classmethod
    def read(cls, found: str | Path) -> "Survey":
        """Reads the output folder of `kenya-birds detect`.

        Raises:
            UserError: If a file is missing or cannot be read, or the files are of different runs.
        """
        found = Path(found)
        table = table_in(found)
        if not (found / RECORDINGS_TABLE).is_file():
            raise UserError(f"{found} has no {RECORDINGS_TABLE}: expected the output folder of kenya-birds detect")
        detections = read_detections(table)
        run = read_recordings(table, detections["recording"].unique())
        if run is None:
            raise UserError(
                f"{found / RECORDINGS_TABLE} and {table} are of different runs: run kenya-birds detect again"
            )
        return cls(
            found,
            detections.assign(recording=detections["recording"].map(unguarded_path)),
            RunRecordings(_by_key(run.duration_s), _by_key(run.places)),
            _read_failures(found / FAILED_FILE),
        )

    def gaps(self) -> dict[str, list[tuple[float, float]]]:
        """Stretches that were not analysed, by recording, in seconds; infinite if they reach the recording's end."""
        found: dict[str, list[tuple[float, float]]] = {}
        for recording, start_s, end_s in self.failures[["recording", "start_s", "end_s"]].itertuples(index=False):
            found.setdefault(recording, []).append((float(start_s or 0), float(end_s or math.inf)))
        return found


def unguarded_path(recording: str) -> str:
    """Returns a recording's path without the `./` that guards paths in CSV tables."""
    return recording.removeprefix("./")


def _by_key(values: Mapping[str, V]) -> dict[str, V]:
    return {unguarded_path(recording): value for recording, value in values.items()}


def _read_failures(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=list(FAILED_COLUMNS), dtype=str)
    try:
        rows = read_cells(path, FAILED_TIMES)[list(FAILED_COLUMNS)]
        for name in FAILED_TIMES:
            rows[name].replace("", "0").astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): run kenya-birds detect again") from None
    return rows.assign(recording=rows["recording"].map(unguarded_path))
