import errno
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path, PurePath

import pytest

from kenya_birds import files
from kenya_birds.errors import UserError
from kenya_birds.files import PROBE_PREFIX, check_output, is_portable_name, users_file
from kenya_birds.folders import check_can_make, check_new_folder, put_folder_in_place, users_folder
from kenya_birds.inference.table_formats import Outputs
from kenya_birds.locks import LOCK_FILE


@pytest.fixture
def windows(monkeypatch):
    """Folders are not renamed to one that is there, even if it is empty."""
    replace = os.replace

    def strict(source, target):
        if os.path.isdir(target):
            raise PermissionError(13, "Access is denied", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", strict)


def test_a_folder_takes_the_place_of_an_empty_one_on_windows_too(windows, tmp_path):
    for name in ("new", "empty"):
        (tmp_path / "partial").mkdir()
        (tmp_path / "partial" / "file").touch()
        if name == "empty":
            (tmp_path / name).mkdir()
        put_folder_in_place(tmp_path / "partial", tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]
        assert not (tmp_path / "partial").exists()


@pytest.mark.parametrize("kind", ["working directory", "link"])
def test_a_folder_that_has_to_stay_gets_the_files(kind, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    if kind == "link":
        output = tmp_path / "link"
        output.symlink_to(tmp_path / "empty", target_is_directory=True)
    else:
        monkeypatch.chdir(tmp_path / "empty")
        output = Path(".")
    before = (tmp_path / "empty").stat().st_ino
    with users_folder(output, "the archive") as partial:
        (partial / "folder").mkdir()
        (partial / "folder" / "file").touch()
    assert [path.relative_to(output).as_posix() for path in output.rglob("*")] == ["folder", "folder/file"]
    assert (tmp_path / "empty").stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["empty", "link"] if kind == "link" else ["empty"])
    for overwrite in (False, True):
        with (
            pytest.raises(UserError, match=r"(?i)not empty"),
            users_folder(output, "the archive", overwrite=overwrite) as partial,
        ):
            (partial / "other").touch()
        assert [path.name for path in output.iterdir()] == ["folder"]
        assert output.is_symlink() == (kind == "link")


def test_a_folder_with_nothing_but_a_lock_file_counts_as_empty(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_FILE).touch()
    with users_folder(tmp_path / "out", "the results") as partial:
        (partial / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "Desktop.ini", ".localized"])
