"""Output folders: checks before long work, and folders that are written whole."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kenya_birds.errors import UserError
from kenya_birds.files import PROBE_PREFIX, is_writable, replace
from kenya_birds.locks import LOCK_FILE

logger = logging.getLogger(__name__)

# Files that Finder and Explorer put into folders and do not show, in lower case.
SYSTEM_FILES = {".ds_store", "._.ds_store", ".localized", "thumbs.db", "desktop.ini"}


def check_new_folder(folder: str | Path, flag: str = "--output", *, can_overwrite: bool = False) -> None:
    """Raises `UserError` if an output folder is not new or empty, or not writable; call this before long work.

    Args:
        folder: The folder.
        flag: Its option, for the message.
        can_overwrite: Whether the command has `--overwrite`, for the message.
    """
    folder = Path(folder)
    if not is_new_or_empty(folder):
        more = ", or --overwrite to replace earlier results" if can_overwrite else ""
        raise UserError(f"{folder} exists and is not an empty folder: give another {flag}{more}")
    check_can_make(folder)


def check_can_make(folder: str | Path) -> None:
    """Raises `UserError` if a folder cannot be created or is not writable."""
    nearest = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    try:
        is_allowed = is_writable(nearest, for_folders=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from None
    if not is_allowed:
        raise UserError(f"{folder} cannot be created: {nearest} is not a writable folder")


def has_to_stay(folder: Path) -> bool:
    """Returns True for folders that are not replaced by another one: the working directory, a mount, or a link."""
    return folder.is_dir() and (folder.is_symlink() or os.path.ismount(folder) or folder.resolve() == Path.cwd())


def put_folder_in_place(partial: Path, folder: Path) -> None:
    """Renames a finished folder to its final name.

    An existing empty folder is removed first, because Windows does not replace it. The working directory, a mounted
    folder, a link to a folder, one that has the finished folder in it and one that cannot be removed stay, and get the
    files one by one.

    Args:
        partial: The finished folder.
        folder: Its final path.

    Raises:
        OSError: If the path exists and is not an empty folder, or cannot be written.
    """
    if has_to_stay(folder) or partial.parent == folder.absolute() or not _remove_empty(folder):
        if any(path.absolute() not in (partial, folder.absolute() / LOCK_FILE) for path in contents_of(folder)):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
        paths = sorted(partial.iterdir())
        try:
            for path in paths:
                shutil.move(path, folder / path.name)
        except BaseException:
            # The result is whole or not there. What others have put there meanwhile stays.
            for path in paths:
                moved = folder / path.name
                if moved.is_dir():
                    shutil.rmtree(moved, ignore_errors=True)
                else:
                    moved.unlink(missing_ok=True)
            raise
        partial.rmdir()
        return
    replace(partial, folder)


def _remove_empty(folder: Path) -> bool:
    """Removes a folder that counts as empty (see `is_new_or_empty`); returns whether none is there now."""
    try:
        if folder.is_dir() and is_new_or_empty(folder):
            delete_system_files(folder)
            (folder / LOCK_FILE).unlink(missing_ok=True)
            folder.rmdir()
    except OSError:
        return False  # such as a file that Explorer has open
    return not folder.is_dir()


def replace_folder(partial: Path, folder: Path) -> None:
    """Renames a finished folder to the name of an earlier one, which is deleted.

    The earlier folder is renamed first and deleted last: if one of its files is open, Windows refuses to rename it,
    and nothing is lost. What cannot be deleted is logged.

    Args:
        partial: The finished folder.
        folder: The earlier folder.

    Raises:
        OSError: If a folder cannot be renamed; the earlier one is then complete and in its place.
    """
    earlier = folder.absolute().with_name(f".{folder.name}.old")
    shutil.rmtree(earlier, ignore_errors=True)  # of an earlier call
    replace(folder, earlier)
    try:
        replace(partial, folder)
    except OSError:
        replace(earlier, folder)
        raise
    try:
        shutil.rmtree(earlier)
    except OSError as error:
        logger.warning("%s has the earlier files and cannot be deleted (%s): delete it", earlier, error)


@contextmanager
def users_folder(folder: Path, what: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary folder beside the final one; it is renamed at the end of the block, or removed after an error.

    It is in an existing folder if none can be created beside it.

    Args:
        folder: A new or empty folder.
        what: The folder in messages, such as `the archive birds`.
        overwrite: Replaces an existing folder at the end of the block, unless it has to stay (see `has_to_stay`).

    Raises:
        UserError: If it cannot be written.
    """
    place = folder.absolute()
    try:
        is_inside = folder.is_dir() and not overwrite and not is_writable(place.parent, for_folders=True)
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error}") from None
    # Nothing is beside the root of a drive, and nothing can be made beside a mounted folder below one of the system.
    partial = place / ".part" if is_inside or not place.name else place.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        is_replaced = overwrite and partial.parent != place and not has_to_stay(folder)
        if is_replaced and folder.is_dir() and contents_of(folder):
            replace_folder(partial, folder)
        else:
            put_folder_in_place(partial, folder)
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_system_file(name: str) -> bool:
    """Returns True for `SYSTEM_FILES`, and for the probe with which another process tries to write."""
    return name.lower() in SYSTEM_FILES or name.startswith(PROBE_PREFIX)


def contents_of(folder: Path) -> list[Path]:
    """Returns the files and folders in a folder, without `SYSTEM_FILES`: a user does not see these."""
    return [path for path in folder.iterdir() if not is_system_file(path.name) or _is_users_folder(path)]


def delete_system_files(folder: Path) -> None:
    """Deletes `SYSTEM_FILES` in a folder, which is then empty if it looked so."""
    for path in folder.iterdir():
        if is_system_file(path.name) and not _is_users_folder(path):
            with suppress(FileNotFoundError):  # a probe, which is deleted at once
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()


def _is_users_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(PROBE_PREFIX)


def is_new_or_empty(folder: Path) -> bool:
    """Returns True if a folder does not exist, or has nothing but a lock file (see `locked`) and `SYSTEM_FILES`."""
    return not folder.exists() or (folder.is_dir() and all(path.name == LOCK_FILE for path in contents_of(folder)))
