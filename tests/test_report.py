import base64
import io
import re
from collections import Counter
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import RATE, edit, write_archive

from kenya_birds.data.archive import read_archive
from kenya_birds.data.audio import RecordingReader
from kenya_birds.errors import UserError
from kenya_birds.exploration import call_examples as changes
from kenya_birds.exploration import charts as pictures
from kenya_birds.exploration.archive_report import write_report
from kenya_birds.exploration.call_examples import change_clip, encode_clip, find_background, find_clear_call, listen
from kenya_birds.exploration.measures import (
    activity_along,
    activity_by_hour,
    block_levels,
    frequency_thresholds,
    overlaps,
    spectral_range,
    summarize_spectral_ranges,
)

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps what tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]

    def words(self):
        return " ".join(" ".join(self.text).split())


def tone(frequency_hz, seconds, rate=RATE):
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate)) / rate)


def table(*rows, columns=("recording", "center_s", "species")):
    return pd.DataFrame(rows, columns=list(columns))


@pytest.fixture(scope="module")
def page(small_archive, tmp_path_factory):
    return write_report(small_archive, tmp_path_factory.mktemp("report") / "report.html").read_text()


@pytest.fixture
def hand_archive(tmp_path):
    rows = [
        (f"UHH_00{n}_S01_2016112{n}_1500{n}0Z.flac", 2.0 + k, code) for n in range(3) for k, code in enumerate("ab")
    ]
    return write_archive(tmp_path / "archive", [*rows, (rows[0][0], (4.0, 4.5), "a"), (rows[0][0], 99.0, "a")])


@pytest.fixture
def no_spectrograms(monkeypatch):
    """They take half of a page's time."""
    monkeypatch.setattr(pictures, "draw_spectrograms", lambda *args, **kwargs: "data:image/png;base64,")


def test_a_tone_has_its_frequency_and_next_to_no_bandwidth():
    low, centroid, high = spectral_range(tone(1000, 0.1), RATE)

    assert centroid == pytest.approx(1000, abs=1)
    assert low == pytest.approx(1000, abs=10)
    assert high == pytest.approx(1000, abs=10)


def test_two_tones_are_as_wide_as_the_distance_between_them():
    low, centroid, high = spectral_range(tone(1000, 0.1) + tone(3000, 0.1), RATE)

    # Half of the magnitude at either tone: mean 2000 Hz, standard deviation 1000 Hz.
    assert (low, centroid, high) == pytest.approx((1500, 2000, 2500), rel=0.01)


def test_one_strong_and_one_weak_tone():
    low, centroid, high = spectral_range(3 * tone(1000, 0.1) + tone(3000, 0.1), RATE)

    # Weights 3/4 and 1/4: mean 1500 Hz, standard deviation 2000 * sqrt(3) / 4 = 866 Hz.
    assert (low, centroid, high) == pytest.approx((1067, 1500, 1933), rel=0.01)


def test_silence_has_no_spectral_range():
    assert np.isnan(spectral_range(np.zeros(800), RATE)).all()
    assert np.isnan(spectral_range(np.full(800, 7), RATE)).all()


def test_level_of_noise_of_known_rms():
    noise = np.random.default_rng(0).normal(0, 0.01, 80_000) + 0.015

    levels = block_levels(noise, 8000)

    assert levels.shape == (10,)
    assert levels == pytest.approx(-40, abs=0.3)


def test_levels_of_a_sine_of_silence_and_of_a_rest():
    sound = np.concatenate([tone(100, 1) / 2, np.zeros(RATE + 5)])

    # Half of full scale is -6.02 dB, a sine's RMS another -3.01 dB.
    assert block_levels(sound, RATE) == pytest.approx([-9.03, -120], abs=0.01)


def test_overlaps_by_hand():
    annotations = table(
        ("x", 1.0, "a"),
        ("x", 2.0, "b"),
        ("x", 2.5, "a"),
        ("x", 4.0, "a"),  # 1.5 s after 2.5: past the end of its window, but in at the beginning of the own one
        ("y", 2.0, "c"),
    )

    found = overlaps(annotations, 3.0)

    assert found["annotations"].tolist() == [2, 3, 3, 2, 1]
    assert found["species"].tolist() == [2, 2, 2, 1, 1]


