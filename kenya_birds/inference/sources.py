"""Sources of recordings: files, folders, patterns, lists and URLs, and the download of remote files."""

import codecs
import errno
import glob
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import split_protocol

from kenya_birds.data.sound_files import (
    SOUND_SUFFIXES,
    Skip,
    Skipped,
    SoundFiles,
    count_skipped,
    find_sound,
    identify,
    is_hidden,
    is_named_as_sound,
)
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

LIST_SUFFIX = ".txt"
COPIED_BYTES = 2**20
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Names that file systems use for the time or version of a file.
VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
# Storage that is only read. fsspec also has protocols that run code or wrap another address (reference, simplecache).
_LOCAL = ("file", "local")
_REMOTE = (
    *("http", "https", "ftp", "sftp", "ssh", "smb", "webdav", "webhdfs", "hdfs", "memory"),
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf"),
)
# Errors of the file systems' libraries if a file cannot be reached.
_UNREACHABLE = (OSError, ValueError, RuntimeError, ImportError)


@dataclass(frozen=True)
class FileState:
    """State of a file, by which a change is detected.

    Attributes:
        path: Full path or URL.
        size_bytes: Size; None if the file system does not provide it.
        version: Time of the last change (ns), or another version that the file system provides.
    """

    path: str
    size_bytes: int | None
    version: str


@dataclass(frozen=True)
class Source:
    """A recording to analyse: a local file or a URL.

    Attributes:
        recording: Path or URL, without possible secrets of a URL: user, password and query.
        system: The fsspec file system of a URL; None for a local file.
        path: Path in that file system.
    """

    recording: str
    system: Any = None
    path: str = ""

    def state(self) -> FileState:
        """Returns the current state of the file.

        Raises:
            UserError: If it does not exist or cannot be reached.
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
        """Gives a local path; a URL is downloaded to a copy that is removed at the end.

        Raises:
            UserError: If the file cannot be opened or downloaded, or is empty.
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
        with _temporary_folder() as folder:
            # Decoders check the suffix.
            copy = Path(folder) / ("recording" + PurePosixPath(self.recording).suffix[:8])
            self._fetch(copy)
            if not copy.stat().st_size:
                raise UserError("the file is empty (0 bytes)")
            yield copy

    def _fetch(self, copy: Path) -> None:
        with _reached(self.recording):
            remote = self.system.open(self.path, "rb")
        with remote:
            try:
                file = copy.open("wb", buffering=0)
            except OSError as error:
                raise _cannot_keep(error) from None
            with file:
                while True:
                    with _reached(self.recording):
                        data = memoryview(remote.read(COPIED_BYTES))
                    if not data:
                        break
                    try:
                        while data:
                            data = data[file.write(data) :]
                    except OSError as error:
                        raise _cannot_keep(error) from None


@contextmanager
def _temporary_folder() -> Iterator[str]:
    try:
        folder = tempfile.mkdtemp(prefix="kenya_birds_")
    except OSError as error:
        raise _cannot_keep(error) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_keep(error: OSError) -> UserError:
    try:
        where = f"the temporary folder {tempfile.gettempdir()}"
    except OSError:
        where = "the temporary folder"
    is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    what = "is full" if is_full else f"cannot be written to ({error.strerror or error})"
    return UserError(
        f"{where} {what}, so the recording cannot be copied there: free disk space, or set the environment variable "
        "TMPDIR (TEMP on Windows) to another folder"
    )


class FoundSources(Sequence[Source]):
    """Sequence of the recordings that were found, each once.

    Args:
        sources: The recordings.
        skipped: Skipped files, folders and links.

    Attributes:
        skipped: Skipped files, folders and links, with the reason.
    """

    def __init__(self, sources: Sequence[Source], skipped: Sequence[Skipped]) -> None:
        self._sources = sources
        self.skipped = skipped

    def __len__(self) -> int:
        """Returns the number of recordings."""
        return len(self._sources)

    def __getitem__(self, place: Any) -> Any:
        """Returns one recording, or a slice."""
        return self._sources[place]

    def log(self) -> None:
        """Logs how many files were skipped, one line for each reason."""
        for skip, (count, first) in count_skipped(self.skipped).items():
            logger.log(
                logging.INFO if skip is Skip.REPEATED else logging.WARNING, "Skipped %s: %d (%s)", skip, count, first
            )


