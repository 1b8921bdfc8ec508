"""Decision thresholds of species, chosen on validation clips."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from kenya_birds.errors import UserError
from kenya_birds.evaluation.calibration import recording_folds
from kenya_birds.evaluation.metrics import class_targets
from kenya_birds.values import Kind, Share

logger = logging.getLogger(__name__)

THRESHOLD = Kind.of(Share | None)
# A species with this many clips gets the mean (in logits) of its own threshold and the shared threshold.
SHRINKAGE_CLIPS = 10
# Threshold of a species whose own threshold fails the check on held-out recordings.
DEFAULT_THRESHOLD = 0.5
# On windows of recordings, a species with this many windows gets the mean (in logits) of its own threshold and the
# shared one, and this many windows with a call give the mean of the best shared threshold and the expected one
# (`benchmarks/threshold_choice.py`).
SHRINKAGE_WINDOWS = 10
SHARED_SHRINKAGE_WINDOWS = 100
# A threshold must give at least as many correct as false reports.
LEAST_PRECISION = 0.5
# Probabilities are clipped to [EPSILON, 1 - EPSILON], so that their logits are finite.
EPSILON = 1e-12


@dataclass(frozen=True)
class Thresholds:
    """Decision thresholds: a species is reported if its probability is at least its threshold.

    Attributes:
        wanted_precision: The precision that they were chosen for; None: they were chosen for the best F1.
        every_species: The shared threshold of all species; None if no threshold reaches the wanted precision.
        species: Threshold by eBird code; None: the species is never reported.
        defaults: The reason why a species has no threshold of its own, by eBird code. It has 0.5, or the shared
            threshold if they were chosen on windows of recordings.
        cross_validation: Check on held-out validation recordings: macro F1 with these thresholds (`macro_f1`), with
            0.5 for all species (`default_macro_f1`), and the number of `recordings`. None if this was not checked.
        overlap_s: Overlap of neighbouring windows for which they were chosen; None if they were chosen on clips.
        merge: Whether detections are merged in the evaluation on whole recordings; None as above.
        by_hand: Whether a person set them, without any recording.
        never_reported: The reason why a species has no threshold, by eBird code, if they come from checked detections.
        verification: The checked detections that they come from: number of `clips`, `model` and `model_sha256`. None
            if they come from validation.
    """

    wanted_precision: float | None
    every_species: float | None
    species: dict[str, float | None]
    defaults: dict[str, str] = field(default_factory=dict)
    cross_validation: dict[str, float] | None = None
    overlap_s: float | None = None
    merge: bool | None = None
    by_hand: bool = False
    never_reported: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON with the attributes' names."""
        return asdict(self)

    @classmethod
    def read(cls, path: str | Path) -> "Thresholds":
        """Reads thresholds from a JSON file with the content of `to_json`.

        Raises:
            UserError: If the file cannot be read or has other content, or a threshold is not a number from 0 to 1.
        """
        try:
            read = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            values = {f"the threshold of {code}": value for code, value in read.species.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a thresholds file of training: {error}") from None
        for name, value in (("every_species", read.every_species), *values.items()):
            THRESHOLD.check(f"{path}: {name}", value)
        return read

    def values(self, classes: Sequence[str]) -> np.ndarray:
        """The thresholds of classes, shape `(classes,)`; infinite for species that are never reported."""
        chosen = (self.species.get(code) for code in classes)
        return np.array([np.inf if threshold is None else threshold for threshold in chosen])

    def reason(self) -> str:
        """How the thresholds were chosen, in one sentence."""
        if self.by_hand:
            return "The thresholds were set by hand, not chosen on recordings."
        if self.verification is not None:
            return (
                f"The thresholds come from {self.verification['clips']} detections that a person checked, for a "
                f"precision of {self.wanted_precision:g}."
            )
        if self.cross_validation is None and self.overlap_s is not None:
            chosen = "The thresholds were chosen on all windows of the validation recordings."
            if not self.defaults:
                return chosen
            return (
                f"{chosen} {len(self.defaults)} of {len(self.species)} species are in none of them "
                "and have the shared threshold."
            )
        if self.cross_validation is None:
            return "The thresholds were not checked on other recordings."
        check = self.cross_validation
        if check["recordings"] < 2:
            return "The thresholds are the default of 0.5: one validation recording cannot check other thresholds."
        count = f"{len(self.defaults)} of {len(self.species)} species have the default threshold 0.5"
        return (
            f"In cross-validation over the {check['recordings']:g} validation recordings, macro F1 is "
            f"{check['macro_f1']:.3f} at the thresholds, and {check['default_macro_f1']:.3f} at 0.5. "
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

    The threshold of a species has the best F1, or is the lowest one with the wanted precision; it lies halfway (in
    logits) to the next lower score. The shared threshold is chosen in the same way on the pairs of clip and species of
    all species. The result is the mean (in logits) of both, weighted by the species' number of clips and
    `shrinkage_clips`. A species has no threshold, and is never reported, if no clip contains it or no threshold of its
    own has the wanted precision.

    Args:
        scores: Calibrated probabilities, shape `(clips, classes)`. Never those of the test split.
        references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        classes: eBird codes by class id.
        weights: Weight of each clip in precision and recall, shape `(clips,)`; by default 1.
        wanted_precision: Above 0 and at most 1.
        shrinkage_clips: Weight of the shared threshold; 0: each species has its own threshold.

    Raises:
        UserError: If the wanted precision is out of range, or no clip contains a known species.
    """
    if wanted_precision is not None and not 0 < wanted_precision <= 1:
        raise UserError(f"the wanted precision is {wanted_precision}: expected a number above 0 and at most 1")
    clips = _Clips.of(scores, references, weights)
    clips.check_calls("validation clips")
    shared, species = _choose(clips, wanted_precision, shrinkage_clips)
    if shared is None:
        logger.warning(
            "No threshold reaches a precision of %g over all species: no species is reported", wanted_precision
        )
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
    """Chooses thresholds with the best F1, and keeps those that are better than 0.5 on held-out recordings.

    Each species has two candidates besides 0.5: the threshold with the best F1, and the lowest one with a precision of
    0.5 (see `choose_thresholds`). They are chosen on some validation recordings and checked on the others. The
    candidate with the best F1 on these is used if its F1 is not below that of 0.5, at least half of its reports are
    correct, and it is not below the share of clips that contain the species. Otherwise the species has the default of
    0.5. A species that is in no clip is never reported.

    Args:
        scores: See `choose_thresholds`.
        references: See `choose_thresholds`.
        classes: eBird codes by class id.
        recordings: Name of each clip's recording, shape `(clips,)`.
        weights: See `choose_thresholds`.
        shrinkage_clips: See `choose_thresholds`.

    Raises:
        UserError: If no clip contains a known species.
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
            # A species that is only in the held-out recordings has the shared threshold.
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
            fault = _fault(threshold, outcome, default, float(share[label]), label) if folds else "only one recording"
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
    check = {"recordings": float(len(np.unique(recordings)))}
    if folds:
        check |= {"macro_f1": float(np.mean(reached)), "default_macro_f1": float(default.f1[scored].mean())}
    return Thresholds(None, every, species, defaults, check)


def choose_window_thresholds(
    scores: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    *,
    overlap_s: float,
    shrinkage: float = SHRINKAGE_WINDOWS,
    shared_shrinkage: float = SHARED_SHRINKAGE_WINDOWS,
) -> Thresholds:
    """Chooses thresholds with the best F1 on all windows of annotated recordings.

    The threshold of a species is the mean (in logits) of its own best one and the shared one, weighted by the number
    of its windows and `shrinkage`. The shared threshold is the mean of the best one over all species and the expected
    one, weighted by the number of windows with a call and `shared_shrinkage`. A species that is in no window has the
    shared threshold. The expected threshold has the best F1 if scores are the probabilities of a call: it needs no
    annotations. It is half of that F1 (Lipton et al. 2014, Optimal thresholding of classifiers to maximize F1 measure,
    ECML PKDD).

    Args:
        scores: Calibrated probabilities, shape `(windows, classes)`. Never those of recordings for the test.
        targets: Ones, zeros and -100 (unknown), same shape.
        classes: eBird codes by class id.
        overlap_s: Overlap of neighbouring windows in seconds.
        shrinkage: Weight of the shared threshold; 0: each species has its own threshold.
        shared_shrinkage: Weight of the expected threshold; 0: the best one over all species is shared.

    Raises:
        UserError: If no window contains a known species.
    """
    windows = _Clips.of(scores, targets, None)
    windows.check_calls("windows of the recordings")
    expected = _expected_threshold(windows.scores[windows.targets >= 0])
    shared, chosen = _choose(windows, None, shrinkage, (expected, shared_shrinkage))
    assert shared is not None  # the best F1 always exists
    species: dict[str, float | None] = {
        code: shared if own is None else own for code, own in zip(classes, chosen, strict=True)
    }
    defaults = {code: "no window contains it" for code, own in zip(classes, chosen, strict=True) if own is None}
    return Thresholds(None, shared, species, defaults, overlap_s=overlap_s, merge=overlap_s > 0)


@dataclass(frozen=True)
class _Clips:
    """Clips on which thresholds are chosen or checked.

    Attributes:
        scores: Shape `(clips, classes)`.
        targets: See `class_targets`.
        weight: Weight of each pair of clip and class, same shape.
    """

    scores: np.ndarray
    targets: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, references: np.ndarray, weights: np.ndarray | None) -> "_Clips":
        targets = class_targets(references, scores.shape[1])
        weight = np.ones((len(targets), 1)) if weights is None else np.asarray(weights)[:, None]
        return cls(scores, targets, np.broadcast_to(weight, targets.shape))

    def check_calls(self, what: str) -> None:
        if not (self.targets == 1).any():
            raise UserError(
                f"none of the {len(self.scores)} {what} contains one of the {self.scores.shape[1]} species, so no "
                "thresholds can be chosen: put recordings with these species into the validation split"
            )

    def select(self, rows: np.ndarray) -> "_Clips":
        return _Clips(self.scores[rows], self.targets[rows], self.weight[rows])

    def share(self) -> np.ndarray:
        """Share of the clips that contain each class, of the clips for which this is known."""
        known = (self.weight * (self.targets >= 0)).sum(axis=0)
        return (self.weight * (self.targets == 1)).sum(axis=0) / np.maximum(known, np.finfo(float).tiny)

    def share_of_all(self) -> float:
        """Share of the known pairs of clip and class in which the clip contains the class."""
        known = self.targets >= 0
        return float(self.weight[self.targets == 1].sum() / self.weight[known].sum())


@dataclass
class _Outcome:
    """Result of thresholds on held-out clips, by class."""

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
        return "no threshold has enough correct reports"
    if threshold < share:
        return "below the share of clips that contain the species"
    if outcome.hits[label] < LEAST_PRECISION * outcome.reports[label]:
        return "more false than correct reports on other recordings"
    if outcome.f1[label] < default.f1[label] or outcome.hits[label] == 0:
        return "not better than 0.5 on other recordings"
    return None


def _choose(
    clips: _Clips,
    wanted_precision: float | None,
    shrinkage_clips: float,
    prior: tuple[float, float] = (DEFAULT_THRESHOLD, 0.0),
) -> tuple[float | None, list[float | None]]:
    """The shared threshold, and that of each class, None if no clip contains it; `prior`: threshold and its weight."""
    classes = clips.targets.shape[1]
    known, counts = clips.targets >= 0, (clips.targets == 1).sum(axis=0)
    shared = None
    if counts.any():
        shared = _threshold(clips.scores[known], clips.targets[known], clips.weight[known], wanted_precision)
    if shared is None:
        return None, [None] * classes
    shared = _between(shared, prior[0], counts.sum(), prior[1])
    chosen = []
    for label in range(classes):
        its_own, own = known[:, label], None
        if counts[label]:
            scores, targets, weight = (a[its_own, label] for a in (clips.scores, clips.targets, clips.weight))
            own = _threshold(scores, targets, weight, wanted_precision)
        chosen.append(None if own is None else _between(own, shared, counts[label], shrinkage_clips))
    return shared, chosen


def _expected_threshold(scores: np.ndarray) -> float:
    """The threshold with the highest expected F1 of independent events with these probabilities."""
    ordered = np.sort(scores)[::-1]
    f1 = 2 * ordered.cumsum() / (np.arange(1, len(ordered) + 1) + ordered.sum())
    return float(f1.max() / 2)


def _between(own: float, prior: float, clips: float, shrinkage_clips: float) -> float:
    """The mean (in logits) of a threshold that was chosen on some clips and a prior one."""
    part = clips / (clips + shrinkage_clips)
    return float(expit(part * _logit(own) + (1 - part) * _logit(prior)))


def _threshold(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, wanted_precision: float | None
) -> float | None:
    # scikit-learn takes more than a second to import, and detection never needs it.
    from sklearn.metrics import precision_recall_curve

    precision, recall, cut = precision_recall_curve(targets, scores, sample_weight=weights)
    precision, recall = precision[:-1], recall[:-1]  # the last point has no threshold
    if wanted_precision is None:
        # The highest of equally good thresholds.
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
