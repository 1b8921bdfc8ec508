import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations, pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import write_archive
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from matplotlib.text import Text

from kenya_birds import cli
from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import TimeAndPlace
from kenya_birds.errors import UserError
from kenya_birds.inference import activity, detection_boxes
from kenya_birds.inference import plots as plot
from kenya_birds.inference.activity import (
    BREAK,
    ActivityClock,
    at_hours,
    hour_labels,
    measure_activity,
    plot_activity,
    shown_hours,
)
from kenya_birds.inference.annotation_boxes import annotations_of
from kenya_birds.inference.detection_boxes import MAX_LANES, Box, cut, join, stack
from kenya_birds.inference.detections import Detection, RecordingInfo
from kenya_birds.inference.local_hours import find_clock_change, hours_of
from kenya_birds.inference.output_tables import write_tables
from kenya_birds.inference.plots import detections_of, draw_section, plot_recording
from kenya_birds.inference.recordings_reader import RunRecordings, read_recordings
from kenya_birds.inference.run_report import write_failures
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.table_formats import FAILED_COLUMNS, FAILED_FILE
from kenya_birds.inference.table_reader import read_detections
from kenya_birds.plot_style import COLOURS, SpeciesStyle, save_picture, short_name, species_styles

RATE = 32_000
NAMES = {"combul2": SpeciesNames("Common Bulbul", "Pycnonotus barbatus"), "dol$": SpeciesNames("Dol$ar $ird", "")}


@pytest.fixture
def tables(tmp_path):
    """A recording of 40 s with a tone of 4 kHz from 20 to 23 s, and the folder of tables of its detections."""
    path = tmp_path / "KEN_001_20211207_053000.flac"
    time_s = np.arange(40 * RATE) / RATE
    tone = np.sin(2 * np.pi * 4000 * time_s) * ((time_s >= 20) & (time_s < 23))
    noise = np.random.default_rng(0).normal(0, 0.001, len(time_s))
    soundfile.write(path, 0.5 * tone + noise, RATE)
    rows = [Detection(str(path), 20 * RATE, 23 * RATE, RATE, code, 0.9) for code in NAMES]
    write_tables(
        tmp_path / "out",
        ["raven", "csv", "parquet"],
        [RecordingInfo(str(path), len(time_s), RATE)],
        rows,
        species_names=NAMES,
        frequencies_hz=(150.0, 15_000.0),
        metadata={},
    )
    return path, tmp_path / "out"


def table(*rows):
    """(recording, start_s, end_s, code, score) as read_detections gives them."""
    columns = ["recording", "start_s", "end_s", "code", "score"]
    return pd.DataFrame(rows, columns=columns).assign(common_name=lambda rows: rows["code"], scientific_name="")


@pytest.mark.parametrize("name", ["detections.csv", "detections.parquet", "detections.selections.txt"])
def test_the_command_draws_from_a_second_before_the_first_detection_on(tables, tmp_path, capsys, name):
    path, folder = tables
    output = tmp_path / "picture.png"
    cli.main(["plot", str(path), str(folder / name), "--output", str(output)])
    assert "from 19 to 40 s" in capsys.readouterr().out
    height, width, _ = imread(output).shape
    assert width == 11 * 150
    assert height > 2 * 150  # two rows


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_same_detections_same_bytes(tables, tmp_path, ending):
    path, folder = tables
    for name in ("a", "b"):
        plot_recording(path, folder / "detections.csv", tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_a_section_ends_where_the_recording_does(tables, tmp_path):
    path, folder = tables
    output = tmp_path / "x.png"
    assert plot_recording(path, folder / "detections.csv", output, start_s=30, duration_s=600) == (30, 40)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"start_s": 40}, "less than 40, the end of"),
        ({"start_s": -1}, "expected 0"),
        ({"start_s": float("nan")}, "expected 0 or more"),
        ({"duration_s": 0}, "more than 0"),
        ({"duration_s": 601}, "at most 600"),
    ],
)
def test_a_section_outside_the_recording_is_refused(tables, tmp_path, settings, reason):
    path, folder = tables
    with pytest.raises(UserError, match=reason):
        plot_recording(path, folder / "detections.csv", tmp_path / "x.png", **settings)


def test_a_picture_is_not_overwritten_unasked_nor_made_in_an_unknown_format(tables, tmp_path):
    path, folder = tables
    (tmp_path / "x.png").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        plot_recording(path, folder / "detections.csv", tmp_path / "x.png")
    plot_recording(path, folder / "detections.csv", tmp_path / "x.png", overwrite=True, duration_s=5)
    with pytest.raises(UserError, match="is not the name of a picture"):
        plot_recording(path, folder / "detections.csv", tmp_path / "x.gif")


def test_a_recording_without_detections_in_the_table_is_an_error_of_one_line(tables, tmp_path, capsys):
    path, folder = tables
    other = path.with_name("other.flac")
    path.rename(other)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plot", str(other), str(folder / "detections.csv"), "--output", str(tmp_path / "x.png")])
    assert "has no detections of" in capsys.readouterr().err


def test_detections_are_of_the_recording_s_path_else_of_its_name_if_only_one_has_it():
    rows = table(("a/x.wav", 0, 3, "s", 1), ("b/x.wav", 1, 3, "s", 1), ("c/y.wav", 2, 3, "s", 1))
    assert detections_of("b/x.wav", rows, "t")["start_s"].tolist() == [1]
    assert detections_of("moved/y.wav", rows, "t")["start_s"].tolist() == [2]
    with pytest.raises(UserError, match="give the recording's path as in the table"):
        detections_of("moved/x.wav", rows, "t")


