from datetime import UTC, datetime, timedelta

import pytest

from kenya_birds.data.recording_name import NamePattern, parse_recording_name, recorded_by_hour
from kenya_birds.data.synthetic import synthetic_annotations
from kenya_birds.errors import UserError


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
    names = synthetic_annotations(recordings=9, duration_s=60.0, species=3, scene="quiet")["recording"].unique()
    assert len(names) == 9
    assert None not in [parse_recording_name(name) for name in names]


LOCAL = datetime(2021, 12, 7, 15, 38, 52)
UTC_TIME = LOCAL.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "site", "start"),
    [
        ("20211207_153852.WAV", None, LOCAL),  # AudioMoth
        ("20211207_153852T.WAV", None, LOCAL),  # its triggered recordings
        ("242A2604603691DD_20211207_153852.WAV", "242A2604603691DD", LOCAL),
        ("5A1B2C3D.WAV", None, datetime(2017, 11, 26, 21, 3, 57, tzinfo=UTC)),  # its first firmware
        ("SMM01234_20211207_153852.wav", "SMM01234", LOCAL),  # Song Meter
        ("S4A03895_20190522_000000.wav", "S4A03895", datetime(2019, 5, 22)),
        ("ARIZONA-1_20161023$195550.wav", "ARIZONA-1", datetime(2016, 10, 23, 19, 55, 50)),  # clock set by GPS
        ("SM3BAT_0+1_20211207_153852.wav", "SM3BAT", LOCAL),  # both channels
        ("SM3BAT_1_20211207_153852.wav", "SM3BAT", LOCAL),
        ("AM01_20211207_153852", "AM01", LOCAL),
        ("AM01_20211207_153852Z.wav", "AM01", UTC_TIME),
        ("2021-12-07T15-38-52", None, LOCAL),
        ("2021-12-07T15:38:52Z.flac", None, UTC_TIME),
        ("20211207T1538Z.flac", None, datetime(2021, 12, 7, 15, 38, tzinfo=UTC)),
        ("2021-12-07-birdnet-15:38:52.mp3", None, LOCAL),  # BirdNET-Pi
        ("2021-12-07-birdnet-RTSP_1-15:38:52.wav", None, LOCAL),
        ("Great_Tit-85-2021-12-07-birdnet-15:38:52.mp3", None, LOCAL),
        ("20211207T153852Z_REC.flac", None, UTC_TIME),  # Frontier Labs
        ("20211207153852.wav", None, LOCAL),
        ("CHE_02_20211207_153852.wav", "CHE_02", LOCAL),
        ("Forêt 2_2021_12_07_15_38_52.m4a", "Forêt 2", LOCAL),
        ("site-a 2021-12-07 15.38.52.3gp", "site-a", LOCAL),
        ("R1-20211207-153852_000.wav", "R1", LOCAL),
        ("KEN_20211207_153852.flac", "KEN", LOCAL),
        ("KEN_001_20211207_153852 (1).flac", "KEN_001", LOCAL),  # copies
        ("Copy of KEN_001_20211207_153852.flac", "KEN_001", LOCAL),
        ("20211207_153852-0100.wav", None, LOCAL),  # a number, or a zone: the time is the same
        ("20211207_153852+0001.wav", None, LOCAL),
    ],
)
def test_names_of_recorders_are_understood(name, site, start):
    assert parse_recording_name(name) == (site, start)


