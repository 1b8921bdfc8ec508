"""Strata of detections: species, site or night, and score bin; the draw of a sample from them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit

from kenya_birds.evaluation.call_density import spread

# Lower edges of the cells in which detections are counted by score: fine near 0 and 1.
SCORE_GRID = np.round(np.concatenate([[0.0], expit(np.arange(-112, 113) / 16)]), 6)
MOST_BINS = 10
CLIPS_PER_BIN = 7


@dataclass(frozen=True)
class Stratum:
    """Detections of a species in one score bin, of one site or night if the sample is drawn by these.

    Attributes:
        name: Name, such as `barswa/3` or `barswa/KEN_001/3`.
        species: eBird code.
        group: Site or night; empty for a sample that is not drawn by them.
        score_bin: Number of the bin, from 0 for the lowest scores.
        low_score: Lowest score that belongs to the bin.
        detections: Number of detections in the table.
        by_score: Number of detections in each cell of `SCORE_GRID` that has any, by the cell's index.
    """

    name: str
    species: str
    group: str
    score_bin: int
    low_score: float
    detections: int
    by_score: dict[int, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {**asdict(self), "by_score": [[cell, count] for cell, count in self.by_score.items()]}

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> "Stratum":
        """Reads the dictionary of `to_json`."""
        return cls(**{**content, "by_score": {int(cell): int(count) for cell, count in content["by_score"]}})


def bin_edges(scores: np.ndarray, clips: int) -> np.ndarray:
    """Chooses score bins on a logarithmic scale of ranks: each bin has half as many detections as the next lower one.

    Half of the detections are in the lowest bin, a quarter in the next one, and so on (Navine et al. 2024). So high
    scores, which are rare and decide about thresholds, get as many clips as low ones. There are at most `MOST_BINS`
    bins, each with at least `CLIPS_PER_BIN` clips, and none with fewer detections than clips.

    Args:
        scores: Scores of the detections, shape `(detections,)`.
        clips: Number of clips to draw from them.

    Returns:
        Lowest score of each bin, ascending, shape `(bins,)`.
    """
    ordered = np.sort(scores)
    sizes = [len(ordered)]
    bins = max(1, min(MOST_BINS, clips // CLIPS_PER_BIN))
    while len(sizes) < bins and sizes[-1] // 2 * bins >= clips:
        top = sizes[-1] // 2
        sizes[-1:] = [sizes[-1] - top, top]
    firsts = np.cumsum([0, *sizes[:-1]])
    return np.unique(ordered[firsts])


def draw(rows: np.ndarray, stratum: str, seed: int) -> np.ndarray:
    """Rows of a stratum in random order; a sample is the first of them, so a larger sample contains a smaller one.

    Args:
        rows: Rows of the table, ascending, shape `(detections,)`.
        stratum: Name of the stratum.
        seed: Seed of the sample.
    """
    digest = hashlib.sha256(stratum.encode("utf-8", "surrogateescape")).digest()
    generator = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    return generator.permutation(rows)


@dataclass(frozen=True)
class Drawn:
    """Drawn detections of a stratum.

    Attributes:
        stratum: The stratum.
        rows: Rows of the table, in the order of the draw.
    """

    stratum: Stratum
    rows: np.ndarray


def make_strata(
    keys: Sequence[tuple[str, str]],
    key_of_row: np.ndarray,
    scores: np.ndarray,
    clips: int,
    *,
    by_score: bool,
    known: Sequence[Stratum] = (),
) -> Iterator[tuple[Stratum, np.ndarray]]:
    """Yields the strata of a table and their rows.

    Args:
        keys: Species and group of each key.
        key_of_row: Index of the key of each detection; -1: not sampled. Shape `(detections,)`.
        scores: Score of each detection, same shape.
        clips: Number of clips of each key.
        by_score: Whether score bins are strata; otherwise each key is one stratum.
        known: Strata of an earlier draw, whose bins are used again.
    """
    edges_of: dict[tuple[str, str], list[float]] = {}
    for old in known:
        edges_of.setdefault((old.species, old.group), []).append(old.low_score)
    order = np.argsort(key_of_row, kind="stable")
    firsts = np.searchsorted(key_of_row[order], np.arange(len(keys) + 1))
    for place, key in enumerate(keys):
        rows = order[firsts[place] : firsts[place + 1]]
        if len(rows) == 0:
            continue
        own = scores[rows]
        if key in edges_of:
            edges = np.array(sorted(edges_of[key]))
        else:
            edges = bin_edges(own, clips) if by_score else np.array([own.min()])
        bins = np.clip(np.searchsorted(edges, own, side="right") - 1, 0, None)
        cells = np.searchsorted(SCORE_GRID, own, side="right") - 1
        for number, edge in enumerate(edges):
            inside = bins == number
            counts = np.bincount(cells[inside], minlength=len(SCORE_GRID))
            stratum = Stratum(
                "/".join(filter(None, (*key, str(number)))),
                *key,
                number,
                float(edge),
                int(inside.sum()),
                {int(cell): int(counts[cell]) for cell in np.flatnonzero(counts)},
            )
            yield stratum, rows[inside]


def draw_clips(strata: Sequence[tuple[Stratum, np.ndarray]], clips: int, seed: int) -> list[Drawn]:
    """Draws the clips of one species and group, in equal numbers from its score bins.

    Args:
        strata: Strata with their rows, from the lowest scores to the highest.
        clips: Number of clips.
        seed: Seed of the sample.
    """
    numbers = spread(clips, np.array([len(rows) for _, rows in strata]))
    return [
        Drawn(stratum, draw(rows, stratum.name, seed)[:number])
        for (stratum, rows), number in zip(strata, numbers, strict=True)
    ]
