"""Folders of species: signal is found, becomes weak annotations, and is learned from without being tested on."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import noise
from running import flags, settings_of, train

from kenya_birds import UserError, evaluate_model, load_clips
from kenya_birds.cli import main
from kenya_birds.data.archive import read_archive
from kenya_birds.data.dataset import clips_builder, load_no_call
from kenya_birds.data.importing import ImportSettings, format_import, import_annotations
from kenya_birds.data.joined_archive import join_archives
from kenya_birds.data.signal_parts import CELL_S, find_signal
from kenya_birds.data.splits import write_splits
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.experiments.cross_validation import CrossValidation, find_folds
from kenya_birds.training.training_run import Run

RATE = 16_000
CLIPS = {"sampling_rate": RATE, "clip_s": 1.0, "min_annotations": 1}


def sing(path, calls, seconds=20, *, seed=0, level=0.05, rate=RATE):
    """Noise with pure tones: (start_s, end_s, frequency in Hz) of each."""
    sound = noise(seconds, rate, seed)
    sound = 0.01 * sound / np.std(sound)
    time_s = np.arange(len(sound)) / rate
    for start_s, end_s, hertz in calls:
        inside = (time_s >= start_s) & (time_s < end_s)
        sound[inside] += level * np.sin(2 * np.pi * hertz * time_s[inside])
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate)
    return path


# The rule of the signal


def test_bursts_in_noise_are_found_with_their_times_and_frequencies(tmp_path):
    calls = [(2.0, 2.4, 3000), (6.0, 9.0, 5000), (9.1, 9.5, 5000), (15.0, 15.5, 1000)]
    parts = find_signal(sing(tmp_path / "a.wav", calls))
    # The second and the third are 0.1 s apart, and so one part.
    expected = [(2.0, 2.4, 3000), (6.0, 9.5, 5000), (15.0, 15.5, 1000)]
    assert len(parts) == len(expected)
    for part, (start_s, end_s, hertz) in zip(parts, expected, strict=True):
        assert abs(part.start_s - start_s) <= CELL_S
        assert abs(part.end_s - end_s) <= CELL_S
        assert hertz - 250 <= part.low_hz <= hertz <= part.high_hz <= hertz + 250


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_a_song_of_most_of_the_time_is_found_at_any_rate(tmp_path, rate):
    calls = [(start_s, start_s + 3.5, 2500) for start_s in range(0, 20, 5)]
    parts = find_signal(sing(tmp_path / "a.wav", calls, rate=rate))
    assert [round(part.start_s) for part in parts] == [0, 5, 10, 15]
    assert sum(part.end_s - part.start_s for part in parts) == pytest.approx(14, abs=8 * CELL_S)


def test_noise_silence_clicks_and_gusts_have_no_signal(tmp_path):
    steady = sing(tmp_path / "steady.wav", [])
    assert find_signal(steady) == []
    soundfile.write(tmp_path / "zeros.wav", np.zeros(20 * RATE), RATE)
    assert find_signal(tmp_path / "zeros.wav") == []
    sound, _ = soundfile.read(steady)
    sound[5 * RATE : 6 * RATE] *= 20  # a gust, in all bands
    sound[8 * RATE : 8 * RATE + 200] += 0.3 * np.sin(np.arange(200))  # a click of 12 ms
    soundfile.write(tmp_path / "gust.wav", sound.clip(-1, 1), RATE)
    assert find_signal(tmp_path / "gust.wav") == []


def test_silence_before_the_sound_is_not_the_noise(tmp_path):
    sound, _ = soundfile.read(sing(tmp_path / "a.wav", [(12.0, 13.0, 3000)]))
    sound[: 10 * RATE] = 0
    soundfile.write(tmp_path / "a.wav", sound, RATE)
    assert [round(part.start_s) for part in find_signal(tmp_path / "a.wav")] == [12]


def test_signal_must_be_so_much_louder_than_the_noise(tmp_path):
    # Noise of 0.01 has 2.5e-6 in a band of 200 Hz of 8 kHz; a tone of amplitude a has a * a / 2.
    path = sing(tmp_path / "a.wav", [(5.0, 7.0, 3000)], level=0.01)
    assert len(find_signal(path, signal_db=10)) == 1
    assert find_signal(path, signal_db=20) == []


def test_a_short_recording_is_taken_whole(tmp_path):
    path = sing(tmp_path / "a.wav", [(0.0, 3.0, 3000)], seconds=3)
    (part,) = find_signal(path)
    assert (part.start_s, part.end_s) == (0.0, 3.0)


# The import


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of species with three recordings each, one folder of another species, and what cannot be used."""
    folder = tmp_path_factory.mktemp("folders") / "in"
    for number in range(3):
        sing(folder / f"Turdus_merula/XC{number}.wav", [(3, 3.5, 3000), (8, 11, 3000)], seed=number)
        sing(folder / f"woothr/XC{number + 3}.wav", [(5, 5.5, 1500)], seed=number + 3)
    sing(folder / "wind/a.wav", [(5, 6, 800)])
    sing(folder / "woothr/quiet.wav", [])
    (folder / "woothr/broken.wav").write_bytes(b"RIFF, and nothing else")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def weak(folders):
    return import_annotations(folders.parent / "weak", ImportSettings(folders))