def test_a_folder_that_looks_empty_in_finder_or_explorer_counts_as_empty(name, windows, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    check_new_folder(tmp_path / "out")
    with users_folder(tmp_path / "out", "the results", overwrite=name == ".DS_Store") as partial:
        (partial / "file").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/file"]


def test_a_probe_that_was_left_behind_is_removed_and_a_folder_of_the_user_is_not(tmp_path):
    (tmp_path / "out" / f"{PROBE_PREFIX}0a").mkdir(parents=True)
    with users_folder(tmp_path / "out", "the results") as partial:
        (partial / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    (tmp_path / "other" / "desktop.ini").mkdir(parents=True)
    with pytest.raises(UserError, match="is not an empty folder"):
        check_new_folder(tmp_path / "other")


def test_a_full_disk_is_named_before_the_work(tmp_path, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "try_writing", full)
    for check in (lambda: check_output(tmp_path / "a.csv", False), lambda: check_new_folder(tmp_path / "new")):
        with pytest.raises(UserError, match=r"cannot be written.*: No space left on device$"):
            check()


def test_files_are_put_beside_a_system_file_that_explorer_has_open(windows, tmp_path, monkeypatch):
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == "Thumbs.db":
            raise PermissionError(13, "The file is open", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    (tmp_path / "Thumbs.db").touch()
    with users_folder(tmp_path, "the results") as partial:
        (partial / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Thumbs.db", "file"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_protected_folder_is_found_before_the_work_where_access_says_nothing(kind, tmp_path, monkeypatch):
    """On Windows, `os.access` allows practically every folder."""
    (tmp_path / "mine").touch()
    seen = [tmp_path / "mine"]

    def check(output):
        if kind == "file":
            check_output(output, overwrite=False)
        else:
            check_new_folder(output / "below")
            check_can_make(tmp_path)

    check(tmp_path / "out")
    assert list(tmp_path.iterdir()) == seen

    def refuse(*args):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr("os.access", lambda path, mode: True)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} is not a writable folder"):
        check(tmp_path / "out")
    assert list(tmp_path.iterdir()) == seen


def test_a_folder_is_filled_if_none_can_be_made_beside_it(tmp_path, monkeypatch):
    output = tmp_path / "above" / "out"
    output.mkdir(parents=True)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / "above")
    with users_folder(output, "the results") as partial:
        assert partial.parent == output
        (partial / "file").touch()
    assert [path.name for path in output.iterdir()] == ["file"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_root_of_a_drive_gets_the_files_if_it_is_empty(overwrite, tmp_path, monkeypatch):
    name = PurePath.name.fget
    monkeypatch.setattr(PurePath, "name", property(lambda path: "" if path == tmp_path else name(path)))
    with users_folder(tmp_path, "the results", overwrite=overwrite) as partial:
        (partial / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match=r"(?i)not empty"), users_folder(tmp_path, "the results", overwrite=overwrite):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_never_takes_the_place_of_one_with_files(tmp_path):
    for name in ("partial", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(OSError, match=r"(?i)not empty"):
        put_folder_in_place(tmp_path / "partial", tmp_path / "full")
    assert (tmp_path / "full" / "full").exists()


def replace_results(folder):
    """A folder of old files is overwritten with one file; returns the names in it, and those beside it."""
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        (folder / name).touch()
    with users_folder(folder, "the results", overwrite=True) as partial:
        (partial / "new.csv").touch()
    found = [path.name for path in folder.iterdir()], [path.name for path in folder.parent.iterdir() if path != folder]
    shutil.rmtree(folder)
    return found


def test_a_replaced_folder_is_deleted_after_the_new_one_is_in_place(windows, tmp_path, monkeypatch, caplog):
    assert replace_results(tmp_path / "out") == (["new.csv"], [])
    rmtree = shutil.rmtree

    def delete(path, ignore_errors=False):
        if path.name == ".out.old" and not ignore_errors:
            (path / "a.csv").unlink()
            raise PermissionError(13, "The file is open", "b.csv")
        rmtree(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", delete)
    assert replace_results(tmp_path / "out") == (["new.csv"], [".out.old"])
    assert f"{tmp_path / '.out.old'} has the earlier files and cannot be deleted" in caplog.text
    monkeypatch.undo()
    assert replace_results(tmp_path / "out") == (["new.csv"], [])


@pytest.mark.parametrize("cannot_move", ["out", ".out.part"])
def test_a_folder_that_cannot_be_replaced_keeps_all_its_files(cannot_move, tmp_path, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if source.name == cannot_move:
            raise PermissionError(13, "The file is open", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.csv", "b.csv"):
        (out / name).touch()
    with (
        pytest.raises(UserError, match=r"the results cannot be written: .*The file is open"),
        users_folder(out, "the results", overwrite=True) as partial,
    ):
        (partial / "new.csv").touch()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "out",
        "out/a.csv",
        "out/b.csv",
    ]


@pytest.mark.parametrize("refusals", [3, 11])
def test_windows_waits_for_a_program_that_has_a_new_file_open_for_a_moment(refusals, tmp_path, monkeypatch):
    replace, calls, waited_s = os.replace, [], []

    def busy(source, target):
        calls.append(source)
        if len(calls) <= refusals:
            raise PermissionError(13, "The file is open", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(files, "SHARING_TRIES", 10)  # as on Windows
    monkeypatch.setattr(files.time, "sleep", waited_s.append)
    with nullcontext() if refusals < 11 else pytest.raises(PermissionError):
        files.write_json({}, tmp_path / "a.json")
    assert sum(waited_s) == pytest.approx(min(refusals, 10) * 0.2)
    assert [path.name for path in tmp_path.iterdir()] == (["a.json"] if refusals < 11 else [])


def test_elsewhere_nothing_is_tried_again(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(files, "SHARING_TRIES", 0)
    monkeypatch.setattr(files.time, "sleep", lambda wait_s: pytest.fail("waits"))
    with pytest.raises(PermissionError):
        files.replace(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", ["a.flac", "é.flac", ".hidden", "console.wav", "COM10.wav", "x" * 255, "a b"])
def test_usual_names_are_portable(name):
    assert is_portable_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "a/b",
            "a\\b",
            "a:b",
            "a?",
            "a*",
            "a|b",
            "<a>",
            'a"',
            "a.",
            "a ",
            "a\nb",
            "\udcff",
            "x" * 256,
        ),
        *("CON", "con.wav", "Nul.tar.gz", "aux .txt", "prn", "com1", "LPT9.csv"),
    ],
)
def test_names_that_some_system_does_not_take_are_not_portable(name):
    assert not is_portable_name(name)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_in_the_folder_of_other_people_leads_nothing_out_of_it(is_there, tmp_path):
    mine, folder = tmp_path / "mine", tmp_path / "folder"
    folder.mkdir()
    if is_there:
        mine.write_text("my settings")
    for name in ("verify.csv", "detections.csv"):
        (folder / f"{name}.part").symlink_to(mine)
    with users_file(folder / "verify.csv") as partial:
        partial.write_text("new")
    with Outputs(folder) as outputs:
        outputs.open("detections.csv").write("new")
        outputs.commit()
    assert mine.read_text() == "my settings" if is_there else not mine.exists()
    assert {path.name: (path.read_text(), path.is_symlink()) for path in folder.iterdir()} == {
        "verify.csv": ("new", False),
        "detections.csv": ("new", False),
    }
