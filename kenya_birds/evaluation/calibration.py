"""Calibration of scores on validation clips."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from kenya_birds.evaluation.metrics import class_targets, probabilities
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig

FOLDS = 5


def recording_folds(recordings: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides clips into at most five folds, each recording with all its clips in one.

    Args:
        recordings: Name of each clip's recording, shape `(clips,)`.

    Returns:
        For each fold the indices of the clips outside it, to fit on, and of its own, to check on. No folds where there
        is one recording only.
    """
    names, number_of = np.unique(recordings, return_inverse=True)
    folds = min(FOLDS, len(names))
    if folds < 2:
        return []
    return [
        (np.flatnonzero(number_of % folds != fold), np.flatnonzero(number_of % folds == fold)) for fold in range(folds)
    ]


# Standard deviations of a Gaussian prior, of the logarithm of the scale and of the offset: round the identity for what
# all classes share, round that for each class. A class with few clips stays near what all share.
LOG_SCALE_SD = 0.5
OFFSET_SD = 1.0
# Kinds of calibration.
NONE, TEMPERATURE = "none", "temperature"
SHARED, OWN = "scale and offset", "scale and offset of each class"


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


@dataclass(frozen=True)
class CalibrationChoice:
    """A calibration, and why it is this one.

    Attributes:
        calibration: The calibration; the identity where none was better on recordings that it was not fitted on.
        kind: `none`, `temperature`, `scale and offset` (one for all classes) or `scale and offset of each class`
            (where `own_classes` have their own).
        own_classes: How many classes have a scale and offset of their own.
        recordings: Number of validation recordings.
        brier_score: Mean squared difference of probabilities and labels on recordings that were not fitted on, by
            kind, as far as each was tried; None where there is one recording only, or nothing is known of any clip.
    """

    calibration: Calibration
    kind: str
    own_classes: int
    recordings: int
    brier_score: dict[str, float] | None

    def reason(self) -> str:
        """Why, in a sentence."""
        if self.brier_score is None:
            why = (
                "a calibration cannot be checked on one validation recording alone"
                if self.recordings == 1
                else "it is not known of any validation clip which species it holds"
            )
            return f"Scores are not calibrated: {why}."
        told = ", ".join(f"{kind} {value:.4f}" for kind, value in self.brier_score.items())
        chosen = "Scores are not calibrated" if self.kind == NONE else f"Scores are calibrated by {self.kind}"
        return (
            f"{chosen}: this has the lowest Brier score in cross-validation over the {self.recordings} validation "
            f"recordings ({told})."
        )

    def to_json(self) -> dict[str, Any]:
        """For `metrics.json`."""
        told = {name: value for name, value in asdict(self).items() if name != "calibration"}
        return {**told, "reason": self.reason()}


