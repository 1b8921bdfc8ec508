import hashlib
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from kenya_birds.data import synthetic
from kenya_birds.data.synthetic import render_call, species_counts, synthetic_species
from kenya_birds.errors import UserError

# Clear calls in steady noise: what is added in the field is in test_synthetic_field.py.
synthesize_archive = partial(synthetic.synthesize_archive, scene="quiet")

FAMILIES = ["whistle", "trill", "sweep", "harmonic", "buzz"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return synthesize_archive(
        tmp_path_factory.mktemp("synthetic") / "archive", recordings=6, duration_s=20.0, species=12, annotations=200
    )


SMALL = {"recordings": 3, "duration_s": 8.0, "species": 5, "annotations": 30}


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory):
    return synthesize_archive(tmp_path_factory.mktemp("small") / "archive", **SMALL)


def read_annotations(data_dir):
    return pd.read_csv(data_dir / "annotations.csv")


def read_audio(data_dir):
    return [sf.read(path)[0] for path in sorted((data_dir / "soundscape_data").iterdir())]


def digests(data_dir):
    return {
        str(path.relative_to(data_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data_dir.rglob("*"))
        if path.is_file()
    }


def noise_rms(samples):
    """RMS of the noise alone, as calls are rare enough not to move the median."""
    return np.median(np.abs(samples)) / 0.6745


# The format


def test_archive_has_the_files_of_the_real_one(archive):
    assert sorted(path.name for path in archive.iterdir()) == [
        "annotations.csv",
        "recording_location.txt",
        "soundscape_data",
        "species.csv",
    ]
    assert len((archive / "recording_location.txt").read_text().splitlines()) == 1


def test_tables_have_the_columns_of_the_real_ones(archive):
    header = (archive / "annotations.csv").read_text().splitlines()[0]
    assert header == "Filename,Start Time (s),End Time (s),Species eBird Code"
    header = (archive / "species.csv").read_text().splitlines()[0]
    assert header == "Scientific Name,Species eBird Code,Common Name"


def test_recordings_are_32_khz_mono_flac_of_the_duration_asked_for(archive):
    paths = sorted((archive / "soundscape_data").iterdir())
    assert len(paths) == 6
    for path in paths:
        info = sf.info(path)
        assert (info.samplerate, info.channels, info.frames) == (32_000, 1, 640_000)
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")


def test_recordings_are_named_by_site_date_and_time_and_share_sites(archive):
    matches = [re.fullmatch(r"SYN_(\d{3})_(\d{8}_\d{6})\.flac", path.name) for path in archive.rglob("*.flac")]
    assert all(matches)
    assert 1 < len({match[1] for match in matches}) < 6
    assert (archive / "soundscape_data" / "SYN_001_20211207_053000.flac").exists()


@pytest.mark.parametrize("recordings", [1, 2, 3, 5, 35, 400])
def test_recording_names_are_unique_and_sorted(recordings):
    names, sites = synthetic._recording_names(recordings)
    assert len(set(names)) == len(sites) == recordings
    assert names == sorted(names)


def test_a_thousand_sites_have_numbers_of_four_digits_and_the_same_times():
    names, _ = synthetic._recording_names(3998)
    assert (names[0], names[-1]) == ("SYN_0001_20211207_053000.flac", "SYN_1000_20240903_163000.flac")
    assert names == sorted(names)
    hours = {synthetic._hour(name) for name in synthetic._recording_names(3998, synthetic.FIELD_HOURS)[0]}
    assert hours == {6.5, 12.5, 17.5, 20.5}


def test_annotations_are_centre_points_in_tenths_of_a_second_inside_the_recording(archive):
    table = read_annotations(archive)
    assert (table["Start Time (s)"] == table["End Time (s)"]).all()
    assert table["Start Time (s)"].between(0.0, 20.0, inclusive="neither").all()
    rows = (archive / "annotations.csv").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"SYN_\w+\.flac,\d+\.\d,\d+\.\d,\w+", row) for row in rows)


