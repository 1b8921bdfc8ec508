"""Event-based metrics: detections are matched with annotated calls, and the matches are scored."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from kenya_birds.data.planning import least_overlap
from kenya_birds.evaluation.event_windows import ROUNDING_S, EventWindows, Truth
from kenya_birds.evaluation.intervals import LEVEL, RESAMPLES, centred_interval
from kenya_birds.files import json_number


@dataclass(frozen=True)
class Matches:
    """Result of matching detections with calls.

    Attributes:
        is_right: Whether each detection contains a call of its species, shape `(detections,)`.
        new_calls: Number of calls that a detection contains and that no detection with a higher score contains, shape
            `(detections,)`.
        is_ignored: Whether a detection counts neither as right nor as wrong, because it overlaps an unidentified
            bird, shape `(detections,)`.
        is_found: Whether a detection contains each call, shape `(calls,)`.
    """

    is_right: np.ndarray
    new_calls: np.ndarray
    is_ignored: np.ndarray
    is_found: np.ndarray


def match_events(
    detections: pd.DataFrame, calls: pd.DataFrame, unknown: pd.DataFrame, *, tolerance_s: float = 0.0
) -> Matches:
    """Matches detections to calls of the same recording and species.

    A detection is right if it contains a call, and a call is found if a detection contains it. A detection may contain
    several calls, because birds sing in bouts, and several detections may contain one call, because windows overlap.

    Args:
        detections: `recording`, `species`, `start_s`, `end_s` and `score`.
        calls: `recording`, `species`, `start_s` and `end_s`; a call is a point in time where both are equal.
        unknown: `recording`, `start_s` and `end_s` of unidentified birds.
        tolerance_s: A detection also contains a point in time that lies up to this many seconds outside it.
    """
    is_right, is_ignored = (np.zeros(len(detections), dtype=bool) for _ in range(2))
    new_calls = np.zeros(len(detections), dtype=np.int64)
    is_found = np.zeros(len(calls), dtype=bool)
    keys = ["recording", "species"]
    rows_of_calls = calls.reset_index(drop=True).groupby(keys, sort=False).indices
    start_s, end_s = (detections[name].to_numpy(dtype=float) for name in ("start_s", "end_s"))
    call_start_s, call_end_s = (calls[name].to_numpy(dtype=float) for name in ("start_s", "end_s"))
    score = detections["score"].to_numpy(dtype=float)
    for key, rows in detections.reset_index(drop=True).groupby(keys, sort=False).indices.items():
        if key not in rows_of_calls:
            continue
        of_species = np.asarray(rows_of_calls[key])
        begin, end = call_start_s[of_species], call_end_s[of_species]
        numbers = np.asarray(rows)
        for row in numbers[np.argsort(-score[numbers], kind="stable")].tolist():
            held = of_species[_held(start_s[row], end_s[row], begin, end, tolerance_s)]
            is_right[row] = len(held) > 0
            new_calls[row] = (~is_found[held]).sum()
            is_found[held] = True
    rows_of_unknown = unknown.reset_index(drop=True).groupby("recording", sort=False).indices
    unknown_start_s, unknown_end_s = (unknown[name].to_numpy(dtype=float) for name in ("start_s", "end_s"))
    recordings = detections["recording"].to_numpy()
    for row in np.flatnonzero(~is_right):
        there = rows_of_unknown.get(recordings[row])
        if there is not None:
            apart = (unknown_start_s[there] > end_s[row] + tolerance_s) | (
                unknown_end_s[there] < start_s[row] - tolerance_s
            )
            is_ignored[row] = not apart.all()
    return Matches(is_right, new_calls, is_ignored, is_found)


def _held(
    start_s: float, end_s: float, call_start_s: np.ndarray, call_end_s: np.ndarray, tolerance_s: float
) -> np.ndarray:
    """Whether a detection contains each call: the point, or a box that overlaps by half of the shorter of the two."""
    length_s = call_end_s - call_start_s
    overlap_s = np.minimum(end_s, call_end_s) - np.maximum(start_s, call_start_s)
    holds_point = (call_start_s >= start_s - tolerance_s) & (call_start_s <= end_s + tolerance_s)
    is_held = overlap_s >= least_overlap(length_s, end_s - start_s) - ROUNDING_S
    return np.where(length_s > 0, is_held, holds_point)


WINDOW_S = 3.0
# Recall is reported at these numbers of false detections per hour.
FALSE_PER_H = (1, 10)
METRICS = (
    "f1",
    "precision",
    "recall",
    "macro_f1",
    "false_per_h",
    "named_empty_windows",
    "best_f1",
    *(f"recall_at_{number}_false_per_h" for number in FALSE_PER_H),
    "cmap",
    "auroc",
)
# Numbers in an array of a block of resamples, so that memory grows neither with resamples nor much with detections.
BLOCK_NUMBERS = 2_000_000


class EventScores:
    """Detections of one system, matched to the calls of whole recordings.

    Args:
        detections: `recording`, `species`, `start_s`, `end_s`, `score`; recordings and species are those of `truth`.
        truth: The annotations.
        tolerance_s: See `match_events`. Windows whose edge is this near to a call are not scored.
        window_s: Length in seconds of the windows for cmAP, AUROC and the share of empty windows. They are adjacent,
            from the start of each recording; a remainder shorter than a window is not scored.

    Attributes:
        truth: The annotations.
        detections: The detections, with `is_right` and `is_ignored`.
        calls: The calls, with `is_found`.
        matches: How they were matched.
    """

    def __init__(
        self, detections: pd.DataFrame, truth: Truth, *, tolerance_s: float = 0.0, window_s: float = WINDOW_S
    ) -> None:
        self.truth = truth
        detections, calls = detections.reset_index(drop=True), truth.calls.reset_index(drop=True)
        self.matches: Matches = match_events(detections, calls, truth.unknown, tolerance_s=tolerance_s)
        self.detections = detections.assign(is_right=self.matches.is_right, is_ignored=self.matches.is_ignored)
        self.calls = calls.assign(is_found=self.matches.is_found)
        self._windows = EventWindows(detections, truth, window_s, tolerance_s)
        names = {name: number for number, name in enumerate(truth.durations_s)}
        labels = {code: number for number, code in enumerate(truth.classes)}
        self._group, self._call_group = (_numbers(table["recording"], names) for table in (detections, calls))
        self._label, self._call_label = (_numbers(table["species"], labels) for table in (detections, calls))

    def per_species(self) -> pd.DataFrame:
        """`species`, `calls`, `found`, `detections`, `right`, `precision`, `recall`, `f1` and `average_precision`.

        Average precision is over windows; NaN for a species that no window contains.
        """
        ones = np.ones((1, len(self.truth.durations_s)))
        right, reported, found, calls = (sums.sum(axis=0) for sums in self._sums())
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = right / reported, found / calls
            f1 = np.where(calls > 0, _f1(np.where(reported > 0, precision, 0), recall), np.nan)
        return pd.DataFrame(
            {
                "species": self.truth.classes,
                "calls": calls,
                "found": found,
                "detections": reported,
                "right": right,
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "average_precision": self._windows.ranking(ones)[0][0],
            }
        )

    def per_recording(self) -> pd.DataFrame:
        """`recording`, `duration_s`, `calls`, `found`, `detections`, `right` and `false_per_h`."""
        right, reported, found, calls = (sums.sum(axis=1) for sums in self._sums())
        durations_s = np.array(list(self.truth.durations_s.values()))
        return pd.DataFrame(
            {
                "recording": list(self.truth.durations_s),
                "duration_s": durations_s,
                "calls": calls,
                "found": found,
                "detections": reported,
                "right": right,
                "false_per_h": (reported - right) / (durations_s / 3600),
            }
        )

    def recall_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """False detections per hour and recall at each score, highest score first, both of shape `(scores,)`."""
        score = self.detections["score"].to_numpy(dtype=float)
        rows = np.flatnonzero(~self.matches.is_ignored)
        rows = rows[np.argsort(-score[rows], kind="stable")]
        last = np.flatnonzero(np.diff(score[rows], append=np.nan) != 0)
        false, found = (numbers[rows].cumsum()[last] for numbers in (~self.matches.is_right, self.matches.new_calls))
        hours = sum(self.truth.durations_s.values()) / 3600
        return false / hours, found / max(len(self.calls), 1)

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of resamples in which recording `g` occurs `weights[:, g]` times.

        Args:
            weights: Shape `(resamples, recordings)`.

        Returns:
            Shape `(resamples,)` by metric of `METRICS`; NaN where it is undefined.
        """
        weights = weights.astype(np.float64)
        sums = self._sums()
        hours = weights @ (np.array(list(self.truth.durations_s.values())) / 3600)
        right, reported, found, calls = (weights @ each.sum(axis=1) for each in sums)
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            precision, recall = right / reported, found / calls
            # The order in memory decides how the mean over species is rounded.
            of_species = [np.ascontiguousarray(weights @ each) for each in sums]
            species_precision = np.where(of_species[1] > 0, of_species[0] / of_species[1], 0)
            species_f1 = _f1(species_precision, of_species[2] / of_species[3])
            ap, auroc = self._windows.ranking(weights)
            return {
                "f1": _f1(np.where(reported > 0, precision, 0), recall),
                "precision": precision,
                "recall": recall,
                "macro_f1": np.nanmean(np.where(of_species[3] > 0, species_f1, np.nan), axis=1),
                "false_per_h": (reported - right) / hours,
                "named_empty_windows": self._windows.named_empty(weights),
                **self._ranked(weights, calls, hours),
                "cmap": np.nanmean(ap, axis=1),
                "auroc": np.nanmean(auroc, axis=1),
            }

    def _sums(self) -> tuple[sparse.csr_array, ...]:
        """Right and reported detections, found and annotated calls, each of shape `(recordings, classes)`."""
        shape = (len(self.truth.durations_s), len(self.truth.classes))

        def count(group: np.ndarray, label: np.ndarray, rows: np.ndarray) -> sparse.csr_array:
            return sparse.csr_array((np.ones(rows.sum()), (group[rows], label[rows])), shape=shape)

        counted = ~self.matches.is_ignored
        return (
            count(self._group, self._label, self.matches.is_right),
            count(self._group, self._label, counted),
            count(self._call_group, self._call_label, self.matches.is_found),
            count(self._call_group, self._call_label, np.ones(len(self.calls), dtype=bool)),
        )

    def _ranked(self, weights: np.ndarray, calls: np.ndarray, hours: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics over all thresholds, with one threshold for all species."""
        score = self.detections["score"].to_numpy(dtype=float)
        rows = np.flatnonzero(~self.matches.is_ignored)
        rows = rows[np.argsort(-score[rows], kind="stable")]
        group = self._group[rows]
        # A threshold cannot separate detections with equal scores.
        last = np.flatnonzero(np.diff(score[rows], append=np.nan) != 0)
        best = {"best_f1": np.zeros(len(weights))}
        best |= {f"recall_at_{number}_false_per_h": np.zeros(len(weights)) for number in FALSE_PER_H}
        length = max(1, BLOCK_NUMBERS // max(1, len(rows)))
        for begin in range(0, len(weights) if len(rows) else 0, length):
            block = slice(begin, begin + length)
            drawn = weights[block][:, group]
            reported, right, found = (
                (drawn * numbers).cumsum(axis=1)[:, last]
                for numbers in (1, self.matches.is_right[rows], self.matches.new_calls[rows])
            )
            recall = found / calls[block, None]
            f1 = _f1(np.where(reported > 0, right / np.maximum(reported, 1), 0), recall)
            best["best_f1"][block] = f1.max(axis=1)
            false_per_h = (reported - right) / hours[block, None]
            for number in FALSE_PER_H:
                allowed = np.where(false_per_h <= number, recall, 0)
                best[f"recall_at_{number}_false_per_h"][block] = allowed.max(axis=1)
        return {name: np.where(calls > 0, values, np.nan) for name, values in best.items()}


def event_intervals(
    systems: list[EventScores], generator: np.random.Generator, *, resamples: int = RESAMPLES, level: float = LEVEL
) -> list[dict[str, dict[str, float | list[float] | None]]]:
    """Metrics with bootstrap intervals over recordings (see `metric_intervals`), and differences of pairs.

    Args:
        systems: One or two systems on the same recordings.
        generator: Draws the recordings; both systems are scored on the same draws.
        resamples: Number of resamples.
        level: Confidence level, between 0 and 1.

    Returns:
        For each system, `value` and `interval` (None with fewer than two recordings) by metric; with two systems, also
        the first minus the second, by the same names.
    """
    recordings = len(systems[0].per_recording())
    drawn = generator.multinomial(recordings, np.full(recordings, 1 / recordings), size=resamples)
    weights = np.vstack([np.ones(recordings, dtype=int), drawn])
    results = [system.weighted(weights) for system in systems]
    if len(results) == 2:
        results.append({name: results[0][name] - results[1][name] for name in METRICS})
    described = []
    for number, result in enumerate(results):
        bounds = {name: (0.0, np.inf) if name == "false_per_h" else (0.0, 1.0) for name in METRICS}
        if number == 2:
            bounds = dict.fromkeys(METRICS, (-np.inf, np.inf))
        each: dict[str, dict[str, float | list[float] | None]] = {}
        for name, values in result.items():
            interval = None
            if recordings > 1:
                interval = centred_interval(values[1:], values[0].item(), level, bounds[name])
            each[name] = {
                "value": json_number(values[0].item()),
                "interval": None if interval is None else list(interval),
            }
        described.append(each)
    return described


def _numbers(names: pd.Series, numbers: dict[str, int]) -> np.ndarray:
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0 * recall)
