import os

import av
import numpy as np
import pytest
import soundfile

from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.sound_files import SOUND_SUFFIXES, Skip, count_skipped, find_sound


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def found(folder):
    return [os.path.relpath(file.path, folder).replace(os.sep, "/") for file in find_sound(folder).found]


def skipped(folder):
    return {os.path.relpath(left.path, folder): (left.skip, left.count) for left in find_sound(folder).skipped}


def test_what_is_hidden_or_in_a_bin_is_left_out_and_counted(tmp_path):
    hidden = [".Trash-1000/files", ".Trashes/501", "$RECYCLE.BIN/S-1-5", "System Volume Information", "site/@eaDir/a"]
    make(tmp_path, "a.wav", "site/b.flac", "site/._b.flac", ".secret.wav", ".DS_Store", ".git/config")
    for folder in hidden:
        make(tmp_path, f"{folder}/x.wav", f"{folder}/deep/y.mp3", f"{folder}/._z.wav", f"{folder}/info.txt")
    assert found(tmp_path) == ["a.wav", "site/b.flac"]
    tops = [folder if folder.startswith("Sys") else folder.rsplit("/", 1)[0] for folder in hidden]
    assert skipped(tmp_path) == {
        ".secret.wav": (Skip.HIDDEN, 1),
        **{os.path.normpath(top): (Skip.HIDDEN, 2) for top in tops},
    }
    counts = count_skipped(find_sound(tmp_path).skipped)
    assert counts == {Skip.HIDDEN: (11, str(tmp_path / "$RECYCLE.BIN"))}
    # Somebody who names such a folder means it.
    assert found(tmp_path / ".Trash-1000") == ["files/deep/y.mp3", "files/x.wav"]


def test_links_are_followed_once_and_their_loops_end(tmp_path):
    make(tmp_path, "disk/deep/far.wav", "all/z/b.wav", "all/z/notes.md")
    root = tmp_path / "all"
    (root / "a_disk").symlink_to(tmp_path / "disk")
    (root / "y_disk").symlink_to(tmp_path / "disk", target_is_directory=True)
    (root / "a_first.wav").symlink_to(root / "z" / "b.wav")
    os.link(root / "z" / "b.wav", root / "z" / "c.wav")
    for name, target in (("up", ".."), ("z/self", "self"), ("z/one", "two"), ("z/two", "one"), ("z/home", str(root))):
        (root / name).symlink_to(target)
    # A file keeps its own name if it has one in there; the parent's other folders are reached through `up`.
    assert found(root) == ["a_disk/deep/far.wav", "z/b.wav"]
    assert skipped(root) == {
        "a_first.wav": (Skip.REPEATED, 1),
        "z/c.wav": (Skip.REPEATED, 1),
        **{f"z/{name}": (Skip.BROKEN_LINK, 1) for name in ("self", "one", "two")},
    }


def test_folders_that_cannot_be_read_and_links_to_nothing_are_told(tmp_path, monkeypatch):
    make(tmp_path, "a/1.wav", "locked/2.wav", "z/3.wav")
    (tmp_path / "site3").symlink_to("/mnt/disk3/site3")
    (tmp_path / "notes.txt").symlink_to("/nowhere/notes.txt")
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert found(tmp_path) == ["a/1.wav", "z/3.wav"]
    assert skipped(tmp_path) == {"locked": (Skip.UNREADABLE, 1), "site3": (Skip.BROKEN_LINK, 1)}
    assert "Permission denied" in find_sound(tmp_path).skipped[0].reason


def test_sound_that_is_not_read_is_told(tmp_path):
    make(tmp_path, "bat.wac", "BAT.W4V", "list.txt", "photo.jpg", "README", "x.xyz")
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 8000)
    for name in ("a.wav.part", "without", "copy.WAV_bak", "a.csv"):
        (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
    os.mkfifo(tmp_path / "pipe.xyz")
    assert found(tmp_path) == ["a.wav"]
    assert skipped(tmp_path) == {
        "bat.wac": (Skip.FOREIGN, 1),
        "BAT.W4V": (Skip.FOREIGN, 1),
        **dict.fromkeys(("a.wav.part", "without", "copy.WAV_bak"), (Skip.UNKNOWN_SUFFIX, 1)),
    }


# Where the container's usual codec has no encoder.
CODECS = {".opus": "libopus", ".weba": "libopus", ".webm": "libopus", ".3gp": "aac", ".3g2": "aac"}


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_what_is_named_as_sound_can_be_opened(tmp_path, suffix):
    # In the form that its suffix names where there is an encoder for it, else as WAV: decoders look at the content.
    path = tmp_path / f"a{suffix.upper()}"
    try:
        with av.open(str(path), "w") as container:
            codec = CODECS.get(suffix) or container.default_audio_codec
            stream = container.add_stream(codec, rate=48_000 if "opus" in codec else 44_100)
            stream.layout = "mono"
            samples = (1000 * np.sin(np.arange(2 * stream.rate) / 9)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = stream.rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (ValueError, av.FFmpegError):
        with path.open("wb") as file:
            soundfile.write(file, np.zeros(1000), 8000, format="WAV")
    assert found(tmp_path) == [path.name]
    with RecordingReader(path) as reader:
        assert reader.header.frames
