"""What a detection run analysed and found: detections, recordings, and stretches that were not analysed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from kenya_birds.errors import UserError
from kenya_birds.inference.recordings_reader import RunRecordings, read_failures, read_recordings
from kenya_birds.inference.table_formats import FAILED_FILE, RECORDINGS_TABLE
from kenya_birds.inference.table_reader import read_detections
from kenya_birds.verification.found_tables import table_in

V = TypeVar("V")


@dataclass(frozen=True)
class Survey:
    """What a detection run analysed and found.

    Attributes:
        folder: Output folder of the run.
        detections: See `read_detections`.
        run: Length, time, place and gaps of all recordings, including those without detections.
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
        failures = read_failures(found / FAILED_FILE)
        return cls(
            found,
            detections.assign(recording=detections["recording"].map(unguarded_path)),
            RunRecordings(_by_key(run.duration_s), _by_key(run.places), _by_key(run.gaps)),
            failures.assign(recording=failures["recording"].map(unguarded_path)),
        )


def unguarded_path(recording: str) -> str:
    """Returns a recording's path without the `./` that guards paths in CSV tables."""
    return recording.removeprefix("./")


def _by_key(values: Mapping[str, V]) -> dict[str, V]:
    return {unguarded_path(recording): value for recording, value in values.items()}
