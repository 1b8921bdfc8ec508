"""Lets child processes end with the process that started them, however that ends."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import multiprocess  # of which `datasets` takes its processes

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
WATCH = "end-with-parent"

_is_on = False


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """On Linux, whatever process is forked inside the block is killed when this one dies, even of SIGKILL.

    Otherwise the workers of a `datasets` build go on writing into the folder that the next build uses, and the process
    that serves their queue never ends. Elsewhere that process stays, idle; workers call `end_with_parent`.
    """
    global _is_on
    before, _is_on = _is_on, True
    try:
        yield
    finally:
        _is_on = before


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it has ended; does nothing in one that is no worker."""
    parent = multiprocess.parent_process()
    if parent is not None and not any(thread.name == WATCH for thread in threading.enumerate()):
        threading.Thread(target=_wait_and_end, args=(parent,), name=WATCH, daemon=True).start()


def _wait_and_end(parent: "multiprocess.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)


def _kill_with_parent() -> None:
    if _is_on:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # noqa: TID251


if sys.platform == "linux":
    _prctl = ctypes.CDLL(None).prctl  # looked up here: the lock that this takes may be held when a process forks
    os.register_at_fork(after_in_child=_kill_with_parent)  # noqa: TID251
