"""The report of an evaluation: metrics, tables, predictions and figures."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.evaluation.figures import (
    save_confusions,
    save_f1_by_training,
    save_precision_recall,
    save_reliability,
)
from kenya_birds.evaluation.intervals import LEVEL, RESAMPLES, metric_intervals
from kenya_birds.evaluation.metrics import (
    aurocs,
    average_precisions,
    calibration_points,
    class_columns,
    compares_nothing,
    evaluation_metrics,
    expected_calibration_error,
    predicted_classes,
    probabilities,
)
from kenya_birds.evaluation.predictions import Predictions, write_predictions
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.files import json_number, write_json, write_table
from kenya_birds.saved_models import THRESHOLDS_FILE
from kenya_birds.values import counted

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def species_table(
    predictions: Predictions,
    *,
    common_names: Mapping[str, str] | None = None,
    train_counts: Sequence[int] | None = None,
    thresholds: Thresholds | None = None,
    reported: np.ndarray | None = None,
) -> pd.DataFrame:
    """Results of each species, in the order of the classes.

    Args:
        predictions: The predictions of one split.
        common_names: By eBird code; empty if there is none.
        train_counts: Number of training clips by class id.
        thresholds: Decision thresholds, chosen on validation.
        reported: Whether each species is reported in each clip, shape `(clips, classes)`. Needed if several models
            with different thresholds gave the predictions. By default a species is reported where its score reaches
            its threshold, or for the confusions above 0.5 if there are no thresholds.

    Returns:
        `code`, `common_name`, `n` (clips that contain the species), `n_train`, `precision`, `recall`, `f1` (for the
        most probable class, or for each class above 0.5 if multi-label), `ap`, `auroc`, `threshold`,
        `precision_at_threshold`, `recall_at_threshold`, `f1_at_threshold`, `most_confused_with` (eBird code) and
        `confused_share` (share of `n`): the species that is predicted most often where this one is missed (see
        `Predictions.confusions`). Undefined values are missing: metrics of a species that is in no clip, the precision
        of a species that is never predicted, the threshold of a species that is never reported.
    """
    targets, codes = predictions.targets, predictions.classes
    n = (targets == 1).sum(axis=0)
    precision, recall, f1 = _scores(
        targets, predicted_classes(predictions.scores, multi_label=predictions.multi_label)
    )
    cut = np.full(len(codes), np.inf) if thresholds is None else thresholds.values(codes)
    reported = _reported(predictions, thresholds, reported)
    confusions = predictions.confusions(reported)[:, : len(codes)]
    if reported is None:
        reported = np.zeros_like(predictions.scores, dtype=bool)
    precision_at, recall_at, f1_at = _scores(targets, reported.astype(np.int64))
    never = np.isinf(cut) & ~reported.any(axis=0)
    np.fill_diagonal(confusions, 0)
    most, times = confusions.argmax(axis=1), confusions.max(axis=1)
    return pd.DataFrame(
        {
            "code": codes,
            "common_name": [(common_names or {}).get(code, "") for code in codes],
            "n": n,
            "n_train": pd.array([pd.NA] * len(codes) if train_counts is None else list(train_counts), dtype="Int64"),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "ap": np.nan if compares_nothing(targets) else average_precisions(predictions.scores, targets),
            "auroc": aurocs(predictions.scores, targets),
            "threshold": np.where(np.isinf(cut), np.nan, cut),
            "precision_at_threshold": precision_at,
            "recall_at_threshold": np.where(never, np.nan, recall_at),
            "f1_at_threshold": np.where(never, np.nan, f1_at),
            "most_confused_with": [codes[label] if count else "" for label, count in zip(most, times, strict=True)],
            "confused_share": np.divide(times, n, out=np.full(len(codes), np.nan), where=times > 0),
        }
    )


def _reported(
    predictions: Predictions, thresholds: Thresholds | None, reported: np.ndarray | None
) -> np.ndarray | None:
    """Whether each species is reported in each clip, by default where its score reaches its threshold."""
    if reported is None and thresholds is not None:
        return predictions.scores >= thresholds.values(predictions.classes)
    return reported


def _scores(targets: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class over the known elements, by scikit-learn."""
    precision, recall, f1, support = precision_recall_fscore_support(
        class_columns(targets.clip(min=0)),
        class_columns(predicted * (targets >= 0)),
        labels=np.arange(targets.shape[1]),
        average=None,
        zero_division=np.nan,
    )
    return precision, recall, np.where(support > 0, f1, np.nan)


