import io
import logging
import multiprocessing
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import RATE, edit, noise, write_archive

from kenya_birds.data.archive import read_archive
from kenya_birds.data.check import check_archive, format_check, write_check
from kenya_birds.data.recording_check import check_recording
from kenya_birds.data.sound_files import Skip
from kenya_birds.errors import UserError

ROWS = [
    ("a.flac", 2.0, "owl1"),
    ("a.flac", 4.0, "lark2"),
    ("b.flac", (1.0, 1.5), "owl1"),
    ("b.flac", 8.0, "????"),
]


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "archive", ROWS)


def sound_folder(archive):
    return archive / "soundscape_data"


def add_lines(archive, *lines, table="annotations.csv"):
    with (archive / table).open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


def findings(archive, **settings):
    """(kind, recording, line, species, finding, effect) of each finding."""
    table = check_archive(archive, **settings).findings
    columns = ["kind", "recording", "line", "species", "finding", "effect"]
    return [tuple(None if pd.isna(value) else value for value in row) for row in table[columns].to_numpy().tolist()]


def flip(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)


# Recordings


def test_a_whole_archive_has_no_findings(archive):
    check = check_archive(archive)
    assert check.findings.empty
    assert check.is_usable
    assert (check.annotations, check.unknown_birds, check.not_points) == (4, 1, 1)
    assert [recording.recording for recording in check.recordings] == ["a.flac", "b.flac"]
    for recording in check.recordings:
        assert recording.frames_promised == recording.frames_read == 10 * RATE
        assert (recording.sample_rate_hz, recording.channels, recording.duration_s) == (RATE, 1, 10.0)
        assert (recording.encoding, recording.decoders) == ("FLAC PCM_16", "soundfile")
        assert (recording.losses, recording.error) == ((), "")


def measures(tmp_path, sound, rate=RATE, name="a.flac", **settings):
    soundfile.write(tmp_path / name, sound, rate, **settings)
    return check_recording(tmp_path / name)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 25.03])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_levels_are_measured(tmp_path, seconds, rate):
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(round(seconds * rate)) / rate)
    found = measures(tmp_path, sine, rate)
    assert found.peak_dbfs == pytest.approx(-6.02, abs=0.05)
    assert found.rms_dbfs == pytest.approx(-9.03, abs=0.05)
    assert found.dc_offset == pytest.approx(0, abs=1e-3)
    assert found.clipped_share == found.silent_share == found.longest_silence_s == 0


def test_a_shift_of_the_zero_line_and_clipping_are_measured(tmp_path):
    square = np.where(np.arange(RATE) % 10 < 8, 0.1, -0.1)
    found = measures(tmp_path, square)
    assert found.dc_offset == pytest.approx(0.06, abs=1e-4)
    loud = np.zeros(RATE, np.int16) + 100
    loud[100:120], loud[200:220], loud[300:320] = 32767, -32768, 32766
    found = measures(tmp_path, loud)
    assert found.clipped_share == 40 / RATE
    assert found.peak_dbfs == 0


