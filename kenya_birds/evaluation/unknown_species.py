"""How well distance from the training calls separates calls of unknown species from those of known ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from kenya_birds.evaluation.novelty import RANK, NoveltyReference

# With fewer windows, an AUROC says nothing.
LEAST_WINDOWS = 5


@dataclass(frozen=True)
class CallEmbeddings:
    """Embeddings of clips or windows with a call, and which species call in them.

    Attributes:
        vectors: Shape `(calls, size)`.
        targets: 1 present, 0 absent, -100 unknown, shape `(calls, species)`.
        others: Whether a species calls that is not one of these, shape `(calls,)`.
    """

    vectors: np.ndarray
    targets: np.ndarray
    others: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Whether each species calls, shape `(calls, species)`."""
        return self.targets == 1


@dataclass(frozen=True)
class Separation:
    """How well distance separates windows with unknown calls from windows with known ones.

    Attributes:
        auroc: Chance that an unknown call is farther from the training calls than a known one.
        calls: Number of windows with an unknown call.
    """

    auroc: float
    calls: int


def leave_one_species_out(
    windows: CallEmbeddings,
    calls: CallEmbeddings,
    classes: Sequence[str],
    *,
    rank: int = RANK,
    least: int = LEAST_WINDOWS,
) -> dict[str, Separation]:
    """For each species, leaves out its training calls, and separates its windows from others by their distance.

    Unknown are windows in which the species calls alone. Known are windows in which others call, and it does not.

    Args:
        windows: Windows of recordings that the model was not trained on.
        calls: Training calls.
        classes: eBird codes by class id.
        rank: See `NoveltyReference`.
        least: Species with fewer unknown or known windows are skipped.

    Returns:
        By eBird code, in the order of `classes`.
    """
    present, of_species = windows.present, calls.present
    number = present.sum(axis=1)
    cases = {}
    for label in range(len(classes)):
        others = number > present[:, label]
        unknown, known = present[:, label] & ~others, (windows.targets[:, label] == 0) & others
        if _are_enough(unknown, known, least) and (~of_species[:, label]).sum() >= rank:
            cases[label] = unknown, known
    if not cases:
        return {}
    # Distances to all calls are measured once, and not again for each species.
    nearest = NoveltyReference.of(calls.vectors, None, rank).nearest()
    distances = nearest.without(windows.vectors, of_species[:, list(cases)])
    return {classes[label]: _separation(distances[:, at], *cases[label]) for at, label in enumerate(cases)}


def separate_unlearned(
    windows: CallEmbeddings, calls: CallEmbeddings, *, rank: int = RANK, least: int = LEAST_WINDOWS
) -> Separation | None:
    """Separates windows in which only species call that the model did not learn from windows with calls that it did.

    Args:
        windows: Windows of recordings that the model was not trained on.
        calls: Training calls.
        rank: See `NoveltyReference`.
        least: With fewer windows of either kind the result is None.
    """
    unknown = windows.others & (windows.targets == 0).all(axis=1)
    known = windows.present.any(axis=1) & ~windows.others
    if not _are_enough(unknown, known, least) or len(calls.vectors) < rank:
        return None
    return _separation(NoveltyReference.of(calls.vectors, None, rank).nearest()(windows.vectors), unknown, known)


def _are_enough(unknown: np.ndarray, known: np.ndarray, least: int) -> bool:
    return bool(min(unknown.sum(), known.sum()) >= least)


def _separation(distances: np.ndarray, unknown: np.ndarray, known: np.ndarray) -> Separation:
    rows = np.flatnonzero(unknown | known)
    return Separation(float(roc_auc_score(unknown[rows], distances[rows])), int(unknown.sum()))


# What metrics.json says about unknown species, and the keys in it.
UNKNOWN_SPECIES = "unknown_species"
LEFT_OUT, UNLEARNED = "left_out", "unlearned"


def unknown_species_figures(left_out: Mapping[str, Separation], unlearned: Separation | None) -> dict[str, Any]:
    """What metrics.json says about unknown species.

    Args:
        left_out: Result of `leave_one_species_out`.
        unlearned: Result of `separate_unlearned`.

    Returns:
        `auroc`, the mean over the species of `left_out` (None if there are none); `species` and `calls`, their number
        and that of their windows; `left_out` and `unlearned` with `auroc` and `calls`. Numbers have four digits.
    """
    return {
        "auroc": round(float(np.mean([one.auroc for one in left_out.values()])), 4) if left_out else None,
        "species": len(left_out),
        "calls": sum(one.calls for one in left_out.values()),
        LEFT_OUT: {code: _figures(one) for code, one in left_out.items()},
        UNLEARNED: None if unlearned is None else _figures(unlearned),
    }


def format_unknown(figures: Mapping[str, Any]) -> str:
    """The result of `unknown_species_figures` as a line of text."""
    if figures["auroc"] is None:
        left_out = "no species has enough calls"
    else:
        left_out = (
            f"mean AUROC {figures['auroc']:.4f} of {figures['species']} species left out of the training calls "
            f"({figures['calls']} windows; the network has learned them)"
        )
    unlearned = figures[UNLEARNED]
    if unlearned is None:
        return left_out
    return f"{left_out}; {unlearned['auroc']:.4f} of species that were not learned ({unlearned['calls']} windows)"


def pooled_figures(folds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several models: for each species, the mean over the models, weighted by the windows of its calls.

    Args:
        folds: `unknown_species_figures` of each model.
    """
    parts: dict[str, list[Separation]] = {}
    unlearned: list[Separation] = []
    for fold in folds:
        for code, one in fold[LEFT_OUT].items():
            parts.setdefault(code, []).append(Separation(**one))
        if fold[UNLEARNED] is not None:
            unlearned.append(Separation(**fold[UNLEARNED]))
    left_out = {code: _pooled(parts[code]) for code in sorted(parts)}
    return unknown_species_figures(left_out, _pooled(unlearned) if unlearned else None)


def _pooled(parts: Sequence[Separation]) -> Separation:
    calls = [one.calls for one in parts]
    return Separation(float(np.average([one.auroc for one in parts], weights=calls)), sum(calls))


def _figures(one: Separation) -> dict[str, Any]:
    return {"auroc": round(one.auroc, 4), "calls": one.calls}