def test_overlaps_keeps_rows_of_each_recording_apart():
    assert overlaps(table(("x", 1.0, "a"), ("y", 1.0, "a")), 3.0)["annotations"].tolist() == [1, 1]


def test_activity_along_counts_what_was_recorded():
    annotations = table(("x", 0.0, "a"), ("x", 59.9, "a"), ("x", 60.0, "a"), ("y", 10.0, "a"))

    found = activity_along(annotations, {"x": 120.0, "y": 30.0})

    assert found["annotations"].tolist() == [3, 1]
    assert found["recorded_s"].tolist() == [90.0, 60.0]
    assert found["per_minute"].tolist() == [2.0, 1.0]


def test_activity_along_a_day_has_wider_bins():
    found = activity_along(table(("x", 86_399.0, "a")), {"x": 86_400.0})

    assert len(found) == 120
    assert found["end_s"].iloc[-1] == 86_400
    assert found["annotations"].iloc[-1] == 1


def test_activity_along_has_no_bin_of_the_few_milliseconds_that_recorders_add():
    found = activity_along(table(("x", 59.0, "a"), ("x", 60.01, "a")), {"x": 60.02, "y": 60.0})

    assert found[["start_s", "end_s", "annotations"]].to_numpy().tolist() == [[0, 60.02, 2]]
    assert found["recorded_s"].tolist() == [pytest.approx(120.02)]
    ends_s = activity_along(table(("x", 1.0, "a")), {"x": 200.0, "y": 95.0})["end_s"]
    assert ends_s.tolist() == [60, 120, 200]
    assert activity_along(table(("x", 1.0, "a")), {"x": 100.0})["end_s"].tolist() == [60, 100]


def test_activity_by_hour_over_midnight():
    annotations = table(("x", 0.0, "a"), ("x", 1800.0, "a"), ("x", 1801.0, "a"), ("z", 5.0, "a"))

    found = activity_by_hour(annotations, {"x": 3600.0, "z": 60.0}, {"x": datetime(2021, 1, 1, 23, 30)})

    assert found["annotations"].to_dict() == {hour: {23: 1, 0: 2}.get(hour, 0) for hour in range(24)}
    assert found.loc[[23, 0], "recorded_s"].tolist() == [1800, 1800]
    assert found["per_minute"].iloc[0] == pytest.approx(2 / 30)
    assert found["per_minute"].iloc[1:23].isna().all()


def test_thresholds_of_frequency():
    assert frequency_thresholds(pd.Series(range(1, 101))) == (100, 10)
    assert frequency_thresholds(pd.Series([5])) == (5, 5)


def test_spectral_summary_by_hand():
    ranges = table(
        *[("a", 900.0, 1000.0, 1100.0), ("a", 1900.0, 2000.0, 2100.0), ("a", 2900.0, 3000.0, 3100.0)],
        *[("b", 400.0, 500.0, 600.0), ("b", 400.0, 500.0, 600.0), ("c", 1.0, 2.0, 3.0), ("b", np.nan, np.nan, np.nan)],
        columns=("species", "low_hz", "centroid_hz", "high_hz"),
    )

    found = summarize_spectral_ranges(ranges, most=2)

    assert list(found.index) == ["b", "a"]
    assert found.loc["a", ["calls", "low_hz", "centroid_hz", "high_hz"]].tolist() == [3, 1900, 2000, 2100]
    assert found.loc["a", ["least_hz", "greatest_hz"]].tolist() == pytest.approx([1100, 2900])
    assert found.loc["b", "calls"] == 2


def test_a_long_list_of_species_is_drawn_whole():
    counts = pd.Series(range(90, 0, -1), index=[f"$Bird_{n} <&> with quite a long name" for n in range(90)])

    svg = pictures.draw_species_counts(counts, 0, 90, 89, 9, 10)

    assert all(f">$Bird_{n} &lt;&amp;&gt;" in svg for n in range(90))
    assert "http" not in svg


