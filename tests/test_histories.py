"""Detection histories: what was detected where and when, and NA where nothing was analysed."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kenya_birds.cli import main
from kenya_birds.data.recording_time import TimeAndPlace
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.inference.merged_detections import middles_s
from kenya_birds.inference.table_formats import FAILED_COLUMNS
from kenya_birds.verification import histories as histories_module
from kenya_birds.verification.histories import Recorded, make_histories
from kenya_birds.verification.history_tables import HistorySettings, apply_answers, survey_histories
from kenya_birds.verification.occasions import clock_occasions, twilight_occasions
from kenya_birds.verification.survey import Survey
from kenya_birds.verification.survey_sites import Sites

EVENING = datetime(2021, 12, 7, 22)
NAIROBI = {"latitude": -1.29, "longitude": 36.82}
COLUMNS = ["recording", "start_s", "end_s", "code", "common_name", "scientific_name", "score"]
H = 3600.0


def found(*rows):
    """Detections of 3 s, as recording, start in s, code and score."""
    table = pd.DataFrame(
        [(path, start_s, start_s + 3, code, code.title(), "", score) for path, start_s, code, score in rows],
        columns=COLUMNS,
    )
    return table.astype({"start_s": float, "end_s": float, "score": float}).assign(confirmed=False)


def recorded(site="A", start=EVENING, hours=4.0, gaps=(), **place):
    return Recorded(site, TimeAndPlace(site, start, **place), hours * H, gaps)


@pytest.mark.parametrize(
    ("unit", "names", "effort_h"),
    [
        ("night", ["2021-12-07"], [4]),
        ("day", ["2021-12-07", "2021-12-08"], [2, 2]),
        ("hour", ["2021-12-07T22", "2021-12-07T23", "2021-12-08T00", "2021-12-08T01"], [1, 1, 1, 1]),
    ],
)
def test_a_night_is_one_occasion_two_days_or_four_hours(unit, names, effort_h):
    histories = make_histories({"a": recorded()}, found(("a", 10, "owl", 0.9)), unit)
    assert histories.occasions["occasion"].tolist() == names
    assert histories.effort_h.tolist() == [effort_h]
    assert histories.detected()[0, 0].tolist() == [1] + [0] * (len(names) - 1)


def test_a_detection_belongs_to_the_occasion_of_its_middle():
    around = found(("a", 2 * H - 1.6, "owl", 0.9), ("a", 2 * H - 1.4, "owl", 0.7), ("a", 2 * H - 1.4, "dove", 0.8))
    histories = make_histories({"a": recorded()}, around, "day")
    assert histories.species["code"].tolist() == ["dove", "owl"]
    assert histories.detections[:, 0].tolist() == [[0, 1], [1, 1]]
    np.testing.assert_equal(histories.max_score[:, 0], [[np.nan, 0.8], [0.9, 0.7]])


def test_a_merged_detection_belongs_to_all_occasions_that_have_the_middle_of_a_window_in_it():
    # From shortly before 23 h to shortly after 1 h: the last window that it is made of may have its middle before 1 h.
    chorus = found(("a", H - 60, "owl", 0.9)).assign(end_s=3 * H + 1.4)
    histories = make_histories({"a": recorded()}, chorus, "hour")
    assert histories.detections[0, 0].tolist() == [1, 1, 1, 0]
    night = make_histories({"a": recorded()}, chorus, "night")
    assert night.detections[0, 0].tolist() == [1]


def test_no_sound_no_information():
    recordings = {
        "whole": recorded("A", hours=2),
        "later": recorded("A", EVENING + timedelta(days=2), hours=2, gaps=[(0, np.inf)]),
        "damaged": recorded("B", EVENING, hours=4, gaps=[(H, 2 * H), (1.5 * H, 1.75 * H), (3 * H, 3.5 * H)]),
        "next": recorded("B", EVENING + timedelta(days=2), hours=1),
    }
    histories = make_histories(recordings, found(("whole", 0, "owl", 0.9)), "hour", sites=["C", "B", "A"])
    assert histories.sites == ["C", "B", "A"]
    detected = pd.DataFrame(histories.detected()[0], histories.sites, histories.occasions["occasion"])
    assert detected.loc["A", "2021-12-07T22"] == 1
    assert detected.loc["A", "2021-12-07T23"] == 0
    assert detected.loc["C"].isna().all(), "a site without recordings"
    assert np.isnan(detected.loc["A", "2021-12-09T22"]), "the recording of this site failed"
    assert detected.loc["B", "2021-12-09T22"] == 0
    assert "2021-12-07T23" in detected, "site A was recorded"
    assert np.isnan(detected.loc["B", "2021-12-07T23"]), "the whole hour is damaged"
    effort_h = pd.DataFrame(histories.effort_h, histories.sites, histories.occasions["occasion"])
    assert effort_h.loc["B", "2021-12-08T01"] == 0.5
    assert np.isnan(
        pd.DataFrame(histories.detected(0.6)[0], effort_h.index, effort_h.columns).loc["B", "2021-12-08T01"]
    )


def test_a_recording_that_failed_is_no_effort_however_its_length_was_rounded():
    failed = recorded("A", hours=1000.0004 / H, gaps=[(0, 400), (400.0000001, 1000)])
    histories = make_histories({"a": failed, "b": recorded("B")}, found(), "night")
    assert histories.sites == ["A", "B"]
    assert histories.effort_h.tolist() == [[0], [4]]


def test_time_that_two_recorders_of_a_site_heard_counts_once():
    recordings = {"a": recorded(hours=2), "b": recorded(start=EVENING + timedelta(hours=1), hours=2)}
    histories = make_histories(recordings, found(("a", 1.5 * H, "owl", 0.9), ("b", 0.5 * H, "owl", 0.8)), "night")
    assert histories.effort_h.tolist() == [[3]]
    assert histories.detections.tolist() == [[[2]]]


def test_detections_are_prepared_once_and_not_for_each_recording(monkeypatch):
    calls = []
    monkeypatch.setattr(histories_module, "middles_s", lambda table: calls.append(len(table)) or middles_s(table))
    recordings = {name: recorded(name) for name in "abc"}
    rows = [("b", 10, "owl", 0.9), ("a", 2 * H, "dove", 0.8), ("x", 0, "owl", 1.0), ("b", 20, "dove", 0.7)]
    histories = make_histories(
        recordings, found(*rows).set_axis([7, 7, 3, 1]).assign(confirmed=[True] + 3 * [False]), "day"
    )
    assert calls == [4]
    assert histories.detections.tolist() == [[[0, 1], [1, 0], [0, 0]], [[0, 0], [1, 0], [0, 0]]]
    assert histories.confirmed.sum(axis=(1, 2)).tolist() == [0, 1]
    assert np.nanmax(histories.max_score, axis=(1, 2)).tolist() == [0.8, 0.9]


@settings(max_examples=50)
@given(
    st.sampled_from(["night", "day", "hour"]),
    st.lists(st.tuples(st.integers(0, 60 * 48), st.integers(1, 60 * 30)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 60 * 24), st.integers(0, 600)), max_size=3),
)
@example("night", [(0, 31), (0, 32)], [(0, 31)])  # 31 / 60 hours are a little more than 31 minutes
def test_effort_is_the_analysed_time_whatever_the_unit(unit, recordings, gaps):
    spans = [(start_min + at * 100 * 60, length_min) for at, (start_min, length_min) in enumerate(recordings)]
    gaps_s = [(60.0 * start, 60.0 * (start + length)) for start, length in gaps]
    minutes = sum(
        sum(not any(start <= 60 * minute < end for start, end in gaps_s) for minute in range(length_min))
        for _, length_min in spans
    )
    survey = {
        str(at): recorded(start=EVENING + timedelta(minutes=start), hours=length / 60, gaps=gaps_s)
        for at, (start, length) in enumerate(spans)
    }
    if minutes == 0:
        with pytest.raises(UserError, match="no analysed sound"):
            make_histories(survey, found(), unit)
    else:
        histories = make_histories(survey, found(), unit)
        assert histories.effort_h.sum() == pytest.approx(minutes / 60)
        assert (histories.effort_h.sum(axis=0) > 0).all()


@settings(max_examples=50)
@given(st.sampled_from(["night", "day", "hour"]), st.datetimes(), st.integers(1, 10**6))
def test_parts_of_a_span_follow_each_other(unit, start, seconds):
    start = start.replace(year=min(max(start.year, 2), 9990))
    end = start + timedelta(seconds=seconds)
    parts = list(clock_occasions(unit, start, end))
    assert [parts[0].start, parts[-1].end] == [start, end]
    assert all(before.end == after.start for before, after in pairwise(parts))
    assert len({part.name for part in parts}) == len(parts)


def test_twilights_are_when_the_sun_is_at_these_heights():
    """Spencer's series for declination and equation of time (1971), at Nairobi; to 2 minutes."""
    start = datetime(2021, 12, 6, 21, tzinfo=UTC)  # midnight in Nairobi
    dawn, dusk = twilight_occasions(start, start + timedelta(days=1), **NAIROBI)
    assert (dawn.name, dusk.name) == ("2021-12-07 dawn", "2021-12-07 dusk")
    angle = 2 * np.pi * 340 / 365  # 7 December
    cosines, sines = np.cos([angle, 2 * angle, 3 * angle]), np.sin([angle, 2 * angle, 3 * angle])
    equation_min = 7.5e-5 + np.dot([0.001868, -0.014615], cosines[:2]) - np.dot([0.032077, 0.040849], sines[:2])
    equation_min *= 229.18
    declination = 0.006918 + np.dot([-0.399912, -0.006758, -0.002697], cosines)
    declination += np.dot([0.070257, 0.000907, 0.00148], sines)
    latitude, noon_min = np.radians(NAIROBI["latitude"]), 720 - 4 * NAIROBI["longitude"] - equation_min
    for height_degrees, before, after in ((-12, dawn.start, dusk.end), (-0.833, dawn.end, dusk.start)):
        cosine = np.sin(np.radians(height_degrees)) - np.sin(latitude) * np.sin(declination)
        half_day_min = 4 * np.degrees(np.arccos(cosine / (np.cos(latitude) * np.cos(declination))))
        assert before.hour * 60 + before.minute == pytest.approx(noon_min - half_day_min, abs=2)
        assert after.hour * 60 + after.minute == pytest.approx(noon_min + half_day_min, abs=2)


