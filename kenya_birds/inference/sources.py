"""Which recordings are meant by files, folders, patterns, lists and URLs, and how each comes to this machine."""

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from kenya_birds.data.check import SOUND_SUFFIXES
from kenya_birds.errors import UserError

LIST_SUFFIX = ".txt"
# What file systems call it when a file was last written, or what changes with it.
VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
# Whatever a file system's own library raises when it is not reached.
_UNREACHABLE = (OSError, ValueError, RuntimeError, ImportError)


@dataclass(frozen=True)
class FileState:
    """What tells a file from a changed one.

    Attributes:
        path: Its full path or URL.
        size_bytes: Its size; None where the file system does not say.
        version: When it was last written (ns), or what its file system tells instead.
    """

    path: str
    size_bytes: int | None
    version: str


@dataclass(frozen=True)
class Source:
    """A recording that was asked for: a file, or what a URL leads to.

    Attributes:
        recording: As it was found; of a URL without what may be secret: user, password and query.
        system: The file system that fsspec found for its URL; None of a file on this machine.
        path: Its path there.
    """

    recording: str
    system: Any = None
    path: str = ""

    def state(self) -> FileState:
        """Its size and time now.

        Raises:
            UserError: If it is not there or cannot be reached.
        """
        if self.system is None:
            try:
                status = os.stat(self.recording)
            except OSError as error:
                raise UserError(f"{error.strerror or error}") from None
            return FileState(os.path.realpath(self.recording), status.st_size, str(status.st_mtime_ns))
        with _reached(self.recording):
            self.system.invalidate_cache()
            info = self.system.info(self.path)
        version = next((str(info[name]) for name in VERSION_FIELDS if info.get(name) is not None), "")
        return FileState(self.recording, info.get("size"), version)

    @contextmanager
    def local_path(self) -> Iterator[Path]:
        """A path to read from: of a URL, a copy that is removed at the end.

        Raises:
            UserError: If it cannot be opened or fetched, or is empty.
        """
        if self.system is None:
            path = Path(self.recording)
            if path.exists() and not path.is_file():
                raise UserError("it is a folder, a pipe or a device, not a file")
            try:
                with path.open("rb") as file:
                    is_empty = not file.read(1)
            except OSError as error:
                raise UserError(f"{error.strerror or error}") from None
            if is_empty:
                raise UserError("the file is empty (0 bytes)")
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="kenya_birds_") as folder:
            # With its own suffix, which decoders look at.
            copy = Path(folder) / ("recording" + PurePosixPath(self.recording).suffix[:8])
            with _reached(self.recording):
                with self.system.open(self.path, "rb") as remote, copy.open("wb") as file:
                    shutil.copyfileobj(remote, file, 2**20)
                if not copy.stat().st_size:
                    raise UserError("the file is empty (0 bytes)")
            yield copy


def find_sources(paths: Iterable[str | Path]) -> list[Source]:
    """Finds recordings, each once, in the order of the paths; those of a folder or pattern are sorted.

    Args:
        paths: Files of any suffix; folders, searched to any depth for the suffixes of sound; patterns with `*`, `?`,
            `[...]` and `**`; lists of such paths, one a line, in files that end in `.txt` (`#` begins a remark); URLs
            of files, folders or patterns on any file system that fsspec knows.

    Raises:
        UserError: If one of the paths leads to nothing. A file that a list names need not be there: it fails when it
            is read, and the others do not.
    """
    names = [str(path) for path in paths]
    found: dict[str, Source] = {}
    for name in names:
        listed = list(_expand(name, must_exist=True))
        if not listed:
            suffixes = " ".join(SOUND_SUFFIXES)
            shown = _public(name) if split_protocol(name)[0] else name
            raise UserError(f"'{shown}' holds no recording: expected files that end in one of {suffixes}")
        for source in listed:
            same = found.setdefault(source.recording if source.system else os.path.realpath(source.recording), source)
            if same.path != source.path:
                raise UserError(f"two URLs of {source.recording} differ in their query only: analyse one at a time")
    if not found:
        raise UserError("no recordings were given: expected files, folders, patterns, lists or URLs")
    return list(found.values())


def _expand(name: str, *, must_exist: bool) -> Iterator[Source]:
    system = _remote_system(name)
    if system is not None:
        yield from _expand_remote(name, system, must_exist=must_exist)
        return
    path = Path(LocalFileSystem._strip_protocol(name) if name.startswith(("file://", "local://")) else name)
    if path.is_dir():
        yield from (Source(found) for found in _walk(path))
    elif path.exists() or not glob.has_magic(str(path)):
        if path.suffix.lower() == LIST_SUFFIX and (must_exist or path.exists()):
            yield from _read_list(path)
        elif must_exist and not os.path.lexists(path):
            raise UserError(f"there is no file, folder or pattern '{name}'")
        else:
            yield Source(str(path))
    else:
        matches = sorted(glob.glob(str(path), recursive=True))
        for match in matches:
            if os.path.isdir(match):
                yield from (Source(found) for found in _walk(Path(match)))
            elif _is_sound(match):
                yield Source(match)


def _walk(folder: Path) -> list[str]:
    found = []
    for place, _, files in os.walk(folder, followlinks=False):
        found += [os.path.join(place, file) for file in files if _is_sound(file) and not file.startswith("._")]
    return sorted(found)


def _read_list(path: Path) -> Iterator[Source]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"the list {path} cannot be read: expected one path a line, in UTF-8 ({error})") from None
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            if line.strip().lower().endswith(LIST_SUFFIX):
                raise UserError(f"the list {path} names another list, '{line.strip()}': name its recordings")
            yield from _expand(line.strip(), must_exist=False)


def _remote_system(name: str) -> Any | None:
    """The file system of a URL; None of a path on this machine."""
    protocol, _ = split_protocol(name)
    if protocol in (None, "file", "local"):
        return None
    with _reached(_public(name)):
        return fsspec.core.url_to_fs(name)[0]


def _expand_remote(url: str, system: Any, *, must_exist: bool) -> Iterator[Source]:
    path = system._strip_protocol(url)
    with _reached(_public(url)):
        if not must_exist or (_is_sound(_public(url)) and system.isfile(path)):
            files = [path]
        else:
            found = system.glob(path) if glob.has_magic(path) else system.find(path)
            files = sorted(file for file in found if _is_sound(file))
            if not files and system.isfile(path):  # on the web, a folder may be a file too
                files = [path]
    # Paths on a server that is logged in to do not name it.
    host = system._get_kwargs_from_urls(url).get("host")
    for file in files:
        name = f"{split_protocol(url)[0]}://{host}/{file.lstrip('/')}" if host else system.unstrip_protocol(file)
        yield Source(_public(name), system, file)


def _public(url: str) -> str:
    """A URL without user, password and query."""
    protocol, rest = split_protocol(url)
    if protocol in ("http", "https"):
        rest = re.split(r"[?#]", rest)[0]
    return f"{protocol}://{re.sub(r'^[^/@]*@', '', rest)}"


@contextmanager
def _reached(name: str) -> Iterator[None]:
    """Turns what a file system raises into a `UserError`; its own message might tell a password."""
    try:
        yield
    except UserError:
        raise
    except _UNREACHABLE as error:
        reason = getattr(error, "strerror", None) or getattr(error, "status", None) or ""
        raise UserError(
            f"{name} cannot be reached ({type(error).__name__}{f': {reason}' if reason else ''})"
        ) from None


def _is_sound(name: str) -> bool:
    return name.lower().endswith(SOUND_SUFFIXES)
