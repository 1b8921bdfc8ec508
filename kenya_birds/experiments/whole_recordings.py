"""Evaluates a model on whole recordings: scores of all windows, detections, and how good they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from kenya_birds.data.archive import Archive
from kenya_birds.data.decoded_recordings import DecodedRecordings
from kenya_birds.evaluation.event_metrics import Truth
from kenya_birds.evaluation.recording_metrics import RecordingScores, WindowScores
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.inference.postprocessing import DetectionFinder, FindingSettings
from kenya_birds.inference.windows import WindowGrid
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import MASKED, KenyaBirdsForAudioClassification

# Metrics over all thresholds use detections from this score on.
LEAST_SCORE = 0.01
DETECTION_COLUMNS = ("recording", "species", "start_s", "end_s", "score")


@dataclass(frozen=True)
class RecordingWindowGrid:
    """All windows of some recordings, as detection cuts them.

    Attributes:
        decoded: The recordings.
        window: Length of a window in samples.
        recording: Index of each window's recording, shape `(windows,)`.
        start: First sample of each window.
        end: The sample after its last one. A stretch shorter than a window is one window, filled up with mirrored
            sound.
    """

    decoded: DecodedRecordings
    window: int
    recording: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, decoded: DecodedRecordings, window: int, overlap_s: float = 0.0) -> "RecordingWindowGrid":
        """Plans the windows.

        Args:
            decoded: The recordings.
            window: Length of a window in samples.
            overlap_s: Overlap of neighbouring windows in seconds.

        Raises:
            UserError: If the overlap is negative, or as long as a window.
        """
        grid = WindowGrid.with_overlap(window, overlap_s, decoded.sampling_rate)
        parts: list[np.ndarray] = [np.zeros((3, 0), dtype=np.int64)]
        for index, recording in enumerate(decoded.recordings):
            for begin, end in recording.runs.tolist():
                starts = grid.starts(begin, end)
                parts.append(np.stack([np.full(len(starts), index), starts, np.minimum(starts + window, end)]))
        recording, start, end = np.concatenate(parts, axis=1)
        return cls(decoded, window, recording, start, end)

    @cached_property
    def names(self) -> np.ndarray:
        """Name of each window's recording."""
        return np.array(self.decoded.names, dtype=str)[self.recording]

    def targets(self, targets: WindowTargets) -> np.ndarray:
        """Targets of the windows (see `WindowTargets`); unknown in a window that is filled up with mirrored sound."""
        found = targets(self.recording, self.start)
        found[self.end - self.start < self.window] = MASKED
        return found

    @torch.inference_mode()
    def logits(
        self,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        *,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Logits of all windows, as the model's `forward` gives them: float32, shape `(windows, classes)`.

        Args:
            model: The classifier; it is set to evaluation mode, and works on the device that it is on.
            extractor: Its front end.
            batch_size: Windows at a time.
        """
        model.eval()
        scores = [np.zeros((0, model.config.num_labels), dtype=np.float32)]
        for first in range(0, len(self.start), batch_size):
            rows = range(first, min(first + batch_size, len(self.start)))
            waveform = torch.from_numpy(np.stack([self.sound(row) for row in rows])).to(model.device)
            logits = model(extractor.extract(waveform).to(model.dtype)).logits
            scores.append(logits.float().cpu().numpy())
        return np.concatenate(scores)

    def sound(self, row: int) -> np.ndarray:
        """One window: float32 of shape `(samples,)`."""
        index = int(self.recording[row])
        sound = self.decoded.read(index, int(self.start[row]), self.window)
        return sound * np.float32(self.decoded.recordings[index].scale)

    def detections(
        self, scores: np.ndarray, classes: list[str], thresholds: np.ndarray, settings: FindingSettings
    ) -> pd.DataFrame:
        """What `kenya-birds detect` finds with these scores: `recording`, `species`, `start_s`, `end_s`, `score`.

        Args:
            scores: Probabilities of the windows, shape `(windows, classes)`.
            classes: eBird codes by class id.
            thresholds: From what score on each class is reported, shape `(classes,)`.
            settings: How windows become detections.
        """
        found = []
        for index, name in enumerate(self.decoded.names):
            rows = np.flatnonzero(self.recording == index)
            finder = DetectionFinder(name, classes, thresholds, settings, self.decoded.sampling_rate)
            if len(rows):
                found += finder.add(self.start[rows], self.end[rows], scores[rows])
            found += finder.finish()
        rows_ = [(one.recording, one.species, one.start_s, one.end_s, one.score) for one in found]
        return pd.DataFrame(rows_, columns=list(DETECTION_COLUMNS)).astype(
            {"start_s": float, "end_s": float, "score": float}
        )


def truth_of(archive: Archive, decoded: DecodedRecordings, classes: list[str]) -> Truth:
    """What is annotated in some recordings, of the classes of a model.

    Args:
        archive: The archive.
        decoded: The recordings.
        classes: eBird codes; calls of other species do not count.
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
    """Judges the scores of all windows of some recordings.

    Args:
        grid: The windows.
        scores: Calibrated probabilities, shape `(windows, classes)`.
        targets: Of the windows, same shape.
        truth: What is annotated in the recordings, in their order.
        thresholds: From what score on each class is reported, shape `(classes,)`.
        settings: How windows become detections; by default each window is one.
        tolerance_s: See `match_events`.
    """
    rate = grid.decoded.sampling_rate
    least = np.full(len(truth.classes), LEAST_SCORE)
    return RecordingScores(
        grid.detections(scores, truth.classes, thresholds, settings or FindingSettings()),
        grid.detections(scores, truth.classes, least, FindingSettings()),
        WindowScores(grid.recording, scores, targets),
        truth,
        tolerance_s=tolerance_s,
        window_s=grid.window / rate,
    )


def describe(scores: RecordingScores, intervals: Mapping[str, Any]) -> dict[str, Any]:
    """For `metrics.json`: the value and interval of each metric, and what they were computed on.

    Args:
        scores: The judged scores.
        intervals: What `event_intervals` gave for them.
    """
    recordings = scores.per_recording()
    return {
        "recordings": len(recordings),
        "hours": float(recordings["duration_s"].sum() / 3600),
        "calls": int(recordings["calls"].sum()),
        "metrics": dict(intervals),
    }
