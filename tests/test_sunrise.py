from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

from kenya_birds import cli
from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import TimeAndPlace, parse_time_zone
from kenya_birds.data.sunrise import time_from_sunrise
from kenya_birds.errors import UserError
from kenya_birds.inference import activity
from kenya_birds.inference.activity import BREAK, ActivityClock, hour_labels, measure_activity
from kenya_birds.inference.recordings_reader import RunRecordings

NAIROBI = (-1.29, 36.82)


@pytest.mark.parametrize(
    ("sunrise", "latitude", "longitude"),
    [
        # London on the longest day and Sydney on its shortest, by almanacs: 03:43 UTC, and 07:00 at UTC+10.
        (datetime(2024, 6, 20, 3, 43, tzinfo=UTC), 51.507, -0.128),
        (datetime(2024, 6, 21, 7, 0, tzinfo=timezone(timedelta(hours=10))), -33.87, 151.21),
        # On the equator at an equinox: 6:07 by the equation of time, less 3 minutes for the sun's edge and refraction.
        (datetime(2024, 3, 20, 6, 4, tzinfo=UTC), 0.0, 0.0),
        (datetime(2024, 3, 20, 18, 4, tzinfo=UTC), 0.0, -180.0),
        (datetime(2024, 3, 20, 18, 4, tzinfo=UTC), 0.0, 180.0),
    ],
)
def test_time_is_counted_from_the_nearest_sunrise(sunrise, latitude, longitude):
    for hours in (-11.5, -1, 0, 0.5, 11.5):
        passed = time_from_sunrise(sunrise + timedelta(hours=hours), latitude, longitude)
        assert abs(passed - timedelta(hours=hours)) < timedelta(minutes=3)


