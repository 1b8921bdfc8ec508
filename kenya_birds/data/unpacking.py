"""Safe unpacking of recordings from an untrusted zip file.

Only recordings are written, each directly into one folder under the last part of its name; names in the zip cannot
choose another folder. An interrupted run leaves complete recordings and at most one `.part` file. The next run resumes
with the missing recordings.
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
from kenya_birds.files import PARTIAL_SUFFIX, is_portable_name, partial_of, replace

logger = logging.getLogger(__name__)

MAX_ENTRIES = 100_000
MAX_UNPACKED_BYTES = 1 << 40
# FLAC does not get much smaller in a zip; a zip that grows twentyfold has other content.
MAX_GROWTH = 20
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Expected:
    """Size and checksum of a complete file.

    Attributes:
        size_bytes: Length in bytes.
        checksum: `md5:` or `crc32:` and hexadecimal digits in lower case.
    """

    size_bytes: int
    checksum: str

    def matches(self, path: Path) -> bool:
        """Returns True if the file exists and has this size and checksum."""
        return path.is_file() and path.stat().st_size == self.size_bytes and self._checksum(path) == self.checksum

    def _checksum(self, path: Path) -> str:
        with path.open("rb") as file:
            if self.checksum.startswith("md5:"):
                return "md5:" + hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            crc32 = 0
            while chunk := file.read(CHUNK_BYTES):
                crc32 = zlib.crc32(chunk, crc32)
            return _crc32_text(crc32)


def same_file(name: str) -> str:
    """Returns a key that is equal for names of one file on file systems that ignore case and Unicode forms."""
    return unicodedata.normalize("NFC", name).casefold()


def put_in_place(path: Path) -> None:
    """Gives a complete `.part` file its final name, atomically."""
    with partial_of(path).open("r+b") as file:
        os.fsync(file.fileno())
    replace(partial_of(path), path)


def check_free_disk(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Checks the free disk space.

    Args:
        folder: An existing folder.
        needed_bytes: Bytes that must be free.
        purpose: Description for the message.

    Raises:
        UserError: If less is free.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{purpose} needs {size_text(needed_bytes)} in {folder}, {size_text(free_bytes)} are free: free disk "
            "space, or choose a folder on another disk"
        )


def size_text(size_bytes: int) -> str:
    """Formats a size in MB or GB."""
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.3g} MB"


def progress_bar(total_bytes: int, what: str, done_bytes: int = 0) -> "tqdm":
    """Returns a progress bar in bytes, shown only on a terminal.

    Args:
        total_bytes: Bytes in total.
        what: Label of the bar.
        done_bytes: Bytes that are already complete.
    """
    return tqdm(
        total=total_bytes, initial=done_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc=what, disable=None
    )


def unpack_recordings(zip_path: Path, folder: Path) -> dict[str, Expected]:
    """Unpacks every FLAC file of a zip directly into a folder; complete recordings are kept.

    Folders in the zip are ignored. Other files are not unpacked.

    Args:
        zip_path: The zip file.
        folder: Folder for the recordings; created if it does not exist.

    Returns:
        The recordings by file name, all of them complete.

    Raises:
        UserError: The zip is broken or encrypted, contains an unsafe path, a link, two recordings with the same name
            or no recording, is too large, or the disk has too little space. Nothing is written, unless the content of
            a recording is broken.
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
    """Returns the recordings by file name, after a check of the whole table of contents."""
    entries = archive.infolist()
    unpacked_bytes, zip_bytes = sum(info.file_size for info in entries), zip_path.stat().st_size
    if len(entries) > MAX_ENTRIES:
        raise UserError(f"{zip_path} has {len(entries)} files: expected at most {MAX_ENTRIES}, refused")
    if unpacked_bytes > min(MAX_UNPACKED_BYTES, MAX_GROWTH * zip_bytes):
        raise UserError(
            f"{zip_path} has {size_text(zip_bytes)}, unpacked {size_text(unpacked_bytes)}: refused as a zip bomb "
            f"(limits: {MAX_GROWTH} times its own size, {size_text(MAX_UNPACKED_BYTES)})"
        )
    recordings: dict[str, zipfile.ZipInfo] = {}
    same: dict[str, str] = {}
    for info in entries:
        if reason := _unsafe(info):
            raise UserError(f"{zip_path}: {info.orig_filename!r} {reason}: refused, nothing is unpacked")
        name = PurePosixPath(info.filename).name
        # macOS adds `__MACOSX/._NAME` beside each file.
        if info.is_dir() or name.startswith(".") or not name.lower().endswith(".flac"):
            continue
        if not is_portable_name(name + PARTIAL_SUFFIX):
            raise UserError(
                f"{zip_path}: {info.filename!r} is not a valid name on Windows: nothing is unpacked; unpack the zip "
                "by hand, and rename this recording in the annotations too"
            )
        if same_file(name) in same:
            raise UserError(
                f"{zip_path} contains two recordings with the same name, {same[same_file(name)]!r} and "
                f"{info.filename!r}: expected unique names, because all go to one folder; nothing is unpacked"
            )
        same[same_file(name)] = info.filename
        recordings[name] = info
    if not recordings:
        raise UserError(f"{zip_path} contains no FLAC recordings among its {len(entries)} files: expected NAME.flac")
    return recordings


def _unsafe(info: zipfile.ZipInfo) -> str | None:
    """Returns what is unsafe about an entry; checks its original name, because Python changes `info.filename`."""
    name = info.orig_filename
    if not name or not name.isprintable():
        return "has no printable name"
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        return "is not a path inside the zip's own folder"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    # Python decompresses these two in bounded pieces; with other methods, a few bytes can fill the memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type} (expected 0, stored, or 8, deflated)"
    return None


def _is_there(path: Path, expected: Expected) -> bool:
    if expected.matches(path):
        return True
    if path.exists():
        logger.warning("%s differs from the zip: unpacking it again", path)
    return False


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, bar: "tqdm") -> None:
    size_bytes = crc32 = 0
    try:
        with archive.open(info) as source, partial_of(path).open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > info.file_size:
                    raise zipfile.BadZipFile(f"{info.filename!r} is longer than stated in the zip")
                crc32 = zlib.crc32(chunk, crc32)
                target.write(chunk)
                bar.update(len(chunk))
        if (size_bytes, crc32) != (info.file_size, info.CRC):
            raise zipfile.BadZipFile(f"{info.filename!r} does not match its size or checksum in the zip")
        put_in_place(path)
    except BaseException:
        partial_of(path).unlink(missing_ok=True)
        raise


def _crc32_text(crc32: int) -> str:
    return f"crc32:{crc32:08x}"
