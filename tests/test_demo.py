"""The demo without a browser: analysis, what it stores of visitors, and which requests it refuses."""

import asyncio
import errno
import functools
import html
import math
import os
import re
import shlex
import shutil
import socket
import sys
import threading
import time
import tracemalloc
import urllib.parse
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import soundfile
from demo_server import Visitor, served
from detecting import CODES, RATE, chirps, save_model
from hypothesis import given
from hypothesis import strategies as st
from running import free_port
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.inference.detections import Detection
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.plot_style import species_styles
from kenya_birds.serving import analysis, markup
from kenya_birds.serving.analysis import Analyser, Stopped, clock, detect_command, seconds_of, species_rows
from kenya_birds.serving.guard import READ, Guard
from kenya_birds.serving.sessions import IDLE_S, UPLOAD_GRACE_S, Sessions

NAME = "KEN_001_20211207_153852.flac"
SECRET = "cannot be seen from outside"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "birds")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / NAME
    soundfile.write(path, chirps(40, 1), RATE)
    return path


@pytest.fixture(scope="module")
def analyser(model):
    return Analyser(model, device="cpu", max_hours=0.05)


@pytest.fixture(scope="module")
def findings(analyser, recording):
    return analyser.analyse(recording, overlap_s=0.0)


@pytest.fixture(scope="module")
def heard(analyser, recording):
    """What is found in the recording with an overlap."""
    return functools.cache(lambda overlap_s: analyser.analyse(recording, overlap_s=overlap_s))


@pytest.fixture(scope="module")
def address(analyser):
    with served(analyser, max_upload_mb=2) as address:
        yield address


@pytest.fixture
def visitor(address):
    return Visitor(address)


def uploaded(visitor, path, name=None):
    return visitor.upload(path, name).json()[0]


# What is heard


@pytest.mark.parametrize(
    "settings",
    [
        FindingSettings(),
        FindingSettings(min_confidence=0.9, merge=True),
        FindingSettings(threshold=0.3, merge=True, merge_score="max"),
        FindingSettings(threshold=0.05),
        FindingSettings(threshold=0.2, species=CODES[1:3], top_k=1),
        FindingSettings(threshold=0.6, merge=True, merge_gap_s=2.5),
    ],
)
@pytest.mark.parametrize("overlap_s", [0.0, 0.5, 0.75])
def test_detections_are_those_of_the_pipeline_under_any_settings(model, heard, settings, overlap_s):
    pipeline = SoundscapePipeline(model, overlap_s=overlap_s, settings=settings, device="cpu")
    expected = pipeline(chirps(40, 1), RATE, name=NAME)
    assert len(expected) > 3
    assert heard(overlap_s).detections(settings) == expected


@pytest.mark.parametrize("at_a_time", [1, 17 * len(CODES)])
def test_detections_do_not_depend_on_how_many_scores_are_held_at_a_time(heard, monkeypatch, at_a_time):
    settings = FindingSettings(threshold=0.3, merge=True)
    expected = heard(0.5).detections(settings)
    monkeypatch.setattr(analysis, "SCORES_AT_A_TIME", at_a_time)
    assert heard(0.5).detections(settings) == expected


def test_memory_of_detections_does_not_grow_with_windows_times_classes(findings):
    starts = np.arange(4000) * RATE
    found = replace(
        findings,
        classes=[f"species{number}" for number in range(5000)],
        thresholds=None,
        starts=starts,
        ends=starts + RATE,
        labels=np.zeros(4000, dtype=np.int32),
        scores=np.full(4000, 0.6),
    )
    tracemalloc.start()
    try:
        assert len(found.detections(FindingSettings(threshold=0.5, merge=False))) == 4000
        assert tracemalloc.get_traced_memory()[1] < 60e6  # scores of windows x classes would take 160 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("asked", [None, 0.999999, -1, 1e9, float("nan"), "0.5", [0.5]])
def test_an_overlap_that_the_page_does_not_offer_is_replaced_by_half_a_window(analyser, asked):
    assert analyser.allowed_overlap_s(asked) == 0.5


def test_only_scores_from_the_floor_on_are_kept(findings):
    assert findings.scores.min() >= 0.05
    assert len(findings.scores) < 40 * len(CODES)


