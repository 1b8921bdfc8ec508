"""What the answers of a stratified sample say about one species: call density, precision by score, thresholds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from kenya_birds.evaluation.call_density import (
    LogisticFit,
    Share,
    clips_for_width,
    fit_logistic,
    join_unheard,
    share_of_right,
)
from kenya_birds.verification.strata import SCORE_GRID, Stratum

RIGHT, WRONG, UNSURE, DISAGREED, UNANSWERED = VERDICTS = ("right", "wrong", "unsure", "disagreed", "unanswered")
# Scores at which precision is shown, besides the lowest scores of the bins.
SHOWN_SCORES = (*np.round(np.arange(0.05, 1, 0.05), 2), 0.99)
UNKNOWN = Share(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class PrecisionAt:
    """Precision of the detections with at least some score.

    Attributes:
        score: The score.
        detections: Number of these detections in the table.
        precision: Share of them that is right, from the answers in the strata.
        by_fit: The same from the logistic fit; NaN without a fit.
    """

    score: float
    detections: int
    precision: Share
    by_fit: float


@dataclass(frozen=True)
class VerifiedSpecies:
    """What the answers say about one species, possibly at one site or in one night.

    Attributes:
        species: eBird code.
        group: Site or night; empty: all.
        strata: The strata, from the lowest scores to the highest within each group.
        clips: One row for each clip: `score`, `stratum`, and `verdict`, one of `VERDICTS`.
    """

    species: str
    group: str
    strata: tuple[Stratum, ...]
    clips: pd.DataFrame

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of clips by verdict."""
        return {word: int((self.clips["verdict"] == word).sum()) for word in VERDICTS}

    @cached_property
    def heard(self) -> pd.DataFrame:
        """The clips that were found right or wrong."""
        return self.clips[self.clips["verdict"].isin([RIGHT, WRONG])]

    @cached_property
    def scores(self) -> np.ndarray:
        """Scores of the heard clips, shape `(clips,)`."""
        return self.heard["score"].to_numpy(dtype=float)

    @cached_property
    def is_right(self) -> np.ndarray:
        """Whether each heard clip is right, shape `(clips,)`."""
        return (self.heard["verdict"] == RIGHT).to_numpy()

    @cached_property
    def detections(self) -> int:
        """Number of detections in the table."""
        return sum(one.detections for one in self.strata)

    @cached_property
    def fit(self) -> LogisticFit | None:
        """Logistic fit of the probability on the score; None without two different scores."""
        return fit_logistic(self.scores, self.is_right)

    @cached_property
    def share(self) -> Share:
        """Share of right detections among all in the table: the call density, if each window is a row."""
        return self.precision_from(0)

    def clips_for(self, width: float, score: float = 0.0) -> int | None:
        """Number of further clips until the interval of a precision is at most so wide.

        Clips are drawn in equal numbers from all strata, as `verify sample` does with a larger `per_species`.

        Args:
            width: Wanted width of the interval.
            score: The precision is that of the detections with at least this score; by default that of all, `share`.

        Returns:
            Number of clips; at most all that were not heard. None without answers.
        """
        right, heard, total, bins = self._joined(int(np.searchsorted(SCORE_GRID, score, side="right")) - 1)
        if not heard.any():
            return None
        more = clips_for_width(right, heard, total, width, bins)
        return min(math.ceil(more * len(self.strata) / len(total)), self.detections - len(self.heard))

    def precision_from(self, cell: int) -> Share:
        """Precision of the detections with a score of at least `SCORE_GRID[cell]`, from the answers in the strata.

        If only a part of a stratum has such scores, the answers about this part count. If it has none, those of the
        whole stratum count; they are rather too low, because lower scores are less often right.

        Args:
            cell: Index in `SCORE_GRID`.

        Returns:
            The share; NaN if there is no such detection, or none of their strata has an answer.
        """
        right, heard, total, bins = self._joined(cell)
        return share_of_right(right, heard, total, bins) if heard.any() else UNKNOWN

    @cached_property
    def fitted_precision(self) -> np.ndarray:
        """Precision of the detections with at least each score of `SCORE_GRID`, by the fit; NaN if unknown."""
        if self.fit is None:
            return np.full(len(SCORE_GRID), np.nan)
        middles = np.append((SCORE_GRID[:-1] + SCORE_GRID[1:]) / 2, (SCORE_GRID[-1] + 1) / 2)
        above = self._above.sum(axis=0)
        right = (self._by_score.sum(axis=0) * self.fit.probability(middles))[::-1].cumsum()[::-1]
        return np.divide(right, above, out=np.full(len(above), np.nan), where=above > 0)

    @cached_property
    def curve(self) -> list[PrecisionAt]:
        """Precision at the lowest scores of the bins, and at round scores, ascending."""
        if not len(self.heard):
            return []
        wanted = [*(one.low_score for one in self.strata), *SHOWN_SCORES]
        # The cell that begins at this score, or the next one.
        cells = np.unique(np.searchsorted(SCORE_GRID, np.array(wanted) - 1e-9))
        above = self._above.sum(axis=0)
        return [
            PrecisionAt(
                float(SCORE_GRID[cell]),
                int(above[cell]),
                self.precision_from(cell),
                float(self.fitted_precision[cell]),
            )
            for cell in cells
            if cell < len(SCORE_GRID) and above[cell] > 0
        ]

    def score_of(self, precision: float) -> float | None:
        """The lowest score from which a precision is reached; None if it is not reached.

        The precision is that of the logistic fit, from this score on and from every higher one. The answers must not
        contradict it: the interval from the answers in the strata, without the fit, contains the precision or lies
        above it.

        Args:
            precision: The wanted precision, 0 to 1.
        """
        fitted = self.fitted_precision
        is_known = ~np.isnan(fitted)
        if not is_known.any():
            return None
        is_reached = np.where(is_known, fitted >= precision, True)[::-1].cumprod()[::-1].astype(bool) & is_known
        lowest = min(one.low_score for one in self.strata)
        for cell in np.flatnonzero(is_reached & (SCORE_GRID[lowest >= SCORE_GRID].max() <= SCORE_GRID)):
            if self.precision_from(int(cell)).high >= precision:
                return float(max(SCORE_GRID[cell], lowest))
        return None

    def why_not(self, precision: float) -> str:
        """Why a precision is not reached, in a few words."""
        if not len(self.heard):
            return "no detection was answered right, wrong or other"
        best = max((one.by_fit for one in self.curve if not np.isnan(one.by_fit)), default=float("nan"))
        if np.isnan(best):
            return "all answered detections have the same score"
        if best >= precision:
            return f"the answers contradict the logistic fit that reaches a precision of {precision:g}"
        return f"a precision of {precision:g} is not reached at any score; the highest is {best:.2f}"

    @cached_property
    def _by_score(self) -> np.ndarray:
        """Number of detections of each stratum in each cell, shape `(strata, cells)`."""
        counts = np.zeros((len(self.strata), len(SCORE_GRID)))
        for place, stratum in enumerate(self.strata):
            counts[place, list(stratum.by_score)] = list(stratum.by_score.values())
        return counts

    @cached_property
    def _above(self) -> np.ndarray:
        """Number of detections of each stratum with at least each score, shape `(strata, cells)`."""
        return self._by_score[:, ::-1].cumsum(axis=1)[:, ::-1]

    @cached_property
    def _stratum_of_clip(self) -> np.ndarray:
        """Index of the stratum of each heard clip, shape `(clips,)`."""
        place = {one.name: at for at, one in enumerate(self.strata)}
        return np.array([place[name] for name in self.heard["stratum"]], dtype=int)

    def _answers(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """Number of right answers, and of answers, of each stratum about scores from a cell on, shape `(strata,)`."""
        chosen = self.scores >= SCORE_GRID[cell]
        at = self._stratum_of_clip[chosen]
        number = len(self.strata)
        right = np.bincount(at, weights=self.is_right[chosen].astype(float), minlength=number)
        return right, np.bincount(at, minlength=number).astype(float)

    def _joined(self, cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Right answers, answers and detections of the strata from a score on, joined by `join_unheard`.

        The score bins are the last array; None if all strata are of one site or night.
        """
        total = self._above[:, cell]
        right, heard = self._answers(cell)
        # A part of a stratum without an answer takes over the answers about the rest of the stratum.
        right_of_all, heard_of_all = self._answers(0)
        is_empty = (total > 0) & (heard == 0) & (heard_of_all > 0)
        part = np.minimum(1.0, total / np.maximum(heard_of_all, 1.0))
        right = np.where(is_empty, right_of_all * part, right)
        heard = np.where(is_empty, heard_of_all * part, heard)
        groups = _of_each_group(self.strata, total > 0)
        bins = np.array([one.score_bin for one in self.strata])
        parts = []
        for its in groups:
            *values, known = join_unheard(right[its], heard[its], total[its])
            parts.append((*values, bins[its][known]))
        if not parts:
            return np.zeros(0), np.zeros(0), np.zeros(0), None
        joined = [np.concatenate(values) for values in zip(*parts, strict=True)]
        return joined[0], joined[1], joined[2], joined[3] if len(groups) > 1 else None


def _of_each_group(strata: Sequence[Stratum], inside: np.ndarray) -> list[np.ndarray]:
    """Masks of the strata of each group, of those inside."""
    groups = np.array([one.group for one in strata])
    masks = [(groups == group) & inside for group in dict.fromkeys(groups.tolist())]
    return [mask for mask in masks if mask.any()]