def test_silence_is_measured_in_blocks_of_a_tenth_of_a_second(tmp_path):
    sound = noise(30)
    sound[27 * RATE : 29 * RATE] = 0
    sound[8 * RATE : 23 * RATE] = np.tile([0, 0, 0, 1], 15 * RATE // 4)  # -96 dBFS, over the ends of blocks as read
    sound[25 * RATE : 26 * RATE] = 2  # -84 dBFS
    found = measures(tmp_path, sound)
    assert found.silent_share == 17 / 30
    assert found.longest_silence_s == 15
    assert found.decoders == "soundfile+PyAV"  # which confirms that the silence is not a missing frame


def test_digital_silence_has_no_level(tmp_path):
    found = measures(tmp_path, np.zeros(2 * RATE, np.int16))
    assert found.peak_dbfs == found.rms_dbfs == -np.inf
    assert (found.silent_share, found.longest_silence_s) == (1.0, 2.0)


def test_channels_are_measured_as_their_mean(tmp_path):
    found = measures(tmp_path, np.stack([np.full(RATE, 0.5), np.full(RATE, -0.1)], axis=1), name="a.wav")
    assert (found.channels, found.frames_read, found.encoding) == (2, RATE, "WAV PCM_16")
    assert found.dc_offset == pytest.approx(0.2, abs=1e-4)


def test_a_loss_is_told_with_its_place_and_does_not_end_the_measuring(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(30), RATE)
    flip(path)
    found = check_recording(path)
    (loss,) = found.losses
    assert 14 < loss.start_s < loss.end_s < 16
    assert "soundfile: " in loss.reason
    assert found.frames_promised - found.frames_read == round((loss.end_s - loss.start_s) * RATE) == 4096
    assert found.rms_dbfs == pytest.approx(20 * np.log10(20_000 / 32768 / 3**0.5), abs=0.1)


def test_neighbouring_losses_are_one(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(60), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    found = check_recording(path)
    (loss,) = found.losses
    assert loss.end_s == found.duration_s == 60
    assert loss.start_s * RATE == found.frames_read
    assert 18 < loss.start_s < 21


def test_every_recording_is_read_annotated_or_not(archive):
    flip(sound_folder(archive) / "a.flac", 0.3)
    shutil.copy(sound_folder(archive) / "a.flac", sound_folder(archive) / "c.flac")
    (sound_folder(archive) / "d.wav").write_text("not audio")
    (sound_folder(archive) / "notes.txt").write_text("not audio")
    (sound_folder(archive) / ".hidden").write_text("not audio")
    (sound_folder(archive) / "folder").mkdir()
    found = findings(archive)
    assert [row for row in found if row[0] == "sound"] == [
        ("sound", "a.flac", None, "", "cannot be decoded", "skipped"),
        ("sound", "c.flac", None, "", "cannot be decoded", "skipped"),
        ("sound", "c.flac", None, "", "has no annotations", ""),
        ("sound", "d.wav", None, "", "cannot be opened", "skipped"),
        ("sound", "d.wav", None, "", "has no annotations", ""),
        ("sound", "a.flac", None, "", "has the same sound as another recording", ""),
        ("sound", "c.flac", None, "", "has the same sound as another recording", ""),
    ]
    # The damage is 2.6 to 3.1 s from the start: both annotations of a.flac are within 1.5 s of it.
    assert [row[1:4] for row in found if row[4] == "has damaged sound within 1.5 s"] == [
        ("a.flac", 2, "owl1"),
        ("a.flac", 3, "lark2"),
    ]


def test_sound_that_the_header_does_not_tell_is_lost(archive):
    path = sound_folder(archive) / "a.flac"
    wav = io.BytesIO()
    soundfile.write(wav, noise(10), RATE, format="WAV")
    content = bytearray(wav.getvalue())
    content[40:44] = (2 * 3 * RATE).to_bytes(4, "little")  # 3 of 10 s
    path.write_bytes(content)
    check = check_archive(archive)
    assert check.recordings[0].duration_s == 10
    assert check.recordings[0].frames_read == 3 * RATE
    assert (
        check.recordings[0].losses[0].reason
        == "112000 bytes follow after the end of the sound by the header: they may be sound, too"
    )
    assert not check.is_usable
    assert [row[2:] for row in findings(archive)] == [
        (None, "", "cannot be decoded", "skipped"),
        (2, "owl1", "has damaged sound within 1.5 s", "skipped"),
        (3, "lark2", "has damaged sound within 1.5 s", "skipped"),
    ]


def test_a_recording_that_cannot_be_opened_does_not_end_the_check(archive):
    (sound_folder(archive) / "a.flac").write_text("not audio")
    assert findings(archive) == [
        ("sound", "a.flac", None, "", "cannot be opened", "skipped"),
        ("annotation", "a.flac", 2, "owl1", "its recording cannot be opened", "skipped"),
        ("annotation", "a.flac", 3, "lark2", "its recording cannot be opened", "skipped"),
    ]
    check = check_archive(archive)
    assert "cannot be read as audio" in check.findings["detail"].iloc[0]
    assert check.recordings[1].frames_read == 10 * RATE


@pytest.fixture
def stray(archive):
    """A name that is not valid Unicode, of a recording in the archive that nothing annotates."""
    path = os.fsencode(sound_folder(archive)) + b"/stray\xff.flac"
    try:
        shutil.copy(sound_folder(archive) / "a.flac", path)
    except OSError:
        pytest.skip("this file system takes no such name")
    return "stray\\udcff.flac"


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_name_that_is_not_unicode_is_escaped(archive, stray, tmp_path, num_proc):
    (sound_folder(archive) / "two\nlines.wav").write_text("not audio")
    check = check_archive(archive, num_proc=num_proc)
    assert [recording.recording for recording in check.recordings] == ["a.flac", "b.flac", stray, "two\nlines.wav"]
    assert check.recordings[2].frames_read == 10 * RATE
    write_check(check, tmp_path / "check.csv")
    assert set(pd.read_csv(tmp_path / "check.csv")["recording"]) == {"a.flac", "b.flac", stray, "two\nlines.wav"}
    assert "(first: two\\nlines.wav)" in format_check(check)


def test_no_cell_is_a_formula_in_a_spreadsheet(archive, tmp_path):
    (sound_folder(archive) / "=cmd.wav").write_text("not audio")
    add_lines(archive, "a.flac,1.0,1.0,@crow", "+lost.flac,1.0,1.0,owl1")
    write_check(check_archive(archive), tmp_path / "check.csv")
    table = pd.read_csv(tmp_path / "check.csv", keep_default_na=False)
    assert {"./=cmd.wav", "./+lost.flac"} <= {*table["recording"]}
    assert "'@crow" in {*table["species"]}
    for name in ("recording", "species", "detail"):
        assert not table[name].str.match(r"[=+\-@]").any()


def test_what_is_not_a_file_is_told_and_does_not_hold_up_the_check(archive):
    folder = sound_folder(archive)
    (folder / "folder.wav").mkdir()
    (folder / "empty.wav").touch()
    (folder / "a.flac").unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "a.flac")
    else:
        (folder / "a.flac").mkdir()
    check = check_archive(archive)
    assert [recording.recording for recording in check.recordings] == ["a.flac", "b.flac", "empty.wav", "folder.wav"]
    for number in (0, 3):
        assert "expected a file, found a folder, a pipe or a device" in check.recordings[number].error
    assert check.findings["finding"].tolist().count("its recording cannot be opened") == 2
    assert read_archive(archive).set_aside["reason"].tolist() == [
        "the recording cannot be read",
        "the recording cannot be read",
        "unknown bird",
    ]


FAULTS = [ZeroDivisionError("by zero"), RuntimeError("what a library\nsays"), RecursionError(), OSError(5, "no disk")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("where", ["soundfile.SoundFile", "av.open", "soundfile.SoundFile.read", "numpy.square"])
def test_an_unforeseen_exception_is_a_finding_of_its_file(archive, monkeypatch, caplog, where, fault):
    def fail(*args, **settings):
        raise fault

    monkeypatch.setattr(where, fail)
    flip(sound_folder(archive) / "b.flac")  # which two decoders read
    with caplog.at_level(logging.DEBUG, "kenya_birds"):
        check = check_archive(archive)
    assert [recording.recording for recording in check.recordings] == ["a.flac", "b.flac"]
    a, b = check.recordings
    if where == "numpy.square":
        assert a.error == b.error == f"{type(fault).__name__}: {fault}"
    else:
        assert a.frames_read == 10 * RATE  # one decoder is enough for it
        assert b.losses or where != "av.open"
    if not isinstance(fault, OSError):
        assert any(record.exc_info for record in caplog.records if record.levelno == logging.DEBUG)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", ["soundfile.SoundFile", "soundfile.SoundFile.read", "numpy.square"])
def test_what_is_no_fault_of_a_file_ends_the_check(archive, monkeypatch, where, fault):
    def fail(*args, **settings):
        raise fault

    monkeypatch.setattr(where, fail)
    with pytest.raises(fault):
        check_archive(archive)


def test_channels_that_cancel_each_other_are_noted_and_not_called_silent(archive):
    sound = noise(10)
    soundfile.write(sound_folder(archive) / "a.flac", np.stack([sound, -sound], axis=1), RATE)
    check = check_archive(archive)
    assert check.findings[["finding", "detail", "effect"]].to_numpy().tolist() == [
        ["has channels that cancel each other", "one is inverted; only channel 0 is read", ""]
    ]
    assert check.recordings[0].rms_dbfs > -20
    assert check.recordings[0].lone_channel == 0


def test_sound_that_is_clipped_silent_or_off_centre_is_noted(archive):
    sound = noise(10)
    sound[: RATE // 2] = 32767
    sound[2 * RATE : 5 * RATE] = 0
    soundfile.write(sound_folder(archive) / "a.flac", sound, RATE)
    found = check_archive(archive)
    assert found.is_usable
    assert found.findings[["finding", "detail"]].to_numpy().tolist() == [
        ["is clipped", "5.00% of the samples"],
        ["is silent", "for 3.0 s"],
        ["has a DC offset", "4.9% of full scale"],
    ]


# Tables


BAD_LINES = {
    "a.flac,1.0,1.0,crow3": ("its species is not in species.csv", "stops training"),
    "a.flac,1.0,1.0,": ("has no species code and counts as an unknown bird", "skipped"),
    "a.flac,one,1.0,owl1": ("its start or end is not a number", "stops training"),
    "a.flac,1.0,inf,owl1": ("its start or end is not a number", "stops training"),
    "../a.flac,1.0,1.0,owl1": ("its recording is not a plain file name", "stops training"),
    "z.flac,1.0,1.0,owl1": ("its recording is missing", "stops training"),
    "a.flac,3.0,2.0,owl1": ("ends before it starts", "skipped"),
    "a.flac,-3.0,1.0,owl1": ("is before the start of the recording", "skipped"),
    "a.flac,10.0,10.0,owl1": ("is past the end of the recording", "skipped"),
    "a.flac,-1.0,3.0,owl1": ("begins before the recording", ""),
    "a.flac,8.0,11.0,owl1": ("ends after the recording", ""),
    "a.flac,2.00,2,owl1": ("repeats an earlier line", ""),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_row_that_is_wrong_is_told_by_its_line(archive, line):
    add_lines(archive, line)
    (row,) = findings(archive)
    recording, *_, species = line.split(",")
    assert row == ("annotation", recording, 6, species, *BAD_LINES[line])


@pytest.mark.parametrize("line", BAD_LINES)
def test_what_is_said_to_stop_training_or_be_set_aside_does_and_is(archive, line):
    add_lines(archive, line)
    effect = BAD_LINES[line][1]
    if effect == "stops training":
        with pytest.raises(UserError):
            read_archive(archive)
    else:
        reasons = read_archive(archive).set_aside.set_index("row")["reason"]
        assert (6 in reasons.index) == (effect == "skipped")


def test_all_that_is_wrong_is_told_at_once(archive):
    add_lines(archive, *BAD_LINES, "", "z.flac,x,9.0,crow3", "a.flac,1.0,1.0,unknown")
    names = [
        "Avis rara,rara1,Rare bird",
        "Avis owl1,owl1,Bird owl1",
        "Avis sp.,,Some bird",
        "Avis alia,OWL1,Other bird",
        "Avis nulla,unknown,No bird",
    ]
    add_lines(archive, *names, table="species.csv")
    found = findings(archive)
    assert {row[4:] for row in found if row[0] == "annotation"} == set(BAD_LINES.values())
    assert [row[4] for row in found if row[2] == 19] == [
        "its species is not in species.csv",
        "its start or end is not a number",
        "its recording is missing",
    ]
    assert [row for row in found if row[0] == "species"] == [
        ("species", "", 5, "owl1", "its code is listed twice", "stops training"),
        ("species", "", 7, "OWL1", "its code differs from another in upper and lower case only", "stops training"),
        (
            *("species", "", 8, "unknown"),
            *("its code is a column of predictions: use another, or ???? for unknown birds", "stops training"),
        ),
        ("species", "", 6, "", "has no code and is skipped", ""),
        ("species", "", 4, "rara1", "is never annotated", ""),
        ("species", "", 7, "OWL1", "is never annotated", ""),
    ]


def test_a_table_without_rows_is_a_finding(archive):
    (archive / "annotations.csv").write_text((archive / "annotations.csv").read_text().splitlines()[0] + "\n")
    check = check_archive(archive)
    assert ("annotation", "the table has no annotations", "stops training") in [
        tuple(row) for row in check.findings[["kind", "finding", "effect"]].to_numpy()
    ]
    assert format_check(check)


def test_what_training_does_not_look_at_is_a_note(archive):
    folder = sound_folder(archive)
    before = check_archive(archive)
    for name in ("site2/a.wav", ".Trash-1/b.wav", ".Trash-1/c.wav", "bat.wac"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"RIFF")
    os.link(folder / "bat.wac", folder / "._x.wav")
    (folder / "gone.wav").symlink_to("nowhere.wav")
    check = check_archive(archive)
    assert check.recordings == before.recordings
    notes = check.findings[~check.findings["recording"].isin(before.findings["recording"])]
    assert [tuple(row) for row in notes[["recording", "finding", "effect"]].to_numpy()] == [
        ("gone.wav", Skip.BROKEN_LINK, ""),
        ("site2/a.wav", "is in a subfolder, which training does not read", ""),
        (".Trash-1", Skip.HIDDEN, ""),
        ("bat.wac", Skip.FOREIGN, ""),
    ]
    assert "2 recordings" in notes["detail"].iloc[2]


def test_recordings_may_all_be_missing(archive):
    for path in sound_folder(archive).iterdir():
        path.unlink()
    check = check_archive(archive)
    assert check.recordings == []
    assert len(check.findings) == 4
    assert "0 recordings" in format_check(check)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda archive: shutil.rmtree(archive), "no archive at"),
        (lambda archive: shutil.rmtree(archive / "soundscape_data"), "no folder soundscape_data"),
        (lambda archive: (archive / "species.csv").unlink(), r"no species\.csv"),
        (lambda archive: edit(archive / "annotations.csv", "Start Time (s)", "Start"), r"no column \['Start Time"),
    ],
)
def test_what_is_no_archive_is_refused(archive, spoil, message):
    spoil(archive)
    with pytest.raises(UserError, match=message):
        check_archive(archive)


def test_no_process_is_refused(archive):
    with pytest.raises(UserError, match="num_proc is 0"):
        check_archive(archive, num_proc=0)


def test_two_processes_find_the_same(archive):
    flip(sound_folder(archive) / "a.flac")
    (sound_folder(archive) / "c.flac").write_text("not audio")
    one = check_archive(archive)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)  # as on Windows and macOS
    try:
        two = check_archive(archive, num_proc=2)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert one.recordings == two.recordings
    pd.testing.assert_frame_equal(one.findings, two.findings)