def test_listening_measures_levels_and_calls(tmp_path):
    archive = write_archive(tmp_path / "archive", [("x.wav", 2.0, "a"), ("x.wav", 7.0, "b"), ("y.wav", 1.0, "b")])
    sound = np.concatenate([0.1 * tone(1000, 5), 0.01 * tone(3000, 5)])
    soundfile.write(archive / "soundscape_data" / "x.wav", sound, RATE)

    found = listen(read_archive(archive))

    assert found.ranges["centroid_hz"].iloc[:2].tolist() == pytest.approx([1000, 3000], rel=0.05)
    assert found.ranges["species"].tolist() == ["a", "b", "b"]
    assert found.levels.loc["x.wav", "floor_dbfs"] == pytest.approx(-43, abs=0.1)
    assert found.levels.loc["x.wav", "loud_dbfs"] == pytest.approx(-23, abs=0.1)
    assert found.problems == []


def test_the_clearest_call_is_loud_in_its_middle(tmp_path):
    archive = write_archive(tmp_path / "archive", [("x.wav", 0.2, "a"), ("x.wav", 3.0, "a"), ("x.wav", 7.0, "b")])
    sound = 0.001 * np.random.default_rng(0).normal(size=10 * RATE)
    sound[round(6.7 * RATE) : round(7.3 * RATE)] += 0.5 * tone(1000, 0.6)
    sound[:RATE] += 0.9 * tone(1000, 1)  # too near to the start
    soundfile.write(archive / "soundscape_data" / "x.wav", sound, RATE)

    call = find_clear_call(read_archive(archive), RATE, 3.0, seed=0)

    assert (call.recording, call.center_s, call.species) == ("x.wav", 7.0, "b")
    assert call.clip.shape == (3 * RATE,)


def test_page_is_self_contained(page):
    parsed = Page(page)

    assert not {"script", "link", "iframe", "object", "embed", "style"} & set(parsed.tags) - {"style"}
    assert parsed.tags.count("style") == 1
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    kinds = Counter(value.partition(",")[0] for value in parsed.values("src"))
    assert kinds == {"data:image/png;base64": 3 + 10, "data:audio/mpeg;base64": 1 + 6}
    assert all(value.startswith("#") for value in parsed.values("href"))
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


def test_page_is_well_formed_and_its_references_lead_somewhere(page):
    parsed = Page(page)
    ids = parsed.values("id")

    assert page.startswith("<!DOCTYPE html>")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in parsed.values("href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert parsed.tags.count("svg") == 6
    assert parsed.tags.count("h1") == 1


def test_page_can_be_read_aloud(page):
    parsed = Page(page)

    assert ("html", "lang", "en") in parsed.attributes
    assert parsed.tags.count("img") == len(parsed.values("alt")) == 13
    assert page.count("<audio ") == page.count('aria-label="Call of ') == 7
    assert page.count('role="img" aria-label="') == parsed.tags.count("svg")
    assert page.count("<th ") == page.count("<th scope=")


def test_page_tells_the_numbers(page, small_archive):
    words = Page(page).words()

    assert "recordings 8" in words
    assert "annotations in use 140" in words
    assert "140 annotations are points in time" in words
    assert "SYN_001_20211207_053000.flac" in words
    assert "Synthetic Whistler 1" in words
    assert "nan" not in words.split()
    assert str(small_archive.parent) not in page


def test_calls_can_be_played_and_are_small(page):
    sounds = [value for value in Page(page).values("src") if value.startswith("data:audio")]
    for sound in sounds:
        assert len(sound) < 40_000
        waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(sound.partition(",")[2])))
        assert (len(waveform) / rate, rate) == (pytest.approx(3, abs=0.15), 32_000)
        assert np.abs(waveform).max() == pytest.approx(10 ** (-3 / 20), abs=0.1)
    assert len(page) < 2_500_000


