"""The processes that share a run, on one machine or on many, as torchrun and accelerate start them."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch

from kenya_birds.errors import UserError

T = TypeVar("T")
# One process may cut clips for hours while the others wait: no time-out is long enough, so this is none.
PATIENCE = timedelta(days=3650)


class Team:
    """The processes that share a run; one, unless a launcher's environment says that there are more.

    They talk through torch.distributed's gloo, which needs no GPU. Where a process group is there already, as in
    training, they use one of their own beside it, so that its time-out (`--ddp_timeout`) does not end their waiting.

    Attributes:
        rank: This process's number.
        local_rank: This process's number among those of its machine.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0
        self._is_beside = False  # of another process group
        if self.size > 1:
            try:
                if torch.distributed.is_initialized():
                    self._is_beside = True
                    _patient_group(torch.distributed.group.WORLD)
                else:
                    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
                # A thread of gloo that drops a tensor while Python ends would abort the process.
                atexit.register(_end_process_group)
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"WORLD_SIZE is {self.size}, but the processes do not find each other ({error}): start them with "
                    "torchrun or accelerate launch"
                ) from None

    @property
    def device(self) -> str | None:
        """The GPU that is this process's, where each has one; None: any."""
        return f"cuda:{self.local_rank}" if self.size > 1 and torch.cuda.is_available() else None

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def broadcast(self, message: Any) -> Any:
        """What the first process says; the others' own messages do not matter."""
        if self.size == 1:
            return message
        messages = [message]
        self._do(torch.distributed.broadcast_object_list, messages, src=0)
        return messages[0]

    def gather(self, message: T) -> list[T]:
        """What every process says, by rank, once all have said it."""
        if self.size == 1:
            return [message]
        messages: list[Any] = [None] * self.size
        self._do(torch.distributed.all_gather_object, messages, message)
        return messages

    def wait(self) -> None:
        """Returns once every process is here, however long that takes."""
        self.gather(None)

    def first_does(self, work: Callable[[], T]) -> T:
        """Has the first process do something, while the others wait.

        Args:
            work: What it does.

        Returns:
            What `work` returned, in every process.

        Raises:
            UserError: If `work` raised one: the same in every process.
        """
        result: Any = None
        error: str | None = None
        if self.is_first:
            try:
                result = work()
            except UserError as raised:
                if self.size == 1:
                    raise
                error = str(raised)
        result, error = self.broadcast((result, error))
        if error is not None:
            raise UserError(error)
        return result

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """The first process of each machine runs the block; then the others do, and find in a cache what it made."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    def _do(self, talk: Any, *arguments: Any, **options: Any) -> None:
        group = _patient_group(torch.distributed.group.WORLD) if self._is_beside else None
        try:
            talk(*arguments, group=group, **options)
        except RuntimeError:
            raise UserError(
                "another process of this run has ended: see what it says, and run the same command again to resume"
            ) from None


@lru_cache(maxsize=1)
def _patient_group(world: Any) -> Any:
    """A group of all processes that waits as long as it takes, beside the given one."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


def _end_process_group() -> None:
    _patient_group.cache_clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