@pytest.mark.parametrize(("start_s", "duration_s"), [(18.0, 7.0), (19.999, 3.5), (0.0, 40.0)])
def test_a_tone_lies_at_its_time_and_pitch(tables, start_s, duration_s):
    with RecordingReader(tables[0]) as reader:
        levels = plot.read_levels(reader, start_s, duration_s)
    bins, columns = levels.shape
    peak = levels.argmax(axis=0)
    loud = np.flatnonzero(levels.max(axis=0) > levels.max() - 10)
    column_s = duration_s / columns
    assert set(peak[loud] * RATE / 2 / (bins - 1)) == {4000.0}
    assert start_s + (loud[0] + 0.5) * column_s == pytest.approx(20, abs=0.04)
    assert start_s + (loud[-1] + 0.5) * column_s == pytest.approx(23, abs=0.04)


def test_only_the_section_is_read_and_no_more_columns_are_kept_than_a_row_shows(tables, monkeypatch):
    asked = []
    blocks = RecordingReader.blocks

    def asking(self, frames, start, end):
        asked.append((start / RATE, (end - start) / RATE))
        return blocks(self, frames, start, end)

    monkeypatch.setattr(RecordingReader, "blocks", asking)
    with RecordingReader(tables[0]) as reader:
        levels = plot.read_levels(reader, 10.0, 20.0)
    ((first_s, length_s),) = asked
    assert 9.9 <= first_s <= 10
    assert length_s <= 20.2
    assert levels.shape[1] <= plot.COLUMNS


def test_overlapping_detections_of_a_species_share_a_box_with_the_highest_score():
    boxes = join(table(("x", 0, 3, "a", 0.5), ("x", 1, 4, "a", 0.9), ("x", 1, 4, "b", 0.7), ("x", 4, 7, "a", 0.6)))
    assert [(box.start_s, box.end_s, box.species, box.score) for box in boxes] == [
        (0, 4, "a", 0.9),
        (1, 4, "b", 0.7),
        (4, 7, "a", 0.6),
    ]


def test_a_box_is_cut_at_the_ends_of_a_row():
    boxes = [Box(0, 4, "a", "A", 0.9), Box(4, 7, "b", "B", 0.9)]
    parts = cut(boxes, 2, 5)
    assert [(box.start_s, box.end_s) for box in parts] == [(2, 4), (4, 5)]
    assert [(box.is_begin, box.is_end) for box in parts] == [(False, True), (True, False)]
    assert cut(boxes, 7, 9) == []


def test_a_label_says_name_and_confidence_and_the_code_where_there_is_no_name():
    assert Box(0, 1, "a", "Aves", 0.987).label == "Aves 0.99"
    assert Box(0, 1, "a", "", 1.0).label == Box(0, 1, "a", "  ", 1.0).label == "a 1.00"


@given(
    st.lists(st.tuples(st.floats(0, 15), st.floats(0.1, 9), st.floats(0.1, 5)), max_size=40),
)
def test_neither_boxes_nor_labels_of_a_lane_meet(drawn):
    drawn = sorted(drawn)
    boxes = [Box(start, min(start + length, 15.2), "a", "A", i / 40) for i, (start, length, _) in enumerate(drawn)]
    widths_s = [width for *_, width in drawn]
    stacked = stack(boxes, widths_s, 0.0, 15.2)
    assert all(box.lane < MAX_LANES for box in stacked)
    spans = {}
    for box in stacked:
        width_s = widths_s[boxes.index(next(b for b in boxes if b.score == box.score))]
        assert 0 <= box.label_s <= 15.2 - width_s + 1e-9
        # Inside or outside, not across an edge.
        inside = box.start_s <= box.label_s <= box.end_s - width_s + 1e-9
        assert inside or box.label_s >= box.end_s or box.label_s + width_s <= box.start_s + 1e-9
        spans.setdefault(box.lane, []).append((min(box.start_s, box.label_s), max(box.end_s, box.label_s + width_s)))
    for lane in spans.values():
        lane.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(lane))
    if len(boxes) <= MAX_LANES:
        assert len(stacked) == len(boxes)


def test_what_finds_no_room_is_what_scored_least():
    boxes = [Box(0, 15, f"s{i}", "", (i * 7 % 20) / 20) for i in range(20)]
    kept = stack(boxes, [1.0] * 20, 0, 15)
    assert sorted(box.score for box in kept) == [i / 20 for i in range(20 - MAX_LANES, 20)]


@given(st.lists(st.tuples(st.floats(0, 15), st.floats(0.1, 9), st.floats(0.1, 5)), min_size=13, max_size=30))
def test_no_more_boxes_are_dropped_than_find_no_room(drawn):
    drawn = [(start, min(start + length, 15.2), width) for start, length, width in sorted(drawn)]
    boxes = [Box(start, end, "a", "A", (i * 7 % 61) / 61) for i, (start, end, _) in enumerate(drawn)]
    widths_s = [width for *_, width in drawn]
    stacked = stack(boxes, widths_s, 0.0, 15.2)
    dropped = sorted({box.score for box in boxes} - {box.score for box in stacked})
    if dropped:
        # With the best of those that were dropped, more boxes and labels meet at some time than there are lanes.
        again = [(box, width) for box, width in zip(boxes, widths_s, strict=True) if box.score >= dropped[-1]]
        spans = [(placed, width) for box, width in again for placed in stack([box], [width], 0.0, 15.2)]
        begins = [min(box.start_s, box.label_s) for box, _ in spans]
        ends = [max(box.end_s, box.label_s + width) for box, width in spans]
        assert max(sum(b <= at < e for b, e in zip(begins, ends, strict=True)) for at in begins) == MAX_LANES + 1


