"""Assignment of groups of recordings to splits, as an integer program."""

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

logger = logging.getLogger(__name__)

RANDOM_STARTS, SHAKES = 40, 60
SHAKEN_RECORDINGS = 5
# With more recordings, a turn of the local search tries some of the swaps, drawn at random.
MOST_SWAPS, DRAWN_SWAPS = 2_000, 500
# Weight of the parts' sizes relative to the classes' proportions: sizes decide between otherwise equal assignments.
SIZE_WEIGHT = 0.01


class AssignmentProblem:
    """Assignment of recordings to parts, with many classes in every part and proportions near the targets.

    An assignment is an array with the part of each recording. A class is covered if it has annotations in every part.
    The better of two assignments has more covered classes, or with equally many the smaller deviation. The deviation
    is the mean total variation distance of the classes from the targets, plus `SIZE_WEIGHT` times the same distance
    of all annotations.

    Args:
        counts: Annotations of each class (row) in each recording (column), without rows or columns of zeros.
        targets: Share of each part, above 0. The sum is 1.
    """

    def __init__(self, counts: np.ndarray, targets: np.ndarray) -> None:
        self.targets = targets
        self.present = counts > 0
        self.coverable = self.present.sum(axis=1) >= len(targets)
        self.shares = counts / counts.sum(axis=1, keepdims=True)
        self.sizes = counts.sum(axis=0, keepdims=True) / counts.sum()
        # Values that are summed over the recordings of a part.
        self.features = np.vstack([self.shares, self.present, self.sizes, np.ones_like(self.sizes)])

    def totals(self, assignment: np.ndarray) -> np.ndarray:
        """Returns the sums of the features by part, (2 * classes + 2, parts)."""
        return self.features @ np.eye(len(self.targets))[assignment]

    def covered(self, totals: np.ndarray) -> np.ndarray:
        """Returns the number of covered classes, for totals with any leading dimensions."""
        classes = len(self.shares)
        return (totals[..., classes : 2 * classes, :] > 0.5).all(axis=-1).sum(axis=-1)

    def deviation(self, totals: np.ndarray) -> np.ndarray:
        """Returns the distance from the targets, for totals with any leading dimensions."""
        classes = len(self.shares)
        distance = np.maximum(totals - self.targets, 0.0).sum(axis=-1)
        return distance[..., :classes].mean(axis=-1) + SIZE_WEIGHT * distance[..., 2 * classes]

    def value(self, totals: np.ndarray) -> np.ndarray:
        """Returns the value to maximise (deviations are below 2); minus infinity if a part is empty."""
        filled = (totals[..., -1, :] > 0.5).all(axis=-1)
        return np.where(filled, 2.0 * self.covered(totals) - self.deviation(totals), -np.inf)

    def best(self, *assignments: np.ndarray) -> np.ndarray:
        """Returns the best assignment, the first one if several are equally good."""
        return max(assignments, key=lambda assignment: float(self.value(self.totals(assignment))))

    def improve(self, assignment: np.ndarray, deadline_s: float) -> np.ndarray:
        """Moves or swaps recordings, one at a time in the best way, until no change helps.

        Of very many swaps, only some are tried.

        Args:
            assignment: The assignment to improve.
            deadline_s: When to stop, on the monotonic clock.
        """
        assignment, one = assignment.copy(), np.eye(len(self.targets))
        totals = self.totals(assignment)
        value = float(self.value(totals))
        last_changed, turn, rng = 0, 0, np.random.default_rng(0)
        recordings = len(assignment)
        while turn - last_changed < recordings and time.monotonic() < deadline_s:
            recording = turn % recordings
            turn += 1
            home = assignment[recording]
            others = np.flatnonzero(assignment != home)
            if len(others) > MOST_SWAPS:
                others = others[rng.integers(len(others), size=DRAWN_SWAPS)]
            elsewhere = np.delete(np.arange(len(one)), home)
            # Candidates: moves to each other part, and swaps with each recording of another part.
            goals = np.concatenate([elsewhere, assignment[others]])
            back = np.hstack([np.zeros((len(self.features), len(elsewhere))), self.features[:, others]])
            moved = self.features[:, [recording]] - back  # (features, candidates)
            values = self.value(totals + moved.T[:, :, None] * (one[goals] - one[home])[:, None, :])
            chosen = int(values.argmax())
            if values[chosen] > value + 1e-9:
                assignment[recording] = goals[chosen]
                if chosen >= len(elsewhere):
                    assignment[others[chosen - len(elsewhere)]] = home
                totals, value, last_changed = self.totals(assignment), float(values[chosen]), turn
        return assignment

    def search(self, starts: list[np.ndarray], deadline_s: float) -> tuple[np.ndarray, bool]:
        """Improves the given assignments, then random ones, then small random changes of the best one.

        Args:
            starts: Assignments without an empty part.
            deadline_s: When to stop, on the monotonic clock.

        Returns:
            The best assignment, and whether the search finished in time.
        """
        best, rng = self.best(*starts), np.random.default_rng(0)
        for number in range(len(starts) + RANDOM_STARTS + SHAKES):
            if time.monotonic() >= deadline_s:
                return best, False
            if number < len(starts):
                assignment = starts[number]
            elif number < len(starts) + RANDOM_STARTS:
                assignment = self._random_start(rng)
            else:
                assignment = best.copy()
                shaken = rng.permutation(len(best))[:SHAKEN_RECORDINGS]
                assignment[shaken] = rng.permutation(assignment[shaken])
                assignment[shaken[0]] = rng.integers(len(self.targets))
            best = self.best(best, self.improve(assignment, deadline_s))
        return best, time.monotonic() < deadline_s

    def _random_start(self, rng: np.random.Generator) -> np.ndarray:
        recordings, parts = self.present.shape[1], len(self.targets)
        assignment = np.asarray(rng.choice(parts, recordings, p=self.targets))
        assignment[rng.permutation(recordings)[:parts]] = np.arange(parts)
        return assignment


