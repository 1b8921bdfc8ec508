"""Balanced splits and folds: as many classes as possible occur in every part, in the requested proportions."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import pandas as pd

from kenya_birds.data import splits as stratified_strategy
from kenya_birds.data.assignment import MOST_PROGRAMMED, TOLERANCE, AssignmentProblem, nearest, widest
from kenya_birds.data.same_recording import joined, separated
from kenya_birds.data.splits import (
    SPLITS,
    check_can_fold,
    check_can_split,
    log_uncovered_classes,
    stratified_folds,
    stratified_split,
)
from kenya_birds.defaults import SPLIT_SEARCH_S, SPLIT_SEED, TEST_SIZE, VALIDATION_SIZE
from kenya_birds.errors import UserError
from kenya_birds.values import Duration, HeldOutFolds, Seed, SplitSize, checked

logger = logging.getLogger(__name__)

# Shares of the time limit after which the integer program for the coverage, and then the local search, must end.
COVERAGE_END, SEARCH_END = 0.3, 0.6


@checked
def balanced_split(
    annotations: pd.DataFrame,
    *,
    test_size: SplitSize = TEST_SIZE,
    validation_size: SplitSize = VALIDATION_SIZE,
    time_limit_s: Duration = SPLIT_SEARCH_S,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Splits recordings so that as many classes as possible are in train, validation and test.

    Among the splits with the most such classes, the function minimises the distance from the requested proportions:
    the mean total variation distance over the classes, plus a hundredth of the distance of the sizes. At least as many
    classes are in all three as with `stratified_split`. The log reports how good the split is proven to be. The split
    is the same each time, unless the log reports that the time ran out.

    Args:
        annotations: `recording` and `species` of every annotation, without rare classes.
        test_size: Share of the test split, between 0 and 0.5.
        validation_size: Share of the validation split, between 0 and 0.5. `test_size + validation_size` is below 1.
        time_limit_s: Time limit of the search in seconds.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `split` ("train", "validation" or "test"), one row per recording, sorted by recording.

    Raises:
        UserError: If there are fewer than three recordings, or an argument is out of range.
    """
    every, annotations = annotations, joined(annotations, same_sound)
    check_can_split(annotations, test_size, validation_size)
    if test_size + validation_size >= 1:
        raise UserError(
            f"test_size {test_size} and validation_size {validation_size} leave nothing to train on: expected a sum "
            "below 1"
        )
    with _stratified_log_disabled():
        start = stratified_split(annotations, test_size=test_size, validation_size=validation_size)["split"]
    counts = _counts(annotations)
    problem = AssignmentProblem(
        counts.to_numpy(), np.array([1 - test_size - validation_size, validation_size, test_size])
    )
    assignment = _solve(problem, start.map(SPLITS.index).to_numpy(), time_limit_s)
    if test_size == validation_size:
        # Both parts are equal in the problem. A class that is in one of them only is more useful in the test split.
        exchanged = np.array([0, 2, 1])[assignment]
        assignment = max(assignment, exchanged, key=lambda parts: counts.loc[:, parts == 2].any(axis=1).sum())
    table = pd.DataFrame({"recording": counts.columns, "split": np.array(SPLITS, dtype=object)[assignment]})
    log_uncovered_classes(annotations, table)
    return separated(table, every, same_sound)


