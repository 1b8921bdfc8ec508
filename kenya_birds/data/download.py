"""Download of an archive of soundscape recordings from Zenodo; interrupted downloads resume."""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kenya_birds.data.archive import ANNOTATIONS_FILE, RECORDINGS_FOLDER, SPECIES_FILE
from kenya_birds.data.transfer import Client, Transfer, shown
from kenya_birds.data.unpacking import (
    Expected,
    check_free_disk,
    put_in_place,
    same_file,
    size_text,
    unpack_recordings,
)
from kenya_birds.defaults import KENYA_RECORD, ZENODO_API_URL
from kenya_birds.errors import UserError
from kenya_birds.files import PARTIAL_SUFFIX, is_portable_name, partial_of
from kenya_birds.locks import locked
from kenya_birds.values import Count, checked

logger = logging.getLogger(__name__)

ZIP_FILE = f"{RECORDINGS_FOLDER}.zip"
MANIFEST_FILE = ".download.json"
LOCK_FILE = ".download.lock"


@checked
def download_record(
    data_dir: str | Path, record: Count = KENYA_RECORD, *, api_url: str = ZENODO_API_URL, keep_zip: bool = False
) -> Path:
    """Downloads a record, verifies its checksums and unpacks its recordings.

    The result is a folder for `kenya_birds.data.archive.read_archive`. If the folder is complete, no request is sent.
    Interrupted downloads resume.

    Args:
        data_dir: Folder of the archive; created if it does not exist.
        record: Number of the Zenodo record: the Kenyan soundscapes, or another record with the same files.
        api_url: Address of the records in the API. Only https is used, unless this address is http.
        keep_zip: Keeps `soundscape_data.zip` after unpacking; otherwise it is deleted.

    Returns:
        The folder.

    Raises:
        UserError: The record does not exist or is not an archive of soundscapes, the server cannot be reached or sends
            unexpected data, the zip is broken or unsafe, the disk is full, another file has the name of a file of the
            record, or another process is downloading to this folder.
    """
    data_dir = Path(data_dir)
    with _disk_errors(data_dir):
        # A complete folder may be read-only.
        if not _is_done(_Manifest(data_dir, record), keep_zip):
            data_dir.mkdir(parents=True, exist_ok=True)
            with locked(data_dir, data_dir / LOCK_FILE):
                manifest = _Manifest(data_dir, record)
                if not manifest.is_complete():
                    _complete(manifest, Client(api_url), api_url)
                if not _is_done(manifest, keep_zip):
                    (data_dir / ZIP_FILE).unlink()
                    logger.info("All recordings of %s are unpacked: deleted it", data_dir / ZIP_FILE)
    return data_dir


@dataclass(frozen=True)
class _Listed:
    """A file of the record in the API."""

    name: str
    expected: Expected
    url: str


