"""Synthetic soundscapes of the field: physics of distance and echoes, spectra of other sounds, calls by the hour."""

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from kenya_birds.data import synthetic, synthetic_field
from kenya_birds.data.synthetic import synthesize_archive, synthetic_annotations
from kenya_birds.data.synthetic_field import (
    KINDS,
    attenuate,
    call_rate,
    plan_other_sounds,
    render_other_sound,
    reverberate,
)

RATE = 32_000
SMALL = {"recordings": 2, "duration_s": 12.0, "species": 5, "annotations": 12}


def tone(frequency_hz, seconds=1.0):
    frames = round(seconds * RATE)
    return np.sin(2 * np.pi * frequency_hz * np.arange(frames) / RATE) * np.hanning(frames)


def rms_db(sound):
    return 10 * np.log10(np.mean(sound**2))


def share_of_power(sound, low_hz, high_hz):
    power = np.abs(np.fft.rfft(sound)) ** 2
    frequency_hz = np.fft.rfftfreq(len(sound), 1 / RATE)
    return power[(frequency_hz >= low_hz) & (frequency_hz <= high_hz)].sum() / power.sum()


# Distance


def test_a_call_is_6_db_quieter_at_twice_the_distance_and_high_ones_lose_more():
    for frequency_hz, absorbed_db_per_m in ((1000, 0.0052), (8000, 0.0808)):
        near, far = (rms_db(attenuate(tone(frequency_hz), distance_m)) for distance_m in (20, 40))
        assert near - far == pytest.approx(20 * np.log10(2) + 20 * absorbed_db_per_m, abs=0.01)


@pytest.mark.parametrize(
    ("frequency_hz", "db_per_100_m"), [(1000, 0.5), (2000, 0.9), (4000, 2.29), (8000, 7.66), (10_000, 11.5)]
)
def test_air_absorbs_as_in_iso_9613_at_20_degrees_and_70_percent(frequency_hz, db_per_100_m):
    found = synthetic_field.air_loss_db(frequency_hz, 110) - synthetic_field.air_loss_db(frequency_hz, 10)
    assert found == pytest.approx(db_per_100_m, rel=0.2)


def test_at_the_reference_distance_a_call_is_as_it_was():
    np.testing.assert_allclose(attenuate(tone(5000), 10.0), tone(5000), atol=1e-9)


def test_echoes_decay_by_60_db_in_the_stated_time():
    click = np.zeros(100)
    click[0] = 1.0
    echoes = reverberate(click, 60.0, np.random.default_rng(0))[100:]
    window = round(0.1 * RATE)
    levels_db = [rms_db(echoes[at : at + window]) for at in range(0, len(echoes) - window, window)]
    slope_db_per_s = np.polyfit(0.1 * np.arange(len(levels_db)), levels_db, 1)[0]
    assert slope_db_per_s == pytest.approx(-60 / synthetic_field.REVERBERATION_S, rel=0.05)


def test_echoes_are_as_strong_as_the_direct_sound_at_the_critical_distance_and_6_db_weaker_at_half_of_it():
    click = np.zeros(10)
    click[0] = 1.0
    for distance_m, ratio_db in ((60.0, 0.0), (30.0, -6.02), (120.0, 6.02)):
        heard = reverberate(click, distance_m, np.random.default_rng(0))
        # The first sample is the direct sound and the first sample of the echoes.
        echoes = heard - np.concatenate([click, np.zeros(len(heard) - 10)])
        assert 10 * np.log10(np.sum(echoes**2)) == pytest.approx(ratio_db, abs=0.01)


# Other sounds


@pytest.mark.parametrize(
    ("kind", "low_hz", "high_hz", "share"),
    [
        ("insects", 3800, 9300, 0.99),
        ("frogs", 300, 2900, 0.99),
        ("wind", 0, 400, 0.9),
        ("rain", 1000, 14_000, 0.75),
        ("engine", 30, 1800, 0.99),
        ("people", 90, 4000, 0.95),
    ],
)
def test_each_sound_lies_where_it_does_in_nature(kind, low_hz, high_hz, share):
    for seed in range(4):
        sound = render_other_sound(kind, 6.0, np.random.default_rng(seed))
        assert share_of_power(sound, low_hz, high_hz) > share


def test_insects_have_one_narrow_band_and_rain_has_none():
    widths = {}
    for kind in ("insects", "rain"):
        power = np.abs(np.fft.rfft(render_other_sound(kind, 5.0, np.random.default_rng(0)))) ** 2
        cumulated = np.cumsum(power) / power.sum()
        widths[kind] = np.diff(np.searchsorted(cumulated, (0.05, 0.95)))[0] / 5.0
    assert widths["insects"] < 300
    assert widths["rain"] > 6000