def test_a_model_whose_thresholds_are_below_the_floor_lowers_it(tmp_path, recording):
    from kenya_birds.serving.page import Page

    analyser = Analyser(save_model(tmp_path / "birds", threshold=0.001), device="cpu")
    assert analyser.floor == 0.001
    expected = SoundscapePipeline(tmp_path / "birds", device="cpu")(chirps(40, 1), RATE, name=NAME)
    assert analyser.analyse(recording, overlap_s=0.0).detections(FindingSettings()) == expected
    # Nor does the page's control, which counts in hundredths, leave anything out.
    assert Page(analyser, None).settings(*Page(analyser, None).defaults, None, False) == FindingSettings(merge=False)


def test_without_thresholds_of_its_own_a_model_needs_one_for_all(tmp_path, recording):
    findings = Analyser(save_model(tmp_path / "birds", threshold=None), device="cpu").analyse(recording)
    assert findings.detections(FindingSettings(threshold=0.5))
    with pytest.raises(UserError, match="no decision thresholds: choose one threshold for all"):
        findings.detections(FindingSettings())


def test_progress_goes_to_the_end_and_never_back(analyser, recording):
    shares: list[float] = []
    analyser.analyse(recording, progress=shares.append)
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_nobody_who_has_left_is_worked_for(analyser, recording):
    asked = []

    def has_left():
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Stopped):
        analyser.analyse(recording, is_stopped=has_left)
    assert len(asked) == 3
    assert analyser.analyse(recording).species  # the pipeline is free again


def test_recordings_that_are_heard_at_a_time_do_not_disturb_each_other(model, recording, findings):
    analyser = Analyser(model, concurrency=2, device="cpu")
    found: list = [None] * 6

    def analyse(place):
        found[place] = analyser.analyse(recording, overlap_s=0.0)

    threads = [threading.Thread(target=analyse, args=(place,)) for place in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        np.testing.assert_array_equal(one.scores, findings.scores)
        np.testing.assert_array_equal(one.starts, findings.starts)


def test_a_recording_over_the_limit_is_refused_before_it_is_heard(analyser, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 200, dtype=np.int16), 8000)
    with pytest.raises(UserError, match=r"^long\.wav is 0\.06 hours long: expected at most 0\.05"):
        analyser.analyse(tmp_path / "long.wav")
    soundfile.write(tmp_path / "long.ogg", np.zeros(8000 * 200, dtype=np.int16), 8000)
    with pytest.raises(UserError, match=r"^long\.ogg is too long: expected at most 0\.05 hours"):
        analyser.analyse(tmp_path / "long.ogg")


BAD_FILES = {
    "text.wav": b"Saw a bird today.",
    "empty.wav": b"",
    "page.html": b"<html><script>alert(1)</script></html>",
    # FFmpeg's play lists open other files.
    "list.m3u8": b"#EXTM3U\n#EXTINF:10.0,\nfile://RECORDING\n#EXT-X-ENDLIST\n",
    "list.wav": b"#EXTM3U\n#EXTINF:10.0,\nfile://RECORDING\n#EXT-X-ENDLIST\n",
    "concat.mp3": b"ffconcat version 1.0\nfile 'RECORDING'\n",
    "cut.flac": b"fLaC\x00\x00\x00\x22" + bytes(20),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_recording_gets_a_sentence_without_paths_of_the_server(analyser, recording, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name].replace(b"RECORDING", os.fsencode(recording)))
    with pytest.raises(UserError) as raised:
        analyser.analyse(path)
    assert str(raised.value).startswith(name)
    assert str(tmp_path) not in str(raised.value)


@given(st.lists(st.floats(0, 9 * 3600), min_size=2, max_size=5))
def test_times_as_texts_sort_as_the_times_do_and_are_read_again(times_s):
    times_s = sorted(times_s)
    texts = [clock(time_s, 9 * 3600) for time_s in times_s]
    assert texts == sorted(texts)
    assert all(abs(seconds_of(text) - time_s) <= 0.0501 for text, time_s in zip(texts, times_s, strict=True))


# What is kept of visitors


class Uploads:
    """A folder of uploads as Gradio keeps them."""

    def __init__(self, folder):
        self.folder = folder
        self.now_s = 1000.0
        self.sessions = Sessions(folder, clock=lambda: self.now_s)

    def add(self, name="song.wav", digest="ab12", age_s=0.0):
        path = self.folder / digest / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"sound")
        os.utime(path, (time.time() - age_s,) * 2)
        os.utime(path.parent, (time.time() - age_s,) * 2)
        return path


@pytest.fixture
def uploads(tmp_path):
    (tmp_path / "uploads").mkdir()
    return Uploads(tmp_path / "uploads")


