"""Calibration of scores on validation clips."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from kenya_birds.evaluation.metrics import class_targets, probabilities

if TYPE_CHECKING:
    from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig

FOLDS = 5


def recording_folds(recordings: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides clips into at most five folds, each recording with all its clips in one.

    Args:
        recordings: Name of each clip's recording, shape `(clips,)`.

    Returns:
        For each fold, the indices of the clips to fit on (outside the fold) and to check on (in the fold). Empty if
        there is only one recording.
    """
    names, number_of = np.unique(recordings, return_inverse=True)
    folds = min(FOLDS, len(names))
    if folds < 2:
        return []
    return [
        (np.flatnonzero(number_of % folds != fold), np.flatnonzero(number_of % folds == fold)) for fold in range(folds)
    ]


# Standard deviations of the Gaussian priors of log(scale) and of the offset. The prior of the shared calibration is
# centred at the identity, that of each class at the shared calibration: a class with few clips stays near it.
LOG_SCALE_SD = 0.5
OFFSET_SD = 1.0
# Kinds of calibration.
NONE, TEMPERATURE = "none", "temperature"
SHARED, OWN = "scale and offset", "scale and offset of each class"


@dataclass(frozen=True)
class Calibration:
    """A calibration of logits: `scale * logits + offset`.

    Attributes:
        scale: One number above 0 for all classes (1 / temperature), or a list with one number per class.
        offset: A list with one number per class, or None.
    """

    scale: float | list[float] = 1.0
    offset: list[float] | None = None

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits in float64, shape `(clips, classes)`."""
        calibrated = np.asarray(logits, dtype=np.float64) * self.scale
        return calibrated if self.offset is None else calibrated + self.offset

    def of_classes(self, labels: Sequence[int]) -> "Calibration":
        """The calibration of a subset of the classes, whose ids are `labels`, in this order."""
        scale, offset = (
            [numbers[label] for label in labels] if isinstance(numbers, list) else numbers
            for numbers in (self.scale, self.offset)
        )
        assert scale is not None
        return Calibration(scale, cast(list[float] | None, offset))

    def store(self, config: "KenyaBirdsConfig") -> None:
        """Stores it in a model's config. The model's `forward` then applies it in evaluation mode."""
        config.logit_scale, config.logit_offset = self.scale, self.offset

    @classmethod
    def of(cls, config: "KenyaBirdsConfig") -> "Calibration":
        """The calibration in a model's config; the identity if there is none."""
        return cls(1.0 if config.logit_scale is None else config.logit_scale, config.logit_offset)


@dataclass(frozen=True)
class CalibrationChoice:
    """A chosen calibration and the reason for the choice.

    Attributes:
        calibration: The calibration; the identity if no candidate was better on held-out recordings.
        kind: `none`, `temperature`, `scale and offset` (one for all classes) or `scale and offset of each class`
            (`own_classes` of them have their own).
        own_classes: How many classes have a scale and offset of their own.
        recordings: Number of validation recordings.
        brier_score: Mean squared difference of probabilities and labels on held-out recordings, for each kind that
            was tried; None if there are too few recordings, or no clip has known labels.
        least_recordings: Number of validation recordings from which on a calibration is tried.
    """

    calibration: Calibration
    kind: str
    own_classes: int
    recordings: int
    brier_score: dict[str, float] | None
    least_recordings: int = 2

    def reason(self) -> str:
        """The reason for the choice, in one sentence."""
        if self.brier_score is None:
            if self.recordings == 1:
                why = "there is only one validation recording, so a calibration cannot be checked"
            elif self.recordings < self.least_recordings:
                why = f"this needs {self.least_recordings} validation recordings, and there are {self.recordings}"
            else:
                why = "no validation clip has known species"
            return f"Scores are not calibrated: {why}."
        scores = ", ".join(f"{kind} {value:.4f}" for kind, value in self.brier_score.items())
        chosen = "Scores are not calibrated" if self.kind == NONE else f"Scores are calibrated by {self.kind}"
        return (
            f"{chosen}: this has the lowest Brier score in cross-validation over the {self.recordings} validation "
            f"recordings ({scores})."
        )

    def to_json(self) -> dict[str, Any]:
        """For `metrics.json`."""
        fields = {name: value for name, value in asdict(self).items() if name != "calibration"}
        return {**fields, "reason": self.reason()}


