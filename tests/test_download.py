import datetime
import email.utils
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest
from archives import write_archive
from fake_zenodo import LAST_MODIFIED, FakeZenodo
from filelock import FileLock

from kenya_birds.data import transfer, unpacking
from kenya_birds.data.archive import read_archive
from kenya_birds.data.download import LOCK_FILE, MANIFEST_FILE, ZIP_FILE, download_record
from kenya_birds.data.transfer import Client
from kenya_birds.data.unpacking import unpack_recordings
from kenya_birds.errors import UserError

ROOT = Path(__file__).parents[1]
OWN_FILES = (MANIFEST_FILE, LOCK_FILE)
# Bytes that a broken connection may lose.
LOST = transfer.CHUNK_BYTES


def noise(size_bytes, seed):
    """Bytes that do not get smaller in a zip."""
    return hashlib.shake_128(str(seed).encode()).digest(size_bytes)


def zip_of(entries):
    """A zip with these contents by name, in memory; names stand in it as given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def record_of(recordings, folder="soundscape_data/"):
    """The files of a record with these recordings, and what is in the data folder afterwards."""
    tables = {
        "annotations.csv": noise(3_000, "annotations"),
        "species.csv": noise(700, "species"),
        "recording_location.txt": b"0.6 N, 36.0 E\n",
    }
    entries = {f"{folder}{name}": content for name, content in recordings.items()}
    unpacked = {f"soundscape_data/{name}": content for name, content in recordings.items()}
    return {**tables, ZIP_FILE: zip_of(entries)}, {**tables, **unpacked}


RECORDINGS = {f"KEN_{number:03}.flac": noise(300_000, number) for number in range(4)}
FILES, UNPACKED = record_of(RECORDINGS)
ZIP_BYTES = len(FILES[ZIP_FILE])


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits between attempts, in seconds; none of them is waited."""
    waited = []
    monkeypatch.setattr(transfer, "time", types.SimpleNamespace(sleep=waited.append))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return waited


