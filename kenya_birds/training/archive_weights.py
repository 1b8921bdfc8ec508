"""Weights in the training loss: of the archives of a joined one, and of weak labels."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from kenya_birds.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Reads `NAME=WEIGHT`.

    Args:
        texts: One for each archive.

    Returns:
        Weight by name of the archive.

    Raises:
        UserError: If a text has another form, a weight is not above 0, or an archive has two weights.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise UserError(
                f"archive_weights has '{text}': expected NAME=WEIGHT with a weight above 0, such as kenya=2"
            )
        if name in weights:
            raise UserError(f"archive_weights has two weights of the archive '{name}': give one")
        weights[name] = weight
    return weights


def weigh_recordings(
    texts: Sequence[str],
    archive_of: Mapping[str, str],
    recordings: Sequence[str],
    weak: Collection[str] = (),
    weak_weight: float = 1.0,
) -> "np.ndarray | None":
    """Weight of each clip or window, by its recording: that of the archive, times that of weak labels if it has them.

    Args:
        texts: `NAME=WEIGHT` of some archives; others have the weight 1.
        archive_of: Name of the archive by recording (see `Archive.archive_of`).
        recordings: The recording of each training clip.
        weak: Recordings with weak labels.
        weak_weight: Their weight.

    Returns:
        float32 of the shape of `recordings`, with a mean of 1; None if all weights are equal.

    Raises:
        UserError: If an archive is not one of the joined ones, or a text cannot be read.
    """
    import numpy as np

    weights = parse_weights(texts)
    known = sorted(set(archive_of.values()))
    for name in weights:
        if name not in known:
            raise UserError(
                f"archive_weights has '{name}': "
                + (f"expected one of the archives {', '.join(known)}" if known else "one archive needs no weight")
            )
    found = np.array(
        [weights.get(archive_of.get(name, ""), 1.0) * (weak_weight if name in weak else 1.0) for name in recordings]
    )
    if not len(found) or (found == found[0]).all():
        return None
    return (found / found.mean()).astype(np.float32)