METRICS_FILE = "metrics.json"
# What metrics.json says of the whole recordings of a split.
WHOLE_RECORDINGS = "whole_recordings"
# Metrics of each archive of a joined one, in those of a split and of whole recordings.
ARCHIVES = "archives"
SPECIES_TABLE_FILE = "per_species.csv"
PREDICTIONS_FILE = "predictions.parquet"
CONFUSION_FILE = "confusion_matrix.png"
PRECISION_RECALL_FILE = "precision_recall.png"
RELIABILITY_FILE = "reliability.png"
F1_FILE = "f1_by_training_clips.png"
F1_AT_THRESHOLDS = "f1_at_threshold", "F1 at the decision thresholds"


@dataclass(frozen=True)
class EvaluationContext:
    """What a report says about its predictions, besides their metrics.

    Attributes:
        common_names: By eBird code; empty if there is none.
        train_counts: Number of training clips by class id; without them `f1_by_training_clips.png` is not drawn.
        split: Name of the split, for `metrics.json` and the figures.
        overlap: How many of its recordings the model was trained on, with a `note` for readers.
        more: Further content of `metrics.json`, by split.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
        archive_of: In a joined archive, the archive of each recording; metrics are then given for each of them too.
    """

    common_names: Mapping[str, str] = field(default_factory=dict)
    train_counts: Sequence[int] | None = None
    split: str = "test"
    overlap: Mapping[str, Any] | None = None
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    resamples: int = RESAMPLES
    archive_of: Mapping[str, str] = field(default_factory=dict)

    def archives(self, recordings: Iterable[str]) -> dict[str, np.ndarray]:
        """Which recordings are of each archive, by its name; empty unless they are of several archives.

        Args:
            recordings: Names; they may repeat.

        Returns:
            Booleans of shape `(recordings,)`.
        """
        origin = np.array([self.archive_of.get(name, "") for name in recordings], dtype=str)
        names = np.unique(origin).tolist()
        return {name: origin == name for name in names} if len(names) > 1 else {}

    def with_more(self, split: str, content: Mapping[str, Any]) -> "EvaluationContext":
        """The same context with further content of `metrics.json` for one split."""
        return replace(self, more={**self.more, split: {**self.more.get(split, {}), **content}})


def write_evaluation(
    folder: str | Path,
    logits: np.ndarray,
    references: np.ndarray,
    clips: "Mapping[str, Sequence[Any]] | Dataset",
    classes: Sequence[str],
    *,
    calibration: Calibration | None = None,
    thresholds: Thresholds | None = None,
    context: EvaluationContext | None = None,
) -> dict[str, Any]:
    """Evaluates a model's logits and writes the report (see `write_report`).

    Args:
        folder: Output folder; created if it does not exist.
        logits: Uncalibrated logits, shape `(clips, classes)`.
        references: Class ids `(clips,)`, or ones, zeros and -100 (not known) of shape `(clips, classes)`.
        clips: Columns `recording` (file name), `start_s` (start of the clip in its recording) and `center_s` (centre
            of its annotation).
        classes: eBird codes by class id.
        calibration: Fitted on validation. All metrics use calibrated scores; the report shows the effect of it.
        thresholds: Decision thresholds, chosen on validation.
        context: Names, counts, and what else the report says.

    Returns:
        See `write_report`.
    """
    references = np.asarray(references).astype(np.int64)
    multi_label = references.ndim == 2
    raw = probabilities(logits, multi_label=multi_label)
    scores = raw if calibration is None else probabilities(calibration.apply(logits), multi_label=multi_label)
    columns = (np.asarray(clips[name][:]) for name in ("recording", "start_s", "center_s"))
    return write_report(
        folder,
        Predictions(list(classes), scores, references, *columns),
        uncalibrated=None if calibration is None else raw,
        thresholds=thresholds,
        context=context,
    )


