"""Search for recordings in a folder, shared by all commands; skipped files are reported with the reason."""

import mimetypes
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

# Formats that soundfile and PyAV open. The sound of videos, such as those of camera traps, is read.
SOUND_SUFFIXES = (
    *(".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi", ".bwf"),
    *(".caf", ".flac", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpga", ".nist"),
    *(".oga", ".ogg", ".ogv", ".opus", ".rf64", ".snd", ".sph", ".spx", ".tta", ".w64", ".wav", ".wave"),
    *(".weba", ".webm", ".wma", ".wv"),
)
# Wildlife Acoustics' own formats.
FOREIGN_SUFFIXES = (".wac", ".w4v")
# Folders of recycle bins, of file systems, and of network storage's thumbnails and snapshots.
HIDDEN_FOLDERS = {
    *("$recycle.bin", "recycler", "recycled", "#recycle", "@recycle", "system volume information", "lost+found"),
    *("@eadir", "@recently-snapshot", "#snapshot", "__macosx"),
}
# Signatures of sound files, whatever their names: (offset, bytes).
_SIGNATURES = (
    *((8, b"WAVE"), (0, b"RF64"), (0, b"riff\x2e\x91\xcf\x11"), (0, b"fLaC"), (0, b"OggS"), (8, b"AIFF")),
    *((8, b"AIFC"), (0, b".snd"), (0, b"caff"), (0, b"wvpk"), (0, b"ID3"), (4, b"ftypM4A"), (0, b"#!AMR")),
)
# The real path, or the numbers of the device and the file: the same for all names of one file.
FileIdentity = str | tuple[int, int]
# Python's own table of types, which does not depend on the machine.
_TYPES = mimetypes.MimeTypes()


class Skip(StrEnum):
    """Reason for which a search skips something; the text follows a number."""

    UNREADABLE = "folders that cannot be read"
    BROKEN_LINK = "links to a target that does not exist"
    FOREIGN = "recordings in a format that cannot be read"
    UNKNOWN_SUFFIX = "recordings with an unknown suffix"
    HIDDEN = "recordings that are hidden or in a recycle bin"
    REPEATED = "recordings that were found under another name"

    @property
    def is_loss(self) -> bool:
        """Whether recordings that the user wants may be missing."""
        return self not in (Skip.HIDDEN, Skip.REPEATED)


@dataclass(frozen=True)
class Skipped:
    """A recording, folder or link that a search skipped.

    Attributes:
        path: A recording, a folder or a link.
        skip: Kind of reason.
        reason: Reason in words, for this path.
        count: Number of recordings, folders or links.
    """

    path: str
    skip: Skip
    reason: str
    count: int = 1


class SoundFile(NamedTuple):
    """A recording that was found.

    Attributes:
        path: Path below the searched folder.
        identity: See `identify`.
    """

    path: str
    identity: FileIdentity


@dataclass
class SoundFiles:
    """Result of a search.

    Attributes:
        found: The recordings, each once, sorted by path.
        skipped: Skipped files, folders and links, sorted by path.
    """

    found: list[SoundFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def is_named_as_sound(name: str) -> bool:
    """Returns True if a file's name ends in one of `SOUND_SUFFIXES`."""
    return name.lower().endswith(SOUND_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Returns True if a file or folder of this name is hidden, a recycle bin, or belongs to the file system."""
    return name.startswith(".") or name.lower() in HIDDEN_FOLDERS


def identify(path: str | Path) -> FileIdentity:
    """Returns a value that is equal for all names of one file: links, hard links, relative and absolute paths."""
    try:
        status = os.stat(path)
    except OSError:
        status = None
    return _identity(status, os.path.realpath(path))


def find_sound(folder: str | Path, enter: Callable[[str], bool] | None = None) -> SoundFiles:
    """Searches a folder and all its subfolders for files with a suffix of sound files.

    Links to files and folders are followed; each folder is searched once, so loops of links end. A file with several
    names (links, hard links) is found once, by its own name if possible. Hidden files and folders and recycle bins are
    skipped; the folder itself may be hidden.

    Args:
        folder: The folder.
        enter: Called with a subfolder's path; returns whether to search it. By default all are searched.

    Returns:
        The recordings, and skipped files, folders and links.
    """
    return _Search(enter or (lambda _: True)).run(str(folder))


def count_skipped(skipped: Iterable[Skipped]) -> dict[Skip, tuple[int, str]]:
    """Counts skipped recordings by reason, and gives the first path of each."""
    counts: dict[Skip, tuple[int, str]] = {}
    for left in skipped:
        before, first = counts.get(left.skip, (0, left.path))
        counts[left.skip] = before + left.count, first
    return {skip: counts[skip] for skip in Skip if skip in counts}


class _Search:
    """A single search; links are followed last, so that files keep their own names."""

    def __init__(self, enter: Callable[[str], bool]) -> None:
        self._enter = enter
        self._searched: set[str] = set()
        self._links: list[str] = []
        self._files: list[tuple[bool, SoundFile]] = []
        self._skipped: list[Skipped] = []

    def run(self, folder: str) -> SoundFiles:
        self._links.append(folder)
        while self._links:
            waiting, self._links = sorted(self._links, key=_order), []
            for path in waiting:
                self._search(path, is_link=path != folder)
        names: dict[FileIdentity, str] = {}
        kept: list[SoundFile] = []
        for _, file in sorted(self._files, key=lambda found: (found[0], _order(found[1].path))):
            name = names.setdefault(file.identity, file.path)
            if name == file.path:
                kept.append(file)
            else:
                self._skip(file.path, Skip.REPEATED, f"the same file as {name}")
        by_path = sorted(kept, key=lambda file: _order(file.path))
        return SoundFiles(by_path, sorted(self._skipped, key=lambda left: _order(left.path)))

    def _search(self, top: str, *, is_link: bool) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder)
            if real in self._searched:
                continue
            self._searched.add(real)
            try:
                with os.scandir(folder) as entries:
                    listed = list(entries)
            except OSError as error:
                self._skip(folder, Skip.UNREADABLE, f"the folder cannot be read: {error.strerror or error}")
                continue
            for entry in listed:
                if self._is_folder(entry):
                    if _has_hidden_flag(entry):
                        self._count_hidden(entry.path)
                    elif self._enter(entry.path):
                        (self._links if _is_link(entry) else waiting).append(entry.path)
                elif not self._is_lost_link(entry):
                    self._take_file(entry, real, is_link or entry.is_symlink())

    def _is_folder(self, entry: "os.DirEntry[str]") -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a loop of links
            return False

    def _is_lost_link(self, entry: "os.DirEntry[str]") -> bool:
        """Returns True if the entry is a broken link; links with a suffix of sound fail later, when they are read."""
        if not entry.is_symlink() or is_hidden(entry.name) or is_named_as_sound(entry.name):
            return False
        if os.path.exists(entry.path):
            return False
        if _TYPES.guess_type(entry.name)[0] is None:
            self._skip(entry.path, Skip.BROKEN_LINK, f"a link to {os.readlink(entry.path)}, which does not exist")
        return True

    def _take_file(self, entry: "os.DirEntry[str]", folder: str, is_link: bool) -> None:
        path, is_sound = entry.path, is_named_as_sound(entry.name)
        if _has_hidden_flag(entry):
            # macOS stores metadata, not sound, in files named ._NAME on other file systems.
            if is_sound and not entry.name.startswith("._"):
                self._skip(path, Skip.HIDDEN, "the file is hidden")
        elif is_sound:
            self._files.append((is_link, SoundFile(path, _identity_of(entry, folder))))
        elif entry.name.lower().endswith(FOREIGN_SUFFIXES):
            reason = "a format of Wildlife Acoustics that cannot be read here: convert it to WAV with Kaleidoscope"
            self._skip(path, Skip.FOREIGN, reason)
        elif _begins_as_sound(path, entry.name):
            reason = "it contains sound, but its suffix is unknown: rename it, or give the file instead of its folder"
            self._skip(path, Skip.UNKNOWN_SUFFIX, reason)

    def _count_hidden(self, folder: str) -> None:
        count = sum(is_named_as_sound(name) and not name.startswith("._") for name in _names_below(folder))
        if count:
            self._skip(folder, Skip.HIDDEN, "the folder is hidden, or a recycle bin", count)

    def _skip(self, path: str, skip: Skip, reason: str, count: int = 1) -> None:
        self._skipped.append(Skipped(path, skip, reason, count))


def _names_below(folder: str) -> Iterator[str]:
    for _, _, names in os.walk(folder):
        yield from names


def _order(path: str) -> str:
    """Returns a key that sorts paths in the same order on all systems."""
    return path.replace(os.sep, "/")


def _is_link(entry: "os.DirEntry[str]") -> bool:
    """Returns True if a folder is a link, or a junction on Windows."""
    is_junction = getattr(entry, "is_junction", None)  # Python 3.12
    return entry.is_symlink() or bool(is_junction and is_junction())


def _has_hidden_flag(entry: "os.DirEntry[str]") -> bool:
    """Returns True if an entry is hidden by its name, or by the flag of Windows or macOS."""
    if is_hidden(entry.name):
        return True
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    attributes, flags = getattr(status, "st_file_attributes", 0), getattr(status, "st_flags", 0)
    return bool(attributes & stat.FILE_ATTRIBUTE_HIDDEN or flags & stat.UF_HIDDEN)


def _identity_of(entry: "os.DirEntry[str]", folder: str) -> FileIdentity:
    try:
        status = entry.stat()
    except OSError:  # a link to nothing
        status = None
    real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(folder, entry.name)
    return _identity(status, real)


def _identity(status: os.stat_result | None, real_path: str) -> FileIdentity:
    # Only hard links need the file's number; some network file systems have invalid numbers.
    if status is not None and status.st_nlink > 1 and status.st_ino:
        return status.st_dev, status.st_ino
    return real_path


def _begins_as_sound(path: str, name: str) -> bool:
    """Returns True if a file of an unknown type has the signature of a sound file."""
    if _TYPES.guess_type(name)[0] is not None:
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            return False
        with open(path, "rb", buffering=0) as file:
            begin = file.read(16)
    except OSError:
        return False
    return any(begin[at : at + len(sign)] == sign for at, sign in _SIGNATURES)
