"""Clip-based metrics: F1, accuracy, average precision, AUROC and calibration error."""

from typing import Any

import numpy as np
from scipy.special import expit, softmax

# Target of an unknown pair of clip and class; `modeling_kenya_birds.py` travels with models and has its own.
MASKED = -100

CALIBRATION_BINS = 15


def classification_metrics(logits: np.ndarray, references: np.ndarray, *, multi_label: bool) -> dict[str, float]:
    """Scores logits with `ClassificationMetric`.

    Args:
        logits: Shape `(clips, classes)`.
        references: Class ids `(clips,)`, or zeros and ones `(clips, classes)` if multi-label. A negative number means
            unknown; such a pair of clip and class is not scored.
        multi_label: Whether every class with a probability above 0.5 is predicted, instead of the most probable one.

    Returns:
        `macro_f1` (over the classes present in the references), `weighted_f1`, `accuracy`, and `classes`, the number
        of classes present.
    """
    # Its library imports torch, which takes seconds.
    from kenya_birds.evaluation.classification_metric import ClassificationMetric

    metric = ClassificationMetric(config_name="multi_label" if multi_label else "default", keep_in_memory=True)
    references = np.asarray(references).astype(int)
    if multi_label:
        # A probability of 0.5 is a logit of 0.
        predictions = ((np.asarray(logits) > 0) & (references >= 0)).astype(int)
        references = references.clip(min=0)
    else:
        predictions = np.argmax(logits, axis=-1)
    return metric.compute(predictions=predictions, references=references)