def write_report(
    folder: str | Path,
    predictions: Predictions,
    *,
    uncalibrated: np.ndarray | None = None,
    thresholds: Thresholds | None = None,
    reported: np.ndarray | None = None,
    context: EvaluationContext | None = None,
) -> dict[str, Any]:
    """Writes the report of predictions, such as those of `read_predictions`. No model is needed.

    It writes `per_species.csv`, `predictions.parquet`, `thresholds.json` (if thresholds are given),
    `confusion_matrix.png`, `precision_recall.png`, `reliability.png`, `f1_by_training_clips.png` (if the context has
    `train_counts`), and last `metrics.json` (the returned dictionary, under the split's name). If there is one
    class and every clip contains it, there are no figures. Existing files are replaced.

    Args:
        folder: Output folder; created if it does not exist.
        predictions: The predictions of one split.
        uncalibrated: Probabilities before calibration, for comparison.
        thresholds: Decision thresholds, chosen on validation.
        reported: See `species_table`.
        context: Names, counts, and what else the report says.

    Returns:
        The metrics of `evaluation_metrics` (None if undefined); `intervals`, their 95% intervals by name
        (`[low, high]` or None); `ece_before_calibration` (None without `uncalibrated`); `clips`; `recordings`;
        `training_overlap`, if the context has an `overlap`; `archives`, the metrics of each archive of a joined one;
        and `not_scored`: the classes that F1 and average precision skip (`no_clip`), and those that AUROC skips
        (`no_auroc`). It can be written as JSON.

    Raises:
        ValueError: If no clip contains a known class.
    """
    folder, context = Path(folder), context or EvaluationContext()
    folder.mkdir(parents=True, exist_ok=True)
    reported = _reported(predictions, thresholds, reported)
    table = species_table(
        predictions,
        common_names=context.common_names,
        train_counts=context.train_counts,
        thresholds=thresholds,
        reported=reported,
    )
    metrics = _metrics(predictions, uncalibrated, context)
    if thresholds is not None:
        write_json(thresholds.to_json(), folder / THRESHOLDS_FILE, allow_nan=False)
    write_table(table, folder / SPECIES_TABLE_FILE, float_format="%.4f")
    write_predictions(predictions, folder / PREDICTIONS_FILE)
    _save_figures(folder, predictions, uncalibrated, table, context, reported)
    # Written last: if it exists, the report is complete.
    write_json(dict(context.with_more(context.split, metrics).more), folder / METRICS_FILE, allow_nan=False)
    return metrics


def _metrics(predictions: Predictions, uncalibrated: np.ndarray | None, context: EvaluationContext) -> dict[str, Any]:
    scores, references = predictions.scores, predictions.references
    recordings = len(np.unique(predictions.recordings))
    if recordings < 2:
        logger.warning("%s has only one recording: no confidence intervals can be computed", context.split)
    intervals = metric_intervals(
        scores,
        references,
        predictions.recordings,
        np.random.default_rng(context.seed),
        resamples=context.resamples,
    )
    metrics = plain_metrics(scores, references)
    before = None
    if uncalibrated is not None and metrics["ece"] is not None:
        before = json_number(expected_calibration_error(*calibration_points(uncalibrated, references)))
    targets, codes = predictions.targets, predictions.classes
    return {
        **metrics,
        "ece_before_calibration": before,
        "clips": len(scores),
        "recordings": recordings,
        "intervals": {
            name: None if interval is None or metrics[name] is None else list(interval)
            for name, interval in intervals.items()
        },
        "interval_level": LEVEL,
        "not_scored": {
            "no_clip": [codes[label] for label in np.flatnonzero(~(targets == 1).any(axis=0))],
            "no_auroc": [codes[label] for label in np.flatnonzero(np.isnan(aurocs(scores, targets)))],
        },
        **({} if context.overlap is None else {"training_overlap": dict(context.overlap)}),
        **_of_archives(predictions, context),
    }


def _of_archives(predictions: Predictions, context: EvaluationContext) -> dict[str, Any]:
    """Metrics of the clips of each archive of a joined one."""
    found: dict[str, dict[str, Any]] = {}
    for name, rows in context.archives(predictions.recordings).items():
        recordings = len(np.unique(predictions.recordings[rows]))
        found[name] = {"clips": int(rows.sum()), "recordings": recordings}
        if (predictions.targets[rows] == 1).any():
            found[name] |= plain_metrics(predictions.scores[rows], predictions.references[rows])
    return {ARCHIVES: found} if found else {}