def test_the_nearest_sunrise_is_known_where_it_passes_midnight_of_utc():
    times = [datetime(2022, 3, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in range(40 * 24)]
    assert all(abs(time_from_sunrise(time, 23.8, 90.4)) < timedelta(hours=12.1) for time in times)


def test_where_the_sun_does_not_rise_there_is_no_time_from_sunrise():
    for month in (6, 12):
        assert time_from_sunrise(datetime(2024, month, 21, 12, tzinfo=UTC), 78.2, 15.6) is None


def table(*rows):
    columns = ["recording", "start_s", "end_s", "code", "score"]
    return pd.DataFrame(rows, columns=columns).assign(common_name=lambda rows: rows["code"], scientific_name="")


# In Nairobi the sun rose at 06:18 on 7 December 2021.
DAWN, NOON, UNKNOWN = "a_20211207_052000.wav", "b_20211207_120000.wav", "c.wav"
PLACES = {
    DAWN: TimeAndPlace("a", datetime(2021, 12, 7, 2, 20, tzinfo=UTC), None, *NAIROBI),
    NOON: TimeAndPlace("b", datetime(2021, 12, 7, 12, 0), None, *NAIROBI),
    UNKNOWN: TimeAndPlace(None, None, None, *NAIROBI),
}
RUN = RunRecordings({DAWN: 7200.0, NOON: 3600.0, UNKNOWN: 60.0}, PLACES)
ROWS = table((DAWN, 0, 3, "x", 1), (DAWN, 3700, 3703, "x", 1), (DAWN, 7100, 7103, "y", 1), (NOON, 1800, 1803, "y", 1))


def test_detections_are_counted_by_the_hour_before_or_after_sunrise():
    counted = measure_activity(ROWS, RUN, "t", ActivityClock(from_sunrise=True))
    assert counted.counts.loc["x", [23, 0]].tolist() == [1, 1]
    assert counted.counts.loc["y", 0] == 1
    assert counted.analysed_h[[23, 0]] == pytest.approx([1, 1], abs=0.03)
    # Without a time zone, the noon's UTC time is not known.
    assert (counted.clock, counted.recordings, counted.left_out) == ("sunrise", 1, 2)
    counted = measure_activity(
        ROWS, RUN, "t", ActivityClock(from_sunrise=True, time_zone=parse_time_zone("Africa/Nairobi"))
    )
    assert counted.counts.loc["y", 6] == 1
    assert (counted.recordings, counted.left_out) == (2, 1)


def test_places_that_are_not_known_can_be_given():
    nowhere = {path: replace(place, latitude=None, longitude=None) for path, place in PLACES.items()}
    run = RunRecordings(RUN.duration_s, nowhere)
    with pytest.raises(UserError, match="whose UTC time, place and sunrise are known"):
        measure_activity(ROWS, run, "t", ActivityClock(from_sunrise=True))
    clock = ActivityClock(from_sunrise=True, latitude=NAIROBI[0], longitude=NAIROBI[1])
    assert measure_activity(ROWS, run, "t", clock).counts.loc["x", 23] == 1


def test_a_time_zone_gives_local_hours_too():
    counted = measure_activity(ROWS, RUN, "t", ActivityClock(time_zone=parse_time_zone("Africa/Nairobi")))
    assert (counted.counts.loc["x", 5], counted.counts.loc["y", 12]) == (1, 1)
    assert (counted.clock, counted.left_out) == ("local time", 1)


KENYA = timezone(timedelta(hours=3))
SIX = datetime(2021, 12, 7, 6)


@pytest.mark.parametrize(
    ("name", "pattern", "in_run", "start"),
    [
        ("north 07.12.2021 06-00", "%site %d.%m.%Y %H-%M", SIX.replace(tzinfo=KENYA), SIX.replace(tzinfo=KENYA)),
        # A recorder whose clock is in UTC, and a run with --time_zone.
        ("north 07.12.2021 03-00", "%site %d.%m.%Y %H-%M", SIX.replace(tzinfo=KENYA), SIX.replace(tzinfo=KENYA)),
        ("north 08.12.2021 06-00", "%site %d.%m.%Y %H-%M", SIX.replace(tzinfo=KENYA), datetime(2021, 12, 8, 6)),
        ("north 07.12.2021 06-00+0300", "%site %d.%m.%Y %H-%M%z", SIX, SIX.replace(tzinfo=KENYA)),
        ("north 07.12.2021 06-00", "%site %d.%m.%Y %H-%M", None, SIX),
        # A pattern of the site alone.
        ("north_1", "%site_*", SIX.replace(tzinfo=UTC), SIX.replace(tzinfo=UTC)),
        ("north_20211207_060000", "%site_*", None, SIX),
    ],
)
def test_a_name_pattern_keeps_what_the_run_knows(name, pattern, in_run, start):
    run = RunRecordings({f"{name}.wav": 60.0}, {f"{name}.wav": TimeAndPlace("before", in_run, None, *NAIROBI)})
    place = ActivityClock(NamePattern(pattern)).find_place(f"{name}.wav", run)
    assert (place.site, place.start, place.latitude) == ("north", start, NAIROBI[0])
    assert place.start.utcoffset() == start.utcoffset()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"latitude": 1.0}, "expected both"),
        ({"latitude": 1.0, "longitude": 2.0}, "only used with from_sunrise"),
        ({"latitude": 91.0, "longitude": 2.0, "from_sunrise": True}, "expected -90 to 90"),
    ],
)
def test_coordinates_that_cannot_be_used_are_refused(settings, reason):
    with pytest.raises(UserError, match=reason):
        ActivityClock(**settings)


def test_labels_are_minutes_and_negative_before_sunrise():
    assert hour_labels(np.array([22, 23, 0, BREAK, 12]), from_sunrise=True) == ["-120", "-60", "0", "60", "720", "780"]
    assert hour_labels(np.array([16, BREAK, 17]), from_sunrise=True) == ["960", "1020", "-420", "-360"]


def test_the_picture_names_minutes_from_sunrise():
    counted = measure_activity(ROWS, RUN, "t", ActivityClock(from_sunrise=True))
    figure = activity.draw_activity(counted)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "minutes from sunrise"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["-120", "-60", "0", "60", "120", "180", "240"]
    assert "Skipped: 2 recordings without UTC time, place or sunrise." in axes.texts[-1].get_text()
    # All hours, if the recorded ones are unknown.
    axes = activity.draw_activity(replace(counted, analysed_h=None)).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert (labels[0], labels[7], labels[-1], len(labels)) == ("-420", "0", "1020", 25)


def test_the_command_says_what_it_lacks(tmp_path, capsys):
    ROWS.to_csv(tmp_path / "detections.csv", index=False)
    words = ["activity", str(tmp_path / "detections.csv"), "--output", str(tmp_path / "a.png"), "--from_sunrise"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert "give --time_zone for recorders on local clocks" in capsys.readouterr().err
    cli.main([*words, "--time_zone", "+03:00", "--latitude", "-1.29", "--longitude", "36.82"])
    assert "The activity of 2 species" in capsys.readouterr().out
