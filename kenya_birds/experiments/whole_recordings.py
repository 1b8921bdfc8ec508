"""Evaluates a model on whole recordings: scores of all windows, detections, and their metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive
from kenya_birds.data.decoded_recordings import DecodedRecordings
from kenya_birds.evaluation.event_metrics import Truth, event_intervals
from kenya_birds.evaluation.recording_figures import (
    save_recall_by_false_reports,
    save_recording_timeline,
    typical_recording,
)
from kenya_birds.evaluation.recording_metrics import RecordingScores, WindowScores
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.files import write_table
from kenya_birds.inference.postprocessing import DetectionFinder, FindingSettings

# Metrics over all thresholds use detections with at least this score.
LEAST_SCORE = 0.01
RECALL_FILE = "recall_by_false_detections.png"
TIMELINE_FILE = "recording_timeline.png"
DETECTION_COLUMNS = ("recording", "species", "start_s", "end_s", "score")


def find_detections(
    grid: RecordingWindowGrid,
    scores: np.ndarray,
    classes: list[str],
    thresholds: np.ndarray,
    settings: FindingSettings,
) -> pd.DataFrame:
    """Detections from these scores, as `kenya-birds detect` makes them.

    Args:
        grid: The windows.
        scores: Probabilities of the windows, shape `(windows, classes)`.
        classes: eBird codes by class id.
        thresholds: Decision threshold of each class, shape `(classes,)`.
        settings: How windows become detections.

    Returns:
        `recording`, `species`, `start_s`, `end_s` and `score`.
    """
    found = []
    for index, name in enumerate(grid.decoded.names):
        rows = np.flatnonzero(grid.recording == index)
        finder = DetectionFinder(name, classes, thresholds, settings, grid.decoded.sampling_rate)
        if len(rows):
            found += finder.add(grid.start[rows], grid.end[rows], scores[rows])
        found += finder.finish()
    table = [(one.recording, one.species, one.start_s, one.end_s, one.score) for one in found]
    return pd.DataFrame(table, columns=list(DETECTION_COLUMNS)).astype(
        {"start_s": float, "end_s": float, "score": float}
    )


def truth_of(archive: Archive, decoded: DecodedRecordings, classes: list[str]) -> Truth:
    """Annotations of some recordings, for the classes of a model.

    Args:
        archive: The archive.
        decoded: The recordings.
        classes: eBird codes; calls of other species are skipped.
    """
    names = decoded.names
    calls = archive.annotations
    return Truth(
        {name: archive.headers[name].duration_s for name in names},
        classes,
        calls[calls["recording"].isin(names) & calls["species"].isin(classes)],
        archive.unknown[archive.unknown["recording"].isin(names)],
    )


def evaluate_recordings(
    grid: RecordingWindowGrid,
    scores: np.ndarray,
    targets: np.ndarray,
    truth: Truth,
    *,
    thresholds: np.ndarray,
    settings: FindingSettings | None = None,
    tolerance_s: float = 0.0,
) -> RecordingScores:
    """Evaluates the scores of all windows of some recordings.

    Args:
        grid: The windows.
        scores: Calibrated probabilities, shape `(windows, classes)`.
        targets: Targets of the windows, same shape.
        truth: The annotations of the recordings, in their order.
        thresholds: Decision threshold of each class, shape `(classes,)`.
        settings: How windows become detections; by default each window is one.
        tolerance_s: See `match_events`.
    """
    rate = grid.decoded.sampling_rate
    least = np.full(len(truth.classes), LEAST_SCORE)
    return RecordingScores(
        find_detections(grid, scores, truth.classes, thresholds, settings or FindingSettings()),
        find_detections(grid, scores, truth.classes, least, FindingSettings()),
        WindowScores(grid.recording, scores, targets),
        truth,
        tolerance_s=tolerance_s,
        window_s=grid.window / rate,
    )


def write_recordings(
    folder: Path,
    scores: RecordingScores,
    *,
    overlap_s: float,
    names: Mapping[str, str],
    seed: int,
    split: str = "test",
) -> dict[str, Any]:
    """Writes tables and figures of a model on whole recordings.

    The files: `recording_species.csv`, `recording_counts.csv` (each recording: annotated calls and detections),
    `recording_detections.csv` (each detection: right or not), `recording_calls.csv` (each call: found or not),
    `recall_by_false_detections.png` and `recording_timeline.png`. Existing files are replaced.

    Args:
        folder: Output folder; created if it does not exist.
        scores: The evaluated scores.
        overlap_s: Overlap of neighbouring windows in seconds.
        names: Names of the species by code.
        seed: Seed of the bootstrap.
        split: Name of the split, for the figures.

    Returns:
        For `metrics.json`: `hours`, `calls`, `overlap_s`, and `metrics`, the `value` and `interval` of each (see
        `event_intervals`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    recordings = scores.per_recording()
    write_table(scores.per_species(), folder / "recording_species.csv", float_format="%.6g")
    write_table(recordings, folder / "recording_counts.csv", float_format="%.6g")
    write_table(scores.detections, folder / "recording_detections.csv", float_format="%.6g")
    write_table(scores.calls, folder / "recording_calls.csv", float_format="%.6g")
    metrics = event_intervals([scores], np.random.default_rng(seed))[0]
    about = f"{split}: {len(recordings)} recordings, {recordings['duration_s'].sum() / 3600:.2f} h"
    own = float(recordings["detections"].sum() - recordings["right"].sum()), float(recordings["found"].sum())
    own = own[0] / (recordings["duration_s"].sum() / 3600), own[1] / max(recordings["calls"].sum(), 1)
    false_per_h, recall = scores.recall_curve()
    save_recall_by_false_reports(false_per_h, recall, folder / RECALL_FILE, own=own, about=about)
    name = typical_recording(recordings)
    save_recording_timeline(
        name,
        scores.detections[scores.detections["recording"] == name],
        scores.calls[scores.calls["recording"] == name],
        folder / TIMELINE_FILE,
        duration_s=float(recordings.loc[recordings["recording"] == name, "duration_s"].iloc[0]),
        names=dict(names),
    )
    return {
        "hours": float(recordings["duration_s"].sum() / 3600),
        "calls": int(recordings["calls"].sum()),
        "overlap_s": overlap_s,
        "metrics": metrics,
    }