def _save_figures(
    folder: Path,
    predictions: Predictions,
    uncalibrated: np.ndarray | None,
    table: pd.DataFrame,
    context: EvaluationContext,
    reported: np.ndarray | None,
) -> None:
    scores, references = predictions.scores, predictions.references
    names = [name or code for name, code in zip(table["common_name"], predictions.classes, strict=True)]
    recordings = counted(len(np.unique(predictions.recordings)), "recording", ",")
    about = f"{context.split}: {counted(len(scores), 'clip', ',')} of {recordings}"
    points = {"after calibration" if uncalibrated is not None else "scores": calibration_points(scores, references)}
    if uncalibrated is not None:
        points = {"before calibration": calibration_points(uncalibrated, references), **points}
    for name in (CONFUSION_FILE, PRECISION_RECALL_FILE, RELIABILITY_FILE, F1_FILE):
        (folder / name).unlink(missing_ok=True)  # of an earlier evaluation
    if compares_nothing(predictions.targets):
        return
    reported_if = "its score is above 0.5" if reported is None else "its score reaches its decision threshold"
    save_confusions(predictions.confusions(reported), names, folder / CONFUSION_FILE, about, reported_if)
    save_precision_recall(scores, predictions.targets, names, folder / PRECISION_RECALL_FILE, about)
    save_reliability(points, folder / RELIABILITY_FILE, about)
    if context.train_counts is not None:
        counts = np.asarray(context.train_counts), table["n"].to_numpy()
        column, measure = "f1", "F1"
        if predictions.multi_label:
            # A good model that was trained on recordings may have no score above 0.5.
            has_thresholds = bool(table["f1_at_threshold"].notna().any())
            column, measure = F1_AT_THRESHOLDS if has_thresholds else ("f1", "F1 at a score of 0.5")
        save_f1_by_training(table[column].to_numpy(), *counts, names, folder / F1_FILE, about, measure)


def plain_metrics(scores: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """`evaluation_metrics` for JSON: None if undefined."""
    return {name: json_number(value) for name, value in evaluation_metrics(scores, references).items()}


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """The metrics of `write_report` as text, one per line, with their intervals."""
    clips, recordings = counted(metrics["clips"], "clip"), counted(metrics["recordings"], "recording")
    lines = [f"{clips} of {recordings}, {metrics['classes']} classes in them"]
    if note := metrics.get("training_overlap", {}).get("note"):
        lines.append(note)
    for name, interval in metrics["intervals"].items():
        value = metrics[name]
        shown = "not defined" if value is None else f"{value:.4f}"
        between = "" if interval is None else f"  ({interval[0]:.4f} to {interval[1]:.4f})"
        lines.append(f"{name:<14} {shown}{between}")
    lines += _archive_lines(metrics, ("macro_f1", "cmap", "auroc"))
    return "\n".join(lines)


def format_recordings(whole: Mapping[str, Any]) -> str:
    """The metrics on whole recordings as text, one a line, with their intervals.

    Args:
        whole: `hours`, `calls`, `overlap_s` and `metrics` (see `event_intervals`).
    """
    lines = [
        f"whole recordings: {whole['hours']:.2f} h, {whole['calls']} annotated calls, overlap of windows: "
        f"{whole['overlap_s']:g} s"
    ]
    for name, metric in whole["metrics"].items():
        value, interval = metric["value"], metric["interval"]
        shown = "not defined" if value is None else f"{value:.4f}"
        between = "" if interval is None else f"  ({interval[0]:.4f} to {interval[1]:.4f})"
        lines.append(f"{name:<28} {shown}{between}")
    lines += _archive_lines(whole, ("f1", "precision", "recall", "false_per_h", "cmap"))
    return "\n".join(lines)


def _archive_lines(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A line for each archive of a joined one."""
    lines = []
    for archive, found in metrics.get(ARCHIVES, {}).items():
        values = (f"{name} {found[name]:.4f}" for name in names if found.get(name) is not None)
        lines.append(f"archive {archive}, {found['recordings']} recordings: {', '.join(values)}")
    return lines