# Assignments are equally good below this relative difference of their deviations.
TOLERANCE = 1e-3
# All divisions of a class are tried if there are at most this many.
MAX_WAYS = 20_000
# The rows that exchangeable parts need grow with the square of the recordings: with more, they are left out.
MOST_ORDERED = 500
# With more recordings, the integer programs find nothing in the time that people wait.
MOST_PROGRAMMED = 2_000

# A constraint: blocks of its matrix for each kind of variable, lower bound, upper bound.
_Row = tuple[list[Any], float | np.ndarray, float | np.ndarray]


def widest(problem: AssignmentProblem, time_limit_s: float) -> tuple[np.ndarray | None, int]:
    """Finds an assignment that covers as many classes as possible.

    Args:
        problem: The assignment problem.
        time_limit_s: Time limit in seconds.

    Returns:
        The assignment, or None if none was found in time, no class can be covered or there are too many recordings to
        search; and the largest possible number of covered classes.
    """
    most = int(problem.coverable.sum())
    if not most or problem.present.shape[1] > MOST_PROGRAMMED:
        return None, most
    classes, cells = len(problem.shares), problem.present.shape[1] * len(problem.targets)
    # All parts are exchangeable for the coverage, whatever their targets.
    rows = _rows(problem, alike=range(1, len(problem.targets)))
    costs = np.concatenate([np.zeros(cells), -np.ones(classes)])
    result = _run(problem, costs, rows, time_limit_s)
    if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
        most = min(most, int(np.floor(-result.mip_dual_bound + 1e-6)))
    if result.x is None:
        logger.warning(
            "The integer program found no assignment in %.1f s (%s): using local search only",
            time_limit_s,
            result.message,
        )
        return None, most
    parts = _parts(problem, result)
    # The largest part becomes the one with the largest target.
    sizes = np.bincount(parts, problem.sizes[0], len(problem.targets))
    goal = np.empty(len(sizes), dtype=int)
    goal[np.argsort(sizes, kind="stable")] = np.argsort(problem.targets, kind="stable")
    return goal[parts], most