def test_annotations_are_sorted_and_distinct(archive):
    table = read_annotations(archive)
    pd.testing.assert_frame_equal(table, table.sort_values(["Filename", "Start Time (s)"], kind="stable"))
    assert not table.duplicated().any()


def test_annotations_refer_to_listed_species_and_existing_files(archive):
    table = read_annotations(archive)
    assert set(table["Species eBird Code"]) == set(pd.read_csv(archive / "species.csv")["Species eBird Code"])
    assert set(table["Filename"]) <= {path.name for path in (archive / "soundscape_data").iterdir()}


def test_small_archive_has_an_annotation_every_three_to_four_seconds_by_default(tmp_path):
    data_dir = synthesize_archive(tmp_path / "archive", recordings=4, duration_s=20.0, species=5)
    assert 3.0 <= 80.0 / len(read_annotations(data_dir)) <= 4.0


# Species and how they are spread


def test_annotations_of_the_species_are_as_counted(archive):
    found = read_annotations(archive)["Species eBird Code"].value_counts()
    assert sorted(found, reverse=True) == species_counts(12, 200)


def test_full_size_counts_are_shaped_like_the_real_ones():
    counts = np.array(species_counts(176, 10_294))
    assert counts.sum() == 10_294
    assert (np.diff(counts) <= 0).all()
    assert 600 <= counts[0] <= 800
    assert 80 <= counts[29] <= 110
    assert 30 <= (counts <= 5).sum() <= 50
    assert 8 <= (counts == 1).sum() <= 20


@pytest.mark.parametrize(("species", "annotations"), [(6, 100), (8, 240), (8, 5000), (20, 300), (60, 2000)])
def test_small_counts_are_unbalanced_with_a_rare_species(species, annotations):
    counts = species_counts(species, annotations)
    assert sum(counts) == annotations
    assert counts == sorted(counts, reverse=True)
    assert 1 <= counts[-1] < 10
    assert counts[0] > 2 * annotations / species


@pytest.mark.parametrize(("species", "annotations"), [(1, 1), (1, 9), (3, 3), (3, 4), (7, 8), (20, 30)])
def test_every_species_has_an_annotation_however_few_there_are(species, annotations):
    counts = species_counts(species, annotations)
    assert (len(counts), sum(counts)) == (species, annotations)
    assert min(counts) >= 1


def test_frequent_species_are_in_enough_recordings_for_five_folds(tmp_path):
    data_dir = synthesize_archive(tmp_path / "archive", recordings=7, duration_s=8.0, species=8, annotations=110)
    by_species = read_annotations(data_dir).groupby("Species eBird Code")["Filename"]
    assert (by_species.nunique()[by_species.count() >= 10] >= 6).all()
    assert (by_species.nunique()[by_species.count() < 10] < 6).all()


def test_one_frequent_species_of_many_is_in_too_few_recordings(archive):
    by_species = read_annotations(archive).groupby("Species eBird Code")["Filename"]
    assert (by_species.nunique()[by_species.count() >= 10] < 5).sum() == 1


def test_full_size_plan_has_frequent_species_nearly_everywhere_and_rarer_ones_in_fewer_recordings():
    _, sites = synthetic._recording_names(35)
    plan = synthetic._share_out(species_counts(176, 10_294), sites, np.random.default_rng(0))
    presence = (plan > 0).sum(axis=1)
    assert presence[0] == 35
    assert presence[:10].mean() > presence[50:60].mean() > presence[120:].mean()
    assert plan.sum() == 10_294


def test_birds_repeat_their_calls_in_bouts():
    times_s = synthetic._call_times_s(40, 3600.0, np.random.default_rng(0))
    gaps_s = np.diff(times_s)
    assert 0.5 < (gaps_s <= 6.0).mean() < 1.0
    assert gaps_s.min() >= 0.9
    assert gaps_s.max() > 60.0


# Calls


def test_species_are_unique_and_take_turns_between_families():
    birds = synthetic_species(176)
    assert len({bird.code for bird in birds}) == 176
    assert len({bird.scientific_name for bird in birds}) == len({bird.common_name for bird in birds}) == 176
    assert [bird.family for bird in birds[:5]] == FAMILIES
    assert all(re.fullmatch(r"[a-z]{6}\d+", bird.code) for bird in birds)
    assert all(600 <= bird.frequency_hz <= 9000 and 0.2 <= bird.duration_s <= 1.2 for bird in birds)


