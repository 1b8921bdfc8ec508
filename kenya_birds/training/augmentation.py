"""What chance changes in training clips, in batches on the device; each clip has a draw of its own."""

from collections.abc import Sequence

import numpy as np
import torch


def uniform_per_clip(seed: int, step: int, clips: Sequence[int] | np.ndarray, draws: int = 1) -> np.ndarray:
    """Random numbers that depend on the seed, the step and the clip alone.

    They are the same however a step is spread over processes and accumulated batches, and after a resume (Philox, a
    counter-based generator: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        seed: Seed of the run.
        step: Number of the optimiser step.
        clips: Index of each clip in the training split.
        draws: How many numbers each clip gets.

    Returns:
        float64 in [0, 1), shape `(clips, draws)`.
    """
    generators = (np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, int(c)])) for c in clips)
    return np.stack([generator.random(draws) for generator in generators])


def crop(waveform: torch.Tensor, samples: int, position: np.ndarray) -> torch.Tensor:
    """Cuts a window out of each clip.

    Args:
        waveform: Shape `(batch, stored samples)`.
        samples: Length of the window.
        position: Where in its room each window lies, shape `(batch,)`: 0 is the earliest, just below 1 the latest.

    Returns:
        Shape `(batch, samples)`.
    """
    room = waveform.shape[1] - samples
    start = torch.as_tensor((np.asarray(position) * (room + 1)).astype(np.int64), device=waveform.device)
    return waveform.gather(1, start[:, None] + torch.arange(samples, device=waveform.device))