def test_folders_are_recognised_and_signal_becomes_weak_annotations(weak, folders):
    archive = read_archive(weak.archive)
    counts = archive.annotations["species"].value_counts().to_dict()
    assert counts == {"Turdus merula": 6, "woothr": 3, "wind": 1}
    assert archive.annotations["weak"].all()
    assert archive.weak == set(archive.headers)
    assert archive.silent == []
    assert "woothr/quiet.wav" not in archive.headers
    found = {(effect, finding, recording or file) for effect, file, _, recording, finding, _ in weak.findings.rows}
    assert found == {
        ("not taken", "a recording cannot be read", "woothr/broken.wav"),
        ("not taken", "no signal was found in a recording", "woothr/quiet.wav"),
        ("note", "a folder has no sound", "empty"),
    }
    text = format_import(weak)
    assert "3 species with 7 recordings" in text
    assert "Turdus_merula -> Turdus merula" in text


def test_a_map_gives_codes_and_leaves_out_what_it_lacks(folders, tmp_path):
    (tmp_path / "names.csv").write_text("name,code,scientific_name\nTurdus merula,eurbla,Turdus merula\nwind,,\n")
    result = import_annotations(tmp_path / "out", ImportSettings(folders, names=tmp_path / "names.csv"))
    assert set(result.annotations["species"]) == {"eurbla"}
    assert result.species.to_numpy().tolist() == [["Turdus merula", "eurbla", "Turdus merula"]]
    not_taken = {(file, finding, detail) for _, file, _, _, finding, detail in result.findings.rows if file != "empty"}
    assert not_taken == {
        ("wind", "the name of a folder has no code in the map", "1 recordings"),
        ("woothr", "the name of a folder is not in the map", "5 recordings"),
    }


