import errno
import functools
import http.server
import io
import os
import tempfile
import threading
from pathlib import Path

import fsspec
import pytest

from kenya_birds.data.sound_files import Skip
from kenya_birds.errors import UserError
from kenya_birds.inference.sources import find_sources


def names(*paths):
    return [source.recording for source in find_sources(paths)]


def contents(source):
    with source.local_path() as path:
        return path.read_bytes()


@pytest.fixture
def folder(tmp_path):
    for name in ("b.flac", "a.WAV", "deep/er/c d.mp3", "deep/Ünï 鳥.ogg", "deep/notes.md", "deep/._b.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def server(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_folder_gives_its_recordings_at_any_depth_sorted(folder):
    expected = ["a.WAV", "b.flac", "deep/er/c d.mp3", "deep/Ünï 鳥.ogg"]
    assert names(folder) == sorted(str(folder / name) for name in expected)


def test_a_pattern_gives_what_it_matches_and_a_file_is_taken_whatever_its_suffix(folder):
    assert names(folder / "*.flac") == [str(folder / "b.flac")]
    assert names(str(folder / "**" / "*.mp3")) == [str(folder / "deep/er/c d.mp3")]
    assert names(folder / "deep/notes.md") == [str(folder / "deep/notes.md")]


def test_a_name_that_looks_like_a_pattern_is_a_file_where_there_is_one(folder):
    (folder / "x[1].wav").write_bytes(b"x")
    assert names(folder / "x[1].wav") == [str(folder / "x[1].wav")]


def test_a_pattern_leaves_out_what_a_folder_does(folder, monkeypatch):
    for name in (".Trash-1/b.flac", "$RECYCLE.BIN/b.flac", "deep/@eaDir/b.flac", "deep/x.wac", "y.wac"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"fLaC" + name.encode())
    for name in ("deep/loop", "deep/er/loop"):
        (folder / name).symlink_to(folder)
    expected = {
        "**/*.flac": ["b.flac"],
        "**/": ["a.WAV", "b.flac", "deep/er/c d.mp3", "deep/Ünï 鳥.ogg"],
        "*": ["a.WAV", "b.flac", "deep/er/c d.mp3", "deep/Ünï 鳥.ogg"],
        "de*": ["deep/er/c d.mp3", "deep/Ünï 鳥.ogg"],
        "*/*/*": ["deep/er/c d.mp3"],
        "d*/**/*.ogg": ["deep/Ünï 鳥.ogg"],
        "[ab].*": ["a.WAV", "b.flac"],
    }
    for pattern, wanted in expected.items():
        assert names(f"{folder}/{pattern}") == [str(folder / name) for name in wanted], pattern
    monkeypatch.chdir(folder)
    assert names("*.flac") == ["b.flac"]
    found = find_sources([f"{folder}/de*", folder / "y.wac"])
    assert {(Path(left.path).name, left.skip) for left in found.skipped} == {
        ("x.wac", Skip.FOREIGN),
        ("@eaDir", Skip.HIDDEN),
    }


def test_what_is_skipped_in_one_place_can_be_named_in_another(folder, caplog):
    (folder / ".Trash").mkdir()
    for name in (".Trash/x.wav", ".y.wav", "bat.wac"):
        (folder / name).write_bytes(b"RIFF")
    found = find_sources([folder, folder / ".y.wav"])
    assert found[-1].recording == str(folder / ".y.wav")
    with caplog.at_level("INFO"):
        found.log()
    assert [record.getMessage() for record in caplog.records] == [
        f"Skipped recordings in a format that cannot be read: 1 ({folder / 'bat.wac'})",
        f"Skipped recordings that are hidden or in a recycle bin: 1 ({folder / '.Trash'})",
    ]
    assert len(find_sources([folder / ".Trash"])) == 1


def test_a_folder_without_recordings_says_what_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "bat.wac").write_bytes(b"x")
    with pytest.raises(UserError, match=r"contains no recording; recordings in a format that cannot be read: 1"):
        find_sources([tmp_path])

    def locked(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match="the folder cannot be read: Permission denied"):
        find_sources([tmp_path])


def test_a_list_names_recordings_that_need_not_be_there(folder):
    listed = folder / "list.txt"
    listed.write_text(f"\ufeff# mine\n\n{folder / 'b.flac'}\n{folder / 'gone.wav'}\n", encoding="utf-8")
    assert names(listed) == [str(folder / "b.flac"), str(folder / "gone.wav")]
    listed.write_text(f"{folder / 'b.flac'}\r\n{folder / 'gone.wav'}\r\n", encoding="utf-16")  # PowerShell's >
    assert names(listed) == [str(folder / "b.flac"), str(folder / "gone.wav")]
    with pytest.raises(UserError, match="No such file"):
        find_sources([listed])[1].state()


def test_a_recording_that_is_named_twice_is_found_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    os.symlink(folder / "b.flac", folder / "same.flac")
    assert names("b.flac", folder / "b.flac", "same.flac", f"file://{folder}/b.flac", "./b.flac") == ["b.flac"]


@pytest.mark.parametrize("path", ["nothing.flac", "none/*.wav", "empty", "empty.txt", "nowhere://x/a.wav"])
def test_a_path_that_leads_to_nothing_is_an_error(folder, monkeypatch, path):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=path.partition(":")[0].replace("*", r"\*")):
        find_sources([path])


