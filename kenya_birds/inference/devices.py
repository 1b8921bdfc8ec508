"""The device of a computation, and the number of threads that read for it."""

import os

import torch

from kenya_birds.console import user_errors
from kenya_birds.errors import UserError
from kenya_birds.saved_models import SavedModel

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


def device_for(saved: SavedModel, name: str | None) -> torch.device:
    """The device that a model runs on: see `find_device`; the CPU for a published network, whose runtime needs it.

    Args:
        saved: The model.
        name: Name of the device, if the user gave one.

    Raises:
        UserError: If there is no such device.
    """
    device = find_device(name)
    return torch.device("cpu") if saved.config.get("graph") else device


def count_readers(device: torch.device, num_workers: int | None) -> int:
    """Number of threads that read recordings: one on a CPU, which computes besides, and up to 8 on a GPU.

    Processes on the same machine share its cores. The number of torch's threads says nothing about them: torchrun
    sets it to 1.

    Args:
        device: The device of the computation.
        num_workers: Number that the user gave, if any.
    """
    if num_workers or device.type == "cpu":
        return num_workers or 1
    # On a cluster, a job has some of the machine's cores.
    allowed = getattr(os, "sched_getaffinity", None)  # Linux
    cores = os.cpu_count() or 1 if allowed is None else len(allowed(0))
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1), MAX_READERS)
