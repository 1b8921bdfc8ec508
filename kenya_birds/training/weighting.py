"""Weights against imbalance: n^-power, for the loss and for the sampler."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


def power_weights(counts: Sequence[int] | np.ndarray, power: float) -> np.ndarray:
    """Weight n^-power of each class, scaled so that the mean over all clips is 1.

    With this scale an untrained classifier has about the same loss, `ln(number of classes)`, at every power. Power 1
    is inverse frequency, 0.5 its square root, 0 no weighting.

    Args:
        counts: Training clips of each class, shape `(classes,)`.
        power: Exponent, at least 0.

    Returns:
        float64, shape `(classes,)`; a class without clips weighs as if it had one.

    Raises:
        ValueError: If `power` is negative or all counts are zero.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if power < 0:
        raise ValueError(f"power is {power}, expected 0 or more")
    if not numbers.sum() > 0:
        raise ValueError("no class has any clip")
    weights = np.maximum(numbers, 1.0) ** -power
    return weights * numbers.sum() / (weights * numbers).sum()


class ClipDraw(NamedTuple):
    """What a place in an epoch holds.

    Attributes:
        clip: Index of the clip.
        partner: Index of the clip that may be mixed into it.
        chance: Uniform numbers in [0, 1) for all that is left to chance.
    """

    clip: int
    partner: int
    chance: np.ndarray


class ClipSampler(Sampler[ClipDraw]):
    """Draws an epoch of clips: each once in random order, or with replacement in proportion to weights.

    The draw depends on the seed and the epoch alone, so that every process draws the same and a resumed run goes on
    with the same clips. Clips that would make an incomplete last step are left out, other ones in every epoch: an
    epoch is the same however many processes share a step.

    Args:
        clips: Number of clips to draw from.
        clips_per_step: Clips of one optimiser step, over all processes and accumulated batches.
        seed: Seed of the draws.
        weights: One per clip, not all zero; by default each clip is drawn once.
        numbers: How many random numbers come with each clip.
    """

    def __init__(
        self,
        clips: int,
        clips_per_step: int,
        seed: int,
        weights: Sequence[float] | np.ndarray | None = None,
        numbers: int = 0,
    ) -> None:
        self.clips = clips
        self.length = clips - clips % clips_per_step if clips >= clips_per_step else clips
        self.seed = seed
        self.epoch = 0
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self.numbers = numbers

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's draw; called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[ClipDraw]:
        # Not seed + epoch: runs with seeds next to each other would share their draws.
        generator = np.random.default_rng([self.seed, self.epoch])
        drawn, partners = self._draw(generator), self._draw(generator)
        chance = generator.random((self.length, self.numbers))
        yield from map(ClipDraw, drawn.tolist(), partners.tolist(), chance)

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        if self.weights is None:
            return generator.permutation(self.clips)[: self.length]
        return generator.choice(self.clips, self.length, p=self.weights / self.weights.sum())