@dataclass
class _Manifest:
    """State of the folder, saved in `.download.json`.

    Attributes:
        data_dir: The folder.
        record: Number of the record.
        files: The record's files by name.
        recordings: The zip's recordings by name, after all of them are unpacked.
        mtimes_ns: Modification times of verified files by path in the folder. Unchanged files are not read again.
        validators: ETag or Last-Modified of the source of each `.part` file, by name.
    """

    data_dir: Path
    record: int
    files: dict[str, Expected] = field(default_factory=dict)
    recordings: dict[str, Expected] = field(default_factory=dict)
    mtimes_ns: dict[str, int] = field(default_factory=dict)
    validators: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = self.data_dir / MANIFEST_FILE
        try:
            stored = json.loads(self.path.read_text("utf-8"))
            record = int(stored["record"])
            files, recordings = (
                {name: Expected(int(file["size_bytes"]), str(file["checksum"])) for name, file in group.items()}
                for group in (stored["files"], stored["recordings"])
            )
            mtimes_ns, validators = dict(stored["mtimes_ns"]), dict(stored["validators"])
        except (FileNotFoundError, NotADirectoryError):
            return
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s cannot be read: verifying all files in the folder again", self.path)
            return
        if record != self.record:
            raise UserError(f"{self.data_dir} contains record {record}, not {self.record}: choose another folder")
        self.files, self.recordings, self.mtimes_ns, self.validators = files, recordings, mtimes_ns, validators

    def save(self) -> None:
        files, recordings = (
            {name: asdict(expected) for name, expected in group.items()} for group in (self.files, self.recordings)
        )
        content = {"record": self.record, "files": files, "recordings": recordings}
        content |= {"mtimes_ns": self.mtimes_ns, "validators": self.validators}
        partial_of(self.path).write_text(json.dumps(content, indent=1), "utf-8")
        put_in_place(self.path)

    def set_validator(self, name: str, validator: str | None) -> None:
        """Saves the validator of a `.part` file, for the next process."""
        self.validators.pop(name, None)
        if validator:
            self.validators[name] = validator
        self.save()

    def is_complete(self) -> bool:
        """Returns True if the record is complete and unpacked; the zip may be deleted."""
        known = dict(self.mtimes_ns)
        wanted = {name: expected for name, expected in self.files.items() if name != ZIP_FILE}
        wanted |= {_in_folder(name): expected for name, expected in self.recordings.items()}
        complete = bool(self.recordings) and all(self.has(path, expected) for path, expected in wanted.items())
        if complete and self.mtimes_ns != known:  # in a copy of a folder the times differ
            with suppress(OSError):
                self.save()
        return complete

    def has(self, path: str, expected: Expected) -> bool:
        """Returns True if a file is complete; it is read unless it was verified before and has not changed."""
        try:
            status = (self.data_dir / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if status.st_size != expected.size_bytes:
            return False
        if self.mtimes_ns.get(path) != status.st_mtime_ns:
            if not expected.matches(self.data_dir / path):
                return False
            self.mtimes_ns[path] = status.st_mtime_ns
        return True

    def set_verified(self, path: str) -> None:
        """Records that a file is complete."""
        self.mtimes_ns[path] = (self.data_dir / path).stat().st_mtime_ns


def _complete(manifest: _Manifest, client: Client, api_url: str) -> None:
    """Downloads and unpacks missing files."""
    listed = _list_files(client, f"{api_url.rstrip('/')}/{manifest.record}", manifest.record)
    _forget_other_versions(manifest, listed)
    manifest.files = {file.name: file.expected for file in listed}
    missing = [file for file in listed if not _is_there(manifest, file)]
    manifest.save()
    _check_disk(manifest, missing)
    # Small files first: wrong tables are then found before gigabytes are downloaded.
    for file in sorted(missing, key=lambda file: file.expected.size_bytes):
        _fetch(manifest, client, file)
    manifest.recordings = unpack_recordings(manifest.data_dir / ZIP_FILE, manifest.data_dir / RECORDINGS_FOLDER)
    for name in manifest.recordings:
        manifest.set_verified(_in_folder(name))
    manifest.save()


def _is_done(manifest: _Manifest, keep_zip: bool) -> bool:
    """Returns True if the folder is complete and the zip is deleted, unless it is kept or is another file."""
    if not manifest.is_complete():
        return False
    return keep_zip or ZIP_FILE not in manifest.files or not manifest.has(ZIP_FILE, manifest.files[ZIP_FILE])


def _fetch(manifest: _Manifest, client: Client, file: _Listed) -> None:
    Transfer(
        client,
        file.url,
        manifest.data_dir / file.name,
        file.expected,
        what=f"{file.name} of record {manifest.record}",
        validator=manifest.validators.get(file.name),
        on_start=lambda validator: manifest.set_validator(file.name, validator),
    ).run()
    manifest.set_verified(file.name)
    manifest.set_validator(file.name, None)


def _list_files(client: Client, url: str, record: int) -> list[_Listed]:
    """Lists the files of a record by its API, and refuses unsafe entries."""
    answer = client.get_json(url, f"record {record}")
    where = f"record {record} ({shown(url)})"
    if not isinstance(answer, dict) or not isinstance(answer.get("files"), list):
        raise UserError(f"{where} lists no files: open it in a browser to check that it is public")
    listed = [_listed(entry, where) for entry in answer["files"]]
    names = sorted(file.name for file in listed)
    if len({same_file(name) for name in names}) < len(names):
        raise UserError(f"{where} lists two files with the same name, refused: {names}")
    lacking = [name for name in (ANNOTATIONS_FILE, SPECIES_FILE, ZIP_FILE) if name not in names]
    if lacking:
        raise UserError(
            f"{where} is no archive of soundscapes: {', '.join(lacking)} missing, found {', '.join(names)}; choose "
            f"another record, such as {KENYA_RECORD}"
        )
    return listed


def _listed(entry: Any, where: str) -> _Listed:
    try:
        name, size_bytes, checksum, url = entry["key"], entry["size"], entry["checksum"], entry["links"]["self"]
    except (KeyError, TypeError):
        raise UserError(f"{where} lists a file without key, size, checksum and link: {str(entry)[:200]}") from None
    # Names with a leading dot are used by this module. File systems allow 255 bytes, including `.part`.
    plain = isinstance(name, str) and is_portable_name(name) and not name.startswith(".")
    ours = plain and (name.lower() == RECORDINGS_FOLDER or name.lower().endswith(PARTIAL_SUFFIX))
    if not plain or ours or len(name.encode()) > 250:
        raise UserError(f"{where} lists a file {name!r}: expected a plain file name that is valid on every system")
    if not isinstance(size_bytes, int) or size_bytes < 0:
        raise UserError(f"{where} lists {name} with size {size_bytes!r}: expected bytes")
    if not isinstance(checksum, str) or not re.fullmatch("md5:[0-9a-f]{32}", checksum):
        raise UserError(f"{where} lists {name} with checksum {checksum!r}: expected md5:...")
    return _Listed(name, Expected(size_bytes, checksum), str(url))


def _forget_other_versions(manifest: _Manifest, listed: list[_Listed]) -> None:
    for file in listed:
        if manifest.files.get(file.name, file.expected) != file.expected:
            partial_of(manifest.data_dir / file.name).unlink(missing_ok=True)
            manifest.validators.pop(file.name, None)


def _is_there(manifest: _Manifest, file: _Listed) -> bool:
    path = manifest.data_dir / file.name
    if manifest.has(file.name, file.expected):
        return True
    if path.exists() or path.is_symlink():
        # Downloads get their final name when they are complete, so a person has changed or added this file.
        raise UserError(
            f"{path} is not the file of record {manifest.record} (expected {file.expected.size_bytes} bytes with "
            f"{file.expected.checksum}): move it away to download the record's file, or choose another folder"
        )
    return False


def _check_disk(manifest: _Manifest, missing: list[_Listed]) -> None:
    needed_bytes = 0
    for file in missing:
        needed_bytes += file.expected.size_bytes - _size_bytes(partial_of(manifest.data_dir / file.name))
        if file.name == ZIP_FILE:  # FLAC has about the same size inside and outside a zip
            folder = manifest.data_dir / RECORDINGS_FOLDER
            unpacked_bytes = sum(map(_size_bytes, folder.iterdir())) if folder.is_dir() else 0
            needed_bytes += max(0, file.expected.size_bytes - unpacked_bytes)
    check_free_disk(manifest.data_dir, needed_bytes, f"record {manifest.record}")
    if missing:
        size = size_text(sum(file.expected.size_bytes for file in missing))
        logger.info(
            "Record %d: %d of %d files to download, %s", manifest.record, len(missing), len(manifest.files), size
        )


def _in_folder(name: str) -> str:
    return f"{RECORDINGS_FOLDER}/{name}"


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _disk_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise UserError(
            f"{error.filename or data_dir}: {reason}; free disk space or correct that, then run the command again to "
            "resume"
        ) from None
