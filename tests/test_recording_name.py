from datetime import UTC, datetime

import pytest

from kenya_birds.data.recording_name import parse_recording_name, recorded_by_hour
from kenya_birds.data.synthetic import synthetic_annotations


def test_the_number_of_a_kenyan_recording_is_its_site():
    parsed = parse_recording_name("KEN_001_20211207_153852.flac")
    assert parsed.site == "KEN_001"
    assert parsed.start == datetime(2021, 12, 7, 15, 38, 52)
    assert parsed.start.tzinfo is None


@pytest.mark.parametrize(
    ("name", "site", "start"),
    [
        ("SSW_001_20170225_010000Z.flac", "SSW_001", datetime(2017, 2, 25, 1, tzinfo=UTC)),
        ("UHH_001_S01_20161121_150000.flac", "UHH_S01", datetime(2016, 11, 21, 15)),
        ("NES_001_S01_20190914_043000.flac", "NES_S01", datetime(2019, 9, 14, 4, 30)),
        ("HSN_001_20150708_061805.flac", "HSN_001", datetime(2015, 7, 8, 6, 18, 5)),
        ("PER_001_S01_20190116_100007Z.flac", "PER_S01", datetime(2019, 1, 16, 10, 0, 7, tzinfo=UTC)),
        ("ESC_001_20210601_053000.flac", "ESC_001", datetime(2021, 6, 1, 5, 30)),
        ("SYN_012_20211207_053000.flac", "SYN_012", datetime(2021, 12, 7, 5, 30)),
        ("KEN_001_20211207_153852", "KEN_001", datetime(2021, 12, 7, 15, 38, 52)),
        ("KEN_001_20211207_153852.WAV", "KEN_001", datetime(2021, 12, 7, 15, 38, 52)),
    ],
)
def test_names_of_sister_collections_are_understood(name, site, start):
    assert parse_recording_name(name) == (site, start)


def test_recordings_with_other_numbers_share_a_site_that_is_named():
    first, second = (parse_recording_name(f"UHH_{number}_S03_20161121_150000.flac") for number in ("001", "002"))
    assert first.site == second.site == "UHH_S03"


def test_names_of_synthetic_recordings_are_understood():
    names = synthetic_annotations(recordings=9, duration_s=60.0, species=3)["recording"].unique()
    assert len(names) == 9
    assert None not in [parse_recording_name(name) for name in names]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a.flac",
        "KEN_001.flac",
        "KEN_001_20211207.flac",
        "KEN_001_20211307_153852.flac",  # no month 13
        "KEN_001_20210229_153852.flac",  # no leap year
        "KEN_001_20211207_246000.flac",
        "KEN_001_20211207_153852.flac ",
        "KEN_001_20211207_153852.flac\n",
        "KEN_00１_20211207_153852.flac",  # a digit that is not ASCII
        "KEN_001_20211207_1538520.flac",
        "copy of KEN_001_20211207_153852.flac",
        "KEN_20211207_153852.flac",
    ],
)
def test_other_names_tell_nothing(name):
    assert parse_recording_name(name) is None


def test_what_is_recorded_over_midnight_counts_for_the_hours_on_both_sides():
    late, noon = datetime(2021, 1, 1, 23, 30), datetime(2021, 1, 1, 12)
    recorded_s = recorded_by_hour([(late, 3000.5), (noon, 60.0), (noon, 86_400.0)])
    assert recorded_s[[23, 0, 1, 12]].tolist() == [5400, 4800.5, 3600, 3660]
    assert recorded_s.sum() == 3000.5 + 60 + 86_400