@pytest.fixture
def zenodo():
    with FakeZenodo(dict(FILES)) as server:
        server.fault_on = ZIP_FILE
        yield server


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def contents(folder):
    """Bytes by path of all files in a folder, without those of the download itself."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {path: content for path, content in found.items() if Path(path).name not in OWN_FILES}


def refused(zenodo, data_dir, *words, **arguments):
    """The download ends in an error with all of these words, in one line."""
    with pytest.raises(UserError) as caught:
        download_record(data_dir, api_url=zenodo.api_url, **arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def break_off(zenodo, data_dir, after_bytes=500_000):
    """Leaves the zip in the middle, as a process does that is stopped there."""
    zenodo.drops = [after_bytes]
    zenodo.failures = [None, (418, {})]
    refused(zenodo, data_dir, "418")
    part = data_dir / f"{ZIP_FILE}.part"
    assert after_bytes - LOST <= part.stat().st_size <= after_bytes
    assert not (data_dir / ZIP_FILE).exists()
    zenodo.requests.clear()
    return part.stat().st_size


# What comes of it


def test_what_was_fetched_is_an_archive(tmp_path, data_dir):
    made = write_archive(tmp_path / "made", [("a.flac", 1.0, "owl1"), ("b.flac", 2.0, "lark2")])
    recordings = {path.name: path.read_bytes() for path in (made / "soundscape_data").iterdir()}
    files = {name: (made / name).read_bytes() for name in ("annotations.csv", "species.csv")}
    files[ZIP_FILE] = zip_of({f"soundscape_data/{name}": content for name, content in recordings.items()})
    with FakeZenodo(files, record=7) as zenodo:
        assert download_record(str(data_dir), 7, api_url=zenodo.api_url) == data_dir
    assert contents(data_dir) == contents(made)
    assert sorted(read_archive(data_dir).headers) == ["a.flac", "b.flac"]


@pytest.mark.parametrize("folder", ["", "soundscape_data/", "./", "Kenya/soundscape_data/"])
def test_recordings_lie_directly_in_their_folder_whatever_folder_is_in_the_zip(folder, data_dir):
    files, unpacked = record_of(RECORDINGS, folder)
    with FakeZenodo(files) as zenodo:
        download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == unpacked


def test_only_recordings_are_unpacked(tmp_path):
    entries = {
        "soundscape_data/": b"",
        "soundscape_data/A.FLAC": b"song",
        "soundscape_data/notes.txt": b"notes",
        "__MACOSX/soundscape_data/._A.FLAC": b"fork",
        "soundscape_data/.DS_Store": b"icons",
    }
    (tmp_path / "a.zip").write_bytes(zip_of(entries))
    assert list(unpack_recordings(tmp_path / "a.zip", tmp_path / "out")) == ["A.FLAC"]
    assert contents(tmp_path / "out") == {"A.FLAC": b"song"}


def test_the_zip_stays_when_asked_and_goes_when_not(zenodo, data_dir):
    download_record(data_dir, api_url=zenodo.api_url, keep_zip=True)
    assert contents(data_dir) == {**UNPACKED, ZIP_FILE: FILES[ZIP_FILE]}
    download_record(data_dir, api_url=zenodo.api_url, keep_zip=True)
    assert (data_dir / ZIP_FILE).exists()
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.ranges(ZIP_FILE) == [None]


# When all is there


def test_nothing_happens_when_all_is_there(zenodo, data_dir):
    download_record(data_dir, api_url=zenodo.api_url)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    zenodo.requests.clear()
    download_record(data_dir, api_url=zenodo.api_url)
    assert zenodo.requests == []
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_a_copy_of_the_folder_is_read_once_and_not_fetched(zenodo, data_dir, tmp_path, monkeypatch):
    download_record(data_dir, api_url=zenodo.api_url)
    zenodo.requests.clear()
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy, copy_function=shutil.copyfile)
    download_record(copy, api_url=zenodo.api_url)
    monkeypatch.setattr(unpacking.Expected, "matches", None)
    download_record(copy, api_url=zenodo.api_url)
    assert zenodo.requests == []


@pytest.mark.parametrize("harm", ["gone", "shorter", "other bytes"])
def test_a_recording_that_is_lost_is_fetched_again_and_the_others_stay(harm, zenodo, data_dir, caplog):
    download_record(data_dir, api_url=zenodo.api_url)
    lost, *others = sorted((data_dir / "soundscape_data").iterdir())
    before = {path: path.stat().st_mtime_ns for path in others}
    content = lost.read_bytes()
    lost.unlink()
    if harm != "gone":
        lost.write_bytes(content[:-1] + (b"" if harm == "shorter" else bytes([content[-1] ^ 1])))
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert (f"{lost} differs from the zip" in caplog.text) == (harm != "gone")


def test_what_somebody_brought_is_taken_when_it_is_right(zenodo, data_dir):
    data_dir.mkdir()
    (data_dir / "annotations.csv").write_bytes(FILES["annotations.csv"])
    (data_dir / ZIP_FILE).write_bytes(FILES[ZIP_FILE])
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert sorted(zenodo.body_bytes) == ["recording_location.txt", "species.csv"]


@pytest.mark.parametrize("name", ["annotations.csv", ZIP_FILE])
def test_a_file_that_is_not_the_records_is_never_overwritten(name, zenodo, data_dir):
    data_dir.mkdir()
    (data_dir / name).write_bytes(b"my own work")
    refused(zenodo, data_dir, str(data_dir / name), "move it away")
    assert contents(data_dir) == {name: b"my own work"}


def test_a_table_that_was_edited_is_not_overwritten(zenodo, data_dir):
    download_record(data_dir, api_url=zenodo.api_url)
    (data_dir / "annotations.csv").write_bytes(b"corrected")
    refused(zenodo, data_dir, "annotations.csv", "move it away")
    assert contents(data_dir) == {**UNPACKED, "annotations.csv": b"corrected"}


def test_a_folder_holds_one_record(zenodo, data_dir):
    download_record(data_dir, api_url=zenodo.api_url)
    refused(zenodo, data_dir, "contains record 10943500, not 7079380", "another folder", record=7079380)


@pytest.mark.parametrize("manifest", ["", "[]", '{"record": 10943500}', '{"record": 10943500, "files": 3}', "\0"])
def test_without_a_readable_memory_what_is_there_is_checked_by_its_bytes(manifest, zenodo, data_dir):
    download_record(data_dir, api_url=zenodo.api_url, keep_zip=True)
    zenodo.body_bytes.clear()
    (data_dir / MANIFEST_FILE).write_text(manifest)
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.body_bytes == {}


def test_one_process_at_a_time_works_in_a_folder(zenodo, data_dir):
    data_dir.mkdir()
    with FileLock(data_dir / LOCK_FILE):
        refused(zenodo, data_dir, "another run", str(data_dir))
    download_record(data_dir, api_url=zenodo.api_url)


# Broken transfers


def test_a_broken_transfer_goes_on_where_it_stopped(zenodo, data_dir, waits):
    zenodo.drops = [500_000]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    _, second = [request for request in zenodo.requests if ZIP_FILE in request[0]]
    assert 500_000 - LOST <= int(second[1].removeprefix("bytes=").removesuffix("-")) <= 500_000
    assert second[2] == f'"md5:{hashlib.md5(FILES[ZIP_FILE]).hexdigest()}"'
    assert zenodo.body_bytes[ZIP_FILE] <= ZIP_BYTES + LOST
    assert waits == [1]


def test_the_next_process_goes_on_where_the_last_stopped(zenodo, data_dir):
    received_bytes = break_off(zenodo, data_dir)
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.requests[1:] == [
        (
            f"/api/records/10943500/files/{ZIP_FILE}/content",
            f"bytes={received_bytes}-",
            f'"md5:{hashlib.md5(FILES[ZIP_FILE]).hexdigest()}"',
        )
    ]


def test_as_long_as_bytes_come_it_does_not_give_up(zenodo, data_dir, waits):
    zenodo.drops = [80_000] * (2 * transfer.MAX_FAILURES)
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert set(waits) == {1}


def test_without_new_bytes_it_gives_up_and_a_later_run_goes_on(zenodo, data_dir, waits):
    zenodo.drops = [500_000] + [0] * transfer.MAX_FAILURES
    refused(zenodo, data_dir, "gave up after 8 attempts", "the connection broke", "run the command again")
    assert waits == [1, 2, 4, 8, 16, 32, 64]
    zenodo.drops = []
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED


def test_a_server_that_always_starts_over_and_breaks_is_not_asked_for_ever(zenodo, data_dir):
    zenodo.ignore_ranges = True
    zenodo.drops = [500_000] * 100
    refused(zenodo, data_dir, "gave up")
    assert len(zenodo.drops) > 70


def test_a_server_without_ranges_starts_over(zenodo, data_dir, caplog):
    break_off(zenodo, data_dir)
    zenodo.ignore_ranges = True
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert "the download restarts" in caplog.text


def test_a_server_that_does_not_match_if_range_is_asked_without(zenodo, data_dir, caplog):
    received_bytes = break_off(zenodo, data_dir)
    zenodo.ignore_if_range = True
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.requests[-1][1:] == (f"bytes={received_bytes}-", None)
    assert "the download restarts" not in caplog.text


def test_another_version_on_the_server_is_not_put_behind_the_first_half_of_the_old(zenodo, data_dir):
    zenodo.etag = '"first"'
    break_off(zenodo, data_dir)
    zenodo.etag = '"second"'
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert [request[2] for request in zenodo.requests[1:]] == ['"first"']


def test_another_version_in_the_record_is_fetched_from_the_start(zenodo, data_dir):
    break_off(zenodo, data_dir)
    files, unpacked = record_of({**RECORDINGS, "KEN_000.flac": noise(300_000, "other")})
    zenodo.files.update(files)
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == unpacked
    assert zenodo.ranges(ZIP_FILE) == [None]


@pytest.mark.parametrize(
    ("etag", "last_modified", "if_range"),
    [('W/"weak"', LAST_MODIFIED, LAST_MODIFIED), (None, LAST_MODIFIED, LAST_MODIFIED), ('W/"weak"', None, None)],
)
def test_what_a_range_depends_on_is_what_the_server_gave(etag, last_modified, if_range, zenodo, data_dir):
    zenodo.etag, zenodo.last_modified = etag, last_modified
    received_bytes = break_off(zenodo, data_dir)
    download_record(data_dir, api_url=zenodo.api_url)
    assert zenodo.requests[-1][1:] == (f"bytes={received_bytes}-", if_range)
    assert contents(data_dir) == UNPACKED


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-5/6", "bytes 1-", f"bytes 0-{ZIP_BYTES - 1}/{ZIP_BYTES}", f"bytes {ZIP_BYTES}-{ZIP_BYTES}/*", " "],
)
def test_a_wrong_range_is_not_believed(content_range, zenodo, data_dir):
    break_off(zenodo, data_dir)
    zenodo.content_ranges = [content_range]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.ranges(ZIP_FILE)[-1] is None


def test_a_range_that_the_server_does_not_have_leads_back_to_the_start(zenodo, data_dir):
    break_off(zenodo, data_dir)
    zenodo.failures = [(416, {})]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.ranges(ZIP_FILE)[-1] is None


def test_a_server_that_gives_less_than_asked_is_asked_for_the_rest(zenodo, data_dir):
    received_bytes = break_off(zenodo, data_dir)
    zenodo.content_lengths = [100_000]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.ranges(ZIP_FILE) == [f"bytes={received_bytes}-", f"bytes={received_bytes + 100_000}-"]


@pytest.mark.parametrize("kind", ["whole", "too long", "wrong"])
def test_a_part_file_that_has_its_length_is_checked(kind, zenodo, data_dir):
    data_dir.mkdir()
    part = {"whole": FILES[ZIP_FILE], "too long": FILES[ZIP_FILE] + b"x", "wrong": bytes(ZIP_BYTES)}[kind]
    (data_dir / f"{ZIP_FILE}.part").write_bytes(part)
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.ranges(ZIP_FILE) == ([] if kind == "whole" else [None])


def test_nothing_is_written_through_a_link(zenodo, data_dir, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("my settings")
    names = (ZIP_FILE, "species.csv", ".download.json", "soundscape_data/KEN_001.flac")
    (data_dir / "soundscape_data").mkdir(parents=True)
    for name in names:
        (data_dir / f"{name}.part").symlink_to(mine)
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert mine.read_text() == "my settings"


# What is not what was promised


def test_wrong_bytes_are_fetched_once_more(zenodo, data_dir, caplog):
    zenodo.replaced = [b"wrong"]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert "downloading it again from the start" in caplog.text


@pytest.mark.parametrize(
    ("fault", "value", "words"),
    [
        ("replaced", b"wrong", "does not have md5:"),
        ("endless", True, "sends more than"),
        ("content_lengths", 100, f"offers 100 bytes, the record has {ZIP_BYTES}"),
        ("content_lengths", ZIP_BYTES + 1, f"offers {ZIP_BYTES + 1} bytes"),
    ],
)
def test_wrong_contents_twice_are_an_error_and_nothing_of_them_stays(fault, value, words, zenodo, data_dir):
    setattr(zenodo, fault, [value, value])
    refused(zenodo, data_dir, ZIP_FILE, words, "twice", zenodo.host)
    assert sorted(contents(data_dir)) == ["annotations.csv", "recording_location.txt", "species.csv"]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED


def test_bytes_that_were_compressed_on_the_way_are_not_taken_for_the_file(zenodo, data_dir, caplog):
    zenodo.failures = [(200, {"Content-Encoding": "gzip"})]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert "compressed" in caplog.text


def test_an_empty_file_is_fetched_too(zenodo, data_dir):
    zenodo.files["empty.txt"] = b""
    download_record(data_dir, api_url=zenodo.api_url)
    assert (data_dir / "empty.txt").read_bytes() == b""


# Servers that are busy, or say no


@pytest.mark.parametrize("on", ["", ZIP_FILE])
@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_busy_server_is_asked_again_later(status, on, zenodo, data_dir, waits):
    zenodo.fault_on = on
    zenodo.failures = [(status, {}), (status, {"Retry-After": "59"}), (status, {"Retry-After": "0"})]
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert waits == [1, 59, 4]


def test_a_date_to_wait_for_is_understood(zenodo, data_dir, waits):
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    headers = {"Retry-After": email.utils.format_datetime(moment, usegmt=True)}
    zenodo.failures = [(429, headers), (429, {"Retry-After": "soon"})]
    download_record(data_dir, api_url=zenodo.api_url)
    assert 90 < waits[0] <= 100
    assert waits[1] == 2


def test_nobody_waits_for_hours(zenodo, data_dir, waits):
    zenodo.failures = [(429, {"Retry-After": "7200"})]
    refused(zenodo, data_dir, "429", "7200 s", "run the command again")
    assert waits == []


def test_a_server_that_stays_busy_is_given_up(zenodo, data_dir, caplog):
    zenodo.failures = [(503, {})] * transfer.MAX_FAILURES
    refused(zenodo, data_dir, "gave up", "503", "run the command again")
    assert caplog.text.count("trying again") == transfer.MAX_FAILURES - 1


def test_no_server_is_an_error_in_one_line(zenodo, data_dir):
    zenodo.server.shutdown()
    zenodo.server.server_close()
    refused(zenodo, data_dir, "gave up", "no connection", zenodo.host)


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(zenodo, data_dir, monkeypatch):
    monkeypatch.setattr(transfer, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(transfer, "MAX_FAILURES", 1)
    zenodo.pieces = (ZIP_BYTES // 2, 0.5)
    refused(zenodo, data_dir, "gave up", "no answer in time")


def test_a_record_that_does_not_exist_is_named(zenodo, data_dir):
    refused(zenodo, data_dir, "record 12 does not exist", "404", f"{zenodo.api_url}/12", record=12)
    download_record(data_dir, api_url=zenodo.api_url)


def test_a_record_that_is_not_public_is_named(zenodo, data_dir):
    zenodo.fault_on, zenodo.failures = "", [(401, {})]
    refused(zenodo, data_dir, "record 10943500", "401", "public")


@pytest.mark.parametrize("headers", [{}, {"Content-Length": 500, "Connection": "close"}])
def test_a_listing_that_is_broken_is_asked_for_again(headers, zenodo, data_dir, waits):
    zenodo.fault_on, zenodo.failures = "", [(200, headers)]
    download_record(data_dir, api_url=zenodo.api_url)
    assert waits == [1]


# Where it goes


def test_redirects_are_followed_also_in_the_middle(zenodo, data_dir):
    received_bytes = break_off(zenodo, data_dir)
    zenodo.redirect = True
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    path = f"/api/records/10943500/files/{ZIP_FILE}/content"
    asked = [(path, f"bytes={received_bytes}-"), (f"/moved{path}", f"bytes={received_bytes}-")]
    assert [request[:2] for request in zenodo.requests[-2:]] == asked


def test_redirects_in_circles_are_an_error(zenodo, data_dir):
    zenodo.failures = [(302, {"Location": f"{zenodo.api_url}/10943500/files/{ZIP_FILE}/content"})] * 40
    refused(zenodo, data_dir, ZIP_FILE, "in circles")


def test_what_is_secret_in_an_address_is_not_shown(zenodo, data_dir, caplog):
    api_url = zenodo.api_url.replace("://", "://user:secret@")
    zenodo.redirect = True
    zenodo.failures = [None] + [(503, {})] * 20
    zenodo.drops = [500_000]
    with pytest.raises(UserError) as caught:
        download_record(data_dir, api_url=api_url)
    assert "503" in str(caught.value)
    zenodo.fault_on = ""
    zenodo.failures = [(401, {})]
    with pytest.raises(UserError) as denied:
        download_record(data_dir, api_url=api_url)
    assert "secret" not in f"{caught.value} {denied.value} {caplog.text}"
    assert all("secret" not in path.read_text() for path in data_dir.glob(".download*"))


def test_from_https_nothing_leads_to_http(zenodo):
    with pytest.raises(UserError, match="not https"):
        Client("https://zenodo.org/api/records").ask(zenodo.api_url, "it", {})
    assert zenodo.requests == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a", "content", "http://", "http://[", 5])
def test_addresses_that_are_none_are_refused(url, zenodo, data_dir):
    def change(listing):
        listing["files"][0]["links"]["self"] = url
        return listing

    zenodo.change_listing = change
    refused(zenodo, data_dir, "annotations.csv")


def test_an_api_is_at_an_address(data_dir):
    with pytest.raises(UserError, match="expected https"):
        download_record(data_dir, api_url="ftp://user:secret@zenodo.org")


# Listings that are not believed


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "..", ".", "", "/evil", "a/b", "a\\b", "C:evil", "a\nb", "a\0b", "\ud800", "x" * 256, 5, None),
        *(".download.json", ".hidden", "soundscape_data", "Soundscape_Data", "evil.part"),
        *("CON", "nul.csv", "Aux .txt", "com1.csv", "what?.csv", "a|b", "notes.", "notes "),
    ],
)
def test_names_that_are_not_plain_file_names_are_refused(name, zenodo, data_dir):
    def change(listing):
        listing["files"].append({**listing["files"][0], "key": name})
        return listing

    zenodo.change_listing = change
    refused(zenodo, data_dir, "record 10943500", "expected a plain file name that is valid on every system")
    assert contents(data_dir.parent) == {}


def test_two_files_with_one_name_are_refused(zenodo, data_dir):
    def change(listing):
        listing["files"].append({**listing["files"][0], "key": "ANNOTATIONS.csv"})
        return listing

    zenodo.change_listing = change
    refused(zenodo, data_dir, "record 10943500", "two files with the same name", "ANNOTATIONS.csv", "annotations.csv")
    assert contents(data_dir.parent) == {}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size": -1}, "size"),
        ({"size": "3"}, "size"),
        ({"checksum": "sha256:12"}, "md5"),
        ({"checksum": None}, "md5"),
        ({"links": {}}, "link"),
        ({"links": None}, "link"),
    ],
)
def test_entries_that_say_too_little_are_refused(change, word, zenodo, data_dir):
    def change_listing(listing):
        listing["files"][0].update(change)
        return listing

    zenodo.change_listing = change_listing
    refused(zenodo, data_dir, "record 10943500", word)


@pytest.mark.parametrize("listing", [{}, [], 3, {"files": {}}, {"files": None}])
def test_a_record_without_files_is_refused(listing, zenodo, data_dir):
    zenodo.change_listing = lambda _: listing
    refused(zenodo, data_dir, "record 10943500", "lists no files")


def test_a_record_of_something_else_is_refused_before_it_is_fetched(zenodo, data_dir):
    del zenodo.files["species.csv"]
    refused(zenodo, data_dir, "species.csv missing", "annotations.csv", "10943500")
    assert zenodo.body_bytes == {}


# The disk


def test_a_disk_without_room_is_found_before_anything_is_fetched(zenodo, data_dir, monkeypatch):
    usage = shutil.disk_usage("/")
    # The zip has room, but not what is in it.
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage._replace(free=ZIP_BYTES + 100_000))
    refused(zenodo, data_dir, "needs 2.4", "are free", "free disk space", str(data_dir))
    assert zenodo.body_bytes == {}


def test_a_disk_without_room_for_the_recordings_is_found_before_any_is_unpacked(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(FILES[ZIP_FILE])
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"needs 1\.2 MB"):
        unpack_recordings(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_disk_that_fills_up_is_an_error_in_one_line_and_the_next_run_goes_on(zenodo, data_dir, monkeypatch):
    def replace(source, target):
        if str(target).endswith("KEN_002.flac"):
            raise OSError(28, "No space left on device", str(source))
        os.rename(source, target)

    monkeypatch.setattr(unpacking.os, "replace", replace)
    refused(zenodo, data_dir, "No space left on device", "KEN_002.flac", "run the command again")
    assert sorted(contents(data_dir / "soundscape_data")) == ["KEN_000.flac", "KEN_001.flac"]
    monkeypatch.undo()
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.ranges(ZIP_FILE) == [None]


def test_a_file_in_the_place_of_the_folder_is_an_error_in_one_line(zenodo, data_dir):
    data_dir.write_text("")
    refused(zenodo, data_dir, str(data_dir))


# Zips that would do harm


def unpacking_fails(tmp_path, content, *words):
    """Unpacking a zip ends in an error with these words, and nothing of it is anywhere."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.zip").write_bytes(content)
    with pytest.raises(UserError) as caught:
        unpack_recordings(home / "a.zip", home / "out")
    message = str(caught.value)
    assert all(word in message for word in ("a.zip", *words)), message
    assert contents(tmp_path) == {"home/a.zip": content}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../evil.flac",
            "soundscape_data/../../evil.flac",
            "/evil.flac",
            "..",
            "a/..",
            "C:/evil.flac",
            "C:evil.flac",
        ),
        *("..\\evil.flac", "soundscape_data\\evil.flac", "\\\\host\\evil.flac", "evil.flac:stream", "a\nb.flac"),
    ],
)
def test_a_zip_with_a_path_that_leads_elsewhere_is_refused_whole(name, tmp_path):
    unpacking_fails(tmp_path, zip_of({"good.flac": b"song", name: b"evil"}), repr(name), "nothing is unpacked")


