"""The page of `kenya-birds verify page` in a real Chromium: keys, sound, a phone. Without Chromium it is skipped."""

import shutil

import pytest
from archives import write_archive
from browsing import FAINT, NEEDS_CHROMIUM, PAST_THE_EDGE, UNNAMED, start_chromium
from running import free_port
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from verifying import NAMES, read_table, write_run

from kenya_birds.serving.verify_server import running_page
from kenya_birds.verification.sampling import SampleSettings, draw_sample

pytestmark = NEEDS_CHROMIUM
IS_PLAYING = "const sound = document.querySelector(arguments[0]); return !sound.paused && sound.currentTime > 0"
MAY_ANSWER = "return shown !== null && !isBusy && performance.now() - shownAt > TOO_SOON_MS"


@pytest.fixture(scope="module")
def chromium():
    driver = start_chromium()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A sample of two clips of each of two species, and an archive with a call of the first species."""
    folder = tmp_path_factory.mktemp("run")
    run = write_run(folder, formats=("parquet",), names=NAMES[:1])
    draw_sample(run, folder / "check", SampleSettings(per_species=2))
    write_archive(folder / "archive", [("a.wav", 5, "abcde1")])
    return folder


@pytest.fixture
def page(chromium, drawn, tmp_path):
    check = shutil.copytree(drawn / "check", tmp_path / "check")
    with running_page(check, archive=drawn / "archive", by="Wanjiru", port=free_port()) as address:
        chromium.get(address)
        chromium.get_log("browser")  # of an earlier page
        yield Visit(chromium, check)


class Visit:
    """What somebody does on the page, and hears."""

    def __init__(self, driver, check):
        self.driver, self.check = driver, check
        self.ids = read_table(check)["id"].to_list()
        self.shows(0)

    def until(self, seen):
        return WebDriverWait(self.driver, 30, 0.05).until(lambda _: seen())

    def script(self, text, *values):
        return self.driver.execute_script(text, *values)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def plays(self, selector="#sound"):
        self.until(lambda: self.script(IS_PLAYING, selector))

    def shows(self, place):
        """Waits until a detection is shown, and may be answered."""
        self.until(lambda: self.find("#card").get_attribute("data-id") == self.ids[place])
        self.until(lambda: self.script(MAY_ANSWER))

    def column(self, name="answer"):
        return read_table(self.check)[name].to_list()

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_sample_is_heard_and_answered_with_keys(page):
    page.until(lambda: "Press space" in page.find("#message").text)  # browsers play nothing before the first key
    page.press(" ")
    page.plays()
    page.press("rrrr")  # as a key that is held or bounces: what was not heard is not answered
    page.shows(1)
    assert page.column() == ["right", "", "", ""]
    page.plays()  # at once
    assert page.find("#total").text == "1 of 4 answered"
    assert page.find("#of_species").text == "this species 1 of 2"

    page.until(lambda: page.find("#reference img").is_displayed())
    page.press("c")
    page.plays("#reference_sound")
    assert not page.script(IS_PLAYING, "#sound")

    page.press("n", "two <b>birds</b>, w", Keys.ENTER)
    page.until(lambda: page.column("note")[1] == "two <b>birds</b>, w")
    page.shows(1)
    page.press("o", "SECUNDA rare", Keys.ENTER)
    page.shows(2)
    assert page.column()[1] == "other"
    assert page.column("other_species")[1] == "bcdef1"
    assert page.find("h1").text == "Rare bird Avis secunda"
    assert not page.find("#reference").is_displayed()  # the archive has none

    page.press("b")
    page.shows(1)
    page.plays()
    assert page.find("#message").text == "Answered: another species: Rare bird (Wanjiru)"
    assert page.find("#note").get_attribute("value") == "two <b>birds</b>, w"
    page.press("w")
    page.shows(2)
    assert page.column()[1] == "wrong"
    assert page.complaints() == []

    table = read_table(page.check)
    table.loc[page.ids[2], ["answer", "verified_by"]] = ["wrong", "Otieno"]
    table.to_csv(page.check / "verify.csv", index=False)
    page.press("r")
    page.until(lambda: "meanwhile by Otieno" in page.find("#message").text)
    assert page.column()[2] == "wrong"
    page.shows(2)
    page.press("u")
    page.shows(3)

    page.driver.refresh()  # it resumes
    page.shows(3)
    page.press("1")
    page.until(lambda: page.find("#end").is_displayed())
    assert page.column() == ["right", "wrong", "unsure", "right"]
    assert page.column("verified_by") == ["Wanjiru"] * 4
    page.press("b")
    page.shows(3)


def test_a_note_of_several_lines_is_shown_in_one_and_changed_by_people_only(page):
    table = read_table(page.check)
    table["note"] = "two birds\nfar away"
    table.to_csv(page.check / "verify.csv", index=False)
    page.driver.refresh()
    page.shows(0)
    assert page.find("#note").get_attribute("value") == "two birds far away"
    page.press("s")
    page.shows(1)
    page.press("r")
    page.shows(2)
    page.press("n", ", and a third", Keys.ENTER)
    page.until(lambda: page.column("note")[2] != "two birds\nfar away")
    assert page.column("note") == [
        *2 * ["two birds\nfar away"],
        "two birds far away, and a third",
        table["note"].iloc[3],
    ]
    assert page.column() == ["", "right", "", ""]


def test_a_clip_without_its_picture_is_played(page):
    pictures = [page.check / name for name in read_table(page.check)["picture"]]
    pictures[1].unlink()
    page.press("r")
    page.shows(1)
    page.plays()
    assert page.find("#detection .without").is_displayed()
    page.press("s")
    page.shows(2)
    page.until(lambda: page.find("#detection img").is_displayed())
    page.until(lambda: page.script("return document.querySelector('#detection img').naturalWidth"))


def test_a_phone_shows_everything_and_answers_by_touch(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.until(lambda: page.find("#reference img").is_displayed())
        assert page.script("return document.documentElement.scrollWidth") == 390
        assert page.script("return document.documentElement.scrollHeight") == 844  # nothing to scroll
        assert page.script(PAST_THE_EDGE) == []
        assert page.script(UNNAMED) == []
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            assert page.script(FAINT) == [], scheme
        page.find("[data-answer=right]").click()
        page.shows(1)
        page.plays()
        page.find("[data-answer=other]").click()
        page.until(lambda: page.find("#species li").is_displayed())
        page.find("#species li:nth-child(2)").click()
        page.shows(2)
        assert page.column() == ["right", "other", "", ""]
        assert page.column("other_species")[1] == "????"
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert page.complaints() == []
