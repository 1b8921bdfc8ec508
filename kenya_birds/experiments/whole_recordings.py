"""Evaluates a model on whole recordings: scores of all windows, detections, and their metrics."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive
from kenya_birds.data.event_tables import DECIMALS
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.evaluation.evaluation_report import ARCHIVES, EvaluationContext
from kenya_birds.evaluation.event_metrics import METRICS, event_intervals
from kenya_birds.evaluation.event_windows import Truth
from kenya_birds.evaluation.figures import save_reliability
from kenya_birds.evaluation.metrics import calibration_points, probabilities
from kenya_birds.evaluation.recording_figures import (
    save_recall_by_false_reports,
    save_recording_timeline,
    typical_recording,
)
from kenya_birds.evaluation.recording_metrics import RecordingScores, WindowScores
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid, WindowPredictions
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.files import json_number, write_table
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.postprocessing import DetectionFinder
from kenya_birds.saved_models import THRESHOLDS_FILE
from kenya_birds.values import counted

# Metrics over all thresholds use detections with at least this score.
LEAST_SCORE = 0.01
RECALL_FILE = "recall_by_false_detections.png"
# Scores and annotations of all windows (see `WindowPredictions.write`).
WINDOWS_FILE = "recording_windows.parquet"
TIMELINE_FILE = "recording_timeline.png"
WINDOWS_RELIABILITY_FILE = "recording_reliability.png"
DETECTION_COLUMNS = ("recording", "species", "start_s", "end_s", "score")


def find_detections(windows: WindowPredictions, thresholds: np.ndarray, settings: FindingSettings) -> pd.DataFrame:
    """Detections from the scores of windows, as `kenya-birds detect` makes them.

    Args:
        windows: The windows.
        thresholds: Decision threshold of each class, shape `(classes,)`.
        settings: How windows become detections.

    Returns:
        `recording`, `species`, `start_s`, `end_s` and `score`.
    """
    found = []
    for index, name in enumerate(windows.recordings):
        rows = np.flatnonzero(windows.recording == index)
        finder = DetectionFinder(name, windows.classes, thresholds, settings, windows.sampling_rate)
        if len(rows):
            found += finder.add(windows.start[rows], windows.end[rows], windows.scores[rows])
        found += finder.finish()
    table = [(one.recording, one.species, one.start_s, one.end_s, one.score) for one in found]
    return pd.DataFrame(table, columns=list(DETECTION_COLUMNS)).astype(
        {"start_s": float, "end_s": float, "score": float}
    )


def truth_of(archive: Archive, names: Sequence[str], classes: list[str]) -> Truth:
    """Annotations of some recordings, for the classes of a model.

    Args:
        archive: The archive.
        names: The recordings.
        classes: eBird codes; calls of other species are skipped.
    """
    calls = archive.annotations
    return Truth(
        {name: archive.headers[name].duration_s for name in names},
        classes,
        calls[calls["recording"].isin(names) & calls["species"].isin(classes)],
        archive.unknown[archive.unknown["recording"].isin(names)],
    )


def strongest_detections(table: pd.DataFrame) -> pd.DataFrame:
    """Removes detections that overlap a detection of the same species with a higher score (non-maximum suppression).

    A call that two overlapping windows contain is then one detection at every threshold.

    Args:
        table: `recording`, `species`, `start_s`, `end_s` and `score`.

    Returns:
        The remaining rows, in the same order.
    """
    is_kept = np.zeros(len(table), dtype=bool)
    start_s, end_s, score = (table[name].to_numpy() for name in ("start_s", "end_s", "score"))
    for rows in table.reset_index(drop=True).groupby(["recording", "species"], sort=False).indices.values():
        kept: list[tuple[float, float]] = []
        for row in sorted(np.asarray(rows).tolist(), key=lambda row: (-score[row], start_s[row])):
            place = bisect_left(kept, (start_s[row], end_s[row]))
            is_apart = place == len(kept) or kept[place][0] >= end_s[row]
            if is_apart and (place == 0 or kept[place - 1][1] <= start_s[row]):
                insort(kept, (start_s[row], end_s[row]))
                is_kept[row] = True
    return table[is_kept].reset_index(drop=True)


def evaluate_recordings(
    windows: WindowPredictions, truth: Truth, thresholds: np.ndarray, *, tolerance_s: float = 0.0
) -> RecordingScores:
    """Evaluates the scores of all windows of some recordings.

    If windows overlap, the detections at the thresholds are merged (as with `kenya-birds detect --merge`), and metrics
    over all thresholds use the strongest of overlapping windows: otherwise a sound in two windows would count as two
    detections.

    Args:
        windows: The windows.
        truth: The annotations of the recordings, in their order.
        thresholds: Decision threshold of each class, shape `(classes,)`.
        tolerance_s: See `match_events`.
    """
    every = find_detections(windows, np.full(len(windows.classes), LEAST_SCORE), FindingSettings())
    return RecordingScores(
        find_detections(windows, thresholds, FindingSettings(merge=windows.overlaps)),
        strongest_detections(every) if windows.overlaps else every,
        WindowScores(windows.recording, windows.scores, windows.targets),
        truth,
        tolerance_s=tolerance_s,
        window_s=windows.window / windows.sampling_rate,
    )


def pool_folds(folders: Sequence[Path], archive: Archive) -> RecordingScores | None:
    """The test recordings of all folds of a cross-validation, each scored by the model of its fold.

    Args:
        folders: Output folders of the folds.
        archive: The archive.

    Returns:
        The pooled scores; None if a fold has not been evaluated on whole recordings.

    Raises:
        UserError: If a file of a fold cannot be read.
    """
    if not all((folder / WINDOWS_FILE).is_file() for folder in folders):
        return None
    parts = []
    for folder in folders:
        windows = WindowPredictions.read(folder / WINDOWS_FILE)
        thresholds = Thresholds.read(folder / THRESHOLDS_FILE).values(windows.classes)
        parts.append(evaluate_recordings(windows, truth_of(archive, windows.recordings, windows.classes), thresholds))
    return RecordingScores.pooled(parts)


@dataclass(frozen=True)
class ScoredWindows:
    """A model's logits of all windows of whole recordings, and what is annotated in them.

    Attributes:
        archive: The archive of the recordings.
        classes: eBird codes by class id.
        grid: The windows.
        annotated: The annotations.
        logits: Before calibration, shape `(windows, classes)`.
        multi_label: Whether the classes are independent.
    """

    archive: Archive
    classes: list[str]
    grid: RecordingWindowGrid
    annotated: WindowTargets
    logits: np.ndarray
    multi_label: bool

    def probability(self, calibration: Calibration) -> np.ndarray:
        """Calibrated probabilities, shape `(windows, classes)`."""
        return probabilities(calibration.apply(self.logits), multi_label=self.multi_label)

    @property
    def targets(self) -> np.ndarray:
        """1 present, 0 absent, -100 unknown, shape `(windows, classes)`."""
        return self.grid.targets(self.annotated)

    def write_report(
        self, folder: Path, calibration: Calibration, thresholds: Thresholds, context: EvaluationContext
    ) -> dict[str, Any]:
        """Evaluates the windows; writes what `write_recordings` writes, and `recording_windows.parquet`.

        Args:
            folder: Output folder.
            calibration: Chosen on validation.
            thresholds: Decision thresholds, chosen on validation.
            context: Gives the names of the species, the name of the split and the seed.

        Returns:
            See `write_recordings`.
        """
        windows = WindowPredictions.of(self.grid, self.classes, self.probability(calibration), self.targets)
        truth = truth_of(self.archive, windows.recordings, self.classes)
        scores = evaluate_recordings(windows, truth, thresholds.values(self.classes))
        report = write_recordings(folder, scores, context, overlap_s=self.grid.overlap_s)
        windows.write(folder / WINDOWS_FILE)
        return report


def write_recordings(
    folder: Path, scores: RecordingScores, context: EvaluationContext, *, overlap_s: float
) -> dict[str, Any]:
    """Writes tables and figures of a model on whole recordings.

    The files: `recording_species.csv`, `recording_counts.csv` (each recording: annotated calls and detections),
    `recording_detections.csv` (each detection: right or not), `recording_calls.csv` (each call: found or not),
    `recall_by_false_detections.png`, `recording_reliability.png` (over all windows) and `recording_timeline.png`.
    Existing files are replaced.

    Args:
        folder: Output folder; created if it does not exist.
        scores: The evaluated scores.
        context: Gives the names of the species, the name of the split and the seed.
        overlap_s: Overlap of neighbouring windows in seconds.

    Returns:
        For `metrics.json`: `hours`, `calls`, `overlap_s`, and `metrics`, the `value` and `interval` of each (see
        `event_intervals`); for a joined archive also `archives`, the values of each archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recordings = scores.per_recording()
    write_table(scores.per_species(), folder / "recording_species.csv", float_format="%.6g")
    write_table(recordings, folder / "recording_counts.csv", float_format="%.6g")
    write_table(scores.detections.round(DECIMALS), folder / "recording_detections.csv")
    write_table(scores.calls.round(DECIMALS), folder / "recording_calls.csv")
    metrics = event_intervals([scores], np.random.default_rng(context.seed))[0]
    hours = float(recordings["duration_s"].sum() / 3600)
    false_per_h, recall = scores.recall_curve()
    save_recall_by_false_reports(
        false_per_h,
        recall,
        folder / RECALL_FILE,
        own=(
            float(recordings["detections"].sum() - recordings["right"].sum()) / hours,
            float(recordings["found"].sum()) / max(recordings["calls"].sum(), 1),
        ),
        about=f"{context.split}: {len(recordings)} recordings, {hours:.2f} h",
    )
    windows = scores.windows
    save_reliability(
        {"scores": calibration_points(windows.scores, windows.targets)},
        folder / WINDOWS_RELIABILITY_FILE,
        f"{context.split}: {counted(len(windows.group), 'window', ',')} of whole recordings",
    )
    name = typical_recording(recordings)
    save_recording_timeline(
        name,
        scores.detections[scores.detections["recording"] == name],
        scores.calls[scores.calls["recording"] == name],
        folder / TIMELINE_FILE,
        duration_s=float(recordings.loc[recordings["recording"] == name, "duration_s"].iloc[0]),
        names=dict(context.common_names),
    )
    found = {"hours": hours, "calls": int(recordings["calls"].sum()), "overlap_s": overlap_s, "metrics": metrics}
    archives = context.archives(recordings["recording"].tolist())
    if archives:
        values = scores.weighted(np.stack(list(archives.values())).astype(np.int64))
        found[ARCHIVES] = {
            name: {"recordings": int(rows.sum())} | {metric: json_number(values[metric][number]) for metric in METRICS}
            for number, (name, rows) in enumerate(archives.items())
        }
    return found
