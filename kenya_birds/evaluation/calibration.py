"""Makes scores mean probabilities: a temperature, or a scale and an offset of each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from kenya_birds.evaluation.metrics import class_targets
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig

# Standard deviations of a Gaussian prior, of the logarithm of the scale and of the offset: round the identity for what
# all classes share, round that for each class. A class with few clips stays near what all share.
LOG_SCALE_SD = 0.5
OFFSET_SD = 1.0


@dataclass(frozen=True)
class Calibration:
    """Calibrated logits are `scale * logits + offset`.

    Attributes:
        scale: One number above 0 for all classes (1 / temperature), or a list of one for each.
        offset: A list of one number for each class, or None.
    """

    scale: float | list[float] = 1.0
    offset: list[float] | None = None

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits in float64, shape `(clips, classes)`."""
        calibrated = np.asarray(logits, dtype=np.float64) * self.scale
        return calibrated if self.offset is None else calibrated + self.offset

    def of_classes(self, labels: Sequence[int]) -> "Calibration":
        """That of some of the classes, in the order of their ids in `labels`."""
        scale, offset = (
            [numbers[label] for label in labels] if isinstance(numbers, list) else numbers
            for numbers in (self.scale, self.offset)
        )
        assert scale is not None
        return Calibration(scale, cast(list[float] | None, offset))

    def store(self, config: KenyaBirdsConfig) -> None:
        """Writes it into a model's config, whose `forward` then applies it in evaluation."""
        config.logit_scale, config.logit_offset = self.scale, self.offset

    @classmethod
    def of(cls, config: KenyaBirdsConfig) -> "Calibration":
        """What a model's config holds; the identity where it holds none."""
        return cls(1.0 if config.logit_scale is None else config.logit_scale, config.logit_offset)


def fit_calibration(logits: np.ndarray, references: np.ndarray) -> Calibration:
    """Fits a calibration to validation clips, by the negative log-likelihood (NLL) of their labels.

    Single-label: one temperature (Guo et al. 2017), so that the ranking of a clip's classes stays. Multi-label: a
    scale and an offset for all classes, then for each (Platt 1999), by maximum a posteriori: the prior's penalty is
    zero where the fit starts, so neither step can worsen the NLL of what it is fitted on. A class of which no clip, or
    every clip, is known to hold it keeps what all classes share; where no class tells anything, the calibration is the
    identity.

    Args:
        logits: Not calibrated, shape `(clips, classes)`. Never those of the test split.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
    """
    logits, references = np.asarray(logits, dtype=np.float64), np.asarray(references)
    if len(logits) == 0:
        return Calibration()
    if references.ndim == 1:
        return Calibration(scale=_fit_temperature(logits, references))
    targets = class_targets(references, logits.shape[1])
    tells = ((targets == 1).any(axis=0) & (targets == 0).any(axis=0)).tolist()
    if not any(tells):
        return Calibration()
    known = targets >= 0
    shared = _fit_affine(logits[known], targets[known], np.zeros(2))
    fits = [
        _fit_affine(logits[known[:, label], label], targets[known[:, label], label], shared)
        if tells[label]
        else shared
        for label in range(logits.shape[1])
    ]
    return Calibration(scale=[float(np.exp(fit[0])) for fit in fits], offset=[float(fit[1]) for fit in fits])


def negative_log_likelihood(logits: np.ndarray, references: np.ndarray) -> float:
    """Mean NLL over clips, or over known elements where the references are a matrix; natural logarithm."""
    logits, references = np.asarray(logits, dtype=np.float64), np.asarray(references)
    if references.ndim == 1:
        return float(-log_softmax(logits, axis=1)[np.arange(len(logits)), references].mean())
    known = references >= 0
    return float(_binary_nll(logits[known], references[known]).mean())


def _fit_temperature(logits: np.ndarray, references: np.ndarray) -> float:
    own = np.arange(len(logits)), references

    def loss(log_scale: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = logits * np.exp(log_scale[0])
        log_likelihood = log_softmax(scaled, axis=1)
        slope = (np.exp(log_likelihood) * scaled).sum() - scaled[own].sum()
        penalty = log_scale / LOG_SCALE_SD
        return float(-log_likelihood[own].sum() + (penalty**2).sum() / 2), slope + penalty / LOG_SCALE_SD

    return float(np.exp(_minimize(loss, np.zeros(1))[0]))


def _fit_affine(logits: np.ndarray, targets: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The logarithm of the scale, and the offset."""
    sd = np.array([LOG_SCALE_SD, OFFSET_SD])

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = logits * np.exp(fit[0])
        residual = expit(scaled + fit[1]) - targets
        penalty = (fit - start) / sd
        slope = np.array([residual @ scaled, residual.sum()])
        return float(_binary_nll(scaled + fit[1], targets).sum() + (penalty**2).sum() / 2), slope + penalty / sd

    return _minimize(loss, start)


def _minimize(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray) -> np.ndarray:
    found = minimize(loss, start, jac=True, method="L-BFGS-B")
    # A line search that failed may have left worse than it began with.
    return found.x if loss(found.x)[0] <= loss(start)[0] else start


def _binary_nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - targets * logits
