"""The demo's page in a real Chromium; without one these tests are skipped."""

import csv
import threading
import time

import pytest
import soundfile
from browsing import FAINT, NEEDS_CHROMIUM, PAST_THE_EDGE, UNNAMED, start_chromium
from demo_server import served
from detecting import RATE, chirps, save_model
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from kenya_birds.serving import page as serving_page
from kenya_birds.serving.analysis import Analyser, Stopped, seconds_of

pytestmark = NEEDS_CHROMIUM
WAIT_S = 60


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "KEN_001_20211207_153852.flac"
    soundfile.write(path, chirps(45, 1), RATE)
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    analyser = Analyser(save_model(tmp_path_factory.mktemp("model") / "birds"), device="cpu", max_hours=0.1)
    with served(analyser, max_upload_mb=5) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(tmp_path_factory, recording):
    """Chromium without a window, whose microphone hears the recording."""
    sound = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    soundfile.write(sound, soundfile.read(recording, dtype="int16")[0], RATE)
    driver = start_chromium(
        "use-fake-ui-for-media-stream",
        "use-fake-device-for-media-stream",
        f"use-file-for-fake-audio-capture={sound}",
    )
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, address, tmp_path):
    """The page, just loaded, on a desktop's screen; downloads go to `tmp_path`."""
    visit = Visit(chromium)
    visit.on_desktop()
    chromium.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    chromium.get(address)
    chromium.get_log("browser")  # what the page before complained of when it was left
    visit.until(lambda: visit.all("#recording"))
    return visit


IS_DARK = "return document.body.classList.contains('dark')"