def find_sources(paths: str | Path | Iterable[str | Path] | FoundSources) -> FoundSources:
    """Finds recordings, each once, in the order of the paths; recordings of a folder or pattern are sorted.

    Args:
        paths: One path or several: files with any suffix; folders, searched with all subfolders for suffixes of sound
            (see `find_sound`); patterns with `*`, `?`, `[...]` and `**`; lists of such paths, one per line, in files
            that end in `.txt` (`#` begins a comment); URLs of files, folders or patterns on the web or in storage that
            fsspec reads (such as `https`, `s3`, `gs`, `az`, `hf`, `sftp`; not chained with `::`).
            A result of this function is returned unchanged.

    Raises:
        UserError: If there is no recording at one of the paths. Missing files of a list fail later, when they are
            read, without stopping the others.
    """
    if isinstance(paths, FoundSources):
        return paths
    # A text is iterable too: its first character would be /, the whole disk.
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    names = [os.fspath(path) for path in several]
    found: dict[Any, Source] = {}
    skipped: dict[str, Skipped] = {}
    for name in names:
        part = _expand(name, must_exist=True)
        if not part.listed:
            raise UserError(_nothing(name, part.skipped))
        for source, identity in part.listed:
            same = found.setdefault(identity, source)
            if same.path != source.path:
                raise UserError(f"two URLs of {source.recording} differ only in their query: analyse one at a time")
        skipped |= {left.path: left for left in part.skipped}
    if not found:
        raise UserError("no recordings were given: expected files, folders, patterns, lists or URLs")
    # A recording may be skipped in a folder and given explicitly.
    taken = {source.recording for source in found.values()}
    return FoundSources(list(found.values()), [left for left in skipped.values() if left.path not in taken])