def test_a_zip_with_a_name_that_ends_in_the_middle_is_refused(tmp_path):
    content = zip_of({"good.flac.evil.flac": b"song"}).replace(b"good.flac.", b"good.flac\0")
    unpacking_fails(tmp_path, content, "printable")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_zip_with_a_link_or_a_device_is_refused(kind, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("soundscape_data/link.flac")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    unpacking_fails(tmp_path, buffer.getvalue(), "link or a special file")


def test_an_encrypted_zip_is_refused(tmp_path):
    content = bytearray(zip_of({"a.flac": b"song"}))
    content[content.index(b"PK\1\2") + 8] |= 1
    unpacking_fails(tmp_path, bytes(content), "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_in_a_way_that_can_fill_the_memory_is_refused(method, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.flac", b"song")
    unpacking_fails(tmp_path, buffer.getvalue(), f"method {method}")


def test_a_zip_bomb_is_refused_by_what_it_promises(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.flac", bytes(10_000_000))
    unpacking_fails(tmp_path, buffer.getvalue(), "unpacked 10 MB", "zip bomb")


def test_a_zip_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", 1_000_000)
    unpacking_fails(tmp_path, FILES[ZIP_FILE], "unpacked 1.2 MB", "zip bomb")


def test_a_zip_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_ENTRIES", 3)
    unpacking_fails(tmp_path, FILES[ZIP_FILE], "4 files", "3")


@pytest.mark.parametrize("promised_bytes", [999, 1001])
def test_a_recording_of_another_length_than_promised_is_refused(promised_bytes, tmp_path):
    content = bytearray(zip_of({"a.flac": noise(1000, 0)}))
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = promised_bytes.to_bytes(4, "little")
    unpacking_fails(tmp_path, bytes(content), "a.flac")


def test_a_bomb_that_promises_little_writes_no_more_than_it_promised(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.flac", bytes(50_000_000))
    content = bytearray(buffer.getvalue())
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = (1000).to_bytes(4, "little")
    written = []
    monkeypatch.setattr(unpacking, "progress_bar", lambda *_: CountingBar(written))
    unpacking_fails(tmp_path, bytes(content), "a.flac")
    assert sum(written) <= 1000


class CountingBar:
    def __init__(self, written):
        self.update = written.append

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_recording_with_broken_bytes_is_refused_and_those_before_it_stay(tmp_path):
    content = bytearray(zip_of({"a.flac": b"song", "b.flac": b"more"}))
    content[content.index(b"more")] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="CRC"):
        unpack_recordings(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.flac": b"song"}


@pytest.mark.parametrize(
    ("one", "other"), [("a.flac", "one/a.flac"), ("a.flac", "A.flac"), ("\u00e9.flac", "e\u0301.flac")]
)
def test_two_recordings_of_one_name_are_refused(one, other, tmp_path):
    unpacking_fails(tmp_path, zip_of({one: b"song", other: b"more"}), "two recordings", one, other)


@pytest.mark.parametrize("name", ["con.flac", "sub/NUL.flac", "lpt1.x.flac", "a?.flac", "x" * 250 + ".flac"])
def test_a_zip_with_a_recording_that_windows_could_not_write_is_refused(name, tmp_path):
    content = zip_of({"good.flac": b"song", name: b"evil"})
    unpacking_fails(tmp_path, content, repr(name), "is not a valid name on Windows", "nothing is unpacked")


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", FILES[ZIP_FILE][:-30], zip_of({}), zip_of({"notes.txt": b"notes"})]
)
def test_what_is_no_zip_of_recordings_is_refused(content, tmp_path):
    unpacking_fails(tmp_path, content, "expected")


def test_a_hostile_zip_of_a_record_is_refused_and_stays_for_a_look(data_dir):
    files = {**FILES, ZIP_FILE: zip_of({"../evil.flac": b"evil"})}
    with FakeZenodo(files) as zenodo:
        refused(zenodo, data_dir, "../evil.flac", "nothing is unpacked")
    assert contents(data_dir.parent) == {f"data/{name}": content for name, content in files.items()}


# Processes that are stopped

RUN = """
import signal, sys
from kenya_birds.data.download import download_record

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
download_record(sys.argv[1], api_url=sys.argv[2])
"""
# Stops a process before each of the steps that change the disk: a folder each.
STOPPED_EVERYWHERE = """
import os, signal, sys, traceback
from pathlib import Path
from kenya_birds.data.download import download_record


def run(data_dir, last_step):
    step = 0

    def count(event, arguments):
        nonlocal step
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wa+")
        changes = writes or event in ("os.mkdir", "os.rename", "os.remove")
        if changes and str(arguments[0]).startswith(str(data_dir)):
            if step == last_step:
                os.kill(os.getpid(), signal.SIGKILL)
            step += 1

    sys.addaudithook(count)
    download_record(data_dir, api_url=sys.argv[2])


exit_code, step = -signal.SIGKILL, 0
while exit_code == -signal.SIGKILL:
    child = os.fork()
    if child == 0:
        try:
            run(Path(sys.argv[1]) / str(step), step)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    step += 1
sys.exit(exit_code)
"""


def start(script, *words):
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process):
    deadline = time.monotonic() + 20
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_in_the_middle_of_a_transfer_is_gone_on_with(with_signal, zenodo, data_dir):
    zenodo.pieces = (400_000, 30)
    part = data_dir / f"{ZIP_FILE}.part"
    process = start(RUN, data_dir, zenodo.api_url)
    wait_until(lambda: part.exists() and part.stat().st_size >= 300_000, process)
    process.send_signal(with_signal)
    process.communicate(timeout=20)
    assert process.returncode == -with_signal
    received_bytes = part.stat().st_size
    assert 300_000 <= received_bytes < ZIP_BYTES
    assert not (data_dir / ZIP_FILE).exists()

    zenodo.pieces = (1 << 20, 0)
    download_record(data_dir, api_url=zenodo.api_url)
    assert contents(data_dir) == UNPACKED
    assert zenodo.ranges(ZIP_FILE) == [None, f"bytes={received_bytes}-"]
    assert zenodo.ranges("annotations.csv") == [None]


def test_wherever_a_process_is_killed_nothing_half_has_a_final_name_and_the_next_run_goes_on(tmp_path):
    files, unpacked = record_of({"a.flac": noise(200_000, "a"), "b.flac": noise(3_000, "b")})
    final = {**files, **unpacked}
    with FakeZenodo(files) as zenodo:
        process = start(STOPPED_EVERYWHERE, tmp_path, zenodo.api_url)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        folders = sorted(tmp_path.iterdir())
        # A folder, a manifest, 4 files and 2 recordings take two steps each at least.
        assert len(folders) > 20
        for folder in folders:
            found = contents(folder)
            whole = {path: content for path, content in found.items() if not path.endswith(".part")}
            assert whole.items() <= final.items(), folder
            assert len(found) - len(whole) <= 1
            if (folder / MANIFEST_FILE).exists():
                json.loads((folder / MANIFEST_FILE).read_text())
            zenodo.requests.clear()
            download_record(folder, api_url=zenodo.api_url)
            assert contents(folder) == unpacked, folder
            fetched = {path.split("/")[-2] for path, *_ in zenodo.requests if "/files/" in path}
            assert not fetched & whole.keys(), "a file that was whole was fetched again"
            if len(whole.keys() & unpacked.keys()) == len(unpacked):
                assert ZIP_FILE in whole or not fetched


def test_the_log_tells_what_is_done(zenodo, data_dir, caplog):
    caplog.set_level(logging.INFO, "kenya_birds")
    download_record(data_dir, api_url=zenodo.api_url)
    assert "Record 10943500: 4 of 4 files to download, 1.2 MB" in caplog.text
    assert "Unpacking 4 of 4 recordings (1.2 MB)" in caplog.text
    assert "deleted it" in caplog.text