def test_an_encoded_clip_is_its_sound_and_silence_is_no_error():
    clip = (0.01 * tone(1000, 3, 32_000)).astype(np.float32)
    for sound in (clip, np.zeros(96_000, np.float32)):
        encoded = encode_clip(sound, 32_000)
        assert encode_clip(sound, 32_000) == encoded
        waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded.partition(",")[2])))
        assert np.isfinite(waveform).all()
        if sound.any():
            assert np.abs(np.fft.rfft(waveform)).argmax() * rate / len(waveform) == pytest.approx(1000, abs=2)


def test_without_mp3_calls_are_flac(monkeypatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"FLAC": "", "WAV": ""})
    kind, _, sound = encode_clip(tone(1000, 3), RATE).partition(",")
    assert kind == "data:audio/flac;base64"
    assert soundfile.info(io.BytesIO(base64.b64decode(sound))).frames == 3 * RATE


@pytest.mark.usefixtures("no_spectrograms")
def test_the_range_of_centroids_is_told_and_it_is_not_zero(tmp_path):
    """Rumble below the calls gives their ranges a lower end of 0 Hz."""
    rows = [("x.wav", 1.0 + n, "ab"[n % 2]) for n in range(8)]
    archive = write_archive(tmp_path / "archive", rows)
    rumble = 0.2 * tone(20, 10) + 0.02 * tone(2000, 10) + 0.02 * tone(3500, 10)
    soundfile.write(archive / "soundscape_data" / "x.wav", rumble, RATE)
    assert (listen(read_archive(archive)).ranges["low_hz"] < 5).any()
    words = Page(write_report(archive, tmp_path / "report.html", min_annotations=1).read_text()).words()
    low_hz = re.search(r"98\s% of 8 calls have their centroid between ([0-9,]+) and ([0-9,]+)\sHz", words)[1]
    assert int(low_hz.replace(",", "")) > 100


def test_the_split_is_a_table(page):
    words = Page(page).words()
    assert re.search(r"part recordings annotations share wanted species train [0-9]+ [0-9]+ [0-9.]+\s% 60\s% 5", words)
    assert "<pre" not in page
    assert 'How the strategy "stratified" divides' in words


def test_same_archive_same_page(page, small_archive, tmp_path):
    assert write_report(small_archive, tmp_path / "again.html").read_text() == page


@pytest.mark.usefixtures("no_spectrograms")
def test_names_are_escaped_and_oddities_told(hand_archive, tmp_path):
    edit(hand_archive / "species.csv", "Bird a", "<script>alert(1)</script>")
    edit(hand_archive / "species.csv", "Avis b", '"<b onclick=""x"">$\x07"')
    edit(hand_archive / "annotations.csv", ",b\n", ",????\n")
    edit(hand_archive / "annotations.csv", "Filename,Start Time (s),", "Filename, Start Time (s), ")

    page = write_report(hand_archive, tmp_path / "report.html", min_annotations=1).read_text()
    parsed = Page(page)

    assert "script" not in parsed.tags
    assert "<script>alert(1)</script>" in parsed.words()
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "1 annotation has a duration: 0.5 s" in parsed.words()
    assert "unknown bird" in parsed.words()
    assert "past the end of the recording" in parsed.words()
    assert "hour of the day (UTC)" in parsed.words()


@pytest.mark.usefixtures("no_spectrograms")
def test_damaged_recordings_are_told_and_left_out(hand_archive, tmp_path):
    no_audio, short, _ = sorted((hand_archive / "soundscape_data").iterdir())
    no_audio.write_bytes(b"no audio")
    short.write_bytes(short.read_bytes()[:30_000])

    page = write_report(hand_archive, tmp_path / "report.html", min_annotations=1).read_text()

    words = Page(page).words()
    assert f"{no_audio.name} : {no_audio.name} cannot be read as audio" in words
    assert f"{short.name} : {short.name} cannot be decoded" in words
    assert str(tmp_path) not in page