def nearest(problem: AssignmentProblem, best: np.ndarray, time_limit_s: float) -> tuple[np.ndarray | None, float]:
    """Finds an assignment that covers as many classes as `best`, with a smaller deviation.

    Args:
        problem: The assignment problem.
        best: The assignment to improve.
        time_limit_s: Time limit in seconds.

    Returns:
        The assignment, or None if none exists, none was found in time or there are too many recordings to search; and
        a lower bound of the deviation.
    """
    totals = problem.totals(best)
    deviation = float(problem.deviation(totals))
    cutoff = deviation * (1 - TOLERANCE)
    if deviation < 1e-9:
        return None, 0.0
    (classes, recordings), parts = problem.present.shape, len(problem.targets)
    # The program's own bound is near 0 at first, because its relaxation divides recordings.
    least_apart = _least_distances(problem, all_covered=int(problem.covered(totals)) == problem.coverable.sum())
    if recordings > MOST_PROGRAMMED:
        return None, min(float(least_apart.mean()), deviation)
    deviations = np.concatenate([np.full(classes * parts, 1 / classes), np.full(parts, SIZE_WEIGHT)])[None]
    by_part = sparse.eye_array(parts)
    by_class = sparse.kron(sparse.eye_array(classes, classes + 1), np.ones((1, parts)))
    # A part's excess over its target, of each class and of all annotations, is a variable.
    excess = sparse.kron(np.vstack([problem.shares, problem.sizes]), by_part)
    alike = [part for part in range(1, parts) if problem.targets[part] == problem.targets[part - 1]]
    rows = [([*blocks, None], low, high) for blocks, low, high in _rows(problem, alike)] + [
        ([excess, None, -sparse.eye_array((classes + 1) * parts)], -np.inf, np.tile(problem.targets, classes + 1)),
        ([None, np.ones((1, classes)), None], float(problem.covered(totals)), np.inf),
        ([None, None, deviations], -np.inf, cutoff),
        ([None, None, by_class], least_apart, np.inf),
    ]
    costs = np.concatenate([np.zeros(recordings * parts + classes), deviations[0]])
    result = _run(problem, costs, rows, time_limit_s)
    if result.status == 2:  # no assignment is below the cut-off
        return None, cutoff
    if result.status not in (0, 1):
        logger.warning("The integer program failed (%s): using the result of the local search", result.message)
    bound = result.mip_dual_bound
    least = max(0.0, float(bound)) if bound is not None and np.isfinite(bound) else 0.0
    least = max(least, float(least_apart.mean()))
    return None if result.x is None else _parts(problem, result), min(least, deviation)


def _least_distances(problem: AssignmentProblem, all_covered: bool) -> np.ndarray:
    """Returns the smallest distance of each class from the targets, on its own; 0 for a class in many recordings."""
    parts, least = len(problem.targets), np.zeros(len(problem.shares))
    for index, present in enumerate(problem.present):
        recordings = int(present.sum())
        if parts**recordings > MAX_WAYS:
            continue
        ways = np.eye(parts)[np.indices((parts,) * recordings).reshape(recordings, -1)]  # (recordings, ways, parts)
        if all_covered and problem.coverable[index]:
            ways = ways[:, (ways.sum(axis=0) > 0).all(axis=1)]
        shares = np.tensordot(problem.shares[index, present], ways, 1)
        least[index] = np.maximum(shares - problem.targets, 0.0).sum(axis=1).min()
    return least


def _rows(problem: AssignmentProblem, alike: Iterable[int]) -> list[_Row]:
    """Returns the constraints that both programs share.

    The variables are one cell for each recording and part, then one for each class (covered or not). A part in
    `alike` is exchangeable with the part before it; with many recordings, no row says so.
    """
    (classes, recordings), parts = problem.present.shape, len(problem.targets)
    by_part, by_recording = sparse.eye_array(parts), sparse.eye_array(recordings)
    covered = -sparse.kron(sparse.eye_array(classes), np.ones((parts, 1)))
    rows: list[_Row] = [
        ([sparse.kron(by_recording, np.ones((1, parts))), None], 1.0, 1.0),
        ([sparse.kron(np.ones((1, recordings)), by_part), None], 1.0, np.inf),
        ([sparse.kron(problem.present.astype(float), by_part), covered], 0.0, np.inf),
    ]
    if recordings > MOST_ORDERED:
        return rows
    earlier = sparse.csr_array(np.tri(recordings, k=-1))
    for part in alike:
        # Of exchangeable parts, that with the earlier first recording comes first.
        here, before = np.eye(parts)[[part]], np.eye(parts)[[part - 1]]
        rows.append(([sparse.kron(by_recording, here) - sparse.kron(earlier, before), None], -np.inf, 0.0))
    return rows


def _run(problem: AssignmentProblem, costs: np.ndarray, rows: list[_Row], time_limit_s: float) -> OptimizeResult:
    classes, cells = len(problem.shares), problem.present.shape[1] * len(problem.targets)
    matrix = sparse.block_array([blocks for blocks, _, _ in rows], format="csc")
    heights = [next(block.shape[0] for block in blocks if block is not None) for blocks, _, _ in rows]
    low, high = (
        np.concatenate([np.broadcast_to(row[side], height) for row, height in zip(rows, heights, strict=True)])
        for side in (1, 2)
    )
    upper = np.ones(len(costs))
    upper[cells : cells + classes] = problem.coverable
    return milp(
        costs,
        integrality=np.arange(len(costs)) < cells,
        bounds=Bounds(0.0, upper),
        constraints=LinearConstraint(matrix, low, high),
        options={"time_limit": time_limit_s, "mip_rel_gap": TOLERANCE / 10},
    )


def _parts(problem: AssignmentProblem, result: OptimizeResult) -> np.ndarray:
    cells = result.x[: problem.present.shape[1] * len(problem.targets)]
    return cells.reshape(-1, len(problem.targets)).argmax(axis=1)