class Visit:
    """What somebody does on the page, and sees."""

    def __init__(self, driver):
        self.driver = driver

    def on_phone(self):
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        self.driver.set_window_size(500, 844)  # the least width of a window; a phone's is set by emulation
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)

    def on_desktop(self):
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.set_window_size(1440, 900)

    def until(self, seen):
        return WebDriverWait(self.driver, WAIT_S, 0.1).until(lambda _: seen())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return " ".join(self.texts(selector))

    def texts(self, selector):
        """The text of each element that can be seen; in one question, as there are hundreds of cells."""
        seen = "one.checkVisibility({visibilityProperty: true}) ? one.innerText.trim() : ''"
        script = f"return [...document.querySelectorAll(arguments[0])].map((one) => {seen})"
        return self.driver.execute_script(script, selector)

    def drop(self, path):
        self.until(lambda: self.all("#recording input[type=file]"))[0].send_keys(str(path))

    def results(self):
        """Waits for the results, and tells the table's texts."""
        self.until(lambda: "detections" in self.text("#line") and self.all("#section img"))
        return self.rows()

    def rows(self):
        texts = self.texts("#by_time [role=gridcell]")
        return [tuple(texts[at : at + 5]) for at in range(0, len(texts), 5)]

    def sound_s(self):
        """Where the player stands."""
        return self.driver.execute_script("return document.querySelector('#recording audio').currentTime")

    def choose_no_overlap_while(self, begun):
        """Chooses the largest overlap, and none when its work has begun: the results without overlap are shown."""
        self.all("#overlap input")[2].click()
        assert begun.wait(20)
        self.all("#overlap input")[0].click()
        self.until(lambda: "overlap by" not in self.text("#settings"))
        assert self.complaints() == []

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_dropped_recording_is_shown_filtered_and_downloaded(page, recording, tmp_path):
    page.drop(recording)
    rows = page.results()
    assert "KEN_001_20211207_153852.flac: 00:45.0, 16 kHz" in page.text("#about")
    count = page.text("#line")
    assert rows[0][0].startswith("00:0")
    assert {row[3] for row in rows} <= {"Bird abcde1", "Bird bcdef1", "Bird cdefg1"}
    assert rows[0][4] == rows[0][3].replace("Bird", "Avis")
    assert all(float(row[2]) >= 0.5 for row in rows)

    picture = page.all("#section img")[0].get_attribute("src")
    page.all("#by_time [role=gridcell]")[5 * 5].click()
    page.until(lambda: page.all("#section img")[0].get_attribute("src") != picture)
    page.until(lambda: page.sound_s() == pytest.approx(seconds_of(rows[5][0]) - 0.5, abs=0.1))
    assert page.driver.execute_script("return document.querySelector('#recording audio').paused")

    picture = page.all("#section img")[0].get_attribute("src")
    page.all("#start input[type=range]")[0].send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.all("#section img")[0].get_attribute("src") != picture)

    box = page.all("#least input[type=number]")[0]
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("0")
    time.sleep(1)  # long enough for an answer to this digit, which was an error once
    assert not page.all(".toast-body.error")
    box.send_keys(".95", Keys.TAB)
    page.until(lambda: page.text("#line") not in ("", count))
    page.until(lambda: all(float(row[2]) >= 0.95 for row in page.rows()))  # the page draws the table after the line
    fewer = page.rows()
    assert fewer

    page.all("#species input")[0].click()
    page.until(lambda: page.all("#species [role=option]"))[0].click()
    page.until(lambda: "of 1 species" in page.text("#line"))

    for name in ("csv", "raven", "audacity"):
        page.all(f"#download_{name}")[0].click()
    stem = "KEN_001_20211207_153852"
    names = {f"{stem}.detections.csv", f"{stem}.selections.txt", f"{stem}.txt"}
    page.until(lambda: {path.name for path in tmp_path.iterdir()} >= names)
    with open(tmp_path / f"{stem}.detections.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert f"{len(table)} detections of 1 species" in page.text("#line")
    assert {row["common_name"] for row in table} == {page.rows()[0][3]}
    assert all(float(row["score"]) >= 0.95 for row in table)
    selections = (tmp_path / f"{stem}.selections.txt").read_text()
    assert len(selections.splitlines()) == len(table) + 1
    assert "/" not in selections.splitlines()[1]  # no path of the server
    assert page.complaints() == []


def test_a_file_that_is_no_recording_gets_a_sentence_and_the_next_one_is_heard(page, recording, tmp_path):
    bad = tmp_path / "notes.wav"
    bad.write_text("Saw a bird today.")
    page.drop(bad)
    page.until(lambda: page.all("#about .problem"))
    assert page.text("#about").startswith("notes.wav cannot be read as audio")
    assert not page.all("#results") or not page.all("#results")[0].is_displayed()
    page.all("#recording [aria-label=Clear]")[0].click()
    page.until(lambda: not page.text("#about"))
    page.drop(recording)
    assert page.results()


def test_a_file_over_the_limit_is_refused_in_words(page, tmp_path):
    large = tmp_path / "large.wav"
    soundfile.write(large, chirps(200, 1), RATE)
    assert large.stat().st_size > 5e6
    page.drop(large)
    page.until(lambda: 'exceed the maximum allowed size of 4.8 Mb: "large.wav"' in page.text("body"))


def test_what_the_microphone_hears_is_heard(page):
    page.until(lambda: page.all("#recording [aria-label='Record audio']"))[0].click()
    page.until(lambda: page.all("#recording .record-button"))[0].click()
    time.sleep(2)
    page.all("#recording .stop-button")[0].click()
    assert page.results()


@pytest.fixture(scope="class")
def heard(chromium, address, recording):
    """A page that was loaded on a phone's screen, when it has heard the recording."""
    visit = Visit(chromium)
    visit.on_phone()
    chromium.get(address)
    visit.drop(recording)
    visit.results()
    yield visit
    visit.on_desktop()


class TestOnePage:
    """One page, on a phone's screen and on a desktop's."""

    def test_nothing_is_wider_than_a_phone(self, heard):
        heard.on_phone()
        assert heard.driver.execute_script("return document.documentElement.scrollWidth") == 390
        controls = ("recording", "example", "least", "species", "overlap", "own", "merge")
        results = ("by_time", "settings", "legend", "whole", "start", "section", "download_csv")
        for name in (*controls, *results):
            box = heard.all(f"#{name}")[0].rect
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= 390, name
            assert box["width"] > 60, name
        assert heard.driver.execute_script(PAST_THE_EDGE) == []
        for name in ("whole", "section"):  # pictures stay legible, and scroll
            width = heard.driver.execute_script(f"return document.querySelector('#{name} .picture').scrollWidth")
            assert width >= 820

    def test_what_is_on_it_has_names_and_texts_stand_out(self, heard):
        heard.on_desktop()
        assert heard.driver.execute_script(UNNAMED) == []
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            heard.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            try:
                heard.until(lambda scheme=scheme: heard.driver.execute_script(IS_DARK) == (scheme == "dark"))
                deadline = time.monotonic() + 10  # colours change slowly
                while (faint := heard.driver.execute_script(FAINT)) and time.monotonic() < deadline:
                    time.sleep(0.1)
                assert faint == []
            finally:
                heard.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_another_overlap_is_analysed_and_a_best_detection_found_by_its_species(page, recording):
    page.drop(recording)
    page.results()
    assert "overlap by 0.5 s" in page.text("#settings")
    count = page.text("#line")
    page.all("#overlap input")[0].click()
    page.until(lambda: "overlap by" not in page.text("#settings"))
    page.until(lambda: page.text("#line") not in ("", count))
    page.all("button[role=tab]")[1].click()
    page.until(lambda: page.all("#by_species [role=gridcell]"))
    cells = page.texts("#by_species [role=gridcell]")
    page.all("#by_species [role=gridcell]")[0].click()
    page.until(lambda: page.sound_s() == pytest.approx(seconds_of(cells[4]) - 0.5, abs=0.1))
    assert page.complaints() == []


def test_a_choice_during_an_analysis_stops_it(page, recording, monkeypatch):
    page.drop(recording)
    page.results()
    analyse, begun, deadline = Analyser._analyse, threading.Event(), time.monotonic() + 30

    def endless(self, pipeline, path, overlap_s, duration_s, progress, is_stopped):
        while overlap_s == 0.75 and time.monotonic() < deadline:
            begun.set()
            if is_stopped():
                raise Stopped
            time.sleep(0.05)
        assert time.monotonic() < deadline
        return analyse(self, pipeline, path, overlap_s, duration_s, progress, is_stopped)

    monkeypatch.setattr(Analyser, "_analyse", endless)
    page.choose_no_overlap_while(begun)


def test_a_new_analysis_is_shown_although_the_results_of_the_one_before_are_being_drawn(page, recording, monkeypatch):
    page.drop(recording)
    page.results()
    analyse, text = Analyser.analyse, serving_page.settings_text
    begun, ended = threading.Event(), threading.Event()

    def analyse_and_tell(self, *arguments, overlap_s, **settings):
        findings = analyse(self, *arguments, overlap_s=overlap_s, **settings)
        if overlap_s == 0:
            ended.set()
        return findings

    def text_late(analyser, findings, settings):
        if findings.overlap_s == 0.75:
            begun.set()
            assert ended.wait(20)
            time.sleep(0.5)  # until the page knows
        return text(analyser, findings, settings)

    monkeypatch.setattr(Analyser, "analyse", analyse_and_tell)
    monkeypatch.setattr(serving_page, "settings_text", text_late)
    page.choose_no_overlap_while(begun)


def test_an_example_can_be_tried(page):
    page.all("#example")[0].click()
    page.until(lambda: "invented_birds.flac: 00:30.0" in page.text("#about"))
