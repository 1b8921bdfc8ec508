import os

import pytest

from kenya_birds.files import is_portable_name, put_folder_in_place


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


def test_a_folder_never_takes_the_place_of_one_with_files(tmp_path):
    for name in ("partial", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(OSError, match=r"(?i)not empty"):
        put_folder_in_place(tmp_path / "partial", tmp_path / "full")
    assert (tmp_path / "full" / "full").exists()


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
