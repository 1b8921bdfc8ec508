"""Scores of the recordings of an archive that a model was not trained on, for benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from kenya_birds.data.dataset import clips_builder
from kenya_birds.data.splits import read_splits
from kenya_birds.evaluation.intervals import centred_interval, weighted_ranking
from kenya_birds.evaluation.metrics import MASKED, probabilities
from kenya_birds.evaluation.thresholds import choose_window_thresholds
from kenya_birds.evaluation.window_scoring import plan_windows
from kenya_birds.evaluation.window_targets import DEFAULT_EDGE_MARGIN_S
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.settings import clip_settings

METRICS = ("mean average precision", "AUROC", "F1 at the thresholds", "best F1 with one threshold")
# Counts of pairs of window and species: right, reported, present.
RIGHT, REPORTED, PRESENT = range(3)


@dataclass(frozen=True)
class Scored:
    """Windows of the recordings that a model was not trained on.

    Attributes:
        classes: eBird codes by class id.
        scores: Probabilities, shape `(windows, classes)`.
        targets: 1 present, 0 absent, -100 unknown, same shape.
        recording: Index of each window's recording in the sorted names of the archive, shape `(windows,)`.
        split: Split of each window's recording in the model's training, same shape; empty if it had none.
    """

    classes: list[str]
    scores: np.ndarray
    targets: np.ndarray
    recording: np.ndarray
    split: np.ndarray

    def select(self, rows: np.ndarray) -> "Scored":
        """The windows for which `rows` is true."""
        return Scored(self.classes, self.scores[rows], self.targets[rows], self.recording[rows], self.split[rows])

    def chosen_thresholds(self) -> np.ndarray:
        """Thresholds of `choose_window_thresholds`, shape `(classes,)`."""
        chosen = choose_window_thresholds(self.scores, self.targets, self.classes, overlap_s=0)
        return chosen.values(self.classes)


class Together(torch.nn.Module):
    """Several models with the same features, which are computed once; their logits are side by side."""

    def __init__(self, models: Sequence[KenyaBirdsForAudioClassification]) -> None:
        super().__init__()
        self.models = torch.nn.ModuleList(models)
        self.config = SimpleNamespace(num_labels=sum(model.config.num_labels for model in models))
        self.device, self.dtype = models[0].device, models[0].dtype

    def forward(self, features: torch.Tensor) -> SimpleNamespace:
        """The logits of all models, shape `(windows, models * classes)`."""
        return SimpleNamespace(logits=torch.cat([model(features).logits for model in self.models], dim=1))


def score_held_out(
    folder: Path,
    data_dir: Path,
    cache_dir: Path,
    models: Sequence[KenyaBirdsForAudioClassification],
    extractor: KenyaBirdsFeatureExtractor,
) -> list[Scored]:
    """Scores the recordings of an archive that models of one training were not trained on.

    Args:
        folder: The folder of a model of this training.
        data_dir: The archive.
        cache_dir: Folder for decoded recordings.
        models: The models, with the same classes.
        extractor: Their front end.

    Returns:
        The scores of each model.
    """
    splits = read_splits(folder / SPLITS_FILE).set_index("recording")["split"]
    builder = clips_builder(data_dir, one_split="test", cache_dir=cache_dir, **clip_settings(folder))
    every = sorted(builder.archive.headers)
    names = [name for name in every if splits.get(name) != "train" and name not in builder.archive.partial]
    classes = [models[0].config.id2label[label] for label in range(models[0].config.num_labels)]
    grid, annotated = plan_windows(builder, names, classes, extractor, overlap_s=0.0, margin_s=DEFAULT_EDGE_MARGIN_S)
    scores = probabilities(grid.logits(Together(models), extractor), multi_label=True)
    place = np.array([every.index(name) for name in grid.decoded.names])[grid.recording]
    print(f"{folder}: {len(names)} recordings scored", flush=True)
    split = np.array([splits.get(name, "") for name in grid.decoded.names])[grid.recording]
    targets = grid.targets(annotated)
    return [Scored(classes, part, targets, place, split) for part in np.split(scores, len(models), axis=1)]


def counted(windows: Scored, thresholds: np.ndarray) -> np.ndarray:
    """Right, reported and present pairs of each window and class, shape `(windows, classes, 3)`."""
    reported = (windows.scores >= thresholds) & (windows.targets != MASKED)
    present = windows.targets == 1
    return np.stack([reported & present, reported, present], axis=2).astype(float)


def f1_of(sums: np.ndarray) -> np.ndarray:
    """F1 of counts, whose last axis is right, reported and present; NaN where nothing is present."""
    with np.errstate(invalid="ignore"):
        return np.where(
            sums[..., PRESENT] > 0, 2 * sums[..., RIGHT] / (sums[..., REPORTED] + sums[..., PRESENT]), np.nan
        )


def difference(values: np.ndarray) -> str:
    """The first value, with the 95% interval of the others."""
    ends = centred_interval(values[1:], float(values[0]), 0.95, (-1, 1))
    assert ends is not None
    return f"{values[0]:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})"


def print_table(first: str, values: dict[str, np.ndarray], apart: str, differences: np.ndarray) -> None:
    """Prints the metrics of several systems, and their difference with intervals, as Markdown.

    Args:
        first: Title of the first column.
        values: What `measure` returned, by name of the system.
        apart: Name of the difference.
        differences: Of the same shape as the values.
    """
    print(f"| {first} | " + " | ".join(METRICS) + " |")
    print("| --- |" + " --- |" * len(METRICS))
    for name, found in values.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found[0]) + " |")
    print(f"| {apart} | " + " | ".join(difference(column) for column in differences.T) + " |")


def resampled(windows: Scored, resamples: int, seed: int) -> np.ndarray:
    """Weights of an archive's recordings, shape `(1 + resamples, recordings)`; the first row is the sample itself.

    They depend on the seed alone, so that a recording has the same weight in all runs. D. B. Rubin, "The Bayesian
    bootstrap", Annals of Statistics 1981: no weight is 0, so that no resample is without a call.
    """
    recordings = 1 + int(windows.recording.max())
    weights = np.random.default_rng(seed).exponential(size=(recordings, resamples)).T
    return np.concatenate([np.ones((1, recordings)), weights])


def measure(windows: Scored, weights: np.ndarray) -> np.ndarray:
    """The metrics on recordings that were neither trained on nor chose anything, shape `(1 + resamples, metrics)`."""
    chose = windows.select(windows.split == "validation")
    tested = windows.select(windows.split != "validation")
    precisions, areas = weighted_ranking(tested.scores, tested.targets, tested.recording, weights)
    counts = np.zeros((weights.shape[1], len(tested.classes), 3))
    np.add.at(counts, tested.recording, counted(tested, chose.chosen_thresholds()))
    f1 = f1_of(weights @ counts.sum(axis=1))
    return np.stack([np.nanmean(precisions, axis=1), np.nanmean(areas, axis=1), f1, best_f1(tested, weights)], axis=1)


def best_f1(windows: Scored, weights: np.ndarray) -> np.ndarray:
    """The best F1 with one threshold for all species, shape `(1 + resamples,)`."""
    row, label = np.nonzero(windows.targets != MASKED)
    order = np.argsort(-windows.scores[row, label], kind="stable")
    recording = windows.recording[row][order]
    is_present = (windows.targets[row, label] == 1)[order]
    best = []
    for by_recording in weights:
        weight = by_recording[recording]
        right, reported = np.cumsum(weight * is_present), np.cumsum(weight)
        best.append((2 * right / (reported + right[-1])).max())
    return np.array(best)
