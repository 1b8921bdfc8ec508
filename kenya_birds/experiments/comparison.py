"""A run of train_hf.py to compare with: the same recordings in the same splits, the same clips, or it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.splits import read_folds, read_splits
from kenya_birds.errors import UserError
from kenya_birds.evaluation.predictions import Predictions, read_predictions
from kenya_birds.evaluation.report import METRICS_FILE, PREDICTIONS_FILE
from kenya_birds.experiments.cross_validation import FOLDS_FILE, RESULTS_FILE
from kenya_birds.experiments.results import OUT_OF_FOLD
from kenya_birds.json_files import read_json
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.training_recordings import TrainingRecordings


@dataclass(frozen=True)
class TrainedRun:
    """What a run of train_hf.py has left.

    Attributes:
        folder: Its output folder.
        splits_file: Its `folds.csv` or `splits.csv`.
        table: `recording`, and `fold` or `split`.
        metrics: On test, or of the out-of-fold predictions.
        predictions: The same clips'.
    """

    folder: Path
    splits_file: Path
    table: pd.DataFrame
    metrics: dict[str, Any]
    predictions: Predictions

    @classmethod
    def read(cls, folder: str | Path) -> "TrainedRun":
        """Reads a run, or a cross-validation.

        Raises:
            UserError: If the folder is neither, or it is not finished.
        """
        folder = Path(folder)
        validated = (folder / RESULTS_FILE).is_file()
        needed = (FOLDS_FILE if validated else SPLITS_FILE, METRICS_FILE, PREDICTIONS_FILE)
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} has no {', '.join(missing)}: expected the output folder of a run or a cross-validation of "
                "train_hf.py that has come to its end"
            )
        splits_file, told = folder / needed[0], OUT_OF_FOLD if validated else "test"
        metrics = read_json(folder / METRICS_FILE).get(told)
        if not isinstance(metrics, dict) or "intervals" not in metrics:
            raise UserError(f"{folder / METRICS_FILE} has no figures of '{told}': expected those of train_hf.py")
        table = read_folds(splits_file) if validated else read_splits(splits_file)
        return cls(folder, splits_file, _sorted(table), metrics, read_predictions(folder / PREDICTIONS_FILE))

    def check(self, table: pd.DataFrame, classes: list[str], *, multi_label: bool) -> None:
        """Raises `UserError` unless a probe has the run's splits or folds, classes and problem type."""
        differences = {
            "splits": not _sorted(table).equals(self.table),
            "classes": classes != self.predictions.classes,
            "problem_type": multi_label != self.predictions.multi_label,
        }
        if found := [name for name, differs in differences.items() if differs]:
            raise UserError(
                f"{self.folder} was trained with other {' and '.join(found)}, so that its figures cannot stand beside "
                "those of this probe: leave --splits_file and --folds out to take the run's, and give the "
                "--min_annotations and --problem_type that it was trained with"
            )

    def check_unheard(self, fingerprints: Mapping[str, str | None]) -> None:
        """Raises `UserError` if the run's models were trained on recordings that tested them, or started from such.

        Args:
            fingerprints: `sound_fingerprint` by recording.
        """
        folds = sorted(self.table["fold"].unique()) if "fold" in self.table else [None]
        for fold in folds:
            folder = self.folder if fold is None else self.folder / f"fold-{fold}"
            tested = self.table[self.table["split"] == "test" if fold is None else self.table["fold"] == fold]
            known = TrainingRecordings.read(folder)
            if known is not None:
                overlap = known.overlap({name: fingerprints.get(name) for name in tested["recording"]})
                overlap.refuse(str(folder), ["train", "validation"], "Compare with a run that is free of this")

    def check_clips(self, recordings: np.ndarray, center_s: np.ndarray, references: np.ndarray) -> None:
        """Raises `UserError` unless these test clips are the ones that the run was tested on."""
        told = self.predictions
        if _clips(recordings, center_s, references) != _clips(told.recordings, told.center_s, told.references):
            raise UserError(
                f"{self.folder} was tested on other clips than this probe: train again on the archive as it is, and "
                "give the --edge_tolerance_s that it was trained with"
            )


def format_comparison(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics of `write_report` side by side, with their intervals.

    Args:
        columns: Metrics by the name of what they are of.
    """
    first = next(iter(columns.values()))
    rows = [["", *columns]]
    for name in first["intervals"]:
        rows.append(
            [name, *(_told(metrics.get(name), metrics["intervals"].get(name)) for metrics in columns.values())]
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{first['clips']} clips of {first['recordings']} recordings", *lines])


def _told(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("recording").reset_index(drop=True)


def _clips(recordings: np.ndarray, center_s: np.ndarray, references: np.ndarray) -> list[tuple]:
    rows = np.asarray(references).astype(np.int64).reshape(len(recordings), -1).tolist()
    return sorted(zip(map(str, recordings), np.asarray(center_s).tolist(), map(tuple, rows), strict=True))
