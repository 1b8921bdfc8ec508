"""Assigns whole recordings to splits or folds so that as many classes as can be are in each, in like proportions."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
import pandas as pd

from kenya_birds.data import splits as seed_strategy
from kenya_birds.data.assignment import TOLERANCE, AssignmentProblem, nearest, widest
from kenya_birds.data.same_recording import joined, separated
from kenya_birds.data.splits import (
    SPLITS,
    check_can_fold,
    check_can_split,
    log_uncovered_classes,
    seed_folds,
    seed_split,
)
from kenya_birds.errors import UserError
from kenya_birds.values import Duration, Range, Seed, SplitSize, checked

logger = logging.getLogger(__name__)

# Shares of the time limit after which the programme for the coverage, and then the local search, have to end.
COVERAGE_END, SEARCH_END = 0.3, 0.6


@checked
def balanced_split(
    annotations: pd.DataFrame,
    *,
    test_size: SplitSize = 0.2,
    validation_size: SplitSize = 0.2,
    time_limit_s: Duration = 60.0,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Splits recordings so that as many classes as possible are in train, validation and test.

    Among the splits with the most such classes it looks for the one whose classes are nearest to being divided in the
    proportions asked for: by their mean total variation distance, every class counting alike, and with a hundredth of
    that weight by the distance of the sizes. Never are fewer classes in all three than with `seed_split`. How good the
    split is proven to be is logged; it is the same each time unless the log says that the time ran out.

    Args:
        annotations: `recording` and `species` of every annotation, rare classes already dropped.
        test_size: Share of the test split, between 0 and 0.5.
        validation_size: Share of the validation split, between 0 and 0.5; less than the whole with `test_size`.
        time_limit_s: When to stop looking, in seconds.
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
    with _seed_strategy_silenced():
        start = seed_split(annotations, test_size=test_size, validation_size=validation_size)["split"]
    counts = _counts(annotations)
    problem = AssignmentProblem(
        counts.to_numpy(), np.array([1 - test_size - validation_size, validation_size, test_size])
    )
    assignment = _solve(problem, start.map(SPLITS.index).to_numpy(), time_limit_s)
    if test_size == validation_size:
        # The problem does not tell them apart, but a class in one of them only is of more use in the test split.
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
    time_limit_s: Duration = 60.0,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Divides recordings into folds of one size, with as many classes as possible in every one of them.

    The folds are looked for as the splits are (see `balanced_split`), with the same share for each.

    Args:
        annotations: `recording` and `species` of every annotation, rare classes already dropped.
        folds: Number of folds.
        time_limit_s: When to stop looking, in seconds.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `fold` (from 0, in the order of their first recordings), one row per recording, sorted by
        recording.

    Raises:
        UserError: If `folds` is not between 2 and the number of recordings, or `time_limit_s` is not a positive time.
    """
    every, annotations = annotations, joined(annotations, same_sound)
    check_can_fold(annotations, folds)
    with _seed_strategy_silenced():
        start = seed_folds(annotations, folds)["fold"]
    counts = _counts(annotations)
    assignment = _solve(
        AssignmentProblem(counts.to_numpy(), np.full(folds, 1 / folds)), start.to_numpy(), time_limit_s
    )
    table = pd.DataFrame({"recording": counts.columns, "fold": pd.factorize(assignment)[0]})
    return separated(table, every, same_sound)


@checked
def make_splits(
    annotations: pd.DataFrame,
    strategy: Literal["seed", "balanced"] = "balanced",
    *,
    folds: Annotated[int, Range(2)] | None = None,
    test_size: SplitSize = 0.2,
    validation_size: SplitSize = 0.2,
    seed: Seed = 42,
    time_limit_s: Duration = 60.0,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Splits recordings into train, validation and test, or into folds, by either strategy.

    Args:
        annotations: `recording` and `species` of every annotation, rare classes already dropped.
        strategy: "seed" or "balanced".
        folds: Number of folds; by default there are splits, not folds.
        test_size: Share of the test split, where there are no folds.
        validation_size: Share of the validation split, where there are no folds.
        seed: Seed of the seed strategy; the balanced one does not take any.
        time_limit_s: When the balanced strategy stops looking, in seconds.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `split`, or `recording` and `fold`; one row per recording, sorted by recording.

    Raises:
        UserError: If there are too few recordings, or an argument is out of range.
    """
    if folds is not None:
        if strategy == "seed":
            return seed_folds(annotations, folds, seed=seed, same_sound=same_sound)
        return balanced_folds(annotations, folds, time_limit_s=time_limit_s, same_sound=same_sound)
    if strategy == "seed":
        return seed_split(
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

    The programme proves the largest coverage, mostly at once, but its bound on the deviation is loose. So many local
    searches look for a small one first, and the programme then has only to find what they did not, or to prove that
    there is nothing. It cannot be given a start: what it has to improve on is one of its constraints.
    """
    begin_s = time.monotonic()
    wide, most_covered = widest(problem, COVERAGE_END * time_limit_s)
    starts = [start] if wide is None else [start, wide]
    best, searched_all = problem.search(starts, begin_s + SEARCH_END * time_limit_s)
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
    if not (is_widest and is_nearest):
        logger.info(
            "The time limit of %g s ended the %s: this is not proven to be the best, and another run may differ",
            time_limit_s,
            "proof" if searched_all else "search",
        )
    return best


def _counts(annotations: pd.DataFrame) -> pd.DataFrame:
    """Annotations of each species (row) in each recording (column), both sorted."""
    return pd.crosstab(annotations["species"], annotations["recording"])


@contextmanager
def _seed_strategy_silenced() -> Iterator[None]:
    """Keeps to itself what is wrong with a split that is only compared with."""
    log = seed_strategy.logger
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled
