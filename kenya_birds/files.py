"""Files that commands read and write: checks, JSON, and writing them whole."""

import codecs
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kenya_birds.errors import UserError, WriteError

if TYPE_CHECKING:
    import pandas as pd


CARD_TEMPLATE = "model_card.md"


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


def read_text(path: str | Path) -> tuple[str, str]:
    """Reads a text that any program has written.

    Args:
        path: A text in UTF-8 or UTF-16 with or without a byte order mark, or in Windows-1252 (which contains Latin-1).

    Returns:
        The text, with its line ends, and the name of its encoding. A text that is not in UTF-8 or UTF-16 is read as
        Windows-1252; a few bytes that are no character there are read as in Latin-1.

    Raises:
        OSError: If the file cannot be read.
        UnicodeDecodeError: If a text with the byte order mark of UTF-16 is not in UTF-16.
        ValueError: If the file is not a text.
    """
    content = Path(path).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16"), "UTF-16"
    for encoding, zeros in (("utf-16-le", content[1:80:2]), ("utf-16-be", content[:80:2])):
        if len(content) % 2 == 0 and zeros and not any(zeros):
            return content.decode(encoding), "UTF-16"
    if b"\0" in content:
        raise ValueError("the file is not a text")
    with suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig"), "UTF-8"
    with suppress(UnicodeDecodeError):
        return content.decode("cp1252"), "Windows-1252"
    return content.decode("latin-1"), "Latin-1"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_digest(name: str) -> str:
    """Ten characters that tell files apart whose names would be equal, such as `1112cd1998`."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def json_number(value: float) -> float | None:
    """Returns a number for JSON, which has no NaN: None instead."""
    return None if math.isnan(value) else value


def write_json(content: dict[str, Any], path: Path, *, allow_nan: bool = True) -> None:
    """Writes JSON atomically.

    Args:
        content: The object.
        path: The file.
        allow_nan: Allows NaN, which is not valid JSON.

    Raises:
        ValueError: If the object has a NaN and `allow_nan` is not set.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that a run has written.

    Raises:
        UserError: If the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: expected a file that training wrote ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object: expected a file that training wrote")
    return content


ANNOTATIONS_FILE = "annotations.csv"
SPECIES_FILE = "species.csv"
RECORDINGS_FOLDER = "soundscape_data"
# In archives whose recordings lie elsewhere.
RECORDINGS_TABLE = "recordings.csv"


def check_layout(data_dir: str | Path) -> None:
    """Raises `UserError` if the archive's folder, a table, or the folder or table of recordings is missing."""
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(
            f"no archive at {data_dir}: expected a folder with {ANNOTATIONS_FILE}, {SPECIES_FILE} and "
            f"{RECORDINGS_FOLDER}/"
        )
    for name in (ANNOTATIONS_FILE, SPECIES_FILE):
        if not (data_dir / name).is_file():
            raise UserError(f"no {name} in {data_dir}: an archive needs it")
    if not (data_dir / RECORDINGS_FOLDER).is_dir() and not (data_dir / RECORDINGS_TABLE).is_file():
        raise UserError(f"no folder {RECORDINGS_FOLDER}/ in {data_dir}: unpack the recordings there")


def check_layouts(folders: Sequence[str | Path]) -> None:
    """Raises `UserError` if one of several archives is none, or is given twice."""
    places: list[Path] = []
    for folder in folders:
        check_layout(folder)
        place = Path(folder).resolve()
        if place in places:
            raise UserError(f"the archive {folder} is given twice: give each archive once")
        places.append(place)


def check_file(path: str | Path | None, what: str) -> None:
    """Raises `UserError` if a file does not exist.

    Args:
        path: The file; None: no check.
        what: Expected content, such as `a table of splits`.
    """
    if path is None or Path(path).is_file():
        return
    if Path(path).exists():
        raise UserError(f"{path} is not a file: expected {what}")
    raise UserError(f"there is no file {path}: expected {what}")


def check_suffix(path: str | Path, suffixes: tuple[str, ...], what: str) -> None:
    """Raises `UserError` if a path does not end in one of the suffixes.

    Args:
        path: The path.
        suffixes: Suffixes such as `(".png", ".svg")`.
        what: Expected content, such as `a picture`.
    """
    if Path(path).suffix not in suffixes:
        raise UserError(f"{path} is not the name of {what}: expected a name that ends in {' or '.join(suffixes)}")


# Of empty files and folders that show whether a folder can be written to.
PROBE_PREFIX = ".kenya_birds_probe_"
# Of files that are being written.
PARTIAL_SUFFIX = ".part"
# Of a disk that is full, fails, or can only be read; Windows has not all of these names.
WRITE_ERRORS = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS")} - {None}
# Windows does not rename or delete what another program has open.
SHARING_TRIES = 10 if os.name == "nt" else 0
SHARING_WAIT_S = 0.2


def is_write_error(error: OSError, folder: Path) -> bool:
    """Returns whether an error says that a file in a folder cannot be written.

    Args:
        error: The error.
        folder: The folder.
    """
    if error.filename:
        return Path(str(error.filename)).resolve().is_relative_to(folder.resolve())
    # Errors of writing to an open file name no file, and numpy gives no number. Connections have such errors too.
    return error.errno in WRITE_ERRORS or "written" in str(error)


def replace(source: Path, target: Path) -> None:
    """Renames a file or folder as `os.replace`; on Windows, waits up to 2 s for a program that has it open.

    Virus scanners, the index of Windows Search and OneDrive open new files for a moment.

    Raises:
        OSError: If it cannot be renamed.
    """
    _patiently(lambda: os.replace(source, target))


def _patiently(act: Callable[[], None]) -> None:
    for _ in range(SHARING_TRIES):
        with suppress(PermissionError):
            return act()
        time.sleep(SHARING_WAIT_S)
    return act()


def partial_of(path: Path) -> Path:
    """Returns the path at which a file is written until it is complete; a link there is deleted.

    Folders of other people may contain links, and what is written to a link goes into the file that it leads to.

    Args:
        path: The file's final path.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    if partial.is_symlink():
        partial.unlink()
    return partial


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path; the file is renamed to `path` at the end of the block, or removed after an error.

    Args:
        path: The file's path; an existing file is replaced.
    """
    partial = partial_of(path)
    try:
        yield partial
        replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def users_file(path: Path) -> Iterator[Path]:
    """Does the same as `whole_file` for paths of the user; raises `WriteError` if the file cannot be written."""
    try:
        with whole_file(path) as partial:
            yield partial
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error}; give a path in a writable folder") from None


def as_utf8(text: str) -> str:
    """Escapes invalid Unicode in a text, such as bytes of a file name: `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_table(table: "pd.DataFrame", path: str | Path, float_format: str | None = None) -> None:
    """Writes a table as CSV, atomically; an existing file is replaced.

    Args:
        table: The table.
        path: The file.
        float_format: Format of numbers, such as `%.4f`.

    Raises:
        UserError: If the file cannot be written.
    """
    with users_file(Path(path)) as partial:
        table.to_csv(partial, index=False, lineterminator="\n", float_format=float_format)


def check_output(path: str | Path, overwrite: bool) -> None:
    """Raises `UserError` if an output file exists or cannot be created; call this before long work.

    Args:
        path: The file.
        overwrite: Allows an existing file.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected the path of a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: give another path, or replace it with --overwrite")
    try:
        is_allowed = is_writable(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    if not is_allowed:
        raise UserError(f"{path} cannot be written: {path.parent} is not a writable folder")


def is_writable(folder: Path, *, for_folders: bool = False) -> bool:
    """Returns whether a file can be created in a folder.

    Args:
        folder: The folder.
        for_folders: Asks for a folder instead of a file: Windows has different rights for them.

    Raises:
        OSError: If the disk is full or fails.
    """
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return False
    try:
        try_writing(folder, for_folders=for_folders)
    except PermissionError:
        return False
    return True


def try_writing(folder: Path, *, for_folders: bool = False) -> None:
    """Creates and deletes an empty file, or folder: for Windows, `os.access` allows practically every folder.

    Raises:
        OSError: If that is not possible.
    """
    probe = folder / f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    if for_folders:
        probe.mkdir()
        _patiently(probe.rmdir)
    else:
        probe.open("xb").close()
        _patiently(probe.unlink)


# Removes program and time from the metadata of pictures, so that the same picture has the same bytes.
PICTURE_METADATA = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_picture(path: str | Path, overwrite: bool) -> None:
    """Raises `UserError` if a picture cannot be written; call this before long work.

    Args:
        path: The picture.
        overwrite: Allows an existing file.
    """
    check_suffix(path, tuple(PICTURE_METADATA), "a picture")
    check_output(path, overwrite)


def is_portable_name(name: str) -> bool:
    """Returns True if a file name is valid on every system: not reserved on Windows, and at most 255 bytes."""
    is_reserved = re.match(r"(con|prn|aux|nul|com\d|lpt\d) *(\.|$)", name, re.IGNORECASE)
    is_plain = name.isprintable() and not re.search(r'[<>:"/\\|?*]', name) and name == name.rstrip(" .")
    return bool(name) and is_plain and not is_reserved and len(name.encode()) <= 255


def link_or_copy(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy if the file system has no hard links, such as exFAT.

    Args:
        source: The existing file.
        target: The new path.
    """
    try:
        os.link(os.path.realpath(source), target)  # Linux would link a link, which leads nowhere if it is relative
    except OSError:
        shutil.copyfile(source, target)
