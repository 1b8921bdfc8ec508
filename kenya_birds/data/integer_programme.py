"""Integer programmes for the assignment that covers most classes, and for the one nearest to the targets."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from kenya_birds.data.assignment import SIZE_WEIGHT, AssignmentProblem

logger = logging.getLogger(__name__)

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
