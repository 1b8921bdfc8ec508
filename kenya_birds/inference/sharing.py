"""One run in several processes, on one machine or on many, as torchrun and accelerate start them."""

import atexit
import heapq
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch

from kenya_birds.errors import UserError

T = TypeVar("T")
# The first to finish waits for the last: no time-out of a process group is long enough, so this is none.
PATIENCE = timedelta(days=3650)


class Team:
    """The processes that share a run; one, unless a launcher's environment says that there are more.

    They talk through torch.distributed's gloo, which needs no GPU.

    Attributes:
        rank: This process's number.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        if self.size > 1 and not torch.distributed.is_initialized():
            try:
                torch.distributed.init_process_group("gloo", timeout=PATIENCE)
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"WORLD_SIZE is {self.size}, but the processes do not find each other ({error}): start them with "
                    "torchrun or accelerate launch"
                ) from None
            # A thread of gloo's that drops a tensor while Python comes to its end would abort the process.
            atexit.register(_end_process_group)

    @property
    def device(self) -> str | None:
        """The GPU that is this process's, where each has one; None: any."""
        local = os.environ.get("LOCAL_RANK")
        return f"cuda:{local}" if self.size > 1 and local and torch.cuda.is_available() else None

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def tell(self, message: Any) -> Any:
        """What the first process says; the others' own messages do not matter."""
        if self.size == 1:
            return message
        messages = [message]
        self._do(torch.distributed.broadcast_object_list, messages, src=0)
        return messages[0]

    def collect(self, message: T) -> list[T]:
        """What every process says, by rank, once all have said it."""
        if self.size == 1:
            return [message]
        messages: list[Any] = [None] * self.size
        self._do(torch.distributed.all_gather_object, messages, message)
        return messages

    def _do(self, talk: Any, *arguments: Any, **options: Any) -> None:
        try:
            talk(*arguments, **options)
        except RuntimeError:
            raise UserError(
                "another process of this run has ended: see what it says, and run the same command again to go on"
            ) from None


def _end_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