@pytest.mark.parametrize("family_index", range(5), ids=FAMILIES)
def test_species_of_a_family_differ_in_frequency_when_there_are_few(family_index):
    frequencies_hz = np.sort([bird.frequency_hz for bird in synthetic_species(25)[family_index::5]])
    assert (frequencies_hz[1:] / frequencies_hz[:-1]).min() > 1.15


@pytest.mark.parametrize("index", [0, 5, 10, 15])
def test_dominant_frequency_of_a_whistle_is_its_species(index):
    bird = synthetic_species(20)[index]
    call = render_call(bird, np.random.default_rng(1))
    found_hz = np.abs(np.fft.rfft(call)).argmax() * 32_000 / len(call)
    assert found_hz == pytest.approx(bird.frequency_hz, rel=0.02 + bird.width)


@pytest.mark.parametrize("index", range(10))
def test_call_fades_in_and_out_and_is_never_longer_than_its_reach(index):
    bird = synthetic_species(10)[index]
    for seed in range(3):
        call = render_call(bird, np.random.default_rng(seed))
        assert 0.89 * bird.duration_s <= len(call) / 32_000 <= 1.11 * bird.duration_s
        assert len(call) / 32_000 <= 2 * synthetic.CALL_REACH_S
        assert np.abs(call).max() == pytest.approx(1.0)
        assert max(np.abs(call[:10]).max(), np.abs(call[-10:]).max()) < 0.01


def test_renderings_of_a_species_differ_a_little():
    bird = synthetic_species(1)[0]
    lengths = [len(render_call(bird, np.random.default_rng(seed))) for seed in range(5)]
    assert len(set(lengths)) == 5


@pytest.mark.parametrize("family_index", range(5), ids=FAMILIES)
def test_energy_of_a_lone_call_is_centred_on_its_annotation(tmp_path, monkeypatch, family_index):
    bird = synthetic_species(5)[family_index]
    monkeypatch.setattr(synthetic, "synthetic_species", lambda species: [bird])
    monkeypatch.setattr(synthetic, "SNR_RANGE_DB", (30.0, 30.0))
    data_dir = synthesize_archive(tmp_path / "archive", recordings=1, duration_s=10.0, species=1, annotations=1)
    centre_s = read_annotations(data_dir)["Start Time (s)"].item()
    assert 1.0 < centre_s < 9.0
    samples = read_audio(data_dir)[0]
    energy = np.where(np.abs(samples) > 8 * noise_rms(samples), samples**2, 0.0)
    found_s = (energy * np.arange(len(energy))).sum() / energy.sum() / 32_000
    assert found_s == pytest.approx(centre_s, abs=0.02)


# Audio


def test_noise_level_differs_by_recording_within_the_stated_range(tmp_path):
    data_dir = synthesize_archive(tmp_path / "archive", recordings=6, duration_s=3.0, species=1, annotations=1)
    levels_dbfs = [20 * np.log10(noise_rms(samples)) for samples in read_audio(data_dir)]
    assert min(levels_dbfs) > -59.0
    assert max(levels_dbfs) < -39.0
    assert np.diff(np.sort(levels_dbfs)).min() > 0.0
    assert np.ptp(levels_dbfs) > 6.0


@pytest.mark.parametrize("rumble", [0.0, 0.8])
def test_noise_is_stronger_at_low_frequencies(rumble):
    samples = synthetic._Noise(rumble, np.random.default_rng(0)).draw(320_000)
    power = np.abs(np.fft.rfft(samples)) ** 2  # 0.1 Hz apart
    assert samples.std() == pytest.approx(1.0, rel=0.1)
    # Pink noise has about the same power in every octave.
    assert power[10_000:20_000].sum() == pytest.approx(power[20_000:40_000].sum(), rel=0.25)


def test_peak_of_a_lone_call_is_as_far_over_the_noise_as_stated(tmp_path):
    for seed in range(4):
        data_dir = synthesize_archive(
            tmp_path / str(seed), recordings=1, duration_s=6.0, species=1, annotations=1, seed=seed
        )
        samples = read_audio(data_dir)[0]
        snr_db = 20 * np.log10(np.abs(samples).max() / noise_rms(samples))
        assert 5.0 < snr_db < 37.0


def test_audio_does_not_depend_on_the_size_of_blocks(small_archive, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK_S", 0.37)
    data_dir = synthesize_archive(tmp_path / "archive", **SMALL)
    for expected, found in zip(read_audio(small_archive), read_audio(data_dir), strict=True):
        assert np.abs(expected - found).max() <= 1 / 32768


def test_nothing_clips_even_when_loud_calls_coincide(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "SNR_RANGE_DB", (35.0, 35.0))
    monkeypatch.setattr(synthetic, "NOISE_RANGE_DBFS", (-40.0, -40.0))
    monkeypatch.setattr(synthetic, "MAX_CALL_DBFS", 0.0)
    data_dir = synthesize_archive(tmp_path / "archive", recordings=3, duration_s=5.0, species=10, annotations=30)
    peak = max(np.abs(samples).max() for samples in read_audio(data_dir))
    assert synthetic.SOFT_LIMIT < peak <= synthetic.HARD_LIMIT


def test_limiting_leaves_ordinary_samples_alone():
    samples = np.array([-3.0, -0.5, 0.0, 0.5, 0.9, 3.0])
    found = synthetic._to_pcm16(samples.copy()) / 32767.0
    assert found[1:4] == pytest.approx(samples[1:4], abs=1e-4)
    assert (np.diff(found) > 0).all()
    assert np.abs(found).max() < 0.99


# Reproducing, refusing and stopping


def test_same_arguments_give_the_same_bytes(small_archive, tmp_path):
    assert digests(synthesize_archive(tmp_path / "archive", **SMALL)) == digests(small_archive)


def test_another_seed_gives_another_archive(tmp_path):
    size = {"recordings": 1, "duration_s": 3.0, "species": 2, "annotations": 4}
    first, second = (synthesize_archive(tmp_path / str(seed), seed=seed, **size) for seed in (0, 1))
    assert not np.array_equal(read_audio(first)[0], read_audio(second)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recordings": 0}, "recordings is 0: expected 1 or more"),
        ({"species": 0}, "species is 0: expected 1 or more"),
        ({"species": 3, "annotations": 0}, "annotations is 0: expected 1 or more"),
        ({"species": 3, "annotations": 2}, "found 3 species and 2 annotations"),
        ({"duration_s": 2.9}, "duration_s is 2.9: expected 3 or more"),
        ({"duration_s": float("nan")}, "duration_s is nan: expected 3 or more"),
        ({"seed": -1}, "seed is -1: expected 0 to"),
        ({"recordings": 1, "duration_s": 3.0, "species": 1, "annotations": 7}, "at most 2 annotations per second"),
    ],
)
def test_a_bad_number_is_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        synthesize_archive(tmp_path / "archive", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "archive").exists()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="empty folder"):
        synthesize_archive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "archive"):
        with pytest.raises(UserError, match=r"cannot be created|not an empty folder"):
            synthesize_archive(path)


def test_an_empty_folder_is_filled(tmp_path):
    assert synthesize_archive(str(tmp_path), recordings=1, duration_s=3.0, species=1, annotations=1) == tmp_path
    assert (tmp_path / "annotations.csv").exists()


def test_an_archive_stopped_midway_has_no_annotations(tmp_path, monkeypatch):
    written = []

    def write_one_then_stop(path, *arguments):
        if written:
            raise KeyboardInterrupt
        written.append(path)

    monkeypatch.setattr(synthetic, "_write_recording", write_one_then_stop)
    with pytest.raises(KeyboardInterrupt):
        synthesize_archive(tmp_path / "archive", recordings=3, duration_s=3.0, species=1, annotations=3)
    assert not (tmp_path / "archive" / "annotations.csv").exists()
