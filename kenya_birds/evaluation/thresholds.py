"""From what probability on a species is reported: thresholds chosen on validation, for each species."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn.metrics import precision_recall_curve

from kenya_birds.errors import UserError
from kenya_birds.evaluation.calibration import recording_folds
from kenya_birds.evaluation.metrics import class_targets

logger = logging.getLogger(__name__)

# A species with so many clips has a threshold halfway between its own and the one of all species.
SHRINKAGE_CLIPS = 10
# Of a species whose own threshold does not stand the check on other recordings.
DEFAULT_THRESHOLD = 0.5
# Fewer right than wrong reports are not wanted.
LEAST_PRECISION = 0.5
# Of probabilities, on both sides: their logits stay finite.
EPSILON = 1e-12


@dataclass(frozen=True)
class Thresholds:
    """A species is reported where its probability is at least its threshold.

    Attributes:
        wanted_precision: What they were chosen for; None: the best F1.
        every_species: The threshold of all species together; None where none reaches the wanted precision.
        species: By eBird code; None: there is no evidence for any, abstain.
        defaults: Why a species has the default of 0.5, by eBird code.
        cross_validation: How good the thresholds are on validation recordings that they were not chosen on: macro F1
            (`macro_f1`), that of 0.5 for all species (`default_macro_f1`), and the number of `recordings`. None where
            this was not checked.
        overlap_s: Overlap of neighbouring windows for which they were chosen; None where they were chosen on clips.
    """

    wanted_precision: float | None
    every_species: float | None
    species: dict[str, float | None]
    defaults: dict[str, str] = field(default_factory=dict)
    cross_validation: dict[str, float] | None = None
    overlap_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON with the attributes' names."""
        return asdict(self)

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

    def reason(self) -> str:
        """How they were chosen, in a sentence."""
        if self.cross_validation is None:
            return "The thresholds were not checked on other recordings."
        told = self.cross_validation
        if told["recordings"] < 2:
            return "The thresholds are the default of 0.5: one validation recording cannot check other thresholds."
        count = f"{len(self.defaults)} of {len(self.species)} species have the default threshold 0.5"
        return (
            f"In cross-validation over the {told['recordings']:g} validation recordings, macro F1 is "
            f"{told['macro_f1']:.3f} at the thresholds, and {told['default_macro_f1']:.3f} at 0.5. "
            + (f"{count}: no other passed this check." if self.defaults else "Each species has its own.")
        )


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
    clips = _Clips.of(scores, references, weights)
    counts = (clips.targets == 1).sum(axis=0)
    if not counts.any():
        raise UserError(
            f"none of the {len(scores)} clips to choose thresholds on is known to hold one of the {len(classes)} "
            "species: give the validation split recordings that do"
        )
    shared, species = _choose(clips, wanted_precision, shrinkage_clips)
    if shared is None:
        logger.warning("No threshold reaches a precision of %g over all species: every one abstains", wanted_precision)
    return Thresholds(wanted_precision, shared, dict(zip(classes, species, strict=True)))


def choose_checked_thresholds(
    scores: np.ndarray,
    references: np.ndarray,
    classes: Sequence[str],
    recordings: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    shrinkage_clips: float = SHRINKAGE_CLIPS,
) -> Thresholds:
    """Chooses thresholds with the best F1 as far as they are better than 0.5 on other recordings.

    For each species there are two candidates beside 0.5: the threshold with the best F1, and the lowest one with a
    precision of one half (see `choose_thresholds`). They are chosen on some validation recordings and tried on the
    others. The one with the best F1 there is taken, if this is not below that of 0.5, at least half of the reports are
    right, and it is not below the share of the clips that hold the species. Otherwise the species has the default of
    0.5. One that no clip is known to hold abstains.

    Args:
        scores: See `choose_thresholds`.
        references: See `choose_thresholds`.
        classes: eBird codes by class id.
        recordings: Name of each clip's recording, shape `(clips,)`.
        weights: See `choose_thresholds`.
        shrinkage_clips: See `choose_thresholds`.

    Raises:
        UserError: If no clip is known to hold any species.
    """
    plain = choose_thresholds(scores, references, classes, weights=weights, shrinkage_clips=shrinkage_clips)
    clips, recordings = _Clips.of(scores, references, weights), np.asarray(recordings)
    aims = (None, LEAST_PRECISION)
    tried = {aim: _Outcome.empty(len(classes)) for aim in aims}
    default = _Outcome.empty(len(classes))
    folds = recording_folds(recordings)
    for rest, held in folds:
        for aim in aims:
            shared, chosen = _choose(clips.select(rest), aim, shrinkage_clips)
            # A species that only the held out recordings hold has the threshold of all.
            cuts = [next((cut for cut in (own, shared) if cut is not None), np.inf) for own in chosen]
            tried[aim].add(clips.select(held), np.array(cuts))
        default.add(clips.select(held), np.full(len(classes), DEFAULT_THRESHOLD))
    final = {aim: _choose(clips, aim, shrinkage_clips)[1] for aim in aims}
    share = clips.share()
    species: dict[str, float | None] = {}
    defaults: dict[str, str] = {}
    reached = []
    for label, code in enumerate(classes):
        if plain.species[code] is None:
            species[code] = None
            continue
        allowed, faults = [], []
        for aim in aims:
            threshold, outcome = final[aim][label], tried[aim]
            fault = _fault(threshold, outcome, default, float(share[label]), label) if folds else "one recording only"
            if fault is None:
                allowed.append((outcome.f1[label], threshold))
            else:
                faults.append(fault)
        f1, species[code] = max(allowed, key=lambda found: found[0], default=(default.f1[label], DEFAULT_THRESHOLD))
        reached.append(f1)
        if not allowed:
            defaults[code] = faults[0]
    every = plain.every_species
    if every is None or not folds or every < clips.share_of_all():
        every = DEFAULT_THRESHOLD
    scored = [label for label, code in enumerate(classes) if plain.species[code] is not None]
    told = {"recordings": float(len(np.unique(recordings)))}
    if folds:
        told |= {"macro_f1": float(np.mean(reached)), "default_macro_f1": float(default.f1[scored].mean())}
    return Thresholds(None, every, species, defaults, told)