def test_only_files_that_were_uploaded_are_opened(uploads, tmp_path):
    (tmp_path / "secret.wav").write_text(SECRET)
    mine = uploads.add()
    other = uploads.sessions.open("other", uploads.add("other.wav"))
    (uploads.folder / "ab12" / "link.wav").symlink_to(tmp_path / "secret.wav")
    (uploads.folder / "linked").symlink_to(tmp_path)
    (uploads.folder / "loose.wav").write_text(SECRET)
    for path in (
        "/etc/passwd",
        tmp_path / "secret.wav",
        f"{uploads.folder}/ab12/../../secret.wav",
        uploads.folder / "ab12" / "link.wav",
        uploads.folder / "linked" / "secret.wav",
        uploads.folder / "loose.wav",
        uploads.folder,
        mine.parent,
        other.recording,
        uploads.folder / "ab12" / "missing.wav",
        "",
        "../secret.wav",
        "\udcff",
        "\0",
    ):
        with pytest.raises(UserError, match="upload it again"):
            uploads.sessions.open("me", path)
    assert uploads.sessions.find("me") is None
    assert uploads.sessions.open("me", mine).recording.read_bytes() == b"sound"


def test_nothing_is_left_of_a_session_that_ends(uploads):
    session = uploads.sessions.open("me", uploads.add())
    (session.new_folder("tables") / "table.csv").write_text("x")
    uploads.sessions.close("me")
    assert session.is_closed.is_set()
    assert not session.folder.exists()
    assert uploads.sessions.find("me") is None
    uploads.sessions.close("me")  # a second time is no error


def test_a_new_recording_ends_the_session_before(uploads):
    first = uploads.sessions.open("me", uploads.add())
    second = uploads.sessions.open("me", uploads.add())
    assert first.is_closed.is_set()
    assert not first.folder.exists()
    assert uploads.sessions.find("me") is second


def test_a_recording_that_fails_does_not_end_the_session_of_the_next(uploads):
    import gradio as gr

    from kenya_birds.serving.page import Page

    class Request:
        session_hash = "me"

    page = Page(None, uploads.sessions)
    opened = []

    class Analyser:
        def allowed_overlap_s(self, overlap_s):
            return overlap_s

        def analyse(self, recording, **options):
            opened.append(uploads.sessions.open("me", uploads.add("second.wav")))
            raise UserError("no sound in it")

    page.analyser = Analyser()
    page.open(str(uploads.add("first.wav")), Request)
    first = uploads.sessions.find("me")
    assert page.analyse(0.5, Request) == [gr.skip()] * 4
    assert first.is_closed.is_set()
    assert uploads.sessions.find("me") is opened[0]
    assert not opened[0].is_closed.is_set()
    assert opened[0].folder.exists()
    # The second one's own failure ends it.
    page.analyser.analyse = lambda recording, **options: (_ for _ in ()).throw(UserError("no sound in it"))
    assert "no sound in it" in page.analyse(0.5, Request)[0]
    assert uploads.sessions.find("me") is None
    assert opened[0].is_closed.is_set()


def test_two_events_of_a_page_hear_a_recording_once(uploads):
    session = uploads.sessions.open("me", uploads.add())
    first, again = session.begin_analysis(0.5), session.begin_analysis(0.5)
    assert again is None
    # With another overlap it is another matter; the last one is what the page shows.
    second = session.begin_analysis(0.0)
    assert [session.is_wanted(first), session.is_wanted(second)] == [False, True]
    # The first stays unwanted when its overlap is requested again.
    third = session.begin_analysis(0.5)
    assert [session.is_wanted(one) for one in (first, second, third)] == [False, False, True]


def test_a_late_answer_does_not_replace_a_newer_one(uploads, analyser, findings, monkeypatch):
    import gradio as gr

    from kenya_birds.serving import page as serving_page

    class Request:
        session_hash = "me"

    def draw(*arguments):
        """Draws, but first answers a newer request."""
        if not newer:
            newer.append(None)
            newer[0] = page.section(3, True, 0.05, None, True, Request)
        arguments[-1].write_bytes(b"")

    def text(analyser, findings, settings):
        if settings.merge:
            newer.append(page.show(True, 0.05, None, False, Request))
        return "settings"

    page = serving_page.Page(analyser, uploads.sessions)
    page.open(str(uploads.add()), Request)
    uploads.sessions.find("me").findings = findings
    monkeypatch.setattr(serving_page, "settings_text", text)
    newer = []
    assert page.show(True, 0.05, None, True, Request) == [gr.skip()] * 9
    assert newer[0][0].startswith(f"{len(newer[0][1])} detections")
    monkeypatch.setattr(serving_page, "picture_of_section", draw)
    newer = []
    assert page.section(2, True, 0.05, None, True, Request) == gr.skip()
    assert "Spectrogram from 00:03.0" in newer[0]
    # Nor does one about a recording that was closed meanwhile.
    monkeypatch.setattr(serving_page, "settings_text", lambda *about: page.close(Request))
    assert page.show(True, 0.05, None, True, Request) == [gr.skip()] * 9