@settings(max_examples=50)
@given(st.floats(-60, 60), st.floats(-180, 180), st.integers(0, 364))
def test_everywhere_a_day_has_a_dawn_and_a_dusk_of_at_most_a_few_hours(latitude, longitude, day):
    start = datetime(2021, 1, 1, tzinfo=UTC) + timedelta(days=day)
    parts = list(twilight_occasions(start, start + timedelta(days=3), latitude, longitude))
    whole = [part for part in parts if start < part.start and part.end < start + timedelta(days=3)]
    if abs(latitude) < 54:  # there, the sun sinks below 12 degrees on every day
        assert len(whole) in (5, 6)
    assert all(timedelta(minutes=40) < part.end - part.start < timedelta(hours=6) for part in whole)
    assert all(before.end <= after.start for before, after in pairwise(parts))
    assert len({part.name for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("latitude", "longitude"), [(52, -120), (35, -100), (9.9, -84), (23.8, 90.4), (13, 77), (40, 95)]
)
def test_no_twilight_of_a_year_is_lost_where_one_passes_midnight_of_utc(latitude, longitude):
    start = datetime(2022, 1, 1, tzinfo=UTC)
    parts = list(twilight_occasions(start, start + timedelta(days=365), latitude, longitude))[2:-2]
    for name in ("dawn", "dusk"):
        alike = [part for part in parts if part.name.endswith(name)]
        assert len(alike) in (362, 363, 364)
        assert all(timedelta(hours=23.9) < b.start - a.start < timedelta(hours=24.1) for a, b in pairwise(alike))
        dates = [datetime.fromisoformat(part.name.split()[0]) for part in alike]
        assert all(after - before == timedelta(days=1) for before, after in pairwise(dates))


def test_twilight_needs_place_and_utc():
    start = datetime(2021, 12, 7, 2, tzinfo=UTC)  # 5:00 in Nairobi
    recordings = {
        "a": recorded(start=start, hours=2, **NAIROBI),
        "local": recorded(start=EVENING, **NAIROBI),
        "nowhere": recorded(start=start),
        "siteless": recorded(None, start, **NAIROBI),
    }
    histories = make_histories(recordings, found(("a", 600, "owl", 0.9), ("a", 3600, "dove", 0.9)), "twilight")
    assert histories.occasions["occasion"].tolist() == ["2021-12-07 dawn"]
    assert histories.effort_h.sum() == pytest.approx(48 / 60, abs=2 / 60)
    detections = dict(zip(histories.species["code"], histories.detections.sum(axis=(1, 2)), strict=True))
    assert detections == {"dove": 1, "owl": 0}, "at 5:10 it is still night"
    assert histories.skipped == {"without a UTC time": 1, "without a place": 1, "without a site": 1}


def test_answers_confirm_remove_and_rename_detections(caplog):
    codes = {0: "owl", 3: "owl", 6: "owl", 9: "dove", 12: "owl", 15: "owl"}
    table = found(*(("r", start_s, code, 0.5) for start_s, code in codes.items()))
    rows = [
        (0, "owl", "right", ""),
        (3, "owl", "wrong", ""),
        (6, "owl", "other", "dove"),
        (9, "dove", "other", "????"),
    ]
    second = [(12, "owl", "unsure", ""), (15, "owl", "right", ""), (15, "owl", "other", "dove")]  # people disagree
    others = [("x", 21, "owl", "wrong", ""), ("x", 24, "owl", "unsure", "")]  # of another run
    # The folder of the recordings may be given in another way.
    given_answers = [*(("./r", *row) for row in rows), *((os.path.abspath("r"), *row) for row in second), *others]
    answers = pd.DataFrame(
        [(path, f"{start:.3f}", f"{start + 3:.3f}", *rest) for path, start, *rest in given_answers],
        columns=["recording", "start_s", "end_s", "species", "answer", "other_species"],
    )
    kept = apply_answers(table, answers)
    assert kept[["start_s", "code", "common_name", "confirmed"]].to_numpy().tolist() == [
        [0, "owl", "Owl", True],
        [6, "dove", "Dove", True],
        [12, "owl", "Owl", False],
        [15, "owl", "Owl", False],
    ]
    (warning,) = caplog.messages
    assert warning.startswith("1 of 6 checked detections are not in this run")
    assert f"owl at 21 s of {os.path.abspath('x')}" in warning


def test_answers_about_another_run_are_refused():
    answers = pd.DataFrame(
        [("r", 1.5, 4.5, "owl", "right", "")],
        columns=["recording", "start_s", "end_s", "species", "answer", "other_species"],
    )
    with pytest.raises(UserError, match=r"none of the 1 checked detections is in this run \(first: owl at 1\.5 s of "):
        apply_answers(found(("r", 0, "owl", 0.9)), answers)
    assert len(apply_answers(found(("r", 0, "owl", 0.9)), answers.assign(answer="unsure"))) == 1
    assert len(apply_answers(found(("other recording", 0, "owl", 0.9)), answers)) == 1


def test_a_species_without_a_threshold_is_na_where_nobody_has_confirmed_it():
    rows = found(("a", 10, "owl", 0.9), ("a", 20, "dove", 0.9)).assign(confirmed=True)
    histories = make_histories({"a": recorded()}, rows, "day")
    decided = dataclasses.replace(histories, undecided=frozenset({"dove"}))
    np.testing.assert_equal(decided.detected()[:, 0], [[1, np.nan], [1, 0]])
    np.testing.assert_equal(decided.detected(species=slice(1, 2))[:, 0], [[1, 0]])


def test_another_species_that_calls_too_is_confirmed_once():
    rows = [(0, "owl"), (3, "owl"), (3, "dove"), (6, "owl"), (6, "gull"), (9, "owl"), (12, "owl")]
    rows += [(15, "owl"), (15, "dove")]
    table = found(*(("r", start_s, code, 0.5) for start_s, code in rows))
    said = [(0, "owl", "right", "dove"), (3, "owl", "right", "dove"), (6, "owl", "other", "dove")]
    said += [(6, "gull", "other", "dove"), (9, "owl", "right", "????"), (12, "owl", "right", "dove")]
    said += [(12, "owl", "right", "")]  # of another person, who has not heard it
    said += [(15, "owl", "right", "dove"), (15, "dove", "wrong", "")]
    answers = pd.DataFrame(
        [("r", start, start + 3, *rest) for start, *rest in said],
        columns=["recording", "start_s", "end_s", "species", "answer", "other_species"],
    )
    heard = apply_answers(table, answers)
    assert heard["confirmed"].all()
    assert sorted(heard[["start_s", "code", "common_name"]].itertuples(index=False, name=None)) == [
        *((0, "dove", "Dove"), (0, "owl", "Owl"), (3, "dove", "Dove"), (3, "owl", "Owl")),
        *((6, "dove", "Dove"), (9, "owl", "Owl"), (12, "owl", "Owl"), (15, "owl", "Owl")),
    ]


@pytest.fixture
def run_folder(tmp_path):
    """A run of three recordings of two sites; one of them failed, and a fourth could not be read."""
    folder = tmp_path / "found"
    folder.mkdir()
    start = {
        name: EVENING + timedelta(days=day) for name, day in (("n/A_1.flac", 0), ("n/A_2.flac", 1), ("s/B_1.flac", 1))
    }
    rows = [(name, 2 * H, time.isoformat(timespec="milliseconds"), name[2]) for name, time in start.items()]
    table = pd.DataFrame(rows, columns=["recording", "duration_s", "local_time", "site"])
    table.to_csv(folder / "recordings.csv", index=False)
    detections = found(("n/A_1.flac", 5, "owl", 0.9), ("s/B_1.flac", 5, "owl", 0.2), ("s/B_1.flac", 8, "dove", 0.6))
    detections[COLUMNS].to_csv(folder / "detections.csv", index=False)
    failed = [("n/A_2.flac", "partly read", "0", "7200", "damaged"), ("x.flac", "failed", "", "", "cannot be read")]
    pd.DataFrame(failed, columns=list(FAILED_COLUMNS)).to_csv(folder / "failed.csv", index=False)
    (folder / "run.json").write_text(json.dumps({"model": "birds", "undetected": UNDETECTED}))
    return folder


UNDETECTED = {"wren": ["Wren", "Troglodytes"], "gull": ["Grey Gull", "Larus"]}


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_tables_are_those_that_r_reads(run_folder, tmp_path, capsys):
    (tmp_path / "sites.csv").write_text("site,altitude\nB,1500\nC,2000\nA,1700\n")
    words = ["--unit", "night", "--sites", str(tmp_path / "sites.csv"), "--threshold", "0.5"]
    main(["histories", str(run_folder), "--output", str(tmp_path / "out"), *words])
    told = capsys.readouterr().out
    assert "1 site without recordings, with NA only: C" in told
    assert "Not detected, and therefore without a matrix: 2 species of the model (wren, gull)" in told
    assert json.loads((tmp_path / "out" / "histories.json").read_text())["undetected"] == ["wren", "gull"]
    assert "2 species, 3 sites, 2 occasions (local time), 4.00 analysed hours, 2 detections" in told
    out = tmp_path / "out"
    head = ["site", "2021-12-07", "2021-12-08"]
    assert rows_of(out / "matrices" / "owl.csv") == [head, ["B", "NA", "0"], ["C", "NA", "NA"], ["A", "1", "NA"]]
    assert rows_of(out / "matrices" / "dove.csv") == [head, ["B", "NA", "1"], ["C", "NA", "NA"], ["A", "0", "NA"]]
    assert rows_of(out / "effort_h.csv") == [head, ["B", "0", "2"], ["C", "0", "0"], ["A", "2", "0"]]
    assert rows_of(out / "sites.csv")[1:] == [
        ["B", "1500", "1", "2.0"],
        ["C", "2000", "0", "0.0"],
        ["A", "1700", "1", "2.0"],
    ]
    long = rows_of(out / "histories.csv")
    assert len(long) == 1 + 2 * 3 * 2
    assert dict(zip(long[0], long[2], strict=True)) == {
        **{"code": "dove", "common_name": "Dove", "scientific_name": "NA", "site": "B", "occasion": "2021-12-08"},
        **{"detected": "1", "detections": "1", "confirmed": "0", "max_score": "0.6", "effort_h": "2.0"},
    } | {"scientific_name": ""}
    assert long[1][5:] == ["NA", "NA", "NA", "NA", "0.0"]


def test_a_local_time_that_is_utc_is_known(run_folder, tmp_path, capsys):
    """Clocks in London are set back on 31 October: its local time is then UTC."""
    path = run_folder / "recordings.csv"
    table = pd.read_csv(path)
    table["local_time"] = ["2021-10-30T23:00:00.000", "2021-10-31T23:00:00.000", "2021-10-31T23:00:00.000"]
    table["utc_time"] = ["2021-10-30T22:00:00.000Z", "2021-10-31T23:00:00.000Z", "2021-10-31T23:00:00.000Z"]
    table.to_csv(path, index=False)
    main(["histories", str(run_folder), "--output", str(tmp_path / "out"), "--unit", "night"])
    assert "2 sites, 2 occasions (local time)" in capsys.readouterr().out
    assert rows_of(tmp_path / "out" / "effort_h.csv")[0] == ["site", "2021-10-30", "2021-10-31"]


def test_tables_that_a_spreadsheet_with_decimal_commas_saved_are_read(run_folder):
    path = run_folder / "recordings.csv"
    pd.read_csv(path).assign(duration_s=7200.5, latitude=-1.25, longitude=36.5).to_csv(path, index=False)
    before = Survey.read(run_folder)
    for name in ("recordings.csv", "detections.csv", "failed.csv"):
        table = pd.read_csv(run_folder / name)
        table.to_csv(run_folder / name, sep=";", decimal=",", index=False, encoding="utf-8-sig")
    after = Survey.read(run_folder)
    assert after.run == before.run
    pd.testing.assert_frame_equal(after.detections, before.detections)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_tables_that_are_not_in_utf_8_are_read(run_folder, encoding):
    for name in ("recordings.csv", "detections.csv", "failed.csv"):
        text = (run_folder / name).read_text("utf-8").replace("A_1", "März_1").replace("Owl", "Käuzchen")
        (run_folder / name).write_text(text, encoding="utf-8")
    before = Survey.read(run_folder)
    assert "n/März_1.flac" in before.run.duration_s
    for name in ("recordings.csv", "detections.csv", "failed.csv"):
        (run_folder / name).write_text((run_folder / name).read_text("utf-8"), encoding=encoding)
    after = Survey.read(run_folder)
    assert after.run == before.run
    pd.testing.assert_frame_equal(after.detections, before.detections)


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="needs R")
def test_r_reads_what_was_written(run_folder, tmp_path):
    main(["histories", str(run_folder), "--output", str(tmp_path / "out"), "--unit", "night"])
    program = (
        'source("read_histories.R"); h <- read_histories("."); stopifnot(identical(dim(h$y), c(2L, 2L, 2L)), '
        'identical(unname(h$y["owl", , ]), matrix(c(1, NA, NA, 1), 2)), identical(rownames(h$effort_h), c("A", "B")))'
    )
    done = subprocess.run(
        ["Rscript", "-e", program], cwd=tmp_path / "out", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_sites_of_thousands_of_recordings_are_found_in_a_second(tmp_path):
    rows = [f"P{at},P{at}/*,{at / 10},36" for at in range(300)]
    (tmp_path / "sites.csv").write_text("\n".join(["site,recordings,latitude,longitude", *rows]))
    sites = Sites.read(tmp_path / "sites.csv")
    began = time.process_time()
    assert sites.site_of("/data/P7/a.wav", None) == "P7"
    assert {sites.place("P7") for _ in range(2000)} == {(0.7, 36.0)}
    assert time.process_time() - began < 1


def test_sites_are_found_by_patterns(tmp_path):
    (tmp_path / "sites.csv").write_text("site,recordings,latitude,longitude\nnorth,n/*,-1.29,36.82\nsouth,s\\*,,\n")
    sites = Sites.read(tmp_path / "sites.csv")
    assert sites.site_of("/disk/n/A_1.flac", "A") == "north"
    assert sites.site_of("C:\\disk\\s\\B_1.flac", "B") == "south"
    assert sites.site_of("/disk/x/B_1.flac", "B") is None
    assert sites.place("north") == (-1.29, 36.82)
    assert sites.place("south") == (None, None)
    # Some sites are those of the names.
    (tmp_path / "sites.csv").write_text("site,recordings\nnorth,n/*\nB,\n")
    sites = Sites.read(tmp_path / "sites.csv")
    assert [sites.site_of(*one) for one in (("n/B_1.flac", "B"), ("s/B_1.flac", "B"), ("s/C_1.flac", "C"))] == [
        "north",
        "B",
        None,
    ]


def test_a_table_of_sites_that_a_spreadsheet_saved_is_read(tmp_path):
    path = tmp_path / "sites.csv"
    usual = 'site,recordings,latitude,longitude,Höhe,note\nN,"n,1/*",-1.5,36.25,1500.5,"Grün, 1"\nS,,,,7,"2,5"\n'
    path.write_text(usual, encoding="utf-8")
    expected = Sites.read(path)
    german = "Site;recordings;Latitude;longitude;Höhe;note\nN;n,1/*;-1,5;36,25;1500,5;Grün, 1\nS;;;;7;2,5\n"
    for encoding in ("utf-8", "cp1252", "utf-16"):
        for text in (german, german.replace(";", "\t"), f"sep=;\n{german}"):
            path.write_text(text, encoding=encoding)
            sites = Sites.read(path)
            pd.testing.assert_frame_equal(sites.table.reset_index(drop=True), expected.table.reset_index(drop=True))
            assert sites.patterns == expected.patterns
    assert sites.place("N") == (-1.5, 36.25)
    path.write_text("site\tRecordings\taltitude\nA\t12\t1,234\n")
    as_written = Sites.read(path)
    assert as_written.table.loc[:, ["Recordings", "altitude"]].to_numpy().tolist() == [["12", "1,234"]]
    assert as_written.site_of("/x/A_1.flac", "A") == "A"
    path.write_text("site,\nA,\nB,\n")
    assert Sites.read(path).names == ["A", "B"]
    path.write_text('site\n"A; B"\nB,\n')
    assert Sites.read(path).names == ["A; B", "B"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Site,SITE\nA,B\n", "has the column site twice: remove or rename one"),
        ("site;latitude\nA;1,x\n", "line 2: latitude is '1.x': expected a number"),
        ("name\nA\n", "has no column site"),
        ("site\nA\nA\n", "line 3 has the site A a second time"),
        ("site,latitude\nA,95\n", "line 2: latitude is 95.0: expected -90 to 90"),
        ("site,recordings\nA,n/*\nB,*.flac\n", "matches the patterns of A and B"),
        ("site\nX\nY\n", "has no site of the recordings (their own sites: A, B): found X, Y; correct the column site"),
        (
            "site,recordings\nX,north/*\n",
            "such as 'north/*': expected patterns of paths such as n/A_1.flac (their own",
        ),
        ("site,hours\nA,3\n", "has the column hours, which the output has too: rename or remove it"),
    ],
)
def test_wrong_tables_of_sites_are_one_line(run_folder, tmp_path, text, told, capsys):
    (tmp_path / "sites.csv").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["histories", str(run_folder), "--output", str(tmp_path / "out"), "--sites", str(tmp_path / "sites.csv")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


def test_answers_and_thresholds_are_of_this_model_and_a_species_without_one_is_told(run_folder, tmp_path, caplog):
    verified = tmp_path / "verified"
    verified.mkdir()
    rows = [("n/A_1.flac", 5, 8, "owl", "wrong", ""), ("s/B_1.flac", 5, 8, "owl", "right", "")]
    answers = pd.DataFrame(rows, columns=["recording", "start_s", "end_s", "species", "answer", "other_species"])
    answers.to_csv(verified / "answers.csv", index=False)
    checked = {"clips": 2, "model": "birds", "model_sha256": "a" * 64}
    thresholds = Thresholds(0.9, None, {"owl": 0.8}, verification=checked)
    (verified / "thresholds.json").write_text(json.dumps(thresholds.to_json()))
    wanted = HistorySettings("night", verified=verified)
    (run_folder / "run.json").write_text(json.dumps({"model": "others", "model_sha256": "b" * 64}))
    with pytest.raises(UserError, match="checked detections of another model, birds"):
        survey_histories(run_folder, tmp_path / "out", wanted)
    (run_folder / "run.json").write_text(json.dumps({"model": "birds", "model_sha256": "a" * 64}))
    histories = survey_histories(run_folder, tmp_path / "out", wanted)
    assert histories.detections.sum() == histories.confirmed.sum() == 1
    (warning,) = caplog.messages
    assert warning.startswith("1 of 2 species have no threshold in ")
    assert "(dove)" in warning
    head = ["site", "2021-12-07", "2021-12-08"]
    assert rows_of(tmp_path / "out" / "matrices" / "dove.csv") == [head, ["A", "NA", "NA"], ["B", "NA", "NA"]]
    assert rows_of(tmp_path / "out" / "matrices" / "owl.csv") == [head, ["A", "0", "NA"], ["B", "NA", "1"]]
    # All detections are confirmed, and there are none.
    table = pd.read_csv(run_folder / "detections.csv")
    for kept in (table[table["score"] == 0.2], table[:0]):
        kept.to_csv(run_folder / "detections.csv", index=False)
        histories = survey_histories(run_folder, tmp_path / f"{len(kept)}", wanted)
        assert histories.detections.sum() == histories.confirmed.sum() == len(kept)
        assert histories.effort_h.sum() == 4


def test_recordings_of_other_sites_are_told_apart_from_those_without_a_site(run_folder, tmp_path, capsys):
    table = pd.read_csv(run_folder / "recordings.csv")
    table.assign(site=["A", None, "B"]).to_csv(run_folder / "recordings.csv", index=False)
    (tmp_path / "sites.csv").write_text("site\nA\n")
    main(["histories", str(run_folder), "--output", str(tmp_path / "out"), "--sites", str(tmp_path / "sites.csv")])
    told = capsys.readouterr().out
    assert "Skipped: 1 recording without a site\n" in told
    assert "Skipped: 1 recording without a matching row in the table of sites (their own sites: B)\n" in told
    about = json.loads((tmp_path / "out" / "histories.json").read_text())
    assert about["skipped"] == {"without a site": 1, "without a matching row in the table of sites": 1}
    assert about["other_sites"] == ["B"]


def test_a_recording_without_a_time_keeps_its_site(run_folder, tmp_path, capsys):
    table = pd.read_csv(run_folder / "recordings.csv")
    table.loc[0, "local_time"] = None
    table.to_csv(run_folder / "recordings.csv", index=False)
    main(["histories", str(run_folder), "--output", str(tmp_path / "out")])
    assert "Skipped: 1 recording without a local time\n" in capsys.readouterr().out


def test_only_listed_species_are_written(run_folder, tmp_path, capsys):
    listed = tmp_path / "species.txt"
    words = ["histories", str(run_folder), "--unit", "night", "--species", str(listed), "--output"]
    listed.write_text("Owl  # by its name\nGrey Gull\nrobin\n")
    main([*words, str(tmp_path / "out")])
    told, logged = capsys.readouterr()
    assert f"Skipped 1 name in {listed} without a detection in {run_folder}: robin (line 3)" in logged
    assert "Writing histories.csv of 4 rows: 1 species, 2 sites, 2 occasions" in logged
    assert "without a matrix: 1 species of the model (gull)" in told
    assert "1 species, 2 sites, 2 occasions (local time), 4.00 analysed hours, 2 detections" in told
    assert [path.name for path in (tmp_path / "out" / "matrices").iterdir()] == ["owl.csv"]
    assert {row[0] for row in rows_of(tmp_path / "out" / "histories.csv")[1:]} == {"owl"}
    about = json.loads((tmp_path / "out" / "histories.json").read_text())
    assert about["species"] == str(listed)
    assert about["undetected"] == ["gull"]
    listed.write_text("robin\n")
    with pytest.raises(
        UserError, match=r"no detection of a species in .*: found robin \(line 1\); .* owl, dove, wren"
    ):
        survey_histories(run_folder, tmp_path / "none", HistorySettings(species=listed))
    with pytest.raises(SystemExit):
        main([*words[:-2], str(tmp_path / "missing.txt"), "--output", str(tmp_path / "none")])
    assert "missing.txt" in capsys.readouterr().err


def test_other_folders_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["histories", str(tmp_path), "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "expected the output folder of kenya-birds detect" in capsys.readouterr().err
