"""Unpacks the recordings of a zip file from elsewhere, which may be broken or hostile.

Only recordings are written, each directly into one folder under the last part of its name; no name in the zip chooses
a place on the disk. An interrupted run leaves whole recordings and at most one `.part` file, and the next one goes on
with what is missing.
"""

import hashlib
import logging
import os
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from kenya_birds.errors import UserError
from kenya_birds.files import is_portable_name

logger = logging.getLogger(__name__)

MAX_ENTRIES = 100_000
MAX_UNPACKED_BYTES = 1 << 40
# FLAC hardly gets smaller in a zip; a zip that promises to grow twentyfold holds something else.
MAX_GROWTH = 20
CHUNK_BYTES = 1 << 20
PART_SUFFIX = ".part"


@dataclass(frozen=True)
class Expected:
    """What a whole file is.

    Attributes:
        size_bytes: Its length.
        checksum: `md5:` or `crc32:` and hexadecimal digits in lower case.
    """

    size_bytes: int
    checksum: str

    def matches(self, path: Path) -> bool:
        """Whether this file is there with these contents; reads it where the size is right."""
        return path.is_file() and path.stat().st_size == self.size_bytes and self._checksum(path) == self.checksum

    def _checksum(self, path: Path) -> str:
        with path.open("rb") as file:
            if self.checksum.startswith("md5:"):
                return "md5:" + hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            crc32 = 0
            while chunk := file.read(CHUNK_BYTES):
                crc32 = zlib.crc32(chunk, crc32)
            return _crc32_text(crc32)


def part_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + PART_SUFFIX)


def same_file(name: str) -> str:
    """The same for names that are one file on a disk that tells neither upper from lower case nor é from e and ´."""
    return unicodedata.normalize("NFC", name).casefold()


def put_in_place(path: Path) -> None:
    """Gives a whole `.part` file its final name, in one step that a crash or a power cut cannot halve."""
    with part_of(path).open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(part_of(path), path)


def check_free_disk(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises `UserError` unless so many bytes are free on the disk of an existing folder."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{purpose} needs {size_text(needed_bytes)} in {folder}, {size_text(free_bytes)} are free: make room, or "
            "choose a folder on another disk"
        )


def size_text(size_bytes: int) -> str:
    """A size for people to read."""
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.3g} MB"


def progress_bar(total_bytes: int, what: str, done_bytes: int = 0) -> "tqdm":
    """A bar in bytes on a terminal; elsewhere nothing, the log is enough there."""
    return tqdm(
        total=total_bytes, initial=done_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc=what, disable=None
    )


def unpack_recordings(zip_path: Path, folder: Path) -> dict[str, Expected]:
    """Unpacks every FLAC file of a zip directly into a folder; those that are there whole are kept.

    A folder round the recordings in the zip is left out. Other files are not unpacked.

    Args:
        zip_path: The zip file.
        folder: Where the recordings go; made if it does not exist.

    Returns:
        The recordings by file name, all of them whole now.

    Raises:
        UserError: The zip is broken or encrypted, holds an unsafe path, a link, two recordings of one name or none at
            all, is or would become too large, or the disk lacks room for it. Nothing was written unless the contents
            of a recording turned out to be broken.
        OSError: A file cannot be written.
    """
    try:
        with zipfile.ZipFile(zip_path) as archive:
            entries = _recordings(archive, zip_path)
            expected = {name: Expected(info.file_size, _crc32_text(info.CRC)) for name, info in entries.items()}
            folder.mkdir(exist_ok=True)
            missing = [name for name in entries if not _is_there(folder / name, expected[name])]
            needed_bytes = sum(expected[name].size_bytes for name in missing)
            check_free_disk(folder, needed_bytes, f"unpacking {zip_path.name}")
            size = size_text(needed_bytes)
            logger.info("Unpacking %d of %d recordings (%s) into %s", len(missing), len(entries), size, folder)
            with progress_bar(needed_bytes, "unpacking") as bar:
                for name in missing:
                    _extract(archive, entries[name], folder / name, bar)
            return expected
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{zip_path} cannot be unpacked: {error}; expected a zip file of FLAC recordings") from None


def _recordings(archive: zipfile.ZipFile, zip_path: Path) -> dict[str, zipfile.ZipInfo]:
    """The recordings by file name, after the whole table of contents was found harmless."""
    entries = archive.infolist()
    unpacked_bytes, zip_bytes = sum(info.file_size for info in entries), zip_path.stat().st_size
    if len(entries) > MAX_ENTRIES:
        raise UserError(f"{zip_path} promises {len(entries)} files, at most {MAX_ENTRIES} are unpacked: refused")
    if unpacked_bytes > min(MAX_UNPACKED_BYTES, MAX_GROWTH * zip_bytes):
        raise UserError(
            f"{zip_path} has {size_text(zip_bytes)} and promises {size_text(unpacked_bytes)}: refused as a zip bomb "
            f"(limits: {MAX_GROWTH} times its own size, {size_text(MAX_UNPACKED_BYTES)})"
        )
    recordings: dict[str, zipfile.ZipInfo] = {}
    same: dict[str, str] = {}
    for info in entries:
        if reason := _unsafe(info):
            raise UserError(f"{zip_path}: {info.orig_filename!r} {reason}: nothing of this zip is unpacked")
        name = PurePosixPath(info.filename).name
        # macOS adds `__MACOSX/._NAME` beside each file.
        if info.is_dir() or name.startswith(".") or not name.lower().endswith(".flac"):
            continue
        if not is_portable_name(name + PART_SUFFIX):
            raise UserError(
                f"{zip_path}: {info.filename!r} has a name that Windows does not take: nothing of this zip is "
                "unpacked; unpack it by hand, and rename that recording in the annotations, too"
            )
        if same_file(name) in same:
            raise UserError(
                f"{zip_path} holds two recordings of one name, {same[same_file(name)]!r} and "
                f"{info.filename!r}: recordings lie directly in one folder; nothing is unpacked"
            )
        same[same_file(name)] = info.filename
        recordings[name] = info
    if not recordings:
        raise UserError(f"{zip_path} holds no FLAC recordings among its {len(entries)} files: expected NAME.flac")
    return recordings


def _unsafe(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with an entry, as it stands in the zip; `info.filename` has been tidied by Python."""
    name = info.orig_filename
    if not name or not name.isprintable():
        return "has no printable name"
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        return "is not a path inside the zip's own folder"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    # Python inflates these two in bounded pieces; of the others, a few bytes can fill the memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type} (expected 0, stored, or 8, deflated)"
    return None


def _is_there(path: Path, expected: Expected) -> bool:
    if expected.matches(path):
        return True
    if path.exists():
        logger.warning("%s is not as in the zip: it is unpacked again", path)
    return False


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, bar: "tqdm") -> None:
    size_bytes = crc32 = 0
    try:
        with archive.open(info) as source, part_of(path).open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > info.file_size:
                    raise zipfile.BadZipFile(f"{info.filename!r} is longer than promised")
                crc32 = zlib.crc32(chunk, crc32)
                target.write(chunk)
                bar.update(len(chunk))
        if (size_bytes, crc32) != (info.file_size, info.CRC):
            raise zipfile.BadZipFile(f"{info.filename!r} is not as promised")
        put_in_place(path)
    except BaseException:
        part_of(path).unlink(missing_ok=True)
        raise


def _crc32_text(crc32: int) -> str:
    return f"crc32:{crc32:08x}"