def test_an_engine_is_made_of_multiples_of_one_low_frequency():
    power = np.abs(np.fft.rfft(render_other_sound("engine", 10.0, np.random.default_rng(1)))) ** 2
    levels = np.array([power[round(low * 10) : round((low + 1) * 10)].sum() for low in range(30, 300)])
    # Most of the power lies in few bands of 1 Hz.
    assert np.sort(levels)[-60:].sum() > 0.9 * levels.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_every_sound_has_an_rms_of_1_and_fades_in_and_out(kind):
    sound = render_other_sound(kind, 4.0, np.random.default_rng(0))
    assert len(sound) == 4 * RATE
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(1.0)
    assert max(abs(sound[0]), abs(sound[-1])) < 0.01
    assert max(kind.duration_range_s[1] for kind in KINDS.values()) <= synthetic_field.MAX_SOUND_S


def test_insects_and_frogs_are_heard_by_night_and_engines_and_people_by_day():
    def minutes(hour):
        sounds = plan_other_sounds(36_000.0, hour, np.random.default_rng(0))
        return {kind: sum(sound.kind == kind for sound in sounds) / 600 for kind in KINDS}

    noon, night = minutes(12.0), minutes(23.0)
    for kind, expected in KINDS.items():
        assert noon[kind] == pytest.approx(expected.by_day_per_min, rel=0.3)
        assert night[kind] == pytest.approx(expected.by_night_per_min, rel=0.3)
    assert night["insects"] > noon["insects"]
    assert night["frogs"] > noon["frogs"]
    assert night["engine"] < noon["engine"]
    assert night["people"] < noon["people"]


# Time of day


def test_the_dawn_chorus_is_the_highest_and_dusk_the_second():
    rates = {hour: call_rate(hour) for hour in np.arange(0, 24, 0.5)}
    assert max(rates, key=rates.get) == 6.5
    assert rates[6.5] > rates[18.0] > rates[12.0] > rates[0.0] > 0
    assert rates[7.5] == pytest.approx(np.exp(-0.5))


def test_calls_by_the_hour_follow_the_curve():
    table = synthetic_annotations(recordings=120, duration_s=600.0, species=20, annotations=12_000, seed=0)
    hours = table["recording"].map(synthetic._hour)
    names, _ = synthetic._recording_names(120, synthetic.FIELD_HOURS)
    recorded = pd.Series([synthetic._hour(name) for name in names]).value_counts()
    found = hours.value_counts() / recorded
    expected = pd.Series({hour: call_rate(hour + 1 / 12) for hour in recorded.index})
    assert sorted(recorded.index) == [6.5, 12.5, 17.5, 20.5]
    share_found, share_expected = found / found.sum(), expected / expected.sum()
    assert (share_found - share_expected).abs().max() < 0.06
    assert found.corr(expected) > 0.95


# Archives


def read_audio(data_dir):
    return [sf.read(path)[0] for path in sorted((data_dir / "soundscape_data").iterdir())]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return synthesize_archive(tmp_path_factory.mktemp("field") / "archive", **SMALL)


def test_other_sounds_are_not_annotated_and_not_listed(archive):
    table = pd.read_csv(archive / "annotations.csv")
    assert len(table) == 12
    assert all(code.startswith("syn") for code in pd.read_csv(archive / "species.csv")["Species eBird Code"])


def test_the_same_seed_gives_the_same_sound_however_blocks_are_cut(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK_S", 1.7)
    again = synthesize_archive(tmp_path / "archive", **SMALL)
    for expected, found in zip(read_audio(archive), read_audio(again), strict=True):
        assert np.abs(expected - found).max() <= 1 / 32768
    other = synthesize_archive(tmp_path / "other", seed=1, **SMALL)
    assert not np.array_equal(read_audio(archive)[0], read_audio(other)[0])


def test_calls_of_the_field_differ_in_level_by_their_distance(monkeypatch):
    monkeypatch.setattr(synthetic, "reverberate", lambda sound, distance_m, rng: sound)
    bird = synthetic.synthetic_species(1)[0]
    calls = [synthetic._field_call(bird, 60.0, np.random.default_rng(seed))[1] for seed in range(200)]
    peaks_db = [20 * np.log10(np.abs(call).max()) for call in calls]
    # 20 log10(150 / 5) is 29.5 dB, and the birds themselves differ by 8 dB.
    assert 29.5 < np.ptp(peaks_db) < 40
    assert np.median(peaks_db) == pytest.approx(32 - 20 * np.log10(np.sqrt(5 * 150) / 10), abs=2)


def test_a_lone_call_of_the_field_begins_where_its_annotation_says(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "plan_other_sounds", lambda *arguments: [])
    monkeypatch.setattr(synthetic, "DISTANCE_RANGE_M", (5.0, 5.0))
    data_dir = synthesize_archive(tmp_path / "archive", recordings=1, duration_s=10.0, species=1, annotations=1)
    centre_s = pd.read_csv(data_dir / "annotations.csv")["Start Time (s)"].item()
    samples = read_audio(data_dir)[0]
    loud = np.flatnonzero(np.abs(samples) > 0.2 * np.abs(samples).max())
    assert (loud[0] + loud[-1]) / 2 / RATE == pytest.approx(centre_s, abs=0.1)