@checked
def balanced_folds(
    annotations: pd.DataFrame,
    folds: int,
    *,
    time_limit_s: Duration = SPLIT_SEARCH_S,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Divides recordings into folds of equal size, so that as many classes as possible are in every fold.

    The method is that of `balanced_split`, with the same share for each fold.

    Args:
        annotations: `recording` and `species` of every annotation, without rare classes.
        folds: Number of folds.
        time_limit_s: Time limit of the search in seconds.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `fold` (from 0, in the order of their first recordings), one row per recording, sorted by
        recording.

    Raises:
        UserError: If `folds` is not between 2 and the number of recordings, or `time_limit_s` is not a positive time.
    """
    every, annotations = annotations, joined(annotations, same_sound)
    check_can_fold(annotations, folds)
    with _stratified_log_disabled():
        start = stratified_folds(annotations, folds)["fold"]
    counts = _counts(annotations)
    assignment = _solve(
        AssignmentProblem(counts.to_numpy(), np.full(folds, 1 / folds)), start.to_numpy(), time_limit_s
    )
    table = pd.DataFrame({"recording": counts.columns, "fold": pd.factorize(assignment)[0]})
    return separated(table, every, same_sound)


@checked
def make_splits(
    annotations: pd.DataFrame,
    strategy: Literal["stratified", "balanced"] = "balanced",
    *,
    folds: HeldOutFolds | None = None,
    test_size: SplitSize = TEST_SIZE,
    validation_size: SplitSize = VALIDATION_SIZE,
    seed: Seed = SPLIT_SEED,
    time_limit_s: Duration = SPLIT_SEARCH_S,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Splits recordings into train, validation and test, or into folds, with the chosen strategy.

    Args:
        annotations: `recording` and `species` of every annotation, without rare classes.
        strategy: "stratified" or "balanced".
        folds: Number of folds. None: make three splits instead.
        test_size: Share of the test split, if there are no folds.
        validation_size: Share of the validation split, if there are no folds.
        seed: Random seed of the stratified strategy. The balanced strategy has none.
        time_limit_s: Time limit of the balanced strategy in seconds.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `split`, or `recording` and `fold`; one row per recording, sorted by recording.

    Raises:
        UserError: If there are too few recordings, or an argument is out of range.
    """
    if folds is not None:
        if strategy == "stratified":
            return stratified_folds(annotations, folds, seed=seed, same_sound=same_sound)
        return balanced_folds(annotations, folds, time_limit_s=time_limit_s, same_sound=same_sound)
    if strategy == "stratified":
        return stratified_split(
            annotations, test_size=test_size, validation_size=validation_size, seed=seed, same_sound=same_sound
        )
    return balanced_split(
        annotations,
        test_size=test_size,
        validation_size=validation_size,
        time_limit_s=time_limit_s,
        same_sound=same_sound,
    )


def _solve(problem: AssignmentProblem, start: np.ndarray, time_limit_s: float) -> np.ndarray:
    """Finds an assignment at least as good as `start`, and logs how good it is proven to be.

    The integer program proves the largest coverage, mostly at once, but its bound on the deviation is loose. Local
    searches therefore look for a small deviation first. The integer program then only has to find a better assignment
    or to prove that none exists. SciPy's `milp` takes no start: the value to improve on is a constraint instead.
    """
    begin_s = time.monotonic()
    wide, most_covered = widest(problem, COVERAGE_END * time_limit_s)
    starts = [start] if wide is None else [start, wide]
    is_large = problem.present.shape[1] > MOST_PROGRAMMED
    best, searched_all = problem.search(starts, begin_s + (1 if is_large else SEARCH_END) * time_limit_s)
    deadline_s = begin_s + time_limit_s
    near, least_deviation = nearest(problem, best, max(deadline_s - time.monotonic(), 0.1))
    if near is not None:
        best = problem.best(best, problem.improve(near, deadline_s))

    totals = problem.totals(best)
    covered, deviation = int(problem.covered(totals)), float(problem.deviation(totals))
    is_widest, is_nearest = covered == most_covered, deviation * (1 - 2 * TOLERANCE) <= least_deviation + 1e-9
    logger.info(
        "%d of %d classes are in all %d parts (%s); their mean distance from the targets is %.4f (%s); %.1f s",
        covered,
        len(problem.shares),
        len(problem.targets),
        "the most possible" if is_widest else f"the bound is {most_covered}",
        deviation,
        "the least possible"
        if is_nearest
        else f"the bound is {least_deviation:.4f}, a gap of {1 - least_deviation / deviation:.0%}",
        time.monotonic() - begin_s,
    )
    if is_large:
        logger.info(
            "More than %d recordings: the split is not proven to be the best, and another run may differ",
            MOST_PROGRAMMED,
        )
    elif not (is_widest and is_nearest):
        logger.info(
            "The time limit of %g s ended the %s: the split is not proven to be the best, and another run may differ",
            time_limit_s,
            "proof" if searched_all else "search",
        )
    return best


def _counts(annotations: pd.DataFrame) -> pd.DataFrame:
    """Counts annotations by species (rows) and recording (columns), both sorted."""
    return pd.crosstab(annotations["species"], annotations["recording"])


@contextmanager
def _stratified_log_disabled() -> Iterator[None]:
    """Disables warnings about a split that is only a starting point."""
    log = stratified_strategy.logger
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled
