"""Communication between the processes of a run, on one or several machines, started by torchrun or accelerate."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch

from kenya_birds.errors import LostProcessError, UserError

if torch.distributed.is_available():
    # Default arguments in this module keep the process group that exists when it is imported. Imported later, by
    # transformers for example, it would keep our group and its threads alive, and one may abort the ending process.
    import torch.distributed.nn.functional

T = TypeVar("T")
# Practically unlimited, because one process may cut clips for hours while the others wait.
NO_TIMEOUT = timedelta(days=3650)


class Team:
    """The processes of a run; a single one, unless the environment variables of a launcher define more.

    They communicate with torch.distributed's gloo backend, which needs no GPU. If a process group exists already, as
    in training, an additional group is used, so that the time-out of the first (`--ddp_timeout`) does not apply.

    Attributes:
        rank: Number of this process.
        local_rank: Number of this process on its machine.
        size: Number of processes.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0
        self._is_additional = False  # whether another process group exists
        if self.size > 1:
            try:
                if torch.distributed.is_initialized():
                    self._is_additional = True
                    _group_without_timeout(torch.distributed.group.WORLD)
                else:
                    torch.distributed.init_process_group("gloo", timeout=NO_TIMEOUT)
                # Otherwise a thread of gloo may abort the process while Python ends.
                atexit.register(_end_process_group)
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"WORLD_SIZE is {self.size}, but the processes cannot connect ({error}): start them with torchrun "
                    "or accelerate launch"
                ) from None

    def device(self, name: str | None) -> str | None:
        """The device of this process: with several processes and a GPU, `cuda` and the default are a GPU of its own.

        Args:
            name: Name of the device, if the user gave one.
        """
        if self.size == 1 or name not in (None, "cuda") or not torch.cuda.is_available():
            return name
        # As accelerate does: a launcher may show each process one GPU only, and processes may share a GPU.
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    @property
    def is_first(self) -> bool:
        """True for the process that does work that is done once."""
        return self.rank == 0

    def broadcast(self, message: Any) -> Any:
        """Returns the first process's message in every process; messages of the others are ignored."""
        if self.size == 1:
            return message
        messages = [message]
        self._do(torch.distributed.broadcast_object_list, messages, src=0)
        return messages[0]

    def gather(self, message: T) -> list[T]:
        """Returns the messages of all processes, by rank."""
        if self.size == 1:
            return [message]
        messages: list[Any] = [None] * self.size
        self._do(torch.distributed.all_gather_object, messages, message)
        return messages

    def wait(self) -> None:
        """Waits for all processes, without a time-out."""
        self.gather(None)

    def first_does(self, work: Callable[[], T]) -> T:
        """Runs a function in the first process, while the others wait.

        Args:
            work: The function.

        Returns:
            The result of `work`, in every process.

        Raises:
            UserError: If `work` raised one; the same in every process.
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
        """Runs the block in the first process of each machine, then in the others, which find its cache."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    def _do(self, operation: Any, *arguments: Any, **options: Any) -> None:
        group = _group_without_timeout(torch.distributed.group.WORLD) if self._is_additional else None
        try:
            operation(*arguments, group=group, **options)
        except RuntimeError:
            raise LostProcessError("another process of this run has ended: see its error message") from None


@lru_cache(maxsize=1)
def _group_without_timeout(world: Any) -> Any:
    """Makes an additional group of all processes, without a time-out."""
    return torch.distributed.new_group(backend="gloo", timeout=NO_TIMEOUT)


def _end_process_group() -> None:
    if not torch.distributed.is_initialized():
        return
    if torch.distributed.get_backend() != "nccl":
        _group_without_timeout.cache_clear()
        torch.distributed.destroy_process_group()
    elif _group_without_timeout.cache_info().currsize:
        # After an error in one process: all processes have to end NCCL's group together, and the others would not
        # come. Its own end frees it.
        group = _group_without_timeout(torch.distributed.group.WORLD)
        _group_without_timeout.cache_clear()
        torch.distributed.destroy_process_group(group)
