"""Draws of detections that teach a model most: uncertain ones, and ones that differ from each other."""

from collections.abc import Callable, Sequence

import numpy as np

from kenya_birds.errors import UserError
from kenya_birds.verification.strata import Drawn, Stratum, draw

# Candidates of each species (and site or night), and of all together: the windows that are embedded.
CANDIDATES, MOST_CANDIDATES = 200, 20_000
# A calibrated score is a probability: here the answer is least certain, wherever the decision threshold is.
LEAST_CERTAIN = 0.5
INFORMATIVE = ("uncertain", "diverse")

Strata = Sequence[tuple[Stratum, np.ndarray]]
Embed = Callable[[np.ndarray], np.ndarray]


def choose_candidates(
    rows: np.ndarray, scores: np.ndarray, stratum: str, seed: int, most: int, choose: str
) -> np.ndarray:
    """Rows of a stratum that may be drawn, in the order in which they are preferred.

    `uncertain`: those with scores nearest 0.5. For one species, margin, entropy and least confidence give the same
    order (Settles 2009, Active learning literature survey, section 3.1). `diverse`: a random draw.

    Args:
        rows: Rows of the table, ascending, shape `(detections,)`.
        scores: Scores of these rows, same shape.
        stratum: Name of the stratum.
        seed: Seed of the sample; it decides between equal scores.
        most: Largest number of candidates.
        choose: `uncertain` or `diverse`.
    """
    order = draw(np.arange(len(rows)), stratum, seed)
    if choose == "uncertain":
        order = order[np.argsort(np.abs(scores[order] - LEAST_CERTAIN), kind="stable")]
    return rows[order[:most]]


def farthest_first(points: np.ndarray, number: int) -> np.ndarray:
    """Chooses points that cover all points: each next one is farthest from those already chosen.

    This is the greedy solution of the k-center problem (Gonzalez 1985; Sener and Savarese 2018). The first point is
    chosen first. A larger choice begins with a smaller one.

    Args:
        points: Shape `(points, size)`.
        number: Number of points to choose, at most all.

    Returns:
        Indices in the order of the choice, shape `(number,)`.
    """
    chosen = np.zeros(min(number, len(points)), dtype=np.int64)
    distance = np.full(len(points), np.inf)
    for place in range(1, len(chosen)):
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[place - 1]], axis=1))
        distance[chosen[:place]] = -1.0  # equal points are chosen once each
        chosen[place] = int(np.argmax(distance))
    return chosen


def points_of(embeddings: np.ndarray, scores: np.ndarray, choose: str) -> np.ndarray:
    """Points among which `farthest_first` chooses.

    `diverse`: embeddings of length 1, so distance depends on their cosine. `uncertain`: these, times the smaller one
    of score and 1 - score. That is the gradient of the loss for the weights of the species, if the answer is the one
    that the model expects (BADGE: Ash et al. 2020); detections that are almost certain are near each other.

    Args:
        embeddings: Shape `(detections, size)`.
        scores: Scores, shape `(detections,)`.
        choose: `uncertain` or `diverse`.
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit * np.minimum(scores, 1 - scores)[:, np.newaxis] if choose == "uncertain" else unit


def draw_informative(
    strata: Strata, scores: np.ndarray, clips: int, seed: int, choose: str, embed: Embed
) -> list[Drawn]:
    """Draws the clips of all strata, one stratum for each species (and site or night).

    Args:
        strata: Strata with their rows.
        scores: Score of each row of the table.
        clips: Number of clips of each stratum.
        seed: Seed of the sample.
        choose: `uncertain` or `diverse`.
        embed: Returns the embeddings of rows (ascending), of shape `(rows, size)`; NaN where there is none.

    Raises:
        UserError: If more clips are wanted than there are candidates.
    """
    most = max(1, min(CANDIDATES, MOST_CANDIDATES // len(strata)))
    if clips > most and any(len(rows) > most for _, rows in strata):
        raise UserError(
            f"per_species is {clips}: expected at most {most} with --choose {choose}, which compares the embeddings "
            f"of {most} candidates of each of {len(strata)} species (and sites or nights)"
        )
    candidates = [choose_candidates(rows, scores[rows], one.name, seed, most, choose) for one, rows in strata]
    every = np.unique(np.concatenate(candidates))
    embeddings = embed(every)
    drawn = []
    for (stratum, _), rows in zip(strata, candidates, strict=True):
        own = embeddings[np.searchsorted(every, rows)]
        known = np.isfinite(own).all(axis=1)
        points = points_of(own[known], scores[rows[known]], choose)
        drawn.append(Drawn(stratum, rows[known][farthest_first(points, clips)]))
    return drawn