@pytest.mark.parametrize(
    ("name", "offset_h"),
    [
        ("20211207T153852+0300_REC.flac", 3),
        ("20211207T153852-0930.wav", -9.5),
        ("S20211207T153852.123456+1000_E20211207T163850.999999+1000_-12.34567+123.45678.wav", 10),
        ("x_20211207_153852+05:30.wav", 5.5),
        ("2021-12-07T15:38:52+00.wav", 0),
    ],
)
def test_with_an_offset_local_time_and_utc_are_known(name, offset_h):
    parsed = parse_recording_name(name)
    assert (parsed.local, parsed.utc) == (LOCAL, UTC_TIME - timedelta(hours=offset_h))
    assert parse_recording_name("20211207_153852Z.wav").local is None
    assert parse_recording_name("20211207_153852.wav").utc is None


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
        "20211207T153852+9900.wav",  # no such zone
        "KEN_001_20211207_153852.flac ",
        "KEN_001_20211207_153852.flac\n",
        "KEN_001_20211207_1538520.flac",
        "KEN_001_20211207_1538.flac",  # a time, or a number
        "07122021_153852.wav",  # day or month first?
        "12-07-2021_15-38-52.wav",
        "211207_153852.wav",
        "335837207.180901120000.wav",
        "20211207_153852_20211207_163852.wav",  # which of the two?
        "KEN_001_20211207_153852_3.0s_6.0s.wav",  # a clip that begins later
        "MSD-0003_20180427_2minstart00.wav",
        "1638891532123_20211207.wav",
        "59876543.WAV",  # hexadecimal, or a number
        "5a1b2c3d.wav",
        "DEADBEEF.WAV",  # 2088
    ],
)
def test_what_is_not_plain_is_not_guessed(name):
    assert parse_recording_name(name) is None


@pytest.mark.parametrize(
    ("pattern", "name", "site", "start"),
    [
        ("%site_%Y%m%d_%H%M%S", "Plot_A_20211207_153852.wav", "Plot_A", LOCAL),
        ("%d.%m.%Y %H-%M %site", "07.12.2021 15-38 north.wav", "north", datetime(2021, 12, 7, 15, 38)),
        ("*_%y%m%d%H%M%S", "335837207_211207153852.wav", None, LOCAL),
        ("%site_%Y%m%dT%H%M%S%z*", "a_20211207T153852+0000_x.wav", "a", UTC_TIME),
        ("%Y%m%d_%H%M%S.%f", "20211207_153852.123456.wav", None, LOCAL),
        ("100%%_%site", "100%_north.wav", "north", None),
        ("%site.WAV", "north.WAV", "north", None),
        (
            r"(?P<site>[A-Z]+)\d*-(?P<day>\d\d)(?P<month>\d\d)(?P<year>\d{4})-(?P<hour>\d\d)",
            "AB7-07122021-15.wav",
            "AB",
            datetime(2021, 12, 7, 15),
        ),
        (r"(?P<site>north|south)_.*", "south_20211207_153852.wav", "south", LOCAL),
        ("%site_%Y%m%d_%H%M%S", "20211207_153852.WAV", None, LOCAL),  # not matched, and read as usual
        ("%site_%d%m%Y_%H%M%S", "a_31022021_153852.wav", "a", None),  # no 31 February
    ],
)
def test_a_pattern_reads_other_names(pattern, name, site, start):
    assert parse_recording_name(name, NamePattern(pattern)) == (site, start)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("%Q_%Y", r"'%Q' is unknown, expected %site %Y"),
        ("%Y%m%d_%", "'%' is unknown, expected"),
        ("(?P<site>", "cannot be used"),
        ("(?P<place>.*)", "a group 'place'"),
        ("%Y_%Y%m%d%H", "cannot be used"),
        ("%site_%Y%m%d", "has no hour"),
        ("%H%M%S", "has no year"),
        ("*.wav", "has no year"),
        ("", "has no year"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern, reason):
    with pytest.raises(UserError, match=reason):
        NamePattern(pattern)


def test_a_pattern_that_matches_nothing_is_an_error_and_one_that_matches_a_part_is_told(caplog):
    pattern = NamePattern("%site_%Y%m%d_%H%M%S")
    pattern.check(["a_20211207_153852.wav"])
    assert not caplog.text
    pattern.check(["a_20211207_153852.wav", "b.wav", "b.wav"])
    assert "matches 1 of 2 recordings; the others, such as b.wav" in caplog.text
    with pytest.raises(UserError, match=r"matches none of 1 recordings, such as b\.wav"):
        pattern.check(["b.wav"])


def test_what_is_recorded_over_midnight_counts_for_the_hours_on_both_sides():
    late, noon = datetime(2021, 1, 1, 23, 30), datetime(2021, 1, 1, 12)
    recorded_s = recorded_by_hour([(late, 3000.5), (noon, 60.0), (noon, 86_400.0)])
    assert recorded_s[[23, 0, 1, 12]].tolist() == [5400, 4800.5, 3600, 3660]
    assert recorded_s.sum() == 3000.5 + 60 + 86_400
