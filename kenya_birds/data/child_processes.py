"""Lets child processes end with the process that started them, however that ends."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_is_on = False


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """On Linux, whatever process is forked inside the block is killed when this one dies, even of SIGKILL.

    Otherwise the workers of a `datasets` build go on writing into the folder that the next build uses, and the process
    that serves their queue never ends. Elsewhere nothing is done.
    """
    global _is_on
    before, _is_on = _is_on, True
    try:
        yield
    finally:
        _is_on = before


def _end_with_parent() -> None:
    if _is_on:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if sys.platform == "linux":
    _prctl = ctypes.CDLL(None).prctl  # looked up here: the lock that this takes may be held when a process forks
    os.register_at_fork(after_in_child=_end_with_parent)