def choose_calibration(logits: np.ndarray, references: np.ndarray, recordings: np.ndarray) -> CalibrationChoice:
    """Chooses a calibration by cross-validation over the recordings of validation clips, or none.

    The candidates are fitted on some recordings, and compared on the others by the Brier score; the best one is then
    fitted on all. (The likelihood is not used here, since a few sure mistakes decide it: a calibration that is right
    for these makes all other scores worse.) Single-label: a temperature, or none. Multi-label: one scale and
    offset for all classes, or none; then each class gets its own where that is better for it, and two recordings or
    more hold it.

    Args:
        logits: Not calibrated, shape `(clips, classes)`. Never those of the test split.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        recordings: Name of each clip's recording, shape `(clips,)`.
    """
    logits, references = np.asarray(logits, dtype=np.float64), np.asarray(references)
    recordings = np.asarray(recordings)
    number, folds = len(np.unique(recordings)), recording_folds(recordings)
    if not folds:
        return CalibrationChoice(Calibration(), NONE, 0, number, None)
    if references.ndim == 1:
        calibrated = _held_out(logits, references, folds, fit_calibration)
        targets = class_targets(references, logits.shape[1])
        scores = {
            kind: float(np.square(probabilities(scaled, multi_label=False) - targets).sum(axis=1).mean())
            for kind, scaled in ((NONE, logits), (TEMPERATURE, calibrated))
        }
        if not scores[TEMPERATURE] < scores[NONE]:
            return CalibrationChoice(Calibration(), NONE, 0, number, scores)
        return CalibrationChoice(fit_calibration(logits, references), TEMPERATURE, 0, number, scores)

    targets = class_targets(references, logits.shape[1])
    known = targets >= 0
    if not known.any():
        return CalibrationChoice(Calibration(), NONE, 0, number, None)
    losses = {
        kind: np.where(known, np.square(expit(scaled) - targets), 0)
        for kind, scaled in (
            (NONE, logits),
            (SHARED, _held_out(logits, references, folds, _fit_shared)),
            (OWN, _held_out(logits, references, folds, fit_calibration)),
        )
    }
    base = min((NONE, SHARED), key=lambda kind: losses[kind].sum())
    holding = np.array([len(np.unique(recordings[targets[:, label] == 1])) for label in range(logits.shape[1])])
    is_own = (losses[OWN].sum(axis=0) < losses[base].sum(axis=0)) & (holding > 1)
    kind = OWN if is_own.any() else base
    mixed = np.where(is_own, losses[OWN], losses[base])
    scores = {name: float(losses[name].sum() / known.sum()) for name in (NONE, SHARED)}
    if kind == OWN:
        scores[OWN] = float(mixed.sum() / known.sum())
    if kind == NONE:
        return CalibrationChoice(Calibration(), NONE, 0, number, scores)
    shared = _fit_shared(logits, references) if base == SHARED else Calibration()
    calibration = _of_each_class(shared, fit_calibration(logits, references), is_own)
    return CalibrationChoice(calibration, kind, int(is_own.sum()), number, scores)


def fit_calibration(logits: np.ndarray, references: np.ndarray) -> Calibration:
    """Fits a calibration to validation clips, by the negative log-likelihood (NLL) of their labels.

    Single-label: one temperature (Guo et al. 2017), so that the ranking of a clip's classes stays. Multi-label: a
    scale and an offset for all classes, then for each (Platt 1999), by maximum a posteriori: the prior's penalty is
    zero where the fit starts, so neither step can worsen the NLL of what it is fitted on. A class of which no clip, or
    every clip, is known to hold it keeps what all classes share; where no class tells anything, the calibration is the
    identity. Whether it helps on other recordings is for `choose_calibration` to say.

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
    tells = _tells(targets)
    if not tells.any():
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


def _fit_shared(logits: np.ndarray, references: np.ndarray) -> Calibration:
    """One scale and offset for all classes."""
    targets = class_targets(references, logits.shape[1])
    known = targets >= 0
    if not _tells(targets).any():
        return Calibration()
    log_scale, offset = _fit_affine(logits[known], targets[known], np.zeros(2))
    return Calibration(float(np.exp(log_scale)), [float(offset)] * logits.shape[1])


def _of_each_class(shared: Calibration, own: Calibration, is_own: np.ndarray) -> Calibration:
    """`own` for some classes, `shared` for the others."""
    if not is_own.any():
        return shared
    scale = np.where(is_own, np.asarray(own.scale), np.asarray(shared.scale))
    offset = np.where(is_own, np.asarray(own.offset or 0.0), np.asarray(shared.offset or 0.0))
    return Calibration(scale.tolist(), offset.tolist())


def _held_out(
    logits: np.ndarray,
    references: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    fit: Callable[[np.ndarray, np.ndarray], Calibration],
) -> np.ndarray:
    """Logits of each fold, calibrated by what was fitted on the others."""
    calibrated = np.empty_like(logits)
    for rest, held in folds:
        calibrated[held] = fit(logits[rest], references[rest]).apply(logits[held])
    return calibrated


def _tells(targets: np.ndarray) -> np.ndarray:
    """Whether clips with and without each class are known."""
    return np.asarray((targets == 1).any(axis=0) & (targets == 0).any(axis=0))


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
