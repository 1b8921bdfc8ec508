"""Files that commands read and write: checks, JSON, and writing them whole."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kenya_birds.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def shipped_file(name: str) -> Path:
    """A file of the repository's top level, such as model_card.md: there in a clone, in the package in a wheel.

    Raises:
        FileNotFoundError: If it is in neither: the installation is not whole.
    """
    package = Path(__file__).parent
    for folder in (package, package.parent):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} is missing in {package}: install kenya_birds again")


def write_json(content: dict[str, Any], path: Path, *, allow_nan: bool = True) -> None:
    """Writes JSON whole or not at all.

    Raises:
        ValueError: If there is a NaN, which is no JSON, and `allow_nan` is not set.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that a run left.

    Raises:
        UserError: If the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: expected what training left there ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: expected what training left there")
    return content


ANNOTATIONS_FILE = "annotations.csv"
SPECIES_FILE = "species.csv"
RECORDINGS_FOLDER = "soundscape_data"


def check_layout(data_dir: str | Path) -> None:
    """Raises `UserError` unless the archive's folder, its two tables and its folder of recordings are there."""
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(
            f"no archive at {data_dir}: expected a folder with {ANNOTATIONS_FILE}, {SPECIES_FILE} and "
            f"{RECORDINGS_FOLDER}/"
        )
    for name in (ANNOTATIONS_FILE, SPECIES_FILE):
        if not (data_dir / name).is_file():
            raise UserError(f"no {name} in {data_dir}: an archive needs it")
    if not (data_dir / RECORDINGS_FOLDER).is_dir():
        raise UserError(f"no folder {RECORDINGS_FOLDER}/ in {data_dir}: unpack the recordings there")


def check_file(path: str | Path | None, what: str) -> None:
    """Raises `UserError` unless a file is there.

    Args:
        path: The file; None: none was given.
        what: What is expected, such as `a table of splits`.
    """
    if path is None or Path(path).is_file():
        return
    if Path(path).exists():
        raise UserError(f"{path} is not a file: expected {what}")
    raise UserError(f"there is no file {path}: expected {what}")


def check_suffix(path: str | Path, suffixes: tuple[str, ...], what: str) -> None:
    """Raises `UserError` unless a path ends in one of the suffixes.

    Args:
        path: The path.
        suffixes: Such as `(".png", ".svg")`.
        what: What is expected, such as `a picture`.
    """
    if Path(path).suffix not in suffixes:
        raise UserError(f"{path} is not the name of {what}: expected a name that ends in {' or '.join(suffixes)}")


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
