"""The stretches of a recording that were analysed."""

from collections.abc import Iterable

# Shorter stretches come from rounded times: they are not analysed sound.
SHORTEST_S = 0.001


def analysed_stretches(duration_s: float, gaps: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the analysed stretches of a recording, as start and end in seconds, in order.

    Args:
        duration_s: Length of the recording.
        gaps: Stretches that were not analysed.
    """
    found, at = [], 0.0
    for start_s, end_s in [*sorted(gaps), (duration_s, duration_s)]:
        if min(start_s, duration_s) - at > SHORTEST_S:
            found.append((at, min(start_s, duration_s)))
        at = max(at, end_s)
    return found