def test_an_analysis_stops_when_another_overlap_is_chosen(uploads):
    import gradio as gr

    from kenya_birds.serving.page import Page

    class Request:
        session_hash = "me"

    class Analyser:
        def allowed_overlap_s(self, overlap_s):
            return overlap_s

        def analyse(self, recording, *, overlap_s, is_stopped, **options):
            begun.append(overlap_s)
            if choices:
                assert not is_stopped()
                # While this one works, the page's requests wait: at last the same overlap is chosen again.
                for chosen_s in choices:
                    page.choose_overlap(chosen_s, Request)
                choices.clear()
                assert is_stopped()
            if is_stopped():
                raise Stopped
            raise UserError("this one is not stopped")

    begun, choices = [], [0.0, 0.5]
    page = Page(Analyser(), uploads.sessions)
    page.open(str(uploads.add()), Request)
    assert page.analyse(0.5, Request) == [gr.skip()] * 4
    assert page.analyse(0.0, Request) == [gr.skip()] * 4  # it is not even begun
    assert "this one is not stopped" in page.analyse(0.5, Request)[0]
    assert begun == [0.5, 0.5]


def test_what_cannot_be_linked_is_copied(uploads, monkeypatch):
    def no_links(*paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert uploads.sessions.open("me", uploads.add()).recording.read_bytes() == b"sound"


def test_folders_of_ended_sessions_that_could_not_be_removed_go_later(uploads, monkeypatch):
    session = uploads.sessions.open("me", uploads.add())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)  # a file of it is open on Windows
        uploads.sessions.close("me")
    used = uploads.sessions.open("other", uploads.add("other.wav"))
    for folder in (session.folder, used.folder):
        os.utime(folder, (time.time() - UPLOAD_GRACE_S - 10,) * 2)
    uploads.sessions.sweep()
    assert not session.folder.exists()
    assert used.folder.exists()


def test_sessions_that_are_left_end_and_so_do_the_oldest_of_too_many(uploads, monkeypatch):
    monkeypatch.setattr("kenya_birds.serving.sessions.MAX_SESSIONS", 3)
    for key in ("a", "b", "c"):
        uploads.sessions.open(key, uploads.add())
        uploads.now_s += 1
    uploads.sessions.find("a")
    uploads.sessions.open("d", uploads.add())
    assert {key for key in "abcd" if uploads.sessions.find(key)} == {"a", "c", "d"}
    uploads.now_s += IDLE_S + 1
    uploads.sessions.sweep()
    assert len(uploads.sessions) == 0
    assert not list(uploads.folder.glob("session-*"))


def test_uploads_that_no_session_uses_are_removed_when_they_are_old(uploads):
    old = UPLOAD_GRACE_S + 10
    unused = uploads.add("unused.wav", "aa", old)
    young = uploads.add("young.wav", "bb", 10)
    used = uploads.add("used.wav", "cc", old)
    stray = uploads.folder / "tmp123"
    stray.write_bytes(b"half an upload")
    os.utime(stray, (time.time() - old,) * 2)
    session = uploads.sessions.open("me", used)
    uploads.sessions.sweep()
    assert [path.exists() for path in (unused, young, used, stray)] == [False, True, True, False]
    uploads.sessions.sweep()
    uploads.sessions.close("me")
    uploads.sessions.sweep()
    assert not used.exists()
    assert not session.folder.exists()


def test_of_each_kind_of_file_a_page_has_the_last_two(uploads):
    session = uploads.sessions.open("me", uploads.add())
    folders = [session.new_folder("tables") for _ in range(4)]
    other = session.new_folder("section")
    assert [folder.exists() for folder in folders] == [False, False, True, True]
    assert other.exists()


# What is served