def probabilities(logits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Softmax over the classes, or the sigmoid of each if multi-label; float64, in the shape of `logits`.

    In float32, many high scores would round to the same number and become ties.

    Args:
        logits: Shape `(clips, classes)`.
        multi_label: Whether a clip may contain several classes.
    """
    logits = np.asarray(logits, dtype=np.float64)
    return expit(logits) if multi_label else softmax(logits, axis=1)


def class_targets(references: np.ndarray, classes: int) -> np.ndarray:
    """References as a matrix of shape `(clips, classes)`: 1 present, 0 absent, -100 unknown.

    Args:
        references: Class ids `(clips,)`, or such a matrix; every negative number becomes -100.
        classes: Number of classes.
    """
    references = np.asarray(references).astype(np.int64)
    if references.ndim == 2:
        return np.where(references < 0, MASKED, references)
    return (references[:, None] == np.arange(classes)).astype(np.int64)


def predicted_classes(scores: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """The predicted classes, as zeros and ones of shape `(clips, classes)`.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        multi_label: Whether every class with a probability above 0.5 is predicted, instead of the most probable one
            (the first one of a tie).
    """
    scores = np.asarray(scores)
    if multi_label:
        return (scores > 0.5).astype(np.int64)
    return class_targets(scores.argmax(axis=1), scores.shape[1])


def compares_nothing(targets: np.ndarray) -> bool:
    """Whether there is one class, and every clip contains it.

    Args:
        targets: See `class_targets`.
    """
    return targets.shape[1] == 1 and not (targets == 0).any()


def class_columns(values: np.ndarray) -> np.ndarray:
    """Zeros and ones of shape `(clips, classes)` as scikit-learn needs them.

    scikit-learn takes a single column for class ids, and would score the class 0. A column of zeros, for a class that
    is never there, prevents this.
    """
    return np.pad(values, ((0, 0), (0, int(values.shape[1] == 1))))


def top_k_hits(scores: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Whether one of the `k` most probable classes is present in each clip; NaN for clips without a known class.

    This is BirdSet's `TopKAccuracy`: one correct class is enough, and clips without a class are not scored. Unknown
    classes of a clip are skipped. Of a tie, the first classes are taken.

    Args:
        scores: Shape `(clips, classes)`.
        targets: See `class_targets`.
        k: Number of classes; all of them if there are fewer.

    Returns:
        Shape `(clips,)`: 1, 0 or NaN.
    """
    ranked = np.argsort(np.where(targets >= 0, -scores, np.inf), axis=1, kind="stable")[:, :k]
    hits = (np.take_along_axis(targets, ranked, axis=1) == 1).any(axis=1)
    return np.where((targets == 1).any(axis=1), hits, np.nan)


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class, shape `(classes,)`; NaN for a class without clips.

    Computed by scikit-learn: the sum of precision times the step in recall over the distinct scores.

    Args:
        scores: Shape `(clips, classes)`.
        targets: See `class_targets`.
    """
    # scikit-learn takes more than a second to import, and detection never needs it.
    from sklearn.metrics import average_precision_score

    return _per_class(average_precision_score, scores, targets, needs_negative=False)


def aurocs(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class, shape `(classes,)`; NaN if all clips, or none, contain the class.

    Computed by scikit-learn: the share of pairs (a clip with the class, a clip without it) that are ranked correctly.
    A tie counts one half.

    Args:
        scores: Shape `(clips, classes)`.
        targets: See `class_targets`.
    """
    from sklearn.metrics import roc_auc_score

    return _per_class(roc_auc_score, scores, targets, needs_negative=True)


def calibration_points(scores: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and outcomes for calibration curves.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        references: Class ids: there is one point per clip, with the highest probability and whether that class is
            correct. Or a matrix: there is one point per known element, with its probability and whether the class is
            present.

    Returns:
        Two vectors of the same length, the second of zeros and ones.
    """
    references = np.asarray(references)
    if references.ndim == 2:
        known = references >= 0
        return scores[known], references[known].astype(np.float64)
    return scores.max(axis=1), (scores.argmax(axis=1) == references).astype(np.float64)


def expected_calibration_error(confidences: np.ndarray, outcomes: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Mean difference between confidence and frequency over bins of equal width, weighted by the number of points.

    Guo et al. (2017), On Calibration of Modern Neural Networks, equation 3. NaN without points.

    Args:
        confidences: Numbers from 0 to 1.
        outcomes: Zeros and ones.
        bins: Number of bins; the first is `[0, 1/bins)`, the last holds 1 as well.
    """
    if len(confidences) == 0:
        return float("nan")
    number = calibration_bin(confidences, bins)
    gap = np.bincount(number, weights=confidences - outcomes, minlength=bins)
    return float(np.abs(gap).sum() / len(confidences))


def calibration_bin(confidences: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """Index of the bin of each confidence.

    Args:
        confidences: Numbers from 0 to 1.
        bins: Number of bins of equal width.
    """
    return np.minimum((confidences * bins).astype(np.int64), bins - 1)


def evaluation_metrics(scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """All metrics of probabilities. The problem type and the number of classes follow from the shapes.

    Macro metrics are means over the classes that can be scored: F1 and average precision need a clip with the class,
    AUROC also a clip without it. BirdSet (Rauch et al. 2025, and `birdset/modules/metrics/multilabel.py` in its
    repository) computes cmAP and macro AUROC with torchmetrics, and T1Accuracy like `top_k_hits`. The numbers are
    equal if every class has a clip. torchmetrics 1.9 includes a class without clips as 0; here it is skipped.

    If there is one class and every clip contains it, only F1 and accuracy are defined: the others would be the same
    for any scores, or compare nothing.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        references: Class ids `(clips,)`, or ones, zeros and -100 (unknown) of shape `(clips, classes)`.

    Returns:
        `macro_f1`, `weighted_f1`, `accuracy` and `classes` (see `classification_metrics`), `top1_accuracy`,
        `top5_accuracy`, `cmap`, `auroc`, `ece`. NaN if undefined.
    """
    references = np.asarray(references)
    multi_label = references.ndim == 2
    targets = class_targets(references, scores.shape[1])
    named = classification_metrics(scores - 0.5 if multi_label else scores, references, multi_label=multi_label)
    if compares_nothing(targets):
        return {**named, **dict.fromkeys(("top1_accuracy", "top5_accuracy", "cmap", "auroc", "ece"), float("nan"))}
    confidences, outcomes = calibration_points(scores, references)
    return {
        **named,
        "top1_accuracy": _mean(top_k_hits(scores, targets, 1)),
        "top5_accuracy": _mean(top_k_hits(scores, targets, 5)),
        "cmap": _mean(average_precisions(scores, targets)),
        "auroc": _mean(aurocs(scores, targets)),
        "ece": expected_calibration_error(confidences, outcomes),
    }


def _per_class(score: Any, scores: np.ndarray, targets: np.ndarray, needs_negative: bool) -> np.ndarray:
    values = np.full(targets.shape[1], np.nan)
    for label in range(targets.shape[1]):
        known = targets[:, label] >= 0
        target = targets[known, label]
        if target.any() and not (needs_negative and target.all()):
            values[label] = score(target, scores[known, label])
    return values


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
