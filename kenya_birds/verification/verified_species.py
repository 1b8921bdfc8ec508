"""What the answers of a stratified sample say about one species: call density, precision by score, thresholds."""

import math
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
# With more detections at sites or in nights without an answer, there are no thresholds.
MOST_UNKNOWN = 0.1
# In the fit, answers are weighed within so many parts of the scores, each with at least so many answers.
MOST_PARTS, ANSWERS_PER_PART, LEAST_WEIGHT = 5, 10, 0.01


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
class _Joined:
    """Answers about the detections from a score on; strata without answers are joined with others.

    Attributes:
        right: Right answers of each stratum, shape `(strata,)`.
        heard: Answers.
        total: Detections.
        borrowed: Whether the answers are about lower scores.
        bins: Score bin; None if all strata are of one site or night.
        unknown: Detections of sites or nights without any answer.
    """

    right: np.ndarray
    heard: np.ndarray
    total: np.ndarray
    borrowed: np.ndarray
    bins: np.ndarray | None
    unknown: float

    @property
    def everything(self) -> float:
        """Number of all detections from the score on."""
        return float(self.total.sum()) + self.unknown

    def share(self) -> Share:
        """The share of right detections.

        In the interval, none of the unknown ones may be right, or all. With several sites or nights, strata with
        borrowed answers do not enter the estimate, and in the upper limit all of their detections may be right.
        """
        if not self.heard.any():
            return UNKNOWN
        lower = upper = share_of_right(self.right, self.heard, self.total, self.bins, self.borrowed)
        if self.bins is None:
            return lower
        low = lower.low * (float(self.total.sum()) / self.everything)
        own = ~self.borrowed
        if not own.any():
            return Share(lower.estimate, low, 1.0)
        if not own.all():
            upper = share_of_right(self.right[own], self.heard[own], self.total[own], self.bins[own])
        known = float(self.total[own].sum()) / self.everything
        return Share(upper.estimate, min(low, upper.estimate), upper.high * known + (1 - known))


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
        """Logistic fit of the probability on the score; None as in `fit_logistic`.

        Every site or night has the same number of clips. In the fit, answers about similar scores count in proportion
        to the detections that they stand for.
        """
        return fit_logistic(self.scores, self.is_right, self._weights)

    @cached_property
    def unanswered_groups(self) -> tuple[int, int]:
        """Number of sites or nights without a clip that was found right or wrong, and of their detections."""
        _, heard = self._all_answers
        silent = [its for its in self._groups if not heard[its].any()]
        return len(silent), sum(int(self._above[its, 0].sum()) for its in silent)

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
            Number of clips; at most all that were not heard. None without answers, or if sites or nights without
            answers make the interval wider than that.
        """
        its = self._joined(int(np.searchsorted(SCORE_GRID, score, side="right")) - 1)
        left = width * its.everything - its.unknown
        if not its.heard.any() or left <= 0:
            return None
        width_of_known = left / float(its.total.sum())
        more = clips_for_width(its.right, its.heard, its.total, width_of_known, its.bins, its.borrowed)
        return min(math.ceil(more * len(self.strata) / len(its.total)), self.detections - len(self.heard))

    def precision_from(self, cell: int) -> Share:
        """Precision of the detections with a score of at least `SCORE_GRID[cell]`, from the answers in the strata.

        If only a part of a stratum has such scores, the answers about this part count. If it has none, those of the
        whole stratum count; they are rather too low, because lower scores are less often right. With several sites or
        nights they count for the lower limit alone, and for the upper one all of these detections may be right. A site
        or night without any answer widens the interval: none of its detections may be right, or all.

        Args:
            cell: Index in `SCORE_GRID`.

        Returns:
            The share; NaN if there is no such detection, or none of their strata has an answer.
        """
        return self._joined(cell).share()

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
        above it. None if more than a tenth of the detections are at sites or in nights without an answer.

        Args:
            precision: The wanted precision, 0 to 1.
        """
        fitted = self.fitted_precision
        is_known = ~np.isnan(fitted)
        if not is_known.any() or self.unanswered_groups[1] > MOST_UNKNOWN * self.detections:
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
        groups, detections = self.unanswered_groups
        if detections > MOST_UNKNOWN * self.detections:
            return (
                f"{groups} of its sites or nights, with {detections} of its {self.detections} detections, have no "
                "answer right, wrong or other"
            )
        best = max((one.by_fit for one in self.curve if not np.isnan(one.by_fit)), default=float("nan"))
        if np.isnan(best):
            return "the answered detections have no logistic fit: too few answers, or all with the same score"
        reached = np.flatnonzero(np.nan_to_num(self.fitted_precision) >= precision)
        if best >= precision and not any(self._joined(int(cell)).heard.any() for cell in reached):
            return f"no answer is about the scores from which the logistic fit reaches a precision of {precision:g}"
        if best >= precision:
            return f"the answers contradict the logistic fit that reaches a precision of {precision:g}"
        return f"a precision of {precision:g} is not reached at any score; the highest is {best:.2f}"

    @cached_property
    def _groups(self) -> list[np.ndarray]:
        """Masks of the strata of each site or night, each of shape `(strata,)`."""
        groups = np.array([one.group for one in self.strata])
        return [groups == group for group in dict.fromkeys(groups.tolist())]

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

    @cached_property
    def _all_answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of right answers, and of answers, of each stratum, shape `(strata,)`."""
        return self._answers(0)

    @cached_property
    def _weights(self) -> np.ndarray | None:
        """How many answers each answer counts as in the fit; None if all strata are of one site or night."""
        if len(self._groups) < 2 or not len(self.scores):
            return None
        total = np.array([one.detections for one in self.strata], dtype=float)
        stands_for = (total / np.maximum(self._all_answers[1], 1))[self._stratum_of_clip]
        # Score bins are cut for each site, so answers are compared with those about similar scores.
        weights = np.ones(len(stands_for))
        parts = int(np.clip(len(weights) // ANSWERS_PER_PART, 1, MOST_PARTS))
        for rows in np.array_split(np.argsort(self.scores, kind="stable"), parts):
            weights[rows] = stands_for[rows] / stands_for[rows].mean()
        found: np.ndarray = np.maximum(weights, LEAST_WEIGHT)
        return found

    def _joined(self, cell: int) -> _Joined:
        """Answers about the detections from a score on, so that each stratum has some."""
        total = self._above[:, cell]
        right, heard = self._answers(cell)
        right_of_all, heard_of_all = self._all_answers
        groups = [its for group in self._groups if (its := group & (total > 0)).any()]
        bins = np.array([one.score_bin for one in self.strata])
        # A part of a stratum without an answer takes over the answers about the rest of the stratum.
        borrowed = (total > 0) & (heard == 0) & (heard_of_all > 0)
        part = np.minimum(1.0, total / np.maximum(heard_of_all, 1.0))
        right = np.where(borrowed, right_of_all * part, right)
        heard = np.where(borrowed, heard_of_all * part, heard)
        parts = []
        for its in groups:
            *values, known = join_unheard(right[its], heard[its], total[its])
            parts.append((*values, borrowed[its][known], bins[its][known]))
        columns = [np.concatenate(values) for values in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 5
        right, heard, joined_total, is_borrowed, joined_bins = columns
        unknown = float(np.round(total.sum() - joined_total.sum(), 6))
        is_one = len(groups) < 2
        return _Joined(right, heard, joined_total, is_borrowed.astype(bool), None if is_one else joined_bins, unknown)
