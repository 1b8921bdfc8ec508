"""How the processes of a run divide its recordings among them."""

import heapq
from collections.abc import Sequence


def shares(sizes: Sequence[int | None], members: int) -> list[int]:
    """Divides files among processes so that each has about as many bytes.

    Args:
        sizes: Bytes of each file; None where it is not known, which counts as the mean.
        members: Number of processes.

    Returns:
        For each file the process that takes it: the largest first, each to the one that has least.
    """
    known = [size for size in sizes if size is not None]
    usual = sum(known) / len(known) if known else 1.0
    weights = [usual if size is None else float(size) for size in sizes]
    loads = [(0.0, member) for member in range(members)]
    chosen = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -weights[i]):
        load, member = heapq.heappop(loads)
        chosen[index] = member
        heapq.heappush(loads, (load + weights[index], member))
    return chosen