@pytest.mark.usefixtures("no_spectrograms")
def test_collection_with_boxes_and_other_names(tmp_path):
    lines = ["Filename,Start Time (s),End Time (s),Low Freq (Hz),High Freq (Hz),Species eBird Code"]
    archive = write_archive(
        tmp_path / "archive", [(f"{n}.flac", 3.0 * k + 1, "ab"[k % 2]) for n in "xyz" for k in range(3)]
    )
    lines += [
        f"{n}.flac,{0.2 * k},{0.2 * k + 0.03 * (k + 1)},100,2000,{'ab'[k % 2]}" for n in "xyz" for k in range(20)
    ]
    (archive / "annotations.csv").write_text("\n".join(lines) + "\n")

    words = Page(write_report(archive, tmp_path / "report.html").read_text()).words()

    assert "60 annotations have a duration: 0.03 to 0.6 s" in words
    assert "The longest 30 of them" in words
    assert "end minus start (s)" in words
    assert "Neither names nor headers of the recordings contain their time" in words


@pytest.mark.usefixtures("no_spectrograms")
def test_hours_are_of_one_clock_and_recordings_of_the_other_are_counted(tmp_path):
    names = ("KEN_001_20211207_060000.flac", "UHH_001_S01_20161121_030000Z.flac", "x.flac")
    archive = write_archive(tmp_path / "archive", [(name, 1.0, "a") for name in names])

    words = Page(write_report(archive, tmp_path / "report.html").read_text()).words()

    assert "hour of the day (local time)" in words
    assert "headers of 1 recording (local time); skipped: 2 recordings without local time. Grey" in words
    # One species is 100 % of them.
    assert "The most frequent species (1 species with 3 or more annotations) has 100 % of" in words
    assert "The rarest species (1 species) has 3 or fewer annotations. 0 species" in words


def test_refuses_to_overwrite(small_archive, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("mine")

    with pytest.raises(UserError, match="exists already"):
        write_report(small_archive, output)

    assert output.read_text() == "mine"


@pytest.mark.usefixtures("no_spectrograms")
def test_overwrites_when_asked_with_an_archive_that_cannot_be_split(hand_archive, tmp_path):
    output = tmp_path / "out" / "report.html"
    output.parent.mkdir()
    output.write_text("mine")

    assert write_report(hand_archive, output, overwrite=True) == output

    words = Page(output.read_text()).words()
    assert "The archive cannot be split: none of the 2 species has at least 10 annotations" in words
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("output", [".", "missing/report.html"])
def test_needs_a_file_in_a_folder(small_archive, tmp_path, output):
    with pytest.raises(UserError, match=r"is a folder|not a writable folder"):
        write_report(small_archive, tmp_path / output)


def test_the_seed_draws_the_call(small_archive):
    archive = read_archive(small_archive)

    calls = [find_clear_call(archive, 32_000, 3.0, seed)[:3] for seed in (0, 0, 1, 2, 3)]

    assert calls[0] == calls[1]
    assert len(set(calls)) > 1


def test_a_call_is_shown_under_each_augmentation(small_archive):
    from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor

    extractor = KenyaBirdsFeatureExtractor()
    rng = np.random.default_rng(0)
    clip, other = rng.uniform(-0.1, 0.1, (2, extractor.clip_samples)).astype(np.float32)
    views = dict(change_clip(clip, other, other, extractor))
    assert len(views) == 11
    unchanged = views.pop("unchanged")
    assert all(view.shape == unchanged.shape for view in views.values())
    assert all(np.abs(view - unchanged).max() > 0.1 for view in views.values())


def test_background_is_a_window_without_a_call(small_archive):
    archive = read_archive(small_archive)
    window = find_background(archive, 32_000, 0.5)
    assert window is not None
    assert window.shape == (16_000,)
    assert find_background(archive, 32_000, 15.0) is None


def test_a_recording_without_its_end_is_opened_once_to_find_background(tmp_path, monkeypatch):
    archive = read_archive(write_archive(tmp_path / "archive", [("a.wav", 1.0, "owl1"), ("b.wav", 1.0, "lark2")], 60))
    path = archive.recording_path("a.wav")
    path.write_bytes(path.read_bytes()[: 44 + 2 * RATE])
    opened = []
    monkeypatch.setattr(
        changes, "RecordingReader", lambda *args: opened.append(args[0].name) or RecordingReader(*args)
    )
    assert find_background(archive, RATE, 2.0) is not None
    assert opened == ["a.wav", "b.wav"]
