"""From what probability on a species is reported: thresholds chosen on validation, for each species."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn.metrics import precision_recall_curve

from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import class_targets

logger = logging.getLogger(__name__)

# A species with so many clips has a threshold halfway between its own and the one of all species.
SHRINKAGE_CLIPS = 10
# Of probabilities, on both sides: their logits stay finite.
EPSILON = 1e-12


@dataclass(frozen=True)
class Thresholds:
    """A species is reported where its probability is at least its threshold.

    Attributes:
        wanted_precision: What they were chosen for; None: the best F1.
        every_species: The threshold of all species together; None where none reaches the wanted precision.
        species: By eBird code; None: there is no evidence for any, abstain.
    """

    wanted_precision: float | None
    every_species: float | None
    species: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON with the attributes' names."""
        return dict(self.__dict__)

    @classmethod
    def read(cls, path: str | Path) -> "Thresholds":
        """Reads what `to_json` gave.

        Raises:
            UserError: If the file cannot be read or holds something else.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} does not hold thresholds as training leaves them: {error}") from None

    def values(self, classes: Sequence[str]) -> np.ndarray:
        """The thresholds of classes, shape `(classes,)`; infinite where to abstain."""
        chosen = (self.species.get(code) for code in classes)
        return np.array([np.inf if threshold is None else threshold for threshold in chosen])


def choose_thresholds(
    scores: np.ndarray,
    references: np.ndarray,
    classes: Sequence[str],
    *,
    weights: np.ndarray | None = None,
    wanted_precision: float | None = None,
    shrinkage_clips: float = SHRINKAGE_CLIPS,
) -> Thresholds:
    """Chooses thresholds on validation clips.

    Each is the one with the best F1, or the lowest one with the wanted precision, halfway (in logits) to the next
    lower score. That of a species with `n` clips is then moved to the one of all species, found on every known pair of
    clip and species at once: in logits it is their mean, weighted by `n` and `shrinkage_clips`. There is none, and the
    species abstains, where no clip is known to hold it, or no threshold of its own has the wanted precision.

    Args:
        scores: Calibrated probabilities, shape `(clips, classes)`. Never those of the test split.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        classes: eBird codes by class id.
        weights: How many clips each counts for in precision and recall, shape `(clips,)`; by default one.
        wanted_precision: Above 0 and at most 1.
        shrinkage_clips: 0 leaves every species its own.

    Raises:
        UserError: If the wanted precision is out of range, or no clip is known to hold any species.
    """
    if wanted_precision is not None and not 0 < wanted_precision <= 1:
        raise UserError(f"the wanted precision is {wanted_precision}: expected a number above 0 and at most 1")
    targets = class_targets(references, len(classes))
    known = targets >= 0
    weight = np.broadcast_to(np.ones((len(targets), 1)) if weights is None else weights[:, None], targets.shape)
    clips = (targets == 1).sum(axis=0)
    if not clips.any():
        raise UserError(
            f"none of the {len(targets)} clips to choose thresholds on is known to hold one of the {len(classes)} "
            "species: give the validation split recordings that do"
        )
    shared = _threshold(scores[known], targets[known], weight[known], wanted_precision)
    if shared is None:
        logger.warning("No threshold reaches a precision of %g over all species: every one abstains", wanted_precision)
        return Thresholds(wanted_precision, None, dict.fromkeys(classes))
    species: dict[str, float | None] = {}
    for label, code in enumerate(classes):
        its_own = known[:, label]
        own = None
        if clips[label]:
            own = _threshold(scores[its_own, label], targets[its_own, label], weight[its_own, label], wanted_precision)
        if own is not None:
            share = clips[label] / (clips[label] + shrinkage_clips)
            own = float(expit(share * _logit(own) + (1 - share) * _logit(shared)))
        species[code] = own
    return Thresholds(wanted_precision, shared, species)


def _threshold(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, wanted_precision: float | None
) -> float | None:
    precision, recall, cut = precision_recall_curve(targets, scores, sample_weight=weights)
    precision, recall = precision[:-1], recall[:-1]  # the last point has no threshold
    if wanted_precision is None:
        # Of equally good thresholds the highest.
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
        chosen = len(f1) - 1 - int(f1[::-1].argmax())
    else:
        reached = np.flatnonzero((precision >= wanted_precision) & (recall > 0))
        if len(reached) == 0:
            return None
        chosen = int(reached[0])
    if chosen == 0:
        return float(cut[0])
    return float(expit((_logit(cut[chosen]) + _logit(cut[chosen - 1])) / 2))


def _logit(probability: float) -> float:
    return float(logit(np.clip(probability, EPSILON, 1 - EPSILON)))
