"""The page about a detection run can be mailed: it has all in itself, and shows no path of the disk."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.exploration.call_examples import encode_clip
from kenya_birds.exploration.run_summary import _without_folders, short_paths, write_summary
from kenya_birds.inference.detections import name_in

RATE = 16_000
NAMES = {"owl": "Owl <b>", "dove": "Dove", "gull": "Gull"}


@pytest.fixture
def run_folder(tmp_path):
    """A run of two recordings of 20 s; the tone of each detection has 100 Hz times its start."""
    folder, sound = tmp_path / "found", tmp_path / "disk" / "north"
    sound.mkdir(parents=True)
    folder.mkdir()
    paths = [sound / "A_20211207_220000.wav", sound / "B_20211208_220000.wav"]
    time_s = np.arange(20 * RATE) / RATE
    for path in paths:
        soundfile.write(path, 0.1 * np.sin(2 * np.pi * 100 * np.floor(time_s) * time_s), RATE)
    rows = [(0, 3, "owl", 0.9), (0, 9, "owl", 0.4), (1, 6, "owl", 0.7), (1, 12, "dove", 0.8), (1, 17, "gull", 0.6)]
    table = [
        (paths[at], start, start + 3, code, NAMES[code], f"Avis {code}", score) for at, start, code, score in rows
    ]
    columns = ["recording", "start_s", "end_s", "code", "common_name", "scientific_name", "score"]
    pd.DataFrame(table, columns=columns).to_csv(folder / "detections.csv", index=False)
    times = [f"2021-12-0{day}T22:00:00.000" for day in (7, 8)]
    recordings = pd.DataFrame({"recording": paths, "duration_s": 20.0, "local_time": times, "site": ["A", "B"]})
    recordings.to_csv(folder / "recordings.csv", index=False)
    failed = [(paths[1], "partly read", "18.5", "19", f"{paths[1]}: cannot be decoded")]
    columns = ["recording", "status", "start_s", "end_s", "reason"]
    pd.DataFrame(failed, columns=columns).to_csv(folder / "failed.csv", index=False)
    settings = {"threshold": None, "overlap_s": 0.0, "merge": False, "channel": None}
    run = {"model": str(tmp_path / "birds"), "model_sha256": "ab" * 32, "versions": {"kenya_birds": "1"}}
    (folder / "run.json").write_text(json.dumps({**run, "settings": settings}))
    return folder


def contents(page, kind):
    return [base64.b64decode(text) for text in re.findall(rf'src="data:{kind};base64,([^"]+)"', page)]


def test_the_page_has_all_in_itself(run_folder, tmp_path):
    main(["summary", str(run_folder), "--output", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert str(tmp_path) not in page
    assert "A_20211207_220000.wav" in page
    assert "Owl &lt;b&gt;" in page
    assert "Owl <b>" not in page
    assert "Recorded from 2021-12-07 to 2021-12-08" in page
    assert "from its own decision threshold." in page
    assert "B_20211208_220000.wav: cannot be decoded" in page
    # The activity, and two clips of the owl and one of each other species.
    pictures = [Image.open(io.BytesIO(png)).size for png in contents(page, "image/png")]
    assert len(pictures) == 1 + 4
    assert len(set(pictures[1:])) == 1


def test_the_least_score_of_a_run_is_told(run_folder, tmp_path):
    run = json.loads((run_folder / "run.json").read_text())
    run["settings"]["min_confidence"] = 0.9
    (run_folder / "run.json").write_text(json.dumps(run))
    page = write_summary(run_folder, tmp_path / "page.html", clips_of=0).read_text(encoding="utf-8")
    assert "from its own decision threshold, and from no lower score than 0.9." in page


def test_hours_are_those_that_were_analysed(run_folder, tmp_path):
    for name, cells in (("recordings", {"duration_s": 7200}), ("failed", {"start_s": 3600, "end_s": 7200})):
        table = pd.read_csv(run_folder / f"{name}.csv").assign(**cells)
        table.to_csv(run_folder / f"{name}.csv", index=False)
    page = write_summary(run_folder, tmp_path / "page.html", clips_of=0).read_text(encoding="utf-8")
    assert "<dt>hours analysed</dt><dd>3.0</dd>" in page
    sites = [re.findall(">([^<>]+)<", row) for row in re.findall('<tr><th scope="row">[AB]<.*</tr>', page)]
    assert sites == [["A", "1", "1", "2.00", "1", "2", "1.0"], ["B", "1", "1", "1.00", "3", "3", "3.0"]]


def test_clips_are_those_of_the_highest_and_the_lowest_score_with_a_second_around(run_folder, tmp_path):
    page = write_summary(run_folder, tmp_path / "page.html", clips_of=1).read_text(encoding="utf-8")
    assert [float(score) for score in re.findall(r"(?:Highest|Lowest) score: ([\d.]+)", page)] == [0.9, 0.4]
    for sound, start_s in zip(contents(page, "audio/[a-z]+"), (3, 9), strict=True):
        samples, rate = soundfile.read(io.BytesIO(sound))
        assert rate == RATE
        assert len(samples) / rate == pytest.approx(5, abs=0.1)
        second = samples[int(2.2 * rate) : int(2.8 * rate)]  # a second and a bit after the detection's start
        tone_hz = np.abs(np.fft.rfft(second)).argmax() / 0.6
        assert tone_hz == pytest.approx(100 * (start_s + 1), abs=20)


def test_a_clip_whose_context_is_damaged_can_be_played(run_folder, tmp_path):
    paths = pd.read_csv(run_folder / "recordings.csv")["recording"]
    for path, intact_s in zip(map(Path, paths), (12, 5), strict=True):  # a detection ends there; before the others
        path.write_bytes(path.read_bytes()[: 44 + 2 * RATE * intact_s])
    page = write_summary(run_folder, tmp_path / "page.html").read_text(encoding="utf-8")
    sounds = contents(page, "audio/[a-z]+")
    assert len(sounds) == 2  # both of the owl in the first recording
    samples, rate = soundfile.read(io.BytesIO(sounds[1]))
    assert len(samples) / rate == pytest.approx(5, abs=0.1)


def test_moved_recordings_are_found_or_asked_for(run_folder, tmp_path):
    (tmp_path / "disk").rename(tmp_path / "other")
    with pytest.raises(UserError, match="give the folder that they are in now with --recordings"):
        write_summary(run_folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    page = write_summary(run_folder, tmp_path / "page.html", recordings=tmp_path / "other").read_text(encoding="utf-8")
    assert len(contents(page, "audio/[a-z]+")) == 4
    write_summary(run_folder, tmp_path / "plain.html", clips_of=0)
    # Recorders of other sites write files of the same name.
    path = tmp_path / "other" / "north" / "A_20211207_220000.wav"
    soundfile.write(path, np.zeros(8 * RATE), RATE)
    with pytest.raises(UserError, match=r"is 8\.000 s long, and .* was 20\.000 s long when it was analysed"):
        write_summary(run_folder, tmp_path / "wrong.html", recordings=tmp_path / "other")


def test_days_are_those_of_the_analysed_sound(run_folder, tmp_path):
    times = ["2021-12-07T18:00:00.000", "2021-12-10T18:00:00.000"]  # A is analysed until 8 h, B until midnight
    cells = {"duration_s": 14 * 3600, "local_time": times, "site": ["A", "B"]}
    pd.read_csv(run_folder / "recordings.csv").assign(**cells).to_csv(run_folder / "recordings.csv", index=False)
    cells = {"start_s": 6 * 3600, "end_s": ""}
    pd.read_csv(run_folder / "failed.csv").assign(**cells).to_csv(run_folder / "failed.csv", index=False)
    page = write_summary(run_folder, tmp_path / "page.html", clips_of=0).read_text(encoding="utf-8")
    assert "Recorded from 2021-12-07 to 2021-12-10." in page
    assert "<dt>days</dt><dd>3</dd>" in page
    days = [re.findall(">([^<>]+)<", row)[2] for row in re.findall('<tr><th scope="row">[AB]<.*</tr>', page)]
    assert days == ["2", "1"]


@pytest.mark.parametrize("path", ["/home/jane doe/field 2021/rec 1.wav", r"C:\Users\Jane Doe\a.wav", "field//a.wav"])
def test_messages_about_sound_that_was_not_analysed_have_no_folders(run_folder, tmp_path, path):
    copy = r"C:\Users\Jane Doe\Temp\kenya_birds_a1_x\recording.wav"
    reasons = [f"{Path(path)} is bad (and/or cut, of an SM3/4)", f"{copy} is bad"]
    rows = [(path, "failed", 0, "", reasons[0]), ("https://host/b.wav", "failed", 0, "", reasons[1])]
    columns = pd.read_csv(run_folder / "failed.csv").columns
    pd.DataFrame(rows, columns=columns).to_csv(run_folder / "failed.csv", index=False)
    page = write_summary(run_folder, tmp_path / "page.html", clips_of=0).read_text(encoding="utf-8")
    _, _, failures = page.partition('<h2 id="failures">')
    assert f"{name_in(path)} is bad (and/or cut, of an SM3/4)" in failures
    assert "b.wav is bad" in failures
    assert not re.search("(?i)jane|field|temp|host", failures)


@pytest.mark.parametrize(
    ("recording", "reason", "expected"),
    [
        ("site/x.wav", "a link to /home/jane d/x.wav, which does not exist", "a link to x.wav, which does not exist"),
        (r"C:\Jane\a.wav", r"[Errno 13] denied: 'C:\\Jane\\a.wav'", "[Errno 13] denied: 'a.wav'"),
        ("a.wav", "cannot be opened: '/home/jane d/a.wav'", "cannot be opened: 'a.wav'"),
    ],
)
def test_links_and_errors_of_the_system_are_shown_without_folders(recording, reason, expected):
    assert _without_folders(reason, recording, name_in(recording)) == expected


def test_paths_are_shown_from_where_they_differ():
    assert short_paths(["/disk/a/x.wav", "/disk/b/x.wav"]) == {"/disk/a/x.wav": "a/x.wav", "/disk/b/x.wav": "b/x.wav"}
    assert short_paths([r"C:\disk\x.wav", r"C:\disk\y.wav"]) == {r"C:\disk\x.wav": "x.wav", r"C:\disk\y.wav": "y.wav"}
    assert short_paths(["only.wav"]) == {"only.wav": "only.wav"}
    assert short_paths([]) == {}


@pytest.mark.parametrize(("rate", "heard"), [(250_000, 48_000), (20_000, 22_050), (48_000, 48_000)])
def test_clips_of_any_sampling_rate_can_be_played(rate, heard):
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    samples, found = soundfile.read(io.BytesIO(base64.b64decode(encode_clip(tone, rate).partition(",")[2])))
    assert found == heard
    middle = samples[heard // 4 : 3 * heard // 4]
    assert np.abs(np.fft.rfft(middle)).argmax() * heard / len(middle) == pytest.approx(1000, abs=2)
