"""Classifiers on embeddings of clips: logistic regression and k nearest neighbours."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from kenya_birds.data.audio import decode_wav
from kenya_birds.data.clips_cache import map_clips
from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import class_targets, classification_metrics
from kenya_birds.fingerprints import MODEL, code_fingerprint, library_versions
from kenya_birds.inference.detect import hash_embedder
from kenya_birds.inference.embedding_models import Embedder
from kenya_birds.private_interfaces import dataset_fingerprint
from kenya_birds.training.batches import power_weights, rows_of


def embed_clips(clips: Dataset, embedder: Embedder, batch_size: int) -> np.ndarray:
    """Embeds clips.

    Args:
        clips: Rows of `load_clips` with the embedder's sampling rate and clip length, without context.
        embedder: The embedding model.
        batch_size: Clips per batch.

    Returns:
        float32, shape `(clips, size)`.

    Raises:
        UserError: If the model returns NaN or infinity.
    """

    def embed(table: pa.Table) -> pa.Table:
        audio = table["audio"].combine_chunks().field("bytes").to_pylist()
        embeddings = embedder(np.stack([decode_wav(data) for data in audio]))
        return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(embeddings.reshape(-1), embedder.size)})

    code, versions = code_fingerprint(Embedder.__module__), library_versions(MODEL)
    made_from = (dataset_fingerprint(clips), hash_embedder(embedder.saved), embedder.device.type, code, versions)
    features = Features({"embedding": List(Value("float32"), length=embedder.size)})
    embedded = map_clips(clips, embed, features, batch_size, made_from, "Embedding clips")
    return np.stack(rows_of(embedded, "embedding"))


METHODS = ("linear", "knn")
# Values of scikit-learn's C, strongest regularisation first, and numbers of neighbours, smoothest first.
STRENGTHS = tuple(10.0**power for power in np.arange(-5, 2.5, 0.5))
NEIGHBOURS = (50, 30, 20, 15, 10, 7, 5, 3, 2, 1)
MAX_ITERATIONS = 1000
# A class without training clips gets the lowest logit of the other classes minus this number.
UNSEEN_GAP = 5.0

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Head:
    """A classifier on embeddings.

    Attributes:
        chosen: C of logistic regression, or the number of neighbours.
        validation_macro_f1: Macro F1 on validation.
        predict: Returns logits of shape `(clips, classes)` for embeddings of shape `(clips, size)`.
    """

    chosen: float
    validation_macro_f1: float
    predict: Predict


def fit_head(
    method: str,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    classes: int,
    weight_power: float,
) -> Head:
    """Fits classifiers on training clips, and keeps the one with the best macro F1 on validation.

    Of a tie, the smoothest is kept. `linear` is scikit-learn's logistic regression on standardised embeddings:
    multinomial, or one per class if multi-label. `knn` lets the nearest training clips vote, weighted by cosine
    similarity.

    Args:
        method: `linear` or `knn`.
        train: Embeddings `(clips, size)`, and class ids `(clips,)`, or ones, zeros and -100 of shape
            `(clips, classes)`.
        validation: The same for validation clips.
        classes: Number of classes.
        weight_power: The loss of `linear` weights each class by n^-power, with n its number of clips.

    Raises:
        UserError: If the method does not exist, or all training clips have the same class.
    """
    candidates = {"linear": _linear, "knn": _nearest}
    if method not in candidates:
        raise UserError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
    multi_label = train[1].ndim == 2
    if not multi_label and len(np.unique(train[1])) < 2:
        raise UserError("all clips of the train split have the same species: make another split")
    best: Head | None = None
    for chosen, predict in candidates[method](*train, classes, weight_power):
        score = classification_metrics(predict(validation[0]), validation[1], multi_label=multi_label)["macro_f1"]
        if best is None or score > best.validation_macro_f1:
            best = Head(chosen, score, predict)
    assert best is not None
    return best


def class_counts(references: np.ndarray, classes: int) -> np.ndarray:
    """Number of clips that contain each class, shape `(classes,)`."""
    return (class_targets(references, classes) == 1).sum(axis=0)


def _linear(
    embeddings: np.ndarray, references: np.ndarray, classes: int, weight_power: float
) -> Iterator[tuple[float, Predict]]:
    scaler = StandardScaler().fit(embeddings)
    inputs = scaler.transform(embeddings)
    weights = power_weights(class_counts(references, classes), weight_power)
    fit = _OneVersusRest if references.ndim == 2 else _Multinomial
    path = fit(inputs, references, weights)
    for strength in STRENGTHS:
        yield strength, partial(_linear_logits, scaler, *path.fit(strength), path.complete)


def _linear_logits(
    scaler: StandardScaler, coefficients: np.ndarray, offsets: np.ndarray, complete: Predict, embeddings: np.ndarray
) -> np.ndarray:
    return complete(scaler.transform(embeddings) @ coefficients.T + offsets)


class _Multinomial:
    """Multinomial logistic regression over the classes that have training clips; each fit starts at the last one."""

    def __init__(self, inputs: np.ndarray, references: np.ndarray, weights: np.ndarray) -> None:
        self._inputs, self._references, self._weights = inputs, references, weights[references]
        self._classes = len(weights)
        self._model = _model()

    def fit(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        _fit(self._model.set_params(C=strength), self._inputs, self._references, self._weights)
        coefficients, offsets = self._model.coef_.copy(), self._model.intercept_.copy()
        if len(coefficients) == 1:  # for two classes, scikit-learn returns the second's
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            offsets = np.concatenate([np.zeros_like(offsets), offsets])
        return coefficients, offsets

    def complete(self, logits: np.ndarray) -> np.ndarray:
        complete = np.repeat(logits.min(axis=1, keepdims=True) - UNSEEN_GAP, self._classes, axis=1)
        complete[:, self._model.classes_] = logits
        return complete


class _OneVersusRest:
    """A logistic regression for each class, on the clips in which the class is known to be present or absent."""

    def __init__(self, inputs: np.ndarray, references: np.ndarray, weights: np.ndarray) -> None:
        self._inputs, self._references, self._weights = inputs, references, weights
        self._models = [_model() for _ in weights]

    def fit(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        coefficients = np.zeros((len(self._models), self._inputs.shape[1]))
        offsets = np.zeros(len(self._models))
        for label, model in enumerate(self._models):
            known = self._references[:, label] >= 0
            targets = self._references[known, label]
            if len(np.unique(targets)) < 2:
                offsets[label] = np.log((targets.sum() + 0.5) / (len(targets) - targets.sum() + 0.5))
                continue
            weights = np.full(len(targets), self._weights[label])
            _fit(model.set_params(C=strength), self._inputs[known], targets, weights)
            coefficients[label], offsets[label] = model.coef_[0], model.intercept_[0]
        return coefficients, offsets

    def complete(self, logits: np.ndarray) -> np.ndarray:
        return logits


def _model() -> LogisticRegression:
    return LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS, warm_start=True)


def _fit(model: LogisticRegression, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
    with warnings.catch_warnings():
        # Fits with weak regularisation may not converge; they stay candidates, as early stopping.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, targets, sample_weight=weights)


def _nearest(
    embeddings: np.ndarray, references: np.ndarray, classes: int, _: float
) -> Iterator[tuple[float, Predict]]:
    index = NearestNeighbors(metric="cosine", algorithm="brute").fit(embeddings)
    targets = class_targets(references, classes)
    for number in NEIGHBOURS:
        if number <= len(embeddings):
            yield number, partial(_votes, index, targets, number, references.ndim == 2)


def _votes(
    index: NearestNeighbors, targets: np.ndarray, number: int, multi_label: bool, embeddings: np.ndarray
) -> np.ndarray:
    distances, neighbours = index.kneighbors(embeddings, n_neighbors=number)
    nearness = np.clip(1 - distances, 0, 1)[:, :, None]
    found = targets[neighbours]  # (clips, neighbours, classes)
    votes = (nearness * (found == 1)).sum(axis=1)
    # A small vote for every class, so that no probability is 0.
    if not multi_label:
        return np.log(votes + 1 / targets.shape[1])
    return np.log((votes + 0.5) / ((nearness * (found == 0)).sum(axis=1) + 0.5))
