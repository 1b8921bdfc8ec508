"""The device of a computation, and the number of threads that read for it."""

import torch

from kenya_birds.console import user_errors
from kenya_birds.errors import UserError

MAX_READERS = 8


def find_device(name: str | None) -> torch.device:
    """Returns the named device; by default a GPU if there is one, otherwise the CPU.

    Raises:
        UserError: If there is no such device.
    """
    with user_errors(RuntimeError):
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"the device is '{name}': expected cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device '{name}': this machine has {torch.cuda.device_count()} GPUs that work")
    return device


def count_readers(device: torch.device, num_workers: int | None) -> int:
    """Number of threads that read recordings: one on a CPU, which computes besides, and up to 8 on a GPU.

    Args:
        device: The device of the computation.
        num_workers: Number that the user gave, if any.
    """
    return num_workers or (1 if device.type == "cpu" else min(torch.get_num_threads(), MAX_READERS))
