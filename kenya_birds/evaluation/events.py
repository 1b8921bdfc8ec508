"""Matches detections to the annotated calls of whole recordings."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

# A detection holds a box if this share of the shorter of the two lies in both.
MIN_OVERLAP = 0.5


@dataclass(frozen=True)
class Matches:
    """What became of each detection and each call.

    Attributes:
        is_right: Whether each detection holds a call of its species, shape `(detections,)`. A call that is one point
            in time makes one detection right; a call with a start and an end makes every detection right that holds
            it.
        is_first: Whether a detection adds a found call to those of the detections with higher scores, shape
            `(detections,)`.
        is_ignored: Whether a detection counts neither as right nor as wrong, because a bird that nobody could name
            sings there, shape `(detections,)`.
        is_found: Whether each call is held by a detection, shape `(calls,)`.
    """

    is_right: np.ndarray
    is_first: np.ndarray
    is_ignored: np.ndarray
    is_found: np.ndarray


def match_events(
    detections: pd.DataFrame, calls: pd.DataFrame, unknown: pd.DataFrame, *, tolerance_s: float = 0.0
) -> Matches:
    """Matches detections to calls of the same recording and species.

    Detections are matched one by one in order of their score, the highest first, by augmenting paths (Kuhn 1955). So
    the detections above any score are matched to as many calls as is possible, and a call that is found at a score
    stays found at every lower one.

    Args:
        detections: `recording`, `species`, `start_s`, `end_s` and `score`.
        calls: `recording`, `species`, `start_s` and `end_s`; a call is a point in time where both are equal.
        unknown: `recording`, `start_s` and `end_s` of birds that the annotators could not name.
        tolerance_s: How far outside a detection a point may lie and still be held by it.
    """
    is_right, is_first, is_ignored = (np.zeros(len(detections), dtype=bool) for _ in range(3))
    is_found = np.zeros(len(calls), dtype=bool)
    keys = ["recording", "species"]
    rows_of_calls = calls.reset_index(drop=True).groupby(keys, sort=False).indices
    start_s, end_s = (detections[name].to_numpy(dtype=float) for name in ("start_s", "end_s"))
    call_start_s, call_end_s = (calls[name].to_numpy(dtype=float) for name in ("start_s", "end_s"))
    score = detections["score"].to_numpy(dtype=float)
    for key, rows in detections.reset_index(drop=True).groupby(keys, sort=False).indices.items():
        of_species = rows_of_calls.get(key)
        if of_species is None:
            continue
        begin, end = call_start_s[of_species], call_end_s[of_species]
        numbers = np.asarray(rows)
        ordered = numbers[np.argsort(-score[numbers], kind="stable")].tolist()
        held: list[list[int]] = [
            np.flatnonzero(_held(start_s[row], end_s[row], begin, end, tolerance_s)).tolist() for row in ordered
        ]
        taken_by: dict[int, int] = {}
        for number, row in enumerate(ordered):
            is_first[row] = _augment(number, held, taken_by, set())
            is_right[row] = is_first[row] or any(end[call] > begin[call] for call in held[number])
        is_found[np.asarray(of_species)[list(taken_by)]] = True
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
    return Matches(is_right, is_first, is_ignored, is_found)


def _augment(detection: int, held: list[list[int]], taken_by: dict[int, int], seen: set[int]) -> bool:
    """Gives a detection a call that it holds, moving others to other calls where that is needed."""
    for call in held[detection]:
        if call not in seen:
            seen.add(call)
            if call not in taken_by or _augment(taken_by[call], held, taken_by, seen):
                taken_by[call] = detection
                return True
    return False


def _held(
    start_s: float, end_s: float, call_start_s: np.ndarray, call_end_s: np.ndarray, tolerance_s: float
) -> np.ndarray:
    """Whether a detection holds each call: its point, or, if the call has a length, half of the shorter of the two."""
    length_s = call_end_s - call_start_s
    overlap_s = np.minimum(end_s, call_end_s) - np.maximum(start_s, call_start_s)
    holds_point = (call_start_s >= start_s - tolerance_s) & (call_start_s <= end_s + tolerance_s)
    return np.where(length_s > 0, overlap_s >= MIN_OVERLAP * np.minimum(length_s, end_s - start_s), holds_point)
