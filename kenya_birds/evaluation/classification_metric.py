"""F1 and accuracy of clips, as a metric of the library `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from kenya_birds.evaluation.metrics import class_columns


class ClassificationMetric(evaluate.Metric):
    """Macro F1, weighted F1 and accuracy.

    Macro F1 is the mean of F1 over the classes in the references. A class without clips is skipped, not counted as 0
    or 1. If such a class is predicted, this still lowers the recall of the true class. Accuracy is the share of clips
    whose predictions are all correct.

    Use `config_name="multi_label"` for predictions and references of shape `(clips, classes)` with zeros and ones; the
    default takes class ids.
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
        if multi_label:
            predictions, references = class_columns(predictions), class_columns(references)
        options = {"labels": present, "zero_division": 0.0}
        return {
            "macro_f1": float(f1_score(references, predictions, average="macro", **options)),
            "weighted_f1": float(f1_score(references, predictions, average="weighted", **options)),
            "accuracy": float(accuracy_score(references, predictions)),
            "classes": len(present),
        }