# What is told


def test_the_csv_has_a_row_for_each_recording_and_each_finding(archive, tmp_path):
    flip(sound_folder(archive) / "a.flac")
    soundfile.write(sound_folder(archive) / "b.flac", np.zeros(10 * RATE, np.int16), RATE)
    add_lines(archive, *BAD_LINES)
    check = check_archive(archive)
    write_check(check, tmp_path / "check.csv")
    table = pd.read_csv(tmp_path / "check.csv")
    recordings = table[table["kind"] == "recording"].set_index("recording")
    assert recordings.loc["a.flac", "losses"] == 1
    assert recordings.loc["a.flac", "frames_promised"] - recordings.loc["a.flac", "frames_read"] == 4096
    assert recordings.loc["b.flac", ["sample_rate_hz", "silent_share", "duration_s"]].tolist() == [RATE, 1.0, 10.0]
    assert pd.isna(recordings.loc["b.flac", "peak_dbfs"])
    found = table[table["kind"] != "recording"]
    assert len(found) == len(check.findings)
    assert found["finding"].tolist() == check.findings["finding"].tolist()
    past = found[found["finding"] == "is past the end of the recording"].iloc[0]
    assert (past["recording"], past["line"], past["start_s"], past["effect"]) == ("a.flac", 14, 10.0, "skipped")
    lost = found[found["finding"] == "cannot be decoded"].iloc[0]
    assert 4 < lost["start_s"] < lost["end_s"] < 6


