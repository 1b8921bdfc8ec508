"""Macro F1 first: the metrics by which models are compared, as an `evaluate.Metric`."""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score


class ClassificationMetric(evaluate.Metric):
    """Macro F1, weighted F1 and accuracy.

    Macro F1 is the mean of F1 over the classes present in the references: a class that no clip has cannot be scored,
    and is left out rather than counted as 0 or 1. A prediction of an absent class still counts against the class that
    it should have been. Accuracy is the share of clips whose predictions are all right.

    Use `config_name="multi_label"` for predictions and references of shape `(clips, classes)` holding zeros and ones;
    the default takes class ids.
    """

    def _info(self) -> evaluate.MetricInfo:
        label: Any = datasets.Value("int64")
        if self.config_name == "multi_label":
            label = datasets.Sequence(label)
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions and references: class ids, or zeros and ones of shape (clips, classes)",
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        multi_label = references.ndim == 2
        present = np.flatnonzero(references.any(axis=0)) if multi_label else np.unique(references)
        if len(present) == 0:
            raise ValueError("the references hold no class: F1 is not defined")
        options = {"labels": present, "zero_division": 0.0}
        return {
            "macro_f1": float(f1_score(references, predictions, average="macro", **options)),
            "weighted_f1": float(f1_score(references, predictions, average="weighted", **options)),
            "accuracy": float(accuracy_score(references, predictions)),
            "classes": len(present),
        }


def classification_metrics(logits: np.ndarray, references: np.ndarray, *, multi_label: bool) -> dict[str, float]:
    """Scores logits with `ClassificationMetric`.

    Args:
        logits: Shape `(clips, classes)`.
        references: Class ids `(clips,)`, or zeros and ones `(clips, classes)` where multi-label; negative where it is
            not known which: such a pair of clip and class counts neither for nor against.
        multi_label: Whether every class whose probability is above 0.5 is predicted, rather than the likeliest.

    Returns:
        `macro_f1` (over the classes present in the references), `weighted_f1`, `accuracy`, and `classes`, the number
        of classes present.
    """
    metric = ClassificationMetric(config_name="multi_label" if multi_label else "default", keep_in_memory=True)
    references = np.asarray(references).astype(int)
    if multi_label:
        # A probability of 0.5 is a logit of 0.
        predictions = ((np.asarray(logits) > 0) & (references >= 0)).astype(int)
        references = references.clip(min=0)
    else:
        predictions = np.argmax(logits, axis=-1)
    return metric.compute(predictions=predictions, references=references)
