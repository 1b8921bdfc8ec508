"""Assignment of groups of recordings to splits, as an integer programme."""

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
# What the parts' sizes weigh against the classes' proportions: they decide between assignments alike in those.
SIZE_WEIGHT = 0.01


class AssignmentProblem:
    """Which recordings go to which part, so that many classes are in every part, in proportions near the targets.

    An assignment is an array of the part of each recording. Of two, that is better which has more covered classes,
    those with annotations in every part; or else the one with the smaller deviation. This is the classes' mean total
    variation distance from the targets and, with a weight of `SIZE_WEIGHT`, the same distance of all annotations.

    Args:
        counts: Annotations of each class (row) in each recording (column); none is a row or column of zeros.
        targets: Share of each part, above 0; they add up to 1.
    """

    def __init__(self, counts: np.ndarray, targets: np.ndarray) -> None:
        self.targets = targets
        self.present = counts > 0
        self.coverable = self.present.sum(axis=1) >= len(targets)
        self.shares = counts / counts.sum(axis=1, keepdims=True)
        self.sizes = counts.sum(axis=0, keepdims=True) / counts.sum()
        # What is added up over a part's recordings.
        self.features = np.vstack([self.shares, self.present, self.sizes, np.ones_like(self.sizes)])

    def totals(self, assignment: np.ndarray) -> np.ndarray:
        """The features' sums by part, (2 * classes + 2, parts)."""
        return self.features @ np.eye(len(self.targets))[assignment]

    def covered(self, totals: np.ndarray) -> np.ndarray:
        """Number of covered classes, from totals with any leading dimensions."""
        classes = len(self.shares)
        return (totals[..., classes : 2 * classes, :] > 0.5).all(axis=-1).sum(axis=-1)

    def deviation(self, totals: np.ndarray) -> np.ndarray:
        """Distance from the targets, from totals with any leading dimensions."""
        classes = len(self.shares)
        distance = np.maximum(totals - self.targets, 0.0).sum(axis=-1)
        return distance[..., :classes].mean(axis=-1) + SIZE_WEIGHT * distance[..., 2 * classes]

    def value(self, totals: np.ndarray) -> np.ndarray:
        """What is higher for a better assignment (a deviation is below 2); minus infinity where a part is empty."""
        filled = (totals[..., -1, :] > 0.5).all(axis=-1)
        return np.where(filled, 2.0 * self.covered(totals) - self.deviation(totals), -np.inf)

    def best(self, *assignments: np.ndarray) -> np.ndarray:
        """The first of those that none is better than."""
        return max(assignments, key=lambda assignment: float(self.value(self.totals(assignment))))

    def improve(self, assignment: np.ndarray, deadline_s: float) -> np.ndarray:
        """Moves or exchanges recordings, each in its turn in the best way, until nothing helps or time is over."""
        assignment, one = assignment.copy(), np.eye(len(self.targets))
        totals = self.totals(assignment)
        value = float(self.value(totals))
        last_changed, turn = 0, 0
        recordings = len(assignment)
        while turn - last_changed < recordings and time.monotonic() < deadline_s:
            recording = turn % recordings
            turn += 1
            home = assignment[recording]
            others = np.flatnonzero(assignment != home)
            elsewhere = np.delete(np.arange(len(one)), home)
            # To each other part, and to the part of each recording there with that one in exchange.
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
        """Improves these assignments, then random ones, then the best one shaken a little.

        Args:
            starts: Assignments without an empty part.
            deadline_s: When to stop, on the monotonic clock.

        Returns:
            The best assignment that was met, and whether there was time for all.
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


# Relative improvement of the deviation below which one assignment is as good as another.
TOLERANCE = 1e-3
# A class that can be divided in no more ways than this is tried in all of them.
MAX_WAYS = 20_000

# Blocks of a constraint's matrix for each kind of variable, lower and upper bound.
_Row = tuple[list[Any], float | np.ndarray, float | np.ndarray]


def widest(problem: AssignmentProblem, time_limit_s: float) -> tuple[np.ndarray | None, int]:
    """Finds an assignment that covers as many classes as possible.

    Args:
        problem: What is to be assigned.
        time_limit_s: When to stop, in seconds.

    Returns:
        The assignment, or None if there was none in time or no class can be covered, and how many classes can be
        covered at most.
    """
    most = int(problem.coverable.sum())
    if not most:
        return None, 0
    classes, cells = len(problem.shares), problem.present.shape[1] * len(problem.targets)
    # Coverage does not tell the parts apart, whatever their targets.
    rows = _rows(problem, alike=range(1, len(problem.targets)))
    costs = np.concatenate([np.zeros(cells), -np.ones(classes)])
    result = _run(problem, costs, rows, time_limit_s)
    if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
        most = min(most, int(np.floor(-result.mip_dual_bound + 1e-6)))
    if result.x is None:
        logger.warning(
            "No assignment was found in %.1f s by the integer programme (%s): going on with local search only",
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
    """Finds an assignment that covers as many classes as this one, with a smaller deviation.

    Args:
        problem: What is to be assigned.
        best: The assignment to be improved on.
        time_limit_s: When to stop, in seconds.

    Returns:
        The assignment, or None if there is none or none was found in time, and a deviation that none of this coverage
        is below.
    """
    totals = problem.totals(best)
    deviation = float(problem.deviation(totals))
    cutoff = deviation * (1 - TOLERANCE)
    if deviation < 1e-9:
        return None, 0.0
    (classes, recordings), parts = problem.present.shape, len(problem.targets)
    # The programme's own bound is near 0 at first, as half a recording may go here and half there.
    least_apart = _least_distances(problem, all_covered=int(problem.covered(totals)) == problem.coverable.sum())
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
    if result.status == 2:  # nothing is below the cut-off
        return None, cutoff
    if result.status not in (0, 1):
        logger.warning("The integer programme failed (%s): the local search's result stands", result.message)
    bound = result.mip_dual_bound
    least = max(0.0, float(bound)) if bound is not None and np.isfinite(bound) else 0.0
    least = max(least, float(least_apart.mean()))
    return None if result.x is None else _parts(problem, result), min(least, deviation)


def _least_distances(problem: AssignmentProblem, all_covered: bool) -> np.ndarray:
    """The least distance from the targets of each class if it alone counted; 0 for a class in many recordings."""
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
    """Constraints of both programmes: a cell for each recording and part, then whether each class is covered.

    A part that is `alike` could be exchanged with the one before it.
    """
    (classes, recordings), parts = problem.present.shape, len(problem.targets)
    by_part, by_recording = sparse.eye_array(parts), sparse.eye_array(recordings)
    covered = -sparse.kron(sparse.eye_array(classes), np.ones((parts, 1)))
    rows: list[_Row] = [
        ([sparse.kron(by_recording, np.ones((1, parts))), None], 1.0, 1.0),
        ([sparse.kron(np.ones((1, recordings)), by_part), None], 1.0, np.inf),
        ([sparse.kron(problem.present.astype(float), by_part), covered], 0.0, np.inf),
    ]
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
