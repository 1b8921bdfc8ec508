"""Files and folders that commands write: whole or not at all, and never over something unasked."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kenya_birds.errors import UserError
from kenya_birds.input_files import check_suffix

if TYPE_CHECKING:  # importing it takes half a second, and commands check their paths before
    import pandas as pd

LOCK_FILE = ".lock"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the path to write to; what is there gets its name when the block ends, and is removed if it fails.

    Args:
        path: The file's path; a file that is there is replaced.
    """
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def users_file(path: Path) -> Iterator[Path]:
    """`whole_file` where the user chose the path: raises `UserError` if it cannot be written."""
    try:
        with whole_file(path) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}; give a path in a folder that can be written to") from None


def as_utf8(text: str) -> str:
    """A text with what is not Unicode, such as bytes in a file's name, escaped: `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_table(table: "pd.DataFrame", path: str | Path, float_format: str | None = None) -> None:
    """Writes a table as CSV, whole or not at all; a file that is there is replaced.

    Raises:
        UserError: If it cannot be written.
    """
    with users_file(Path(path)) as partial:
        table.to_csv(partial, index=False, lineterminator="\n", float_format=float_format)


def check_output(path: str | Path, overwrite: bool) -> None:
    """Raises `UserError` if a file would be overwritten unasked, or cannot be made; to be known before long work."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected the path of a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: give another path, or replace it with --overwrite (overwrite=True)")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: {path.parent} is not a folder that can be written to")


def check_new_folder(folder: str | Path, flag: str = "--output") -> None:
    """Raises `UserError` unless a folder is new or empty and can be written to; to be known before long work.

    Args:
        folder: The folder.
        flag: The option that names it.
    """
    folder = Path(folder)
    if not is_new_or_empty(folder):
        raise UserError(f"{folder} exists and is not an empty folder: give another {flag}")
    check_can_make(folder)


def check_can_make(folder: str | Path) -> None:
    """Raises `UserError` unless a folder is there or can be made, and can be written to."""
    nearest = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{folder} cannot be made: {nearest} is not a folder that can be written to")


# What the formats of pictures would say of program and time, left out: same picture, same bytes.
PICTURE_METADATA = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_picture(path: str | Path, overwrite: bool) -> None:
    """Raises `UserError` if a picture cannot be written there; to be known before long work."""
    check_suffix(path, tuple(PICTURE_METADATA), "a picture")
    check_output(path, overwrite)


def put_folder_in_place(partial: Path, folder: Path) -> None:
    """Gives a finished folder its final name. An empty folder of that name is removed, as Windows does not replace it.

    Raises:
        OSError: If something is there already, or the folder cannot be written.
    """
    if folder.is_dir():
        folder.rmdir()
    os.replace(partial, folder)


def is_portable_name(name: str) -> bool:
    """Whether every system takes a file of this name: Windows reserves some, and 255 bytes are the most."""
    is_reserved = re.match(r"(con|prn|aux|nul|com\d|lpt\d) *(\.|$)", name, re.IGNORECASE)
    is_plain = name.isprintable() and not re.search(r'[<>:"/\\|?*]', name) and name == name.rstrip(" .")
    return bool(name) and is_plain and not is_reserved and len(name.encode()) <= 255


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the file system has no hard links, such as exFAT."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def is_new_or_empty(folder: Path) -> bool:
    """Whether nothing is there yet: no such path, or a folder that is empty or has nothing but a lock (`locked`)."""
    return not folder.exists() or (folder.is_dir() and all(path.name == LOCK_FILE for path in folder.iterdir()))


@contextmanager
def locked(folder: Path, lock_file: Path | None = None) -> Iterator[None]:
    """Holds the lock of an output folder: two runs that write to one folder at the same time would lose one's results.

    The lock is free again when the block or the process ends, however that ends. Its file stays.

    Args:
        folder: The output folder.
        lock_file: Where the lock lies; by default `LOCK_FILE` in the folder, which has to be there.

    Raises:
        UserError: If another process holds the lock, or its file cannot be made.
    """
    import filelock  # commands check their paths before anything heavy is imported

    lock = filelock.FileLock(lock_file or folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"another run writes to {folder} at this moment: wait for it, or give another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{folder} cannot be locked or written to ({error}): give another folder") from None
    try:
        yield
    finally:
        lock.release()


def check_not_locked(folder: Path) -> None:
    """Raises `UserError` if another process holds a folder's lock; nothing is written."""
    if (folder / LOCK_FILE).exists():
        with locked(folder):
            pass