def test_two_thousand_boxes_in_one_row_are_stacked_in_a_few_tries(monkeypatch):
    tries = []
    lanes = detection_boxes._lanes
    monkeypatch.setattr(detection_boxes, "_lanes", lambda *spans: tries.append(1) or lanes(*spans))
    boxes = [Box(3 * (i // 400), 3 * (i // 400) + 3, f"s{i}", "", (i * 7 % 2003) / 2003) for i in range(2000)]
    kept = stack(boxes, [1.0] * 2000, 0, 15)
    assert len(tries) <= 13
    assert min(box.score for box in kept) > 0.9


def test_a_label_stands_in_its_bar_if_it_fits_else_behind_it_and_at_the_end_of_the_row_in_front_of_it():
    boxes = [Box(0, 4, "a", "A", 0.9), Box(5, 6, "a", "A", 0.9), Box(14, 15, "a", "A", 0.9)]
    assert [(box.label_s, box.lane) for box in stack(boxes, [3.0] * 3, 0, 15)] == [(0, 0), (6, 0), (11, 0)]
    assert stack(boxes[:1], [20.0], 0, 15)[0].label_s == 0  # longer than the row


def test_lines_mark_begins_and_ends_over_the_whole_height_and_nothing_looks_like_a_frequency_limit(tables):
    path, _ = tables
    rows = table(("x", 20, 23, "a", 0.9), ("x", 21, 24, "b", 0.8), ("x", 39, 45, "b", 0.8))
    figure, _ = draw_section(path, rows, 21, 19, species_styles("ab"))
    spectrograms = [axes for axes in figure.axes if axes.get_ylabel() == "kHz"]
    assert len(spectrograms) == 2
    assert not any(axes.patches for axes in spectrograms)
    lines = [line for axes in spectrograms for line in axes.lines]
    # The first begins and the last ends outside of what is shown.
    assert sorted((line.get_xdata()[0], line.get_color()) for line in lines) == [
        (21, COLOURS[1]),
        (23, COLOURS[0]),
        (24, COLOURS[1]),
        (39, COLOURS[1]),
    ]
    assert {tuple(line.get_ydata()) for line in lines} == {(0, 1)}  # of the axes


def test_what_has_no_room_is_counted_in_the_picture(tables):
    path, _ = tables
    rows = table(*(("x", 20, 23, f"s{n:02}", n / 20) for n in range(15)))
    texts = [text.get_text() for text in draw_section(path, rows, 19, 5, species_styles(rows["code"]))[0].texts]
    assert texts[-1] == "not shown: 3 with the lowest scores"


def test_a_species_has_one_colour_in_every_section_of_a_recording(tables, tmp_path, monkeypatch):
    path, folder = tables
    seen = []
    draw = plot.draw_section
    monkeypatch.setattr(plot, "draw_section", lambda *args, **more: seen.append(args[4]) or draw(*args, **more))
    for start_s in (0, 19, 22):
        plot_recording(path, folder / "detections.csv", tmp_path / f"{start_s}.svg", start_s=start_s, duration_s=5)
    assert seen[0] == seen[1] == seen[2] == species_styles(["combul2", "dol$"])


def test_more_species_than_colours_have_hatches_besides():
    styles = species_styles(f"s{n}" for n in range(24))
    assert len(set(styles.values())) == 24
    assert styles["s0"] == SpeciesStyle(COLOURS[0], "")
    assert styles["s8"].colour == COLOURS[0]
    assert styles["s8"].hatch


# How a screen's linear light looks to people who lack one kind of cones (Machado, Oliveira, Fernandes 2009).
COLOUR_VISION = {
    "all cones": np.eye(3),
    "no red cones": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "no green cones": [[0.3673, 0.8606, -0.2279], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "no blue cones": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def linear_light(colours):
    rgb = np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def test_the_colours_of_species_stand_out_from_white():
    luminance = linear_light(COLOURS) @ TO_XYZ[1]
    assert (1.05 / (luminance + 0.05) >= 3).all()  # WCAG 2.2, 1.4.11


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_the_colours_of_species_differ_for_every_colour_vision(vision):
    light = np.clip(linear_light(COLOURS) @ np.transpose(COLOUR_VISION[vision]), 0, 1)
    root = np.cbrt(light @ TO_XYZ.T / TO_XYZ.sum(axis=1))
    lab = np.stack([116 * root[:, 1], 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=1)
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(len(lab), 1)]
    assert distance.min() > 13


def test_a_name_that_no_font_can_draw_is_told_once(caplog):
    for _ in range(2):
        assert short_name("\U00013171 bird") == "\U00013171 bird"
    assert sum("pictures show squares" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("frames", [1, 40, 3000])
def test_a_very_short_recording_is_drawn(tmp_path, frames):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.full(frames, 0.1), RATE)
    rows = table(("x", 0, frames / RATE, "a", 0.9))
    figure, end_s = draw_section(path, rows, 0, 60, species_styles("a"))
    plot.save_picture(figure, tmp_path / "x.png")
    assert end_s == frames / RATE


def test_a_silent_recording_is_drawn_too(tables, tmp_path):
    path, folder = tables
    soundfile.write(path, np.zeros(40 * RATE), RATE)
    plot_recording(path, folder / "detections.csv", tmp_path / "x.png", start_s=0, duration_s=3)


def test_damage_is_marked_and_the_rest_is_drawn_as_it_is(tables, tmp_path):
    path, folder = tables
    with RecordingReader(path) as reader:
        whole = plot.read_levels(reader, 0.0, 40.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(data)
    with RecordingReader(path) as reader:
        lost = [block for block in reader.blocks(RATE) if block.sound is None]
        damaged = plot.read_levels(reader, 0.0, 40.0)
    begin, end = lost[0].start, lost[-1].start + lost[-1].frames
    column = 40 * RATE / damaged.shape[1]
    is_lost = np.isnan(damaged).all(axis=0)
    np.testing.assert_array_equal(np.isnan(damaged).any(axis=0), is_lost)
    assert np.flatnonzero(is_lost).tolist() == list(range(int(begin // column), int(-(-end // column))))
    far = np.abs(np.arange(damaged.shape[1]) - begin / column) > (end - begin) / column + 5
    np.testing.assert_allclose(damaged[:, far], whole[:, far], atol=1e-3)
    figure, _ = draw_section(path, table(), 0, 40, {})
    assert any("yellow: damaged" in text.get_text() for text in figure.texts)
    plot_recording(path, folder / "detections.csv", tmp_path / "x.png", start_s=begin / RATE, duration_s=0.02)


@pytest.mark.parametrize("gain", [1e-5, 300])
def test_quiet_and_loud_recordings_look_like_others(tables, tmp_path, gain):
    sound, _ = soundfile.read(tables[0], dtype="float32")
    soundfile.write(tmp_path / "x.wav", gain * sound, RATE, subtype="FLOAT")
    with RecordingReader(tables[0]) as one, RecordingReader(tmp_path / "x.wav") as other:
        levels, others = plot.read_levels(one, 18, 4), plot.read_levels(other, 18, 4)
    np.testing.assert_allclose(others - others.max(), levels - levels.max(), atol=1)


MORNING, EVENING = "s/KEN_001_20211207_053000.flac", "s/KEN_001_20211208_235900.flac"


def test_a_detection_counts_for_the_hour_of_its_middle_also_after_midnight():
    rows = table((MORNING, 1799, 1802, "a", 1), (MORNING, 1798, 1801, "a", 1), (EVENING, 60, 63, "b", 1))
    counted = measure_activity(rows, None, "t")
    assert counted.counts.loc["a"][[5, 6]].tolist() == [1, 1]
    assert counted.counts.loc["b", 0] == 1
    assert counted.counts.to_numpy().sum() == 3
    assert (counted.clock, counted.recordings, counted.left_out) == ("local time", 2, 0)
    assert counted.analysed_h is None


def test_two_species_with_one_name_are_two_rows():
    drawn = [("a1", "Owl"), ("b2", "Owl"), ("a1", "Owl"), ("c3", ""), ("", "Dove"), ("d4", "Dove")]
    rows = table(*((MORNING, 3 * at, 3 * at + 3, code, 1) for at, (code, _) in enumerate(drawn)))
    counted = measure_activity(rows.assign(common_name=[name for _, name in drawn]), None, "t")
    assert counted.counts.sum(axis=1).to_dict() == {"Owl (a1)": 2, "Owl (b2)": 1, "c3": 1, "Dove": 2}
    long = rows.assign(common_name=40 * "x").query("code in ('a1', 'b2')")
    assert measure_activity(long, None, "t").counts.index.str.endswith((" (a1)", " (b2)")).all()


def test_a_merged_detection_counts_for_each_hour_of_its_windows():
    counted = measure_activity(table((MORNING, 1700, 1800 + 3600 + 30, "a", 1)), None, "t")
    assert counted.counts.loc["a"][lambda hours: hours > 0].to_dict() == {5: 1, 6: 1, 7: 1}
    assert activity.draw_activity(counted).axes[0].get_title(loc="left") == "1 detection of 1 species in 1 recording"


def test_recorded_hours_are_those_of_all_recordings():
    silent = "s/KEN_002_20211207_120000.flac"
    durations = {MORNING: 3600.0, EVENING: 120.0, silent: 7200.0, "s/other.wav": 99.0}
    counted = measure_activity(table((MORNING, 0, 3, "a", 1)), RunRecordings(durations, {}), "t")
    assert counted.analysed_h[[5, 6, 12, 13]].tolist() == [0.5, 0.5, 1, 1]
    assert counted.analysed_h.sum() == pytest.approx(3 + 120 / 3600)
    assert (counted.recordings, counted.left_out) == (3, 1)


def test_sound_that_was_not_analysed_is_no_effort():
    gaps = {MORNING: [(60, 1800), (1800, float("inf"))], EVENING: [(0, 30)], "s/other.wav": [(0, 9)]}
    run = RunRecordings({MORNING: 7200.0, EVENING: 60.0}, {}, gaps)
    counted = measure_activity(table((MORNING, 0, 3, "a", 1)), run, "t")
    assert counted.analysed_h[[5, 6, 7]].tolist() == [60 / 3600, 0, 0]
    assert counted.analysed_h.sum() == pytest.approx(90 / 3600)


def test_recordings_in_utc_are_left_out_beside_local_ones_and_drawn_alone():
    utc = "SSW_001_20170225_010000Z.flac"
    both = measure_activity(table((MORNING, 0, 3, "a", 1), (utc, 0, 3, "b", 1)), None, "t")
    assert (list(both.counts.index), both.clock, both.left_out) == (["a"], "local time", 1)
    alone = measure_activity(table((utc, 0, 3, "b", 1)), None, "t")
    assert (alone.counts.loc["b", 1], alone.clock) == (1, "UTC")


@pytest.mark.parametrize(
    "path", ["D:\\rec\\site 1\\a.wav", "\\\\server\\rec\\a.wav", "rec\\a.wav", "https://h/x/a.wav"]
)
def test_a_recording_of_a_table_that_was_made_on_windows_is_found_by_its_file_name(tmp_path, path):
    rows = table((path, 0, 3, "a", 1), ("D:\\rec\\b.wav", 0, 3, "b", 1))
    assert plot.detections_of(tmp_path / "a.wav", rows, "t")["recording"].tolist() == [path]
    with pytest.raises(UserError, match="has no detections"):
        plot.detections_of(tmp_path / "rec", rows, "t")


def test_offsets_and_patterns_tell_the_hour_too():
    offset, other = "20211207T053000+0300.flac", "C:\\rec\\07.12.21 06h.wav"
    rows = table((MORNING, 0, 3, "a", 1), (offset, 0, 3, "b", 1), (other, 0, 3, "c", 1))
    counted = measure_activity(rows, None, "t", ActivityClock(NamePattern("%d.%m.%y %Hh")))
    assert [counted.counts.loc[name, hour] for name, hour in (("a", 5), ("b", 5), ("c", 6))] == [1, 1, 1]
    assert (counted.clock, counted.left_out) == ("local time", 0)
    # Beside names in UTC alone, those with an offset are drawn in local time.
    utc = "SSW_001_20170225_010000Z.flac"
    counted = measure_activity(table((offset, 0, 3, "b", 1), (utc, 0, 3, "a", 1)), None, "t")
    assert (counted.clock, list(counted.counts.index)) == ("local time", ["b"])
    with pytest.raises(UserError, match="matches none of 1 recordings, such as KEN_001"):
        measure_activity(table((MORNING, 0, 3, "a", 1)), None, "t", ActivityClock(NamePattern("%d.%m.%y %Hh")))


@pytest.mark.parametrize(
    ("day", "analysed_h"),
    [("20240331", {0: 0.5, 1: 1, 3: 1, 4: 1, 5: 0.5}), ("20241027", {0: 0.5, 1: 1, 2: 2, 3: 0.5})],
)
@pytest.mark.parametrize("zone", [None, ZoneInfo("Europe/Berlin")])
def test_hours_after_a_change_of_clocks_are_those_of_the_tables(tmp_path, day, analysed_h, zone):
    path, berlin = f"S1_{day}_003000.wav", ZoneInfo("Europe/Berlin")
    spans_s = [(60, 63), (5397, 5400), (5400, 5403), (9000, 9003), (10_800, 10_803)]
    write_tables(
        tmp_path,
        ["csv"],
        [RecordingInfo(path, RATE * 4 * 3600, RATE, time_zone=berlin)],
        [Detection(path, start_s * RATE, end_s * RATE, RATE, "combul2", 0.5) for start_s, end_s in spans_s],
        species_names=NAMES,
        frequencies_hz=(150.0, 15_000.0),
        metadata={},
    )
    if zone is None:  # that of the run
        (tmp_path / "run.json").write_text(json.dumps({"time_zone": berlin.key}))
    rows = read_detections(tmp_path / "detections.csv")
    run = read_recordings(tmp_path / "detections.csv", [path])
    found = measure_activity(rows, run, "t", ActivityClock(time_zone=zone))
    hours = pd.read_csv(tmp_path / "detections.csv")["hour"].value_counts().to_dict()
    assert found.counts.iloc[0][lambda counts: counts > 0].to_dict() == hours
    assert {hour: analysed for hour, analysed in enumerate(found.analysed_h) if analysed} == pytest.approx(analysed_h)
    merged = measure_activity(rows.iloc[:1].assign(end_s=9003.0), run, "t", ActivityClock(time_zone=zone))
    assert (
        merged.counts.iloc[0][lambda counts: counts > 0].to_dict()
        == {"20240331": {0: 1, 1: 1, 3: 1, 4: 1}, "20241027": {0: 1, 1: 1, 2: 2}}[day]
    )


def test_a_local_time_that_was_corrected_by_hand_is_followed(tmp_path):
    (tmp_path / "recordings.csv").write_text(
        "recording,duration_s,local_time,utc_time\n"
        "a.wav,60,2024-05-01T06:00:00,2024-05-01T04:00:00+00:00\n"
        "b.wav,60,2024-05-01T07:00:00,2024-05-01T04:00:00+00:00\n"
    )
    (tmp_path / "run.json").write_text(json.dumps({"time_zone": "Europe/Berlin"}))
    run = read_recordings(tmp_path / "detections.csv", [])
    hours = {path: place.times(timedelta(0))[0].hour for path, place in run.places.items()}
    assert hours == {"a.wav": 6, "b.wav": 7}


@pytest.mark.parametrize("hour", [0, 1, 17, 22])
@pytest.mark.parametrize(("night", "expected"), [("20240330", [1, 3]), ("20241026", [2])])
def test_a_detection_over_a_change_of_clocks_is_in_the_hours_on_both_sides(night, expected, hour):
    begin = datetime.strptime(f"{night}{hour:02}", "%Y%m%d%H")
    if hour < 2:
        begin += timedelta(days=1)
    elapsed_s = (26 - hour if hour > 2 else 2 - hour) * 3600 + 3600 * (night == "20241026")
    change = find_clock_change(
        TimeAndPlace(None, begin.replace(tzinfo=ZoneInfo("Europe/Berlin")), ZoneInfo("Europe/Berlin")), 12 * 3600
    )
    assert change.at_s == elapsed_s
    rows = table((MORNING, elapsed_s - 600.3, elapsed_s + 600.7, "a", 1))
    _, hours = hours_of(rows, {MORNING: begin}, {MORNING: change})
    assert sorted({int(one) % 24 for one in hours}) == expected


def test_names_that_do_not_tell_the_time_are_an_error_that_says_so(tmp_path, capsys):
    path = tmp_path / "detections.csv"
    infos = [RecordingInfo("other.wav", RATE * 9, RATE)]
    rows = [Detection("other.wav", 0, RATE, RATE, "combul2", 0.5)]
    for found in (rows, []):
        write_tables(
            tmp_path, ["csv"], infos, found, species_names=NAMES, frequencies_hz=(150.0, 15_000.0), metadata={}
        )
        with pytest.raises(SystemExit, match="2"):
            cli.main(["activity", str(path), "--output", str(tmp_path / "x.png")])
        error = capsys.readouterr().err
        assert "or names such as KEN_001_20211207_153852.flac" in error
    (tmp_path / "recordings.csv").write_text(f"recording,duration_s,local_time\n{MORNING},9,2021-12-07T06:00:00\n")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["activity", str(path), "--output", str(tmp_path / "x.png")])
    assert "has no detections: run kenya-birds detect with a lower --threshold" in capsys.readouterr().err


def test_the_command_draws_a_day_and_says_what_it_left_out(tmp_path, capsys):
    infos = [RecordingInfo(name, RATE * 3600, RATE) for name in (MORNING, EVENING, "other.wav")]
    rows = [Detection(MORNING, n * RATE, (n + 3) * RATE, RATE, "combul2", 0.5) for n in range(9)]
    rows += [Detection(EVENING, 0, RATE, RATE, "dol$", 0.5), Detection("other.wav", 0, RATE, RATE, "dol$", 0.5)]
    write_tables(
        tmp_path, ["csv", "raven"], infos, rows, species_names=NAMES, frequencies_hz=(150.0, 15_000.0), metadata={}
    )
    for name in ("detections.csv", "detections.selections.txt"):
        cli.main(["activity", str(tmp_path / name), "--output", str(tmp_path / "day.svg"), "--overwrite"])
        assert "Skipped: 1 recording without local time" in capsys.readouterr().out
        svg = (tmp_path / "day.svg").read_text()
        assert "Grey: nothing analysed" in svg
        assert "10 detections of 2 species in 2 recordings" in svg
        assert "Skipped: 1 recording without local time." in svg


@pytest.mark.parametrize("name", ["detections.csv", "detections.selections.txt"])
def test_the_command_reads_what_was_not_analysed(tmp_path, name):
    infos = [RecordingInfo(path, RATE * 3600, RATE) for path in ("+a_20211207_060000.wav", EVENING)]
    rows = [Detection(infos[0].recording, 0, 3 * RATE, RATE, "dol$", 0.5)]
    names = {"species_names": NAMES, "frequencies_hz": (150.0, 15_000.0), "metadata": {}}
    write_tables(tmp_path, ["csv", "raven"], infos, rows, **names)
    assert plot_activity(tmp_path / name, tmp_path / "all.png").analysed_h[6] == 1
    with (tmp_path / FAILED_FILE).open("w", encoding="utf-8") as file:
        silent = (infos[0].recording, "silent", "900.000000", "3600.000000", "digital silence")
        write_failures(file, [silent, ("x.wav", "failed", "0.000000", "", "damaged")])
    assert plot_activity(tmp_path / name, tmp_path / "part.png").analysed_h[6] == 0.25


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    ("file", "column", "row"),
    [
        ("detections.csv", "end_s", 2),
        ("detections.csv", "score", 3),
        ("recordings.csv", "duration_s", 2),
        ("recordings.csv", "latitude", 3),
        ("failed.csv", "start_s", 2),
    ],
)
def test_a_cell_that_is_not_a_finite_number_is_one_line(tmp_path, file, column, row, value):
    tables = {
        "detections.csv": table((MORNING, 0, 3, "a", 1), (EVENING, 0, 3, "b", 1)),
        "recordings.csv": pd.DataFrame({"recording": [MORNING, EVENING], "duration_s": 60.0, "latitude": ""}),
        "failed.csv": pd.DataFrame([(MORNING, "silent", 30, "", "")], columns=list(FAILED_COLUMNS)),
    }
    changed = tables[file] = tables[file].astype(object)
    changed.loc[row - 2, column] = value
    for name, rows in tables.items():
        rows.to_csv(tmp_path / name, index=False)
    told = rf"{file} cannot be read .*row {row} has the {column} -?(nan|inf), expected a number"
    with pytest.raises(UserError, match=told):
        plot_activity(tmp_path / "detections.csv", tmp_path / "a.png")


def test_an_incomplete_row_is_one_line_with_its_number(tmp_path):
    complete = table((MORNING, 0, 3, "a", 1), (EVENING, 0, 3, "b", 1)).astype(str)
    for column, cell in (("start_s", ""), ("score", "x")):
        rows = complete.copy()
        rows.loc[1, column] = cell
        rows.to_csv(tmp_path / "detections.csv", index=False)
        told = rf"detections\.csv cannot be read as a table of detections \(row 3 has the {column} '{cell}', expected"
        with pytest.raises(UserError, match=told):
            plot_activity(tmp_path / "detections.csv", tmp_path / "a.png")


def test_the_rows_of_another_run_s_recordings_are_not_taken(tmp_path):
    infos = [RecordingInfo(MORNING, RATE * 9, RATE)]
    names = {"species_names": NAMES, "frequencies_hz": (150.0, 15_000.0), "metadata": {}}
    write_tables(tmp_path, ["csv"], infos, [Detection(MORNING, 0, RATE, RATE, "dol$", 0.5)], **names)
    assert plot_activity(tmp_path / "detections.csv", tmp_path / "a.png").analysed_h is not None
    write_tables(tmp_path, [], [RecordingInfo(EVENING, RATE, RATE)], [], **names)
    assert plot_activity(tmp_path / "detections.csv", tmp_path / "b.png").analysed_h is None


def test_many_species_are_cut_to_the_most_frequent_and_the_title_says_so(tmp_path):
    names = {f"s{n:02}": SpeciesNames(f"Bird {n}", "") for n in range(60)}
    rows = [Detection(MORNING, 0, RATE, RATE, code, 0.5) for n, code in enumerate(names) for _ in range(60 - n)]
    write_tables(
        tmp_path,
        ["csv"],
        [RecordingInfo(MORNING, RATE * 9, RATE)],
        rows,
        species_names=names,
        frequencies_hz=(150.0, 15_000.0),
        metadata={},
    )
    drawn = plot_activity(tmp_path / "detections.csv", tmp_path / "x.svg")
    assert len(drawn.counts) == 60
    svg = (tmp_path / "x.svg").read_text()
    assert "The others have 210 detections" in svg


def recorded(*hours):
    return np.isin(np.arange(24), hours).astype(float)


@pytest.mark.parametrize(
    ("analysed_h", "shown"),
    [
        (None, list(range(24))),
        (recorded(*range(24)), list(range(24))),
        (recorded(*range(0, 24, 4)), list(range(24))),
        (recorded(5, 6, 8, 10, 11), list(range(5, 12))),
        (recorded(22, 23, 0, 1, 2, 4), [22, 23, 0, 1, 2, 3, 4]),
        (recorded(5, 6, 16, 17, 18, 20), [5, 6, BREAK, 16, 17, 18, 19, 20]),
        (recorded(0, 1, 2, 12, 13, 14), [0, 1, 2, BREAK, 12, 13, 14]),
        (recorded(5, 6, 16, 17), [5, 6, BREAK, 16, 17, 18]),
        (recorded(5), [3, 4, 5, 6, 7, 8]),
        (recorded(23), [21, 22, 23, 0, 1, 2]),
    ],
)
def test_many_hours_without_a_recording_are_not_shown(analysed_h, shown):
    assert shown_hours(analysed_h).tolist() == shown


def test_the_edges_of_hours_are_labelled_and_so_are_those_of_a_break():
    assert hour_labels(np.array([22, 23, 0, BREAK, 12])) == ["22", "23", "24", "1", "12", "13"]
    values = at_hours(np.arange(24.0), np.array([23, BREAK, 5]))
    np.testing.assert_array_equal(values, [23, np.nan, 5])


def places_of(hours):
    """Recordings of an hour each that begin at these hours of UTC; their names have no or another time."""
    starts = {path: datetime(2022, 5, 1, hour, tzinfo=UTC) for path, hour in hours.items()}
    places = {path: TimeAndPlace(None, start, UTC) for path, start in starts.items()}
    return RunRecordings(dict.fromkeys(hours, 3600.0), places)


@pytest.mark.parametrize("folder", ["", os.path.abspath("rec") + os.sep, "/moved/rec/", "D:\\moved\\rec\\"])
def test_recordings_of_the_same_name_are_told_apart_by_their_folders(folder):
    name = "20220501_210000.WAV"
    run = places_of({f"rec/{name}": 1, f"rec/north/{name}": 3, f"rec/south/{name}": 6})
    mark = "\\" if "\\" in folder else "/"
    paths = [f"{folder or 'rec/'}{part}{name}" for part in (f"north{mark}", f"south{mark}", "")]
    counted = measure_activity(table(*((path, 0, 3, "a", 1) for path in paths)), run, "t")
    assert counted.counts.loc["a", [3, 6, 1]].tolist() == [1, 1, 1]
    assert (counted.clock, counted.recordings, counted.left_out) == ("UTC", 3, 0)


def test_recordings_that_cannot_be_told_apart_are_skipped_and_counted(caplog):
    name = "20220501_210000.WAV"
    run = places_of({f"north/{name}": 3, f"south/{name}": 6, "south/b.WAV": 7, "south/c.WAV": 8, "north/c.WAV": 8})
    for path, place in run.places.items():
        run.places[path] = replace(place, site=path.partition("/")[0], latitude=len(path), longitude=30)
    rows = table((f"/x/{name}", 0, 3, "a", 1), ("/x/b.WAV", 0, 3, "a", 1), ("/x/c.WAV", 0, 3, "a", 1))
    counted = measure_activity(rows, run, "t")
    assert counted.counts.loc["a"][lambda hours: hours > 0].to_dict() == {7: 1, 8: 1}  # both c.WAV began at 8
    assert counted.clock == "UTC"
    assert "t: 1 recordings are skipped, because several in recordings.csv have the same name" in caplog.text
    assert f"(/x/{name})" in caplog.text


def test_thousands_of_recordings_in_raven_table_are_found_in_seconds():
    hours = {f"site{site}/{number}.WAV": 3 for number in range(2000) for site in range(2)}
    run = places_of(hours)
    began = time.process_time()
    assert all(run.find(f"/moved/{path}") == [path] for path in hours)
    assert time.process_time() - began < 5


def test_an_activity_without_recorded_time_is_a_user_error():
    with pytest.raises(UserError, match=r"recordings\.csv beside t has no analysed sound"):
        measure_activity(table((MORNING, 0, 3, "a", 1)), RunRecordings({MORNING: 0.0}, {}), "t")


@pytest.mark.parametrize("species", [1, 2, 40])
@pytest.mark.parametrize("durations", [None, {MORNING: 3600.0, EVENING: 3600.0}, {MORNING: 86_000.0}])
def test_no_text_of_an_activity_is_cut_off_or_covers_another(species, durations):
    rows = table(*((MORNING, 3.0 * n, 3.0 * n + 3, f"a very long name of a species {n}", 1) for n in range(species)))
    run = None if durations is None else RunRecordings(durations, {})
    figure = activity.draw_activity(measure_activity(rows, run, "t"))
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [text.get_window_extent() for text in texts]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    pairs = combinations(zip(texts, boxes, strict=True), 2)
    assert not [(a, b) for (a, of_a), (b, of_b) in pairs if of_a.overlaps(of_b)]


def test_an_hour_that_was_hardly_recorded_does_not_set_the_scale():
    counted = measure_activity(
        table(*((MORNING, 10.0 * n, 10.0 * n, "a", 1) for n in range(9)), (EVENING, 61.0, 62.0, "a", 1)),
        RunRecordings({MORNING: 1800.0, EVENING: 62.0}, {}),  # of the second, two seconds reach into hour 0
        "t",
    )
    assert counted.analysed_h[0] == pytest.approx(2 / 3600)
    (image,) = activity.draw_activity(counted).axes[0].images
    assert image.norm.vmax == pytest.approx(18)


def test_annotations_are_drawn_as_boxes_beside_the_detections(tables, tmp_path):
    path, _ = tables
    (tmp_path / "birds.csv").write_text(
        "file,start,end,low_hz,high_hz,species\n"
        f"{path.stem}.wav,20,23,3500,4500,tone\n{path.stem}.wav,25,25,,,point\nother.wav,20,23,1,2,other\n"
    )
    boxes = annotations_of(path, tmp_path / "birds.csv")
    assert boxes["label"].tolist() == ["tone", "point"]
    rows = table((str(path), 20, 23, "a", 0.9))
    figure, _ = draw_section(path, rows, 19, 8, species_styles("a"), boxes)
    spectrogram = figure.axes[0]
    drawn = [(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in spectrogram.patches]
    # Without frequencies, a box has almost the height of the picture: 15 kHz.
    assert drawn == [(20, 3500, 3, 1000), (25, pytest.approx(150), 0, pytest.approx(14_700))]
    assert [text.get_text().strip() for text in spectrogram.texts] == ["tone", "point"]
    with pytest.raises(UserError, match=r"birds.csv has no annotations of x.wav"):
        annotations_of(tmp_path / "x.wav", tmp_path / "birds.csv")


def test_names_of_annotations_are_drawn_as_they_are_and_boxes_above_the_picture_are_skipped(tables, tmp_path):
    path, _ = tables
    names = ["US$ and CA$", r"$\foo$", "x" * 40, "bat", "high"]
    boxes = pd.DataFrame({"start_s": 20.0, "end_s": 21.0, "low_hz": [1e3, 2e3, 3e3, 14_900, 14_000], "label": names})
    figure, _ = draw_section(path, table(), 19, 4, {}, boxes.assign(high_hz=[2e3, 3e3, 4e3, 40_000, 40_000]))
    spectrogram = figure.axes[0]
    assert [text.get_text().strip() for text in spectrogram.texts] == [*names[:2], "x" * 29 + "…", "high"]
    assert not any(text.get_parse_math() for text in spectrogram.texts)
    assert all(box.get_height() > 0 for box in spectrogram.patches)
    save_picture(figure, tmp_path / "x.png")


@pytest.mark.parametrize(
    "annotations", [None, pd.DataFrame(columns=["start_s", "end_s", "low_hz", "high_hz", "label"])]
)
def test_a_long_name_in_the_title_is_shortened_to_its_room(tmp_path, annotations):
    path = tmp_path / f"{'W' * 70}_20180427_235950.wav"
    soundfile.write(path, np.zeros(RATE), RATE)
    figure, _ = draw_section(path, table(), 0, 1, {}, annotations)
    title, *others = (text.get_window_extent() for text in figure.texts)
    assert figure.texts[0].get_text().endswith("…   0:00 to 0:01, begun 2018-04-27 23:59:50 local time")
    assert figure.bbox.width * 0.7 < title.x1 <= min([figure.bbox.width, *(text.x0 for text in others)])


def test_the_command_draws_the_annotations_of_an_archive(tmp_path):
    archive = write_archive(tmp_path / "archive", [("a.wav", (2.0, 4.0), "owl1"), ("a.wav", 6.0, "????")])
    recording = archive / "soundscape_data" / "a.wav"
    assert annotations_of(recording, archive)["label"].tolist() == ["owl1", "????"]
    found = tmp_path / "found.csv"
    found.write_text(
        f"recording,start_s,end_s,code,common_name,scientific_name,score\n{recording},1,4,owl1,Owl,,0.9\n"
    )
    words = ["plot", str(recording), str(found), "--annotations", str(archive), "--output", str(tmp_path / "a.png")]
    cli.main(words)
    plain = words[:3] + words[5:6] + [str(tmp_path / "b.png")]
    cli.main(plain)
    assert (imread(tmp_path / "a.png") != imread(tmp_path / "b.png")).any()