@dataclass(frozen=True)
class _Clips:
    """Clips to choose thresholds on, or to try them on.

    Attributes:
        scores: Shape `(clips, classes)`.
        targets: See `class_targets`.
        weight: How many clips each pair of clip and class counts for, same shape.
    """

    scores: np.ndarray
    targets: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, references: np.ndarray, weights: np.ndarray | None) -> "_Clips":
        targets = class_targets(references, scores.shape[1])
        weight = np.ones((len(targets), 1)) if weights is None else np.asarray(weights)[:, None]
        return cls(scores, targets, np.broadcast_to(weight, targets.shape))

    def select(self, rows: np.ndarray) -> "_Clips":
        return _Clips(self.scores[rows], self.targets[rows], self.weight[rows])

    def share(self) -> np.ndarray:
        """Share of the clips that hold each class, of those of which it is known."""
        known = (self.weight * (self.targets >= 0)).sum(axis=0)
        return (self.weight * (self.targets == 1)).sum(axis=0) / np.maximum(known, np.finfo(float).tiny)

    def share_of_all(self) -> float:
        """Share of the known pairs of clip and class in which the clip holds the class."""
        known = self.targets >= 0
        return float(self.weight[self.targets == 1].sum() / self.weight[known].sum())


@dataclass
class _Outcome:
    """What came of thresholds on clips that they were not chosen on, by class."""

    hits: np.ndarray
    reports: np.ndarray
    calls: np.ndarray

    @classmethod
    def empty(cls, classes: int) -> "_Outcome":
        return cls(*(np.zeros(classes) for _ in range(3)))

    def add(self, clips: _Clips, cuts: np.ndarray) -> None:
        reported = (clips.scores >= cuts) & (clips.targets >= 0)
        present = clips.targets == 1
        for total, found in ((self.hits, reported & present), (self.reports, reported), (self.calls, present)):
            total += (clips.weight * found).sum(axis=0)

    @property
    def f1(self) -> np.ndarray:
        return 2 * self.hits / np.maximum(self.reports + self.calls, np.finfo(float).tiny)


def _fault(threshold: float | None, outcome: _Outcome, default: _Outcome, share: float, label: int) -> str | None:
    """Why a threshold is not used; None if it is."""
    if threshold is None:
        return "no threshold has right reports enough"
    if threshold < share:
        return "below the share of clips that hold the species"
    if outcome.hits[label] < LEAST_PRECISION * outcome.reports[label]:
        return "more wrong than right reports on other recordings"
    if outcome.f1[label] < default.f1[label] or outcome.hits[label] == 0:
        return "not better than 0.5 on other recordings"
    return None


def _choose(
    clips: _Clips, wanted_precision: float | None, shrinkage_clips: float
) -> tuple[float | None, list[float | None]]:
    """The threshold of all classes together, and that of each."""
    classes = clips.targets.shape[1]
    known, counts = clips.targets >= 0, (clips.targets == 1).sum(axis=0)
    shared = None
    if counts.any():
        shared = _threshold(clips.scores[known], clips.targets[known], clips.weight[known], wanted_precision)
    if shared is None:
        return None, [None] * classes
    chosen = []
    for label in range(classes):
        its_own, own = known[:, label], None
        if counts[label]:
            scores, targets, weight = (a[its_own, label] for a in (clips.scores, clips.targets, clips.weight))
            own = _threshold(scores, targets, weight, wanted_precision)
        if own is not None:
            part = counts[label] / (counts[label] + shrinkage_clips)
            own = float(expit(part * _logit(own) + (1 - part) * _logit(shared)))
        chosen.append(own)
    return shared, chosen


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
