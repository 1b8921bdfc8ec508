"""One row a species: how well it is recognised, from what, and what it is taken for."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from kenya_birds.evaluation.metrics import aurocs, average_precisions, predicted_classes
from kenya_birds.evaluation.predictions import Predictions
from kenya_birds.evaluation.thresholds import Thresholds


def species_table(
    predictions: Predictions,
    *,
    common_names: Mapping[str, str] | None = None,
    train_counts: Sequence[int] | None = None,
    thresholds: Thresholds | None = None,
    reported: np.ndarray | None = None,
) -> pd.DataFrame:
    """Results by species, in the order of the classes.

    Args:
        predictions: Of one split.
        common_names: By eBird code; empty where there is none.
        train_counts: Training clips by class id.
        thresholds: Chosen on validation.
        reported: Which species is reported in which clip, shape `(clips, classes)`, where not all clips were scored by
            one model with these thresholds; by default where its score reaches its threshold.

    Returns:
        `code`, `common_name`, `n` (clips that hold the species), `n_train`, `precision`, `recall`, `f1` (of the
        likeliest class, or of each above 0.5 where multi-label), `ap`, `auroc`, `threshold`, `precision_at_threshold`,
        `recall_at_threshold`, `most_confused_with` (eBird code) and `confused_share` (share of `n`, see
        `Predictions.confusions`). What is not defined is missing: scores of a species that no clip holds, the
        precision of one that is never predicted, the threshold of one that abstains.
    """
    targets, codes = predictions.targets, predictions.classes
    n = (targets == 1).sum(axis=0)
    precision, recall, f1 = _scores(
        targets, predicted_classes(predictions.scores, multi_label=predictions.multi_label)
    )
    cut = np.full(len(codes), np.inf) if thresholds is None else thresholds.values(codes)
    if reported is None:
        reported = predictions.scores >= cut
    precision_at, recall_at, _ = _scores(targets, reported.astype(np.int64))
    confusions = predictions.confusions()
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
            "ap": average_precisions(predictions.scores, targets),
            "auroc": aurocs(predictions.scores, targets),
            "threshold": np.where(np.isinf(cut), np.nan, cut),
            "precision_at_threshold": precision_at,
            "recall_at_threshold": np.where(np.isinf(cut) & ~reported.any(axis=0), np.nan, recall_at),
            "most_confused_with": [codes[label] if count else "" for label, count in zip(most, times, strict=True)],
            "confused_share": np.divide(times, n, out=np.full(len(codes), np.nan), where=times > 0),
        }
    )


def _scores(targets: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class over the known elements, by scikit-learn."""
    precision, recall, f1, support = precision_recall_fscore_support(
        targets.clip(min=0), predicted * (targets >= 0), average=None, zero_division=np.nan
    )
    return precision, recall, np.where(support > 0, f1, np.nan)