def test_what_is_not_plain_is_no_folder_of_species(folders, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(folders / "wind", mixed / "wind")
    (mixed / "wind/a.txt").write_text("1.0\t2.0\towl\n")
    assert set(import_annotations(tmp_path / "tables", ImportSettings(mixed)).annotations["species"]) == {"owl"}
    result = import_annotations(tmp_path / "folders", ImportSettings(mixed, form="folders"))
    assert set(result.annotations["species"]) == {"wind"}
    shutil.copy(folders / "wind/a.wav", mixed / "b.wav")
    result = import_annotations(tmp_path / "more", ImportSettings(mixed, form="folders"))
    assert ("not taken", "b.wav", "a recording is in no folder of a species") in {
        (effect, recording, finding) for effect, _, _, recording, finding, _ in result.findings.rows
    }
    (mixed / "wind/a.txt").unlink()
    with pytest.raises(UserError, match=r"give --from folders"):
        import_annotations(tmp_path / "none", ImportSettings(mixed))
    with pytest.raises(UserError, match=r"species_column is for tables"):
        import_annotations(tmp_path / "none", ImportSettings(mixed, form="folders", species_column="x"))
    (tmp_path / "nothing/owl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected a folder with sound for each species"):
        import_annotations(tmp_path / "none", ImportSettings(tmp_path / "nothing", form="folders"))


def test_the_command_draws_what_it_chose(tmp_path, capsys):
    for number in range(2):
        sing(tmp_path / f"in/owl/{number}.wav", [(2, 3, 1000)], seconds=6)
    main(["import", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--pictures", "1", "--signal_db", "12"])
    assert "1 pictures are in" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out/pictures").iterdir()] == ["owl_0.wav.png"]


# Splits


@pytest.fixture(scope="module")
def both(weak, tmp_path_factory):
    """The weak archive joined with one of six annotated recordings of two of its species."""
    folder = tmp_path_factory.mktemp("both")
    for number in range(6):
        sing(folder / f"in/r{number}.wav", [(4, 4.5, 3000), (12, 12.5, 1500)], seed=20 + number)
        (folder / f"in/r{number}.txt").write_text("4.0\t4.5\tTurdus merula\n12.0\t12.5\twoothr\n")
    import_annotations(folder / "exact", ImportSettings(folder / "in"))
    join_archives([folder / "exact", weak.archive], folder / "both")
    return folder / "both"


@pytest.fixture(scope="module")
def planned(both, tmp_path_factory):
    return clips_builder(both, cache_dir=tmp_path_factory.mktemp("cache"), **CLIPS)


def test_weak_labels_are_only_learned_from(both, planned, tmp_path):
    clips = load_clips(both, cache_dir=planned.cache_root, **CLIPS)
    assert not any([*clips["validation"]["weak"], *clips["test"]["weak"]])
    in_train = {
        name for name, is_weak in zip(clips["train"]["recording"], clips["train"]["weak"], strict=True) if is_weak
    }
    assert in_train == planned.archive.weak
    assert len(in_train) == 7
    # Calls of 3 s give several clips.
    assert sum(clips["train"]["weak"]) == 3 * (1 + 3) + 3 + 1
    every = clips_builder(both, cache_dir=tmp_path, weak_labels="every_split", **CLIPS)
    assert every.splits.loc[every.splits["recording"].isin(in_train), "split"].nunique() == 3
    without = clips_builder(both, cache_dir=tmp_path, weak_labels="leave_out", **CLIPS)
    assert len(without.splits) == 6
    assert without.classes == ["Turdus merula", "woothr"]


def test_a_table_of_splits_has_them_in_train_alone(both, planned, tmp_path):
    builder = planned
    exact = builder.splits[~builder.splits["recording"].isin(builder.archive.weak)]
    again = clips_builder(both, cache_dir=tmp_path, splits=exact, **CLIPS)
    pd.testing.assert_frame_equal(again.splits, builder.splits)
    pd.testing.assert_frame_equal(
        clips_builder(both, cache_dir=tmp_path, splits=builder.splits, **CLIPS).splits, builder.splits
    )
    is_weak = builder.splits["recording"].isin(builder.archive.weak)
    wrong = builder.splits.assign(split=builder.splits["split"].mask(is_weak, "test"))
    with pytest.raises(UserError, match=r"has weak labels and is in the test split: expected it in train"):
        clips_builder(both, cache_dir=tmp_path, splits=wrong, **CLIPS)


def test_folds_and_new_tables_leave_them_out(both, planned, tmp_path, capsys):
    exact = set(planned.divided["recording"])
    table = find_folds(planned, None, 3, 0)
    assert set(table["recording"]) == exact
    table.loc[len(table)] = [min(planned.only_train), 0]
    write_splits(table, tmp_path / "folds.csv")
    with pytest.raises(UserError, match=r"folds\.csv has 1 recordings with weak labels, checked .* such as weak/"):
        find_folds(planned, tmp_path / "folds.csv", None, 0)
    for weak_labels, number in (("train", 6), ("every_split", 13)):
        output = tmp_path / f"{weak_labels}.csv"
        words = ["--strategy", "stratified", "--min_annotations", "1", "--weak_labels", weak_labels]
        main(["split", str(both), "--output", str(output), *words])
        assert len(pd.read_csv(output)) == number
    assert "7 recordings with weak labels are not in the table" in capsys.readouterr().out


def test_all_recordings_without_a_split_leave_weak_labels_out_of_the_test(both, weak, tmp_path):
    test = clips_builder(both, cache_dir=tmp_path, one_split="test", **CLIPS)
    assert len(test.splits) == 6
    assert not test.clips["weak"].any()
    assert len(clips_builder(both, cache_dir=tmp_path, one_split="train", **CLIPS).splits) == 13
    with pytest.raises(UserError, match=r"all 7 recordings of .* have weak labels"):
        clips_builder(weak.archive, cache_dir=tmp_path, **CLIPS)
    divided = clips_builder(weak.archive, cache_dir=tmp_path, weak_labels="every_split", **CLIPS)
    assert set(divided.splits["split"]) == {"train", "validation", "test"}


def test_a_weak_copy_of_a_tested_recording_is_left_out(both, planned, tmp_path):
    splits = planned.splits
    tested = splits.loc[splits["split"] == "test", "recording"].iloc[0]
    copy = tmp_path / "in/woothr/copy.wav"
    copy.parent.mkdir(parents=True)
    shutil.copy(planned.archive.recording_path(tested), copy)
    import_annotations(tmp_path / "copy", ImportSettings(tmp_path / "in"))
    join_archives([both, tmp_path / "copy"], tmp_path / "joined")
    splits = splits.assign(recording="both/" + splits["recording"])
    again = clips_builder(tmp_path / "joined", cache_dir=tmp_path, splits=splits, **CLIPS)
    assert "copy/woothr/copy.wav" in again.archive.weak
    assert "copy/woothr/copy.wav" not in set(again.splits["recording"])
    assert "copy/woothr/copy.wav" not in set(again.clips["recording"])


def test_windows_without_a_call_are_not_taken_from_them(planned):
    windows = load_no_call(planned, no_call_per_recording=5)
    assert not set(windows["recording"]) & planned.archive.weak


def test_the_column_says_yes_or_no(weak, tmp_path):
    shutil.copytree(weak.archive, tmp_path / "copy")
    path = tmp_path / "copy/annotations.csv"
    path.write_text(path.read_text().replace(",yes", ",perhaps", 1))
    with pytest.raises(UserError, match=r"line 2: Weak is 'perhaps': expected yes or no"):
        read_archive(tmp_path / "copy")
    path.write_text(path.read_text().replace(",perhaps", ",no").replace(",yes", ","))
    assert read_archive(tmp_path / "copy").weak == set()


# Windows of whole recordings


def test_a_window_of_a_weak_recording_is_known_only_where_there_is_signal():
    calls = pd.DataFrame(
        [("weak", "a", 2.0, 3.0), ("exact", "a", 2.0, 3.0)], columns=["recording", "species", "start_s", "end_s"]
    )
    targets = WindowTargets.of(
        calls,
        calls.iloc[:0],
        {"weak": 100, "exact": 100},
        ["a", "b"],
        sampling_rate=10,
        window=10,
        margin_s=0.0,
        weak=["weak"],
    )
    start = np.array([20, 27, 50])
    weak, exact = np.zeros(3, dtype=int), np.ones(3, dtype=int)
    assert targets(weak, start).tolist() == [[1, 0], [-100, -100], [-100, -100]]
    assert targets(exact, start).tolist() == [[1, 0], [-100, 0], [0, 0]]
    assert targets.is_empty(weak, start).tolist() == [False] * 3
    assert targets.is_empty(exact, start).tolist() == [False, False, True]


# Training

SMALL = {"sampling_rate": RATE, "clip_s": 1.0, "f_max_hz": 7500, "min_annotations": 3}


@pytest.mark.parametrize("freeze_backbone", [False, True])
@pytest.mark.parametrize("train_on", ["clips", "recordings"])
def test_weak_labels_have_their_weight_and_give_no_empty_windows(both, tmp_path, train_on, freeze_backbone):
    more = {"train_on": train_on, "freeze_backbone": freeze_backbone, "weak_weight": 0.25, **SMALL}
    with Run(settings_of(flags(both, tmp_path / "birds", tmp_path / "cache", **more))) as run:
        clips = run.cut_clips()
        trainer = run.make_trainer(clips)
        data, draws = trainer.train_dataset, list(trainer.train_sampler())
    batch = data.__getitems__(draws)
    if train_on == "clips":
        is_weak = np.array([clips["train"]["weak"][draw.clip] for draw in draws])
    elif freeze_backbone:
        grid = run.frozen.training_grid(trainer.plan)
        is_weak = trainer.plan.targets.weak[[grid.recording[draw.clip] for draw in draws]]
    else:
        is_weak = trainer.plan.targets.weak[[draw.recording for draw in draws]]
    assert 0 < is_weak.sum() < len(draws)
    weak, exact = batch["weight"][is_weak].unique(), batch["weight"][~is_weak].unique()
    assert len(weak) == len(exact) == 1
    assert weak.item() == pytest.approx(exact.item() / 4)
    if train_on == "recordings":
        labels = batch["labels"].numpy()
        assert (labels[is_weak] == 1).any(axis=1).all()
        assert (labels[~is_weak] == 0).all(axis=1).any()


@pytest.mark.usefixtures("blank_figures")
def test_from_folders_to_a_model_that_is_not_tested_on_them(both, tmp_path, capsys):
    model = train(both, tmp_path / "birds", tmp_path / "cache", num_train_epochs=1, **SMALL)
    weak = read_archive(both).weak
    splits = pd.read_csv(model / "splits.csv").set_index("recording")["split"]
    # Of the wind there is one call.
    assert set(splits.index[splits.index.isin(weak)]) == {name for name in weak if "wind" not in name}
    assert set(splits[splits.index.isin(weak)]) == {"train"}
    tested = set(splits.index[splits == "test"])
    assert set(pd.read_parquet(model / "predictions.parquet")["recording"]) == tested
    assert set(pd.read_csv(model / "recording_counts.csv")["recording"]) == tested
    assert json.loads((model / "training_summary.json").read_text())["archive"]["weak_recordings"] == 7
    assert "In 7 of the recordings the species is known" in (model / "README.md").read_text(encoding="utf-8")
    # All recordings are those with known calls; the model knows some of them.
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(model), str(both), "--split", "all", "--output", str(tmp_path / "out")])
    assert "of the 6 recordings of this evaluation" in capsys.readouterr().err
    # Other weak labels are tested on if that is asked, as clips alone.
    for number, (name, hertz) in enumerate({"Turdus_merula": 3000, "woothr": 1500}.items()):
        sing(tmp_path / f"in/{name}/other.wav", [(4, 4.5, hertz)], seconds=6, seed=40 + number)
    other = import_annotations(tmp_path / "other", ImportSettings(tmp_path / "in")).archive
    settings = {"split": "all", "min_annotations": 1, "cache_dir": tmp_path / "cache"}
    with pytest.raises(UserError, match=r"all 2 recordings of .* have weak labels"):
        evaluate_model(str(model), other, tmp_path / "out", **settings)
    metrics = evaluate_model(str(model), other, tmp_path / "out", weak_labels="every_split", **settings)
    assert metrics["recordings"] == 2
    assert "whole_recordings" not in metrics


def test_windows_of_recordings_need_recordings_whose_calls_are_known(weak, tmp_path):
    more = {"train_on": "recordings", "weak_labels": "every_split", **SMALL}
    with pytest.raises(UserError, match=r"all recordings of the train split have weak labels"):
        Run(settings_of(flags(weak.archive, tmp_path / "birds", tmp_path / "cache", **more)))


def test_each_fold_needs_recordings_whose_calls_are_known(both, planned, tmp_path):
    names = sorted(name for name in planned.splits["recording"] if "wind" not in name)  # its species is too rare
    weak = [name for name in names if name in planned.archive.weak]
    fold_of = {name: 2 if name in weak else number % 2 for number, name in enumerate(names)}
    write_splits(pd.DataFrame({"recording": names, "fold": [fold_of[name] for name in names]}), tmp_path / "folds.csv")
    more = {"train_on": "recordings", "weak_labels": "every_split", "splits_file": tmp_path / "folds.csv", "folds": 3}
    settings = settings_of(flags(both, tmp_path / "birds", tmp_path / "cache", **more, **SMALL))
    with pytest.raises(UserError, match=r"fold 0: all recordings of the train split have weak labels"):
        CrossValidation(settings)