def test_a_file_is_not_overwritten_unasked(archive, tmp_path):
    check = check_archive(archive)
    write_check(check, tmp_path / "check.csv")
    with pytest.raises(UserError, match=r"exists already: give another path, or replace it with --overwrite$"):
        write_check(check, tmp_path / "check.csv")
    write_check(check, tmp_path / "check.csv", overwrite=True)


def test_the_summary_says_how_much_was_read_and_what_training_cannot_use(archive):
    told = format_check(check_archive(archive))
    assert "2 recordings, 4 annotations (1 of unknown birds, 1 with a duration)" in told
    assert "0:00:20.000 of 0:00:20.000 read" in told
    assert "2  FLAC PCM_16, 8000 Hz, channels: 1, by soundfile" in told
    assert told.endswith("Training can use everything.")
    flip(sound_folder(archive) / "b.flac")
    add_lines(archive, "a.flac,1.0,1.0,crow3", "a.flac,2.0,2.0,owl1", "a.flac,12.0,12.0,owl1")
    told = format_check(check_archive(archive)).splitlines()
    assert told[1].endswith("0:00:00.512 cannot be decoded")
    grave = [line.split(":")[0].strip() for line in told[6:-1]]
    assert grave == ["stops training", "skipped", "skipped", "note"]
    assert "its species is not in species.csv (first: line 6, a.flac, crow3, 1.000 s)" in told[6]
    assert told[-1] == "Training cannot use everything: 3 findings."


def test_a_table_that_cannot_be_written_is_an_error_of_the_user(archive, tmp_path, monkeypatch):
    def full(*args, **settings):
        raise OSError("no space left")

    check = check_archive(archive)
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(UserError, match=r"check\.csv cannot be written: no space left"):
        write_check(check, tmp_path / "check.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
