"""Process settings of commands: text in any script, memory, and signals that let files be closed and removed."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kenya_birds.errors import UsageError

# Termination, closed terminal, and Ctrl+Break on Windows; Python handles SIGINT as KeyboardInterrupt.
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGBREAK")
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _MOST_IN_OLD_GLIBC = 2**30, 2**25


def use_utf8() -> None:
    """Restarts this Python in UTF-8 mode if the encoding of file names cannot represent all names.

    This happens with `LC_ALL=C` and `PYTHONUTF8=0`, and with old locales such as `de_DE.ISO-8859-1`. Names with other
    letters could then be read, but not printed or written to tables.
    """
    is_utf8 = sys.getfilesystemencoding().lower() in ("utf-8", "utf8")
    if os.name == "posix" and not is_utf8 and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # child processes too
        arguments = [os.fsencode(argument) for argument in sys.orig_argv[1:]]
        os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *arguments])


def print_anything() -> None:
    """Replaces characters that the console's encoding (such as cp1252) cannot print, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def print_tables() -> None:
    """Writes printed CSV in UTF-8 with LF, as all tables, if stdout is a file or another program, no console."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and not sys.stdout.isatty():
        reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")


def keep_freed_memory() -> None:
    """Keeps freed memory in the process for the next tensors. Does nothing where the C library is not glibc.

    By default, glibc gives blocks above 32 MB back to the system at once, and smaller ones at the end of the heap. A
    page that comes from the system is cleared first, which takes up to a quarter of the time of training on a CPU. The
    settings are in force until the process ends. Settings of the user in the environment have priority.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or is_set or not hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        return
    # glibc before 2.34 refuses more than 32 MB. The second setting alone would leave this limit at 128 KB.
    if libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) or libc.mallopt(_M_MMAP_THRESHOLD, _MOST_IN_OLD_GLIBC):
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def check_alone(program: str) -> None:
    """Refuses the processes of a launcher: each would do the whole work, and they would replace each other's files.

    Args:
        program: Name of the command.

    Raises:
        UsageError: If `WORLD_SIZE` is above 1.
    """
    if (size := _launched_processes()) > 1:
        raise UsageError(
            f"this command works in one process, and WORLD_SIZE is {size}: start it without torchrun or accelerate "
            "launch, or unset WORLD_SIZE",
            program,
        )


def _launched_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Ended(BaseException):
    """Raised in the main thread after a signal to end the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def cleaned_up_at_signals(program: str) -> Iterator[None]:
    """Ends the block by an exception at SIGTERM and similar signals, so that incomplete files are removed.

    Ignored signals (`nohup`) remain ignored. In processes of a launcher, which may wait for each other, signals keep
    their default action.

    Args:
        program: Name of the command, a prefix of the message.

    Raises:
        SystemExit: After a signal, with the exit code 128 + its number.
    """
    if _launched_processes() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        raise _Ended(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except _Ended as ended:
        print(f"{program}: stopped by {signal.Signals(ended.number).name}", file=sys.stderr)
        raise SystemExit(128 + ended.number) from None
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def wait_for_end() -> None:
    """Waits for Ctrl+C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1):  # on Windows signals do not interrupt a wait without a timeout
        pass
