"""Console output of all commands: errors in one line, and the package's log on stderr."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kenya_birds.errors import DeviceMemoryError, LostProcessError, UsageError, UserError

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but the tab and the line end


def without_controls(text: str) -> str:
    """Returns a text with its control characters escaped: names of files can have them, and terminals obey them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@contextmanager
def one_line_errors(program: str, after_stop: str = "") -> Iterator[None]:
    """Ends the process with one line on stderr: exit code 2 for a `UserError`, 130 when the user stops it.

    Args:
        program: Name of the command, a prefix of the message.
        after_stop: How to resume after Ctrl+C, unless the `KeyboardInterrupt` has a message, or after another process
            has ended.
    """
    # All processes of a launcher have the same command line, and get Ctrl+C together.
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        yield
    except UserError as error:
        program = getattr(error, "program", program)  # for errors of the command line, with the subcommand
        hint = f"; {after_stop}" if after_stop and isinstance(error, LostProcessError) else ""
        if is_first or not isinstance(error, UsageError):
            print(f"{program}: error: {without_controls(' '.join(str(error).split()))}{hint}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        hint = str(stop) or after_stop
        if is_first:
            print(f"{program}: stopped{f'; {hint}' if hint else ''}", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of these kinds into `UserError`; for code with arguments of the user."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from None


# Of the errors that are no `torch.OutOfMemoryError`: on Apple's GPUs, and of a device whose memory others have taken.
_NO_MEMORY = (
    *("MPS backend out of memory", "CUDA error: out of memory", "HIP error: out of memory"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
)


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turns torch's errors about the memory of the device into `DeviceMemoryError`.

    Args:
        advice: What to do.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # not imported here: it takes seconds
        is_torchs = torch is not None and isinstance(error, torch.OutOfMemoryError)
        if not is_torchs and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise DeviceMemoryError(f"the device has too little memory: {advice}") from None


@contextmanager
def transformers_bars_hidden() -> Iterator[None]:
    """Hides transformers' progress bars for loading and saving weights, which is quick for these models."""
    from transformers.utils import logging as transformers_logging

    was_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            transformers_logging.enable_progress_bar()


class _Formatter(logging.Formatter):
    """Log format without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the text of a record."""
        return without_controls(super().format(record))


class _Once(logging.Filter):
    """Log filter that shows messages about an archive once, although every fold of a cross-validation reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns True if a record is shown."""
        if not record.name.startswith("kenya_birds.data."):
            return True
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


def show_log(level: int = logging.INFO) -> None:
    """Shows the package's log on stderr, from `level` on; other libraries' logs are unchanged."""
    logger = logging.getLogger("kenya_birds")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(_Once())
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
