"""Metrics of a model on whole recordings: of its detections, and of its scores of all windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kenya_birds.evaluation.event_metrics import FALSE_PER_H, EventScores
from kenya_birds.evaluation.event_windows import Truth
from kenya_birds.evaluation.intervals import weighted_ranking
from kenya_birds.evaluation.metrics import average_precisions

# Metrics over all thresholds: they need detections of low scores too.
OVER_THRESHOLDS = ("best_f1", *(f"recall_at_{number}_false_per_h" for number in FALSE_PER_H))


@dataclass(frozen=True)
class WindowScores:
    """Scores of all windows of some recordings.

    Attributes:
        group: Number of each window's recording, in the order of `Truth.durations_s`, shape `(windows,)`.
        scores: Probabilities, shape `(windows, classes)`.
        targets: 1 present, 0 absent, -100 unknown, same shape (see `WindowTargets`).
    """

    group: np.ndarray
    scores: np.ndarray
    targets: np.ndarray


class RecordingScores(EventScores):
    """A model on whole recordings, with the metrics of `EventScores`.

    Those of the detections are at the model's own thresholds. Those over all thresholds use the detections of every
    window. Average precision and AUROC use the scores of every window; a pair of window and class that is unknown does
    not count.

    Args:
        detections: At the model's thresholds, merged as they will be: `recording`, `species`, `start_s`, `end_s`,
            `score`.
        every: The same of every window, from a low score on and not merged.
        windows: Scores of all windows.
        truth: What is annotated.
        tolerance_s: See `EventScores`.
        window_s: Length of a window, see `EventScores`.
    """

    def __init__(
        self,
        detections: pd.DataFrame,
        every: pd.DataFrame,
        windows: WindowScores,
        truth: Truth,
        *,
        tolerance_s: float = 0.0,
        window_s: float,
    ) -> None:
        super().__init__(detections, truth, tolerance_s=tolerance_s, window_s=window_s)
        self._every = EventScores(every, truth, tolerance_s=tolerance_s, window_s=window_s)
        self.windows = windows
        self._settings = {"tolerance_s": tolerance_s, "window_s": window_s}

    @classmethod
    def pooled(cls, parts: "Sequence[RecordingScores]") -> "RecordingScores":
        """The recordings of several models with the same classes and windows, each recording scored by one model.

        Args:
            parts: What the models scored; no recording is in two of them.
        """
        truths = [part.truth for part in parts]
        first = np.cumsum([0, *(len(truth.durations_s) for truth in truths)])
        windows = WindowScores(
            np.concatenate([part.windows.group + number for part, number in zip(parts, first, strict=False)]),
            np.concatenate([part.windows.scores for part in parts]),
            np.concatenate([part.windows.targets for part in parts]),
        )
        truth = Truth(
            {name: duration_s for truth in truths for name, duration_s in truth.durations_s.items()},
            truths[0].classes,
            pd.concat([truth.calls for truth in truths], ignore_index=True),
            pd.concat([truth.unknown for truth in truths], ignore_index=True),
        )
        detections, every = (
            pd.concat([scores.detections for scores in of], ignore_index=True)
            for of in (parts, [part._every for part in parts])
        )
        return cls(detections, every, windows, truth, **parts[0]._settings)

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `EventScores.weighted`."""
        every = self._every.weighted(weights)
        scored = self.windows
        with np.errstate(invalid="ignore", divide="ignore"):
            ap, auroc = weighted_ranking(scored.scores, scored.targets, scored.group, weights.astype(np.float64))
        return {
            **super().weighted(weights),
            **{name: every[name] for name in OVER_THRESHOLDS},
            "cmap": _mean(ap),
            "auroc": _mean(auroc),
        }

    def per_species(self) -> pd.DataFrame:
        """See `EventScores.per_species`; NaN where no window is known to hold the species."""
        precision = average_precisions(self.windows.scores, self.windows.targets)
        return super().per_species().assign(average_precision=precision)

    def recall_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """False detections an hour and recall, at each score of every window, from the highest on."""
        return self._every.recall_curve()


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over classes of what is not NaN, shape `(resamples,)`; NaN where everything is."""
    number = (~np.isnan(values)).sum(axis=1)
    return np.where(number > 0, np.nansum(values, axis=1) / np.maximum(number, 1), np.nan)
