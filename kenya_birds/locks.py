"""Locks of output folders and caches, so that two runs do not disturb each other."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path, lock_file: Path | None = None, wait_s: float = 0.0) -> Iterator[None]:
    """Locks an output folder, so that two runs cannot overwrite each other's results.

    The lock is released when the block or the process ends. The lock file remains.

    Args:
        folder: The output folder.
        lock_file: Path of the lock; by default `LOCK_FILE` in the existing folder.
        wait_s: How long to wait for another process.

    Raises:
        UserError: If another process holds the lock, or the lock file cannot be created.
    """
    import filelock  # commands check their paths before anything heavy is imported

    lock = filelock.FileLock(lock_file or folder / LOCK_FILE)
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout:
        raise UserError(f"another run is writing to {folder}: wait for it, or give another folder") from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{folder} cannot be locked or written to ({error}): give another folder") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def shared_lock(path: Path, what: str, longest_s: float = -1) -> Iterator[None]:
    """Locks what one process makes for all, such as a cache. Another process waits, and the log says so.

    Args:
        path: The lock file, in an existing folder.
        what: What is made, for the log, such as `the first stage in /cache/x`.
        longest_s: Longest time to wait in seconds; -1: no limit.

    Raises:
        UserError: If another process holds the lock for longer than `longest_s`.
        OSError: If the lock file cannot be created, or the file system has no locks.
    """
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=1)
    except NotImplementedError as error:
        raise OSError(f"{path}: {error}") from None
    except filelock.Timeout:
        logger.info("Another process makes %s: waiting for it ...", what)
        try:
            lock.acquire(timeout=longest_s)
        except filelock.Timeout:
            raise UserError(f"another process has held {path} for {longest_s / 60:g} minutes: end it") from None
    try:
        yield
    finally:
        lock.release()


def check_not_locked(folder: Path) -> None:
    """Raises `UserError` if another process holds a folder's lock, without creating a lock file."""
    if (folder / LOCK_FILE).exists():
        with locked(folder):
            pass