def choose_calibration(
    logits: np.ndarray, references: np.ndarray, recordings: np.ndarray, *, least_recordings: int = 2
) -> CalibrationChoice:
    """Chooses a calibration, or none, by cross-validation over the validation recordings.

    The candidates are fitted on some recordings and compared on the others by the Brier score. The best one is then
    fitted on all recordings. The likelihood is not used for the comparison, because a few confident mistakes dominate
    it. Single-label: a temperature, or none. Multi-label: one scale and offset for all classes, or none; then each
    class that is in two or more recordings gets its own if that is better.

    Args:
        logits: Uncalibrated, shape `(clips, classes)`. Never those of the test split.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        recordings: Name of each clip's recording, shape `(clips,)`.
        least_recordings: With fewer recordings, there is no calibration.
    """
    logits, references = np.asarray(logits, dtype=np.float64), np.asarray(references)
    recordings = np.asarray(recordings)
    number, folds = len(np.unique(recordings)), recording_folds(recordings)
    if number < max(least_recordings, 2):
        return CalibrationChoice(Calibration(), NONE, 0, number, None, least_recordings)
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
    """Fits a calibration to validation clips; minimises the negative log-likelihood (NLL) of their labels.

    Single-label: one temperature (Guo et al. 2017), which keeps the ranking of a clip's classes. Multi-label: a scale
    and an offset for all classes, then for each class (Platt 1999), by maximum a posteriori. The prior's penalty is
    zero at the start of each fit, so no step increases the NLL of its own clips. A class keeps the shared calibration
    if it is in no clip or in every clip; if this is so for all classes, the calibration is the identity.
    `choose_calibration` checks whether a calibration helps on other recordings.

    Args:
        logits: Uncalibrated, shape `(clips, classes)`. Never those of the test split.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
    """
    logits, references = np.asarray(logits, dtype=np.float64), np.asarray(references)
    if len(logits) == 0:
        return Calibration()
    if references.ndim == 1:
        return Calibration(scale=_fit_temperature(logits, references))
    targets = class_targets(references, logits.shape[1])
    informative = _has_both(targets)
    if not informative.any():
        return Calibration()
    known = targets >= 0
    shared = _fit_affine(logits[known], targets[known], np.zeros(2))
    fits = [
        _fit_affine(logits[known[:, label], label], targets[known[:, label], label], shared)
        if informative[label]
        else shared
        for label in range(logits.shape[1])
    ]
    return Calibration(scale=[float(np.exp(fit[0])) for fit in fits], offset=[float(fit[1]) for fit in fits])


def _fit_shared(logits: np.ndarray, references: np.ndarray) -> Calibration:
    """One scale and offset for all classes."""
    targets = class_targets(references, logits.shape[1])
    known = targets >= 0
    if not _has_both(targets).any():
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
    """Logits of each fold, calibrated with a fit on the other folds."""
    calibrated = np.empty_like(logits)
    for rest, held in folds:
        calibrated[held] = fit(logits[rest], references[rest]).apply(logits[held])
    return calibrated


def _has_both(targets: np.ndarray) -> np.ndarray:
    """Whether there are clips with and clips without each class."""
    return np.asarray((targets == 1).any(axis=0) & (targets == 0).any(axis=0))


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
    """Fits log(scale) and offset."""
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
    # A failed line search may end at a worse point than the start.
    return found.x if loss(found.x)[0] <= loss(start)[0] else start


def _binary_nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - targets * logits
