"""What a good assignment of recordings to parts is, and a local search for one."""

import time

import numpy as np

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