def test_a_client_gets_the_detections_and_the_files_that_the_page_shows(address, recording, findings):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    message = client.predict(handle_file(recording), api_name="/open")
    assert "is in the queue" in message
    message = client.predict(0.0, api_name="/analyse")[0]
    assert f"{NAME}: 00:40.0, 16 kHz" in message
    line, by_time, by_species, *_, raven, audacity, table = client.predict(True, 0.05, [], False, api_name="/show")
    expected = findings.detections(FindingSettings())
    assert line == f"{len(expected)} detections of {len({one.species for one in expected})} species"
    assert [row[0] for row in by_time["data"]] == [clock(one.start_s, 40) for one in expected]
    assert by_time["data"][0][3:] == [f"Bird {expected[0].species}", f"Avis {expected[0].species}"]
    assert sum(row[2] for row in by_species["data"]) == len(expected)
    assert len(Path(table).read_text(encoding="utf-8").splitlines()) == len(expected) + 1
    assert len(Path(audacity).read_text(encoding="utf-8").splitlines()) == len(expected)
    selections = Path(raven).read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split("\t")[11] for row in selections] == [NAME] * len(expected)


@pytest.mark.parametrize(
    ("overlap_s", "filters"),
    [
        (None, None),  # what the page shows at first
        (0.0, (True, 0.05, [], False)),
        (0.75, (True, 0.87, [], True)),
        (0.5, (False, 0.3, [CODES[2], CODES[0]], True)),
        (0.5, (False, 0.05, [], False)),
    ],
)
def test_the_command_that_the_page_shows_gives_the_rows_of_the_page(
    model, visitor, recording, tmp_path, monkeypatch, overlap_s, filters
):
    monkeypatch.chdir(tmp_path)
    Path(model.name).symlink_to(model)
    Path(NAME).symlink_to(recording)
    first = {component["props"].get("elem_id"): component["props"].get("value") for component in visitor.components}
    if filters is None:
        overlap_s, filters = first["overlap"], (first["own"], first["least"], [], first["merge"])
    visitor.open(uploaded(visitor, recording))
    visitor.ask("analyse", overlap_s)
    line, by_time, *_, settings, _, _, table = visitor.ask("show", *filters)
    (shown,) = re.findall("<code>(.*)</code>", settings, flags=re.S)
    *comment, command = html.unescape(shown).splitlines()
    if comment:
        listed = comment[0].partition("one code per line: ")[2]
        Path("species.txt").write_text(listed.replace(" ", "\n"), encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        main(shlex.split(command)[1:])
    rows = pd.read_csv("found/detections.csv").drop(columns="recording")
    pd.testing.assert_frame_equal(
        rows, pd.read_csv(visitor.fetch(table)).drop(columns="recording"), check_exact=False, atol=1e-5
    )
    assert line.startswith(f"{len(rows)} detections")
    assert [row[0] for row in by_time["data"]] == [clock(start_s, 40) for start_s in rows["start_s"]]


def test_a_species_keeps_its_colour_whatever_is_filtered(visitor, recording):
    visitor.open(uploaded(visitor, recording))
    visitor.ask("analyse", 0.5)
    colours = []
    for filters in ((True, 0.05, [], True), (True, 0.95, [], False), (False, 0.5, [CODES[1]], True)):
        legend = visitor.ask("show", *filters)[4]
        colours.append(dict(re.findall(r"none, (#\w+)'[^>]*></span>(Bird \w+)", legend)))
        assert f"Bird {CODES[1]}" in colours[-1].values()
    assert colours[0].items() >= colours[1].items()
    assert colours[0].items() >= colours[2].items()
    assert len(colours[2]) == 1


def test_pictures_are_described_in_words(visitor, recording):
    visitor.open(uploaded(visitor, recording))
    visitor.ask("analyse", 0.5)
    whole = visitor.ask("show", True, 0.05, [], True)[3]
    assert "alt='Timeline of 00:40.0: when each of 3 species was detected. Bird " in whole
    section = visitor.ask("section", 5, True, 0.05, [], True)[0]
    assert re.search("alt='Spectrogram from 00:05.0 to 00:35.0 with [0-9]+ detections. Bird .*, score 0", section)
    address = re.search("src='(.*?)'", section)[1]
    assert visitor.http.get(f"/{address}").headers["content-type"] == "image/png"


def test_the_page_says_how_many_of_the_species_the_timeline_has():
    names = {f"{n:02}": SpeciesNames(f"Bird {n:02}", "") for n in range(25)}
    found = [Detection("x.wav", n * RATE, (n + 1) * RATE, RATE, code, 0.9) for n, code in enumerate(names)]
    description = markup.whole_description(40.0, [*found, found[-1]], names)
    said = "the 20 of 25 species with the most detections"
    assert description.startswith(f"Timeline of 00:40.0: when each of {said} was detected. Bird 24; Bird 00; ")
    assert description.endswith("; and 8 more")
    legends = [markup.legend(found, names, species_styles(names), has_timeline=shown) for shown in (True, False)]
    assert [f"<li>The timeline has {said}.</li>" in text for text in legends] == [True, False]
    assert all(text.count("class='key'") == 25 for text in legends)


def test_seconds_of_overlapping_detections_count_once():
    spans_s = [(0, 3), (1.5, 4.5), (2, 3), (10, 12)]
    found = [Detection("x.wav", round(start * RATE), round(end * RATE), RATE, "a", 0.9) for start, end in spans_s]
    assert species_rows(found, {"a": SpeciesNames("A", "")}, 30.0) == [("A", "", 4, 6.5, "00:00.0", "0.90")]


def test_names_on_the_page_are_text():
    names = {
        "a": SpeciesNames("<img src=x onerror=alert(1)>", "' onload='alert(1)"),
        "b": SpeciesNames("أبو قردان", "${alert(1)}"),
        "c": SpeciesNames("アオサギ {{x}}", ""),
    }
    found = [Detection(NAME, 0, RATE, RATE, code, 0.5) for code in names]
    texts = [
        markup.legend(found, names, species_styles(names), has_timeline=True),
        markup.picture(Path("x.png"), markup.whole_description(40, found, names)),
        markup.picture(Path("x.png"), markup.section_description(0, 30, 40, found, names)),
    ]
    for text in texts:
        assert "<img src=x" not in text
        assert "' onload" not in text
        assert "أبو قردان" in text
        assert "アオサギ" in text


def test_the_page_lists_all_species_that_the_model_knows(visitor):
    (listed,) = [
        component["props"]["value"]
        for component in visitor.components
        if "species of the model" in str(component["props"].get("value"))
    ]
    assert "All 4 species of the model" in listed
    for code in CODES:
        assert f"<li>Bird {code} <i>Avis {code}</i>" in listed
    assert f"Avis {CODES[-1]}</i> (no decision threshold, never reported)</li>" in listed


def test_a_visitor_can_try_an_example_that_stays(visitor, monkeypatch):
    (example,) = (Path(os.environ["GRADIO_TEMP_DIR"]) / "examples").iterdir()
    os.utime(example, (0, 0))
    Sessions(example.parent.parent).sweep()
    assert "invented_birds.flac is in the queue" in visitor.open(example)
    assert "invented_birds.flac: 00:30.0, 32 kHz" in visitor.ask("analyse", 0.5)[0]


def test_another_example_can_be_given_and_has_to_be_a_recording(analyser, recording, tmp_path):
    with served(analyser, example=recording) as address:
        (button,) = [one for one in Visitor(address).components if one["props"].get("elem_id") == "example"]
        assert button["props"]["value"] == f"Try an example: {NAME}"
    (tmp_path / "notes.wav").write_text("Saw a bird today.")
    for name, reason in (("notes.wav", "cannot be read as audio"), ("missing.wav", "missing.wav")):
        with pytest.raises(UserError, match=reason), served(analyser, example=tmp_path / name):
            pass


def test_a_forged_path_opens_nothing(visitor, recording, tmp_path):
    secret = tmp_path / "secret.wav"
    shutil.copy(recording, secret)
    mine = Path(uploaded(visitor, recording))
    other = Path(uploaded(visitor, recording)).parent.parent
    for path in (
        secret,
        "/etc/passwd",
        f"{mine.parent}/../../../../../..{secret}",
        other,
        mine.parent,
        "/proc/self/environ",
    ):
        answer = visitor.open(path)
        assert answer is None or "upload it again" in answer, path
    assert "is in the queue" in visitor.open(mine)


def test_a_download_address_leads_to_no_other_file(visitor, tmp_path, recording):
    secret = tmp_path / "secret.csv"
    secret.write_text(SECRET)
    mine = Path(uploaded(visitor, recording))
    for path in (
        secret,
        f"{mine.parent}/../../..{secret}",
        f"{mine.parent}/%2e%2e/%2e%2e/%2e%2e{secret}",
        f"{mine.parent}/..%2f..%2f..{secret}",
        f"/{secret}",
        f"file://{secret}",
        "/etc/passwd",
        "/proc/self/environ",
        Path.cwd() / "setup.cfg",
        mine.parent,
    ):
        for method in ("GET", "HEAD"):
            answer = visitor.http.request(method, f"/gradio_api/file={path}")
            assert answer.status_code in (403, 404), path
            assert SECRET not in answer.text
    assert visitor.http.get(f"/gradio_api/file={mine}").content == recording.read_bytes()


def test_the_server_fetches_no_address(visitor):
    answer = visitor.open("http://127.0.0.1:1/song.wav")
    assert answer.status_code == 400
    assert "upload the file itself" in answer.text
    for address in ("http://example.org/x", "https://example.org/x", "ftp://example.org/x"):
        assert visitor.http.get(f"/gradio_api/file={address}").status_code == 404


def test_files_on_a_drive_of_windows_are_no_addresses():
    for file in (r"C:\Users\Ann\AppData\Local\Temp\kenya_birds_demo_1\session-2\whole.png", "D:/temp/a.csv"):
        assert READ.fullmatch(f"/gradio_api/file={file}")
    assert not READ.fullmatch("/gradio_api/file=ftp:x")


def test_the_address_of_a_picture_is_quoted(tmp_path):
    path = tmp_path / "100% #1 'sö'" / "whole.png"
    address = re.search("src='(.*?)'", markup.picture(path, "A picture"))[1]
    assert urllib.parse.unquote(urllib.parse.urlsplit(address).path) == f"gradio_api/file={path.as_posix()}"


def test_another_visitor_does_not_see_what_was_heard(visitor, address, recording):
    visitor.open(uploaded(visitor, recording))
    assert f"{NAME}: 00:40.0" in visitor.ask("analyse", 0.5)[0]
    assert "detections" in visitor.ask("show", True, 0.05, [], True)[0]
    stranger = Visitor(address)
    shown = stranger.ask("show", True, 0.05, [], True)
    nothing = {"__type__": "update"}
    assert all(output in (nothing, {**nothing, "props": nothing}) for output in shown)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/vibe-code",
        "/gradio_api/runs",
        "/gradio_api/call/open",
        "/gradio_api/run/open",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/gradio_api/dev/reload",
        "/gradio_api/file/etc/passwd",
        "/login",
    ],
)
def test_routes_that_the_page_does_not_use_are_closed(visitor, path):
    assert visitor.http.get(path).status_code == 404
    assert visitor.http.post(path, json={}).status_code == 404
    assert visitor.http.request("DELETE", path).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # programs
        ({"Origin": "http://birds.example:7860", "Host": "birds.example:7860"}, 200),
        ({"Origin": "http://BIRDS.example", "Host": "birds.example"}, 200),
        ({"Origin": "https://birds.example", "X-Forwarded-Host": "birds.example"}, 200),
        ({"Origin": "https://birds.example:8443", "X-Forwarded-Host": "birds.example, inner"}, 200),
        ({"Origin": "http://[::1]:7860", "Host": "[::1]:7860"}, 200),
        ({"Origin": "https://birds.example", "Sec-Fetch-Site": "same-origin"}, 200),  # a proxy that hides the name
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://evil.example", "X-Forwarded-Host": "birds.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[evil"}, 403),
        ({"Origin": "https://other.birds.example", "Host": "birds.example", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://birds.example", "Host": "birds.example", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_requests_that_a_page_of_another_site_sends_are_refused(visitor, headers, status):
    upload = visitor.http.post("/gradio_api/upload", files={"files": ("a.wav", b"RIFF")}, headers=headers)
    assert upload.status_code == status
    joined = visitor.http.post("/gradio_api/queue/join", content=b"no JSON", headers=headers)
    assert joined.status_code == (403 if status == 403 else 400)
    # Links on other sites open the page.
    assert visitor.http.get("/", headers=headers).status_code == 200


def test_too_much_is_refused(visitor, tmp_path):
    large = tmp_path / "large.wav"
    large.write_bytes(bytes(2_100_000))
    answer = visitor.upload(large)
    assert (answer.status_code, answer.text) == (413, "The file is too large: expected at most 2 MB.")
    # Without a length, in pieces.
    pieces = visitor.http.post(
        "/gradio_api/upload", content=iter([b"x" * 1000]), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert pieces.status_code == 411
    for body in (b"[" + b"0," * 600_000 + b"0]", b'{"data": ' + b"[" * 100_000):
        answer = visitor.http.post("/gradio_api/queue/join", content=body)
        assert answer.status_code in (400, 413)
    assert visitor.http.get("/config").status_code == 200


def test_a_length_beside_a_transfer_encoding_is_refused(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert connection.recv(100).split(b"\r\n")[0].split()[1] in (b"400", b"411")


def test_an_upload_that_is_longer_than_it_says_is_stopped_and_deleted(tmp_path):
    from gradio.route_utils import upload_fn

    async def app(scope, receive, send):
        await upload_fn(Request(scope, receive), tmp_path, math.inf, None)

    block = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.wav\r\n\r\n" + bytes(50_000)
    read = []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": block, "more_body": len(read) < 10}

    async def send(message):
        raise AssertionError(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    # Gradio answers 413 to an error with these words.
    with pytest.raises(MultiPartException, match="maximum allowed size"):
        asyncio.run(Guard(app, 200_000, tmp_path)(scope, receive, send))
    assert len(read) == 6
    assert not list(tmp_path.iterdir())


def test_a_name_is_shown_as_text(visitor, tmp_path):
    path = tmp_path / "x.wav"
    path.write_text("no sound")
    answer = visitor.upload(path, "<img src=x onerror=alert(1)>.wav")
    assert answer.status_code == 200
    opened = visitor.open(answer.json()[0])
    analysed = visitor.ask("analyse", 0.5)[0]
    assert "cannot be read as audio" in analysed
    for text in (opened, analysed):
        assert "<img" not in text


def test_the_page_loads_nothing_from_elsewhere(visitor):
    page = visitor.http.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "fonts.googleapis.com/css" not in page.text
    assert "fonts.googleapis.com" not in visitor.http.get("/theme.css").text


def test_when_a_page_is_closed_what_was_kept_is_gone(visitor, recording):
    upload = Path(uploaded(visitor, recording))
    with visitor.http.stream("GET", f"/gradio_api/heartbeat/{visitor.session}") as heart:
        beats = heart.iter_lines()
        next(beats)
        before = set(upload.parent.parent.glob("session-*"))
        visitor.open(upload)
        visitor.ask("analyse", 0.5)
        (session,) = set(upload.parent.parent.glob("session-*")) - before
    deadline = time.monotonic() + 20
    while session.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not session.exists()


def test_nothing_is_left_when_the_server_ends(analyser, recording):
    before = os.environ.get("GRADIO_TEMP_DIR")
    with served(analyser) as address:
        upload = Path(uploaded(Visitor(address), recording))
        assert upload.is_file()
    assert not upload.parent.parent.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


# The command


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("a-1.wav", "a-1.wav"),
        ("site 1.wav", '"site 1.wav"'),
        ("it's (2).wav", '"it\'s (2).wav"'),
        (r"C:\my birds\june", r'"C:\my birds\june"'),
        ("a $b.wav", "'a $b.wav'"),
        ('a "b".wav', "'a \"b\".wav'"),
        (r"\\server\birds", r"'\\server\birds'"),
    ],
)
def test_names_in_the_command_have_quotation_marks_of_all_shells_where_possible(word, shown):
    command = detect_command(word, word, 0.0, FindingSettings())
    assert command == f"kenya-birds detect {shown} {shown} --output found --overlap_s 0.0 --no_merge"
    assert shlex.split(command)[2] == word


def failed(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *map(str, words)])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kenya-birds demo: error:")]
    return line


def test_a_port_that_is_taken_is_told(model, address, capsys):
    port = address.rpartition(":")[2]
    assert f"127.0.0.1:{port} cannot be listened on" in failed(capsys, model, "--port", port)


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--max_hours", 0, "max_hours is 0.0: expected more than 0"),
        ("--max_upload_mb", -1, "max_upload_mb is -1.0: expected more than 0"),
        ("--concurrency", 0, "concurrency is 0: expected 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_told(model, capsys, flag, value, said):
    assert said in failed(capsys, model, "--port", free_port(), flag, value)


def test_a_model_that_is_not_there_is_told(tmp_path, capsys):
    assert "there is no model" in failed(capsys, tmp_path / "nothing")


def test_without_gradio_it_is_told_how_to_get_it(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'the demo needs gradio, which is not installed: run pip install "gradio' in failed(capsys, model)