@dataclass
class _Part:
    """Recordings of one path, each with its file's identity, and skipped files."""

    listed: list[tuple[Source, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def of_files(cls, files: SoundFiles) -> "_Part":
        return cls([(Source(file.path), file.identity) for file in files.found], files.skipped)

    @classmethod
    def of_file(cls, path: str) -> "_Part":
        return cls([(Source(path), identify(path))])


def _nothing(name: str, skipped: Sequence[Skipped]) -> str:
    shown = _public(name) if split_protocol(name)[0] else name
    if len(skipped) == 1 and skipped[0].path == name:
        return f"'{shown}': {skipped[0].reason}"
    left_out = "".join(f"; {skip}: {count} ({first})" for skip, (count, first) in count_skipped(skipped).items())
    return f"'{shown}' contains no recording{left_out}; expected files that end in one of {' '.join(SOUND_SUFFIXES)}"


def _expand(name: str, *, must_exist: bool) -> _Part:
    protocol, _ = split_protocol(name)
    if protocol is not None:
        _check_address(name, protocol)
    if protocol in _REMOTE:
        return _expand_remote(name, must_exist=must_exist)
    path = Path(name if protocol is None else fsspec.core.url_to_fs(name)[1])
    if path.is_dir():
        return _Part.of_files(find_sound(path))
    if not path.exists() and glob.has_magic(str(path)):
        return _expand_pattern(path)
    if path.suffix.lower() == LIST_SUFFIX and (must_exist or path.exists()):
        return _read_list(path)
    if must_exist and not os.path.lexists(path):
        raise UserError(f"there is no file, folder or pattern '{name}'")
    return _Part.of_file(str(path))


def _check_address(name: str, protocol: str) -> None:
    """Raises `UserError` for a URL that may do more than read a file: tables and lists come from other people."""
    if protocol in (*_LOCAL, *_REMOTE) and "::" not in name:
        return
    # Not the whole: a later part may contain a password.
    first = name.split("::")[0]
    shown = _public(first)[:80] if split_protocol(first)[0] else first
    what = "joins several addresses with '::'" if "::" in name else f"begins with {protocol.rstrip(':')}:"
    raise UserError(
        f"the address '{shown}' {what}: expected one address that begins with one of "
        f"{' '.join(f'{kind}://' for kind in (*_REMOTE, *_LOCAL))}; or download the recording and give the file"
    )


def _expand_pattern(path: Path) -> _Part:
    """Finds the files that match a pattern, and all files in matching folders."""
    plain = next(place for place, part in enumerate(path.parts) if glob.has_magic(part))
    base, pattern = Path(*path.parts[:plain]), path.parts[plain:]
    if not base.is_dir():
        return _Part()

    def below(path: str) -> tuple[str, ...]:
        return Path(path).relative_to(base).parts

    files = find_sound(base, lambda folder: _match(below(folder), pattern, is_begin=True))
    begin = "" if plain else os.path.join(".", "")  # patterns without a folder do not begin with this
    return _Part.of_files(
        SoundFiles(
            [
                file._replace(path=file.path.removeprefix(begin))
                for file in files.found
                if _match(below(file.path), pattern)
            ],
            [
                replace(left, path=left.path.removeprefix(begin))
                for left in files.skipped
                if _match(below(left.path), pattern)
            ],
        )
    )


def _match(parts: Sequence[str], pattern: Sequence[str], *, is_begin: bool = False) -> bool:
    """Returns True if a pattern matches a path or one of its parent folders.

    Args:
        parts: Parts of the path.
        pattern: Parts of the pattern; `**` matches any number of folders.
        is_begin: Also returns True if a longer path may match.
    """
    if not pattern:
        return True
    if pattern[0] == "**":
        return is_begin or any(_match(parts[place:], pattern[1:]) for place in range(len(parts) + 1))
    if not parts:
        return is_begin
    return fnmatch(parts[0], pattern[0]) and _match(parts[1:], pattern[1:], is_begin=is_begin)


def _read_list(path: Path) -> _Part:
    try:
        data = path.read_bytes()
        # PowerShell writes UTF-16.
        lines = data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the list {path} cannot be read: expected one path per line, in UTF-8 or UTF-16 ({error})"
        ) from None
    whole = _Part()
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name and not name.startswith("#"):
            if name.lower().endswith(LIST_SUFFIX):
                raise UserError(f"the list {path} contains another list, '{name}': expected its recordings instead")
            # Missing recordings are reported as failed later; other text is an error now.
            is_path = split_protocol(name)[0] or glob.has_magic(name) or is_named_as_sound(name)
            if not is_path and not os.path.lexists(name):
                raise UserError(
                    f"line {number} of {path} is not a recording: '{name[:80]}'; expected one path per line"
                )
            part = _expand(name, must_exist=False)
            whole.listed += part.listed
            whole.skipped += part.skipped
    return whole


def _expand_remote(url: str, *, must_exist: bool) -> _Part:
    skipped: list[str] = []
    with _reached(_public(url)):
        system, path = fsspec.core.url_to_fs(url)
        if not must_exist or (is_named_as_sound(_public(url)) and system.isfile(path)):
            files = [path]
        else:
            # In a web address ? begins the query.
            is_pattern = glob.has_magic(re.split(r"[?#]", path)[0] if url.startswith("http") else path)
            base = re.split(r"[*?[]", path)[0].rpartition("/")[0] if is_pattern else path
            found = sorted(system.glob(path) if is_pattern else system.find(path))
            sound = [file for file in found if is_named_as_sound(file) and "/._" not in file.removeprefix(base)]
            files = [file for file in sound if not any(map(is_hidden, file.removeprefix(base).split("/")))]
            skipped = sorted(set(sound) - set(files))
            if not files and not skipped:
                if system.isfile(path):  # on web servers a folder may also be a file
                    files = [path]
                elif not is_pattern:
                    system.info(path)  # raises an error if nothing exists there
    # Paths on servers with a login do not contain the host.
    host = system.storage_options.get("host")

    def shown(file: str) -> str:
        return _public(
            f"{split_protocol(url)[0]}://{host}/{file.lstrip('/')}" if host else system.unstrip_protocol(file)
        )

    return _Part(
        [(Source(shown(file), system, file), shown(file)) for file in files],
        [Skipped(shown(file), Skip.HIDDEN, "it is hidden or in a recycle bin") for file in skipped],
    )


def _public(url: str) -> str:
    """Returns a URL without user, password and query."""
    protocol, rest = split_protocol(url)
    if protocol in ("http", "https"):
        rest = re.split(r"[?#]", rest)[0]
    return f"{protocol}://{re.sub(r'^[^/@]*@', '', rest)}"


@contextmanager
def _reached(name: str) -> Iterator[None]:
    """Turns errors of a file system into a `UserError`; their own messages may contain a password."""
    try:
        yield
    except UserError:
        raise
    except _UNREACHABLE as error:
        raise UserError(f"{name} {_why(name, error)}") from None


def _why(name: str, error: Exception) -> str:
    """Describes why a URL cannot be reached, without the error's own message, which may contain a password."""
    first: BaseException = error
    while first.__cause__ is not None:  # fsspec reports every error of a web server as "not found"
        first = first.__cause__
    status = getattr(first, "status", None) or getattr(getattr(first, "response", None), "status_code", None)
    if status in (404, 410) or (status is None and isinstance(first, FileNotFoundError)):
        return f"does not exist{' (404: not found)' if name.startswith('http') else ''}: check the address"
    if isinstance(first, PermissionError) or status in (401, 403):
        return "cannot be read (the server denies access): check the user, password or token"
    if status == 429 or (isinstance(status, int) and status >= 500):
        return f"cannot be downloaded now (the server answers {status}): try again later"
    if isinstance(first, TimeoutError):
        return "cannot be reached (no answer in time): try again later"
    reason = getattr(first, "strerror", None) or status or ""
    return f"cannot be reached ({type(first).__name__}{f': {reason}' if reason else ''})"
