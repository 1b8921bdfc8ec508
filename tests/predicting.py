"""Makes predictions without a model."""

import numpy as np

from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.predictions import Predictions


def single_label_case(clips=300, classes=8, recordings=10, seed=0):
    """Probabilities, class ids, and recordings; rarer classes are harder, and each is confused with a neighbour."""
    logits, references, names = single_label_logits(clips, classes, recordings, seed)
    return probabilities(logits, multi_label=False), references, names


def multi_label_case(clips=300, classes=8, recordings=10, seed=0, unknown=0.1):
    """Probabilities, ones, zeros and -100, and recordings; in some clips, what is not present is not known."""
    logits, references, names = multi_label_logits(clips, classes, recordings, seed, unknown)
    return probabilities(logits, multi_label=True), references, names


def single_label_logits(clips=300, classes=8, recordings=10, seed=0, sharpness=1.0):
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, classes + 1)
    references = rng.choice(classes, clips, p=frequency / frequency.sum())
    names = np.array([f"KEN_{index:03}.flac" for index in rng.integers(0, recordings, clips)])
    neighbour = references ^ 1
    logits = rng.normal(size=(clips, classes))
    logits[np.arange(clips), references] += 3.5 - 1.5 * references / classes
    logits[np.arange(clips), np.minimum(neighbour, classes - 1)] += 1.5
    return logits * sharpness, references, names


def multi_label_logits(clips=300, classes=8, recordings=10, seed=0, unknown=0.1, sharpness=1.0):
    rng = np.random.default_rng(seed)
    chance = np.minimum(0.5, 1.5 / np.arange(2, classes + 2))
    references = (rng.random((clips, classes)) < chance).astype(int)
    names = np.array([f"KEN_{index:03}.flac" for index in rng.integers(0, recordings, clips)])
    logits = rng.normal(size=references.shape) + 3 * references - 2
    hidden = rng.random(clips) < unknown
    references[hidden[:, None] & (references == 0)] = -100
    return logits * sharpness, references, names


def predictions_of(multi_label=False, classes=8, **sizes):
    """The same as `Predictions`."""
    case = multi_label_case if multi_label else single_label_case
    scores, references, names = case(classes=classes, **sizes)
    center_s = np.random.default_rng(0).uniform(0, 60, len(names))
    codes = [f"bird{index}" for index in range(classes)]
    return Predictions(codes, scores, references, names, center_s - 1.5, center_s)