def test_one_path_may_be_given_alone(folder):
    assert [source.recording for source in find_sources(str(folder / "b.flac"))] == [str(folder / "b.flac")]
    assert len(find_sources(folder)) == len(find_sources([folder]))


def test_no_path_at_all_is_an_error():
    with pytest.raises(UserError, match="no recordings"):
        find_sources([])


def test_files_of_any_file_system_are_copied_while_they_are_read_and_removed(folder):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/rec/one two.flac": b"1", "/rec/two.wav": b"2", "/rec/notes.md": b"3"})
    memory.pipe({"/rec/.Trash-1/one.flac": b"1", "/rec/._two.wav": b"2", "/rec/$RECYCLE.BIN/two.wav": b"3"})
    try:
        assert names("memory://rec") == ["memory:///rec/one two.flac", "memory:///rec/two.wav"]
        assert names("memory://rec/*.wav", "memory://rec/two.wav") == ["memory:///rec/two.wav"]
        assert names("memory://rec/**/*.flac") == ["memory:///rec/one two.flac"]
        assert names("memory://rec/$RECYCLE.BIN") == ["memory:///rec/$RECYCLE.BIN/two.wav"]
        assert {left.path.rpartition("/")[2] for left in find_sources(["memory://rec"]).skipped} == {
            "one.flac",
            "two.wav",
        }
        source = find_sources(["memory://rec/one two.flac"])[0]
        with source.local_path() as path:
            assert path.read_bytes() == b"1"
            assert path.suffix == ".flac"
        assert not path.exists()
        before = source.state()
        memory.pipe("/rec/one two.flac", b"4")
        assert source.state() != before
    finally:
        memory.rm("/rec", recursive=True)


def test_recordings_on_the_web_are_found_and_fetched(server):
    source, *_ = find_sources([f"{server}/deep/er/c%20d.mp3"])
    assert contents(source) == b"deep/er/c d.mp3"
    assert source.state().size_bytes == len(b"deep/er/c d.mp3")
    assert names(f"{server}/deep/er/") == [source.recording]
    with pytest.raises(UserError, match=r"nothing\.wav does not exist \(404: not found\)"):
        find_sources([f"{server}/nothing.wav"])


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "does not exist"),
        (403, "cannot be read .the server denies access"),
        (500, "cannot be downloaded now .*500"),
        (503, ".* try again later"),
    ],
)
def test_what_a_server_answers_is_told(folder, server, monkeypatch, status, reason):
    (source,) = find_sources([f"{server}/b.flac"])
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "send_head", lambda handler: handler.send_error(status))
    with pytest.raises(UserError, match=f"flac {reason}"):
        source.state()
    with pytest.raises(UserError, match=f"flac {reason}"), source.local_path():
        pass


def test_a_full_temporary_folder_is_told(server, tmp_path, monkeypatch):
    (source,) = find_sources([f"{server}/b.flac"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Full(path, mode))
        with pytest.raises(UserError, match=f"temporary folder {tmp_path} is full.*TMPDIR"), source.local_path():
            pass
    assert [path for path in tmp_path.iterdir() if path.name.startswith("kenya_birds_")] == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"gone cannot be written to \(No such file"), source.local_path():
        pass


def test_what_may_be_secret_in_a_url_is_told_to_nobody(server):
    host = server.removeprefix("http://")
    source = find_sources([f"http://{host}/b.flac?token=secret"])[0]
    assert source.recording == f"http://{host}/b.flac"
    assert contents(source) == b"b.flac"
    with pytest.raises(UserError) as error:
        find_sources(["http://user:secret@127.0.0.1:9/b.wav?token=secret"])
    assert "secret" not in str(error.value)
    assert "cannot be reached (Connection" in str(error.value)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("reference://a.wav", "begins with reference:"),
        ("data:audio/wav;base64,AAAA", "begins with data:"),
        ("memory://a.wav::https://me:secret@evil.org/refs.json", "joins several addresses with '::'"),
        ("file:///a.wav::memory://b", "joins several addresses with '::'"),
        ("simplecache::https://me:secret@evil.org/a.wav", "joins several addresses with '::'"),
    ],
)
def test_an_address_that_may_run_code_is_not_opened(folder, monkeypatch, address, why):
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: pytest.fail(f"{url} was opened"))
    (folder / "list.txt").write_text(f"# recordings of site 3\n{address}\n")
    for place in (address, folder / "list.txt"):
        with pytest.raises(UserError, match=f"{why}.*expected one address.* https://") as error:
            find_sources([place])
        assert "secret" not in str(error.value)


def test_a_local_file_may_have_two_colons_in_its_name(folder):
    (folder / "a::b.wav").write_bytes(b"1")
    assert contents(find_sources([folder / "a::b.wav"])[0]) == b"1"
    assert names(f"file://{folder}/b.flac") == [f"{folder}/b.flac"]


def test_an_empty_file_and_a_pipe_are_errors(tmp_path):
    (tmp_path / "empty.wav").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    for source, reason in zip(find_sources([tmp_path]), ("empty", "pipe"), strict=True):
        with pytest.raises(UserError, match=reason), source.local_path():
            pass
