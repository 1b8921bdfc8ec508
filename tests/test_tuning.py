"""Tuning: what is searched, on which recordings, and that a study goes on as if it had not been stopped."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
import torch
from archives import write_archive
from optuna.trial import TrialState
from running import flags, start, tuning_words, wait_until
from sqlalchemy import Engine, event

import train_hf
from kenya_birds.cli import main
from kenya_birds.data.dataset import clips_builder
from kenya_birds.data.joined_archive import join_archives
from kenya_birds.errors import DivergedError, UserError
from kenya_birds.experiments.cross_validation import find_folds
from kenya_birds.training import tuning
from kenya_birds.training.tuning_settings import TuningSettings


def search(archive, folder, cache, trials, *, backbones=(), folds=2, **settings):
    """Tunes in this process; data base and output lie in `folder`."""
    study = TuningSettings(trials, folds=folds, storage=f"sqlite:///{folder}/study.db", backbones=backbones)
    return tuning.tune(archive, folder / "out", study, tuning_words(cache, **settings))


@pytest.fixture(scope="module", autouse=True)
def _quick_commits():
    """The data base does not wait for the disk after each of its thousands of commits."""

    def connected(connection, _):
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


@pytest.fixture
def without_training(monkeypatch, blank_pictures):
    """Every fold's score is a formula of its settings, so that studies take no time; returns the calls."""
    calls = []

    def score(settings, splits):
        calls.append((settings, splits))
        return 0.5 - abs(settings.training.weight_decay - 0.02) - 0.1 * settings.augmentation.mixup_probability, 1.0

    monkeypatch.setattr(tuning, "_best_epoch", score)
    return calls


def params(study, *states):
    return [trial.params for trial in study.get_trials(states=states or None)]


@pytest.mark.usefixtures("blank_pictures")
def test_a_study_leaves_numbers_and_pictures_and_training_takes_its_flags(tmp_path, small_archive, cache):
    study = search(small_archive, tmp_path, cache, trials=2, split_seed=7, edge_tolerance_s=0.3, min_overlap_s=0.2)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"best.json", "history.csv", "history.png", "study.json"}
    best = json.loads((out / "best.json").read_text())
    table = pd.read_csv(out / "history.csv")
    assert best["mean_macro_f1"] == max(table["mean_macro_f1"])
    assert sum(best["fold_macro_f1"]) / 2 == pytest.approx(best["mean_macro_f1"])
    assert best["trial"] == study.best_trial.number
    assert 1e-4 <= best["flags"]["learning_rate"] <= 3e-3
    assert 2 < len(best["recordings"]) < 8, "the recordings of the test split are not among them"
    assert all(best["recordings"].values())

    out = tmp_path / "model"
    line = flags(small_archive, out, cache, num_train_epochs=1, learning_rate=0.00123)
    train_hf.main([*line, "--params", str(tmp_path / "out" / "best.json")])
    summary = json.loads((out / "training_summary.json").read_text())
    assert summary["arguments"]["learning_rate"] == 0.00123
    assert summary["arguments"]["weight_decay"] == best["flags"]["weight_decay"]
    assert summary["augmentation"]["noise_probability"] == best["flags"]["noise_probability"]
    # What was not searched is as it was in tuning, and so is the test split, which tuning has not looked at.
    told = json.loads((out / "run_settings.json").read_text())["settings"]
    assert (told["split_seed"], told["edge_tolerance_s"], told["min_overlap_s"]) == (7, 0.3, 0.2)
    assert "save_only_model" not in told


def test_recordings_without_a_call_and_each_archive_are_divided_as_in_cross_validation(tmp_path):
    folders = []
    for name, number, seconds in (("north", 12, 10.0), ("south", 9, 12.0)):
        calls = [(f"{i:02}.wav", time, code) for i in range(number) for time, code in ((2.0, "owl"), (4.0, "lark"))]
        rare = [(f"u{i}.wav", 5.0, "????") for i in range(5)]
        folders.append(write_archive(tmp_path / name, [*calls, *rare], seconds))
    joined = join_archives(folders, tmp_path / "both").path
    builder = clips_builder(joined, cache_dir=tmp_path, sampling_rate=8_000, clip_s=1.0, min_annotations=2)
    run = SimpleNamespace(builder=builder, settings=SimpleNamespace(data=SimpleNamespace(split_seed=1)))
    table = tuning.tuning_folds(run, 3)
    assert table["recording"].tolist() == builder.splits["recording"].tolist()
    tested = builder.splits.loc[builder.splits["split"] == "test", "recording"]
    assert table.loc[table["fold"] < 0, "recording"].tolist() == tested.tolist()
    used = table[(table["fold"] >= 0) & ~table["recording"].str.contains("/u")]
    by_archive = used.groupby([used["recording"].str.split("/").str[0], "fold"]).size().unstack()
    assert (by_archive.max(axis=1) - by_archive.min(axis=1) <= 1).all()
    # Without a test split, these are the folds of the cross-validation.
    builder.splits["split"] = "train"
    assert tuning.tuning_folds(run, 3).to_numpy().tolist() == find_folds(builder, None, 3, 1).to_numpy().tolist()


@pytest.mark.usefixtures("blank_pictures")
def test_training_on_recordings_is_tuned_by_the_average_precision_of_windows(tmp_path, small_archive, cache):
    settings = {"train_on": "recordings", "problem_type": "multi_label_classification", "windows_per_epoch": 32}
    search(small_archive, tmp_path, cache, trials=1, **settings)
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert 0 < best["mean_cmap"] <= 1
    assert sum(best["fold_cmap"]) / 2 == pytest.approx(best["mean_cmap"])
    assert "train_on" not in best["flags"], "recordings are the default"
    assert pd.read_csv(tmp_path / "out" / "history.csv")["mean_cmap"].tolist() == [pytest.approx(best["mean_cmap"])]


@pytest.mark.usefixtures("blank_pictures")
def test_a_killed_study_tries_the_killed_trial_again_and_counts_on(tmp_path, small_archive, cache, monkeypatch):
    train_fold, scored = tuning._best_epoch, []

    def score(settings, splits):
        """The first trial of a process takes no time."""
        scored.append(settings)
        return (0.5, 1.0) if len(scored) <= 2 else train_fold(settings, splits)

    monkeypatch.setattr(tuning, "_best_epoch", score)
    options = ["--trials", "2", "--folds", "2", "--storage", f"sqlite:///{tmp_path}/study.db"]
    process = start(
        main, ["tune", str(small_archive), *options, "--output", f"{tmp_path}/out", "--", *tuning_words(cache)]
    )
    wait_until(lambda: list((tmp_path / "out").glob("trial-1/fold-*")) or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "killed before its end"
    (left,) = [path.name for path in (tmp_path / "out").glob("trial-*")]
    assert left == "trial-1"

    # The heartbeat is in whole seconds.
    monkeypatch.setattr(tuning, "HEARTBEAT_S", 1)
    monkeypatch.setattr(tuning, "GRACE_S", 1)
    time.sleep(2.1)
    study = search(small_archive, tmp_path, cache, trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[2].params == study.trials[1].params
    assert not list((tmp_path / "out").glob("trial-*"))


@pytest.mark.usefixtures("without_training")
def test_a_study_that_is_stopped_tries_the_trials_of_one_that_is_not(tmp_path, small_archive, cache):
    whole, stopped, other = (tmp_path / name for name in ("whole", "stopped", "other"))
    for folder in (whole, stopped, other):
        folder.mkdir()
    expected = params(search(small_archive, whole, cache, trials=13))
    assert len({json.dumps(point) for point in expected}) == 13
    for trials in (1, 4, 12, 13):
        study = search(small_archive, stopped, cache, trials=trials)
        assert len(study.trials) == trials
    assert params(study) == expected
    assert params(search(small_archive, other, cache, trials=1, seed=7))[0] != expected[0]


def test_ctrl_c_leaves_the_study_usable_and_its_trial_is_tried_again(
    tmp_path, small_archive, cache, without_training, monkeypatch
):
    score = tuning._best_epoch

    def interrupted(settings, splits):
        if len(without_training) == 3:
            (folder := tmp_path / "out" / "trial-1" / "fold-1").mkdir(parents=True)
            (folder / "model.safetensors").write_text("x")
            raise KeyboardInterrupt
        return score(settings, splits)

    monkeypatch.setattr(tuning, "_best_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(small_archive, tmp_path, cache, trials=3)
    assert not list((tmp_path / "out").glob("trial-*"))
    assert json.loads((tmp_path / "out" / "best.json").read_text())["trial"] == 0

    monkeypatch.setattr(tuning, "_best_epoch", score)
    study = search(small_archive, tmp_path, cache, trials=3)
    finished = params(study, TrialState.COMPLETE)
    assert finished[1] == params(study, TrialState.FAIL)[0]
    (tmp_path / "whole").mkdir()
    assert finished == params(search(small_archive, tmp_path / "whole", cache, trials=3))


@pytest.mark.usefixtures("blank_pictures")
def test_points_that_fail_every_time_are_given_up(tmp_path, small_archive, cache, monkeypatch):
    def fails(settings, splits):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tuning, "_best_epoch", fails)
    for _ in range(1 + tuning.RETRIES + 1):
        with pytest.raises(RuntimeError, match="out of memory"):
            search(small_archive, tmp_path, cache, trials=1)
    study = optuna.load_study(study_name="kenya_birds", storage=f"sqlite:///{tmp_path}/study.db")
    first, *again, other = params(study)[: 1 + tuning.RETRIES + 1]
    assert again == [first] * tuning.RETRIES
    assert other != first


@pytest.mark.usefixtures("blank_pictures")
def test_a_trial_whose_training_diverges_is_pruned_and_counts(tmp_path, small_archive, cache, monkeypatch, caplog):
    caplog.set_level("INFO", "kenya_birds")
    scores = iter([DivergedError("its weights are not numbers"), (0.5, 1.0), (0.7, 2.0)])

    def score(settings, splits):
        found = next(scores)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(tuning, "_best_epoch", score)
    study = search(small_archive, tmp_path, cache, trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert "Trial 0 is pruned: its training diverged" in caplog.messages
    assert pd.read_csv(tmp_path / "out" / "history.csv")["mean_macro_f1"].isna().tolist() == [True, False]
    assert json.loads((tmp_path / "out" / "best.json").read_text())["mean_macro_f1"] == pytest.approx(0.6)


def test_a_trial_whose_first_fold_is_worse_than_the_median_is_pruned_and_counts(
    tmp_path, small_archive, cache, monkeypatch
):
    scores = iter([0.5] * 10 + [0.1] + [0.9] * 2)
    monkeypatch.setattr(tuning, "_best_epoch", lambda settings, splits: (next(scores), 1.0))
    study = search(small_archive, tmp_path, cache, trials=7)
    assert [trial.state for trial in study.trials] == [
        *[TrialState.COMPLETE] * 5,
        TrialState.PRUNED,
        TrialState.COMPLETE,
    ]
    table = pd.read_csv(tmp_path / "out" / "history.csv")
    assert table["state"].tolist() == [*["complete"] * 5, "pruned", "complete"]
    assert table["mean_macro_f1"][5] == 0.1
    assert float(table["fold_macro_f1"][5]) == 0.1
    assert (tmp_path / "out" / "importance.png").stat().st_size > 1000


def test_a_trial_whose_second_fold_is_worse_is_pruned_although_its_first_was_good(
    tmp_path, small_archive, cache, monkeypatch
):
    scores = iter([0.8, 0.6, 0.6] * 5 + [0.8, 0.0])
    monkeypatch.setattr(tuning, "_best_epoch", lambda settings, splits: (next(scores), 1.0))
    study = search(small_archive, tmp_path, cache, trials=6, folds=3)
    assert study.trials[5].state == TrialState.PRUNED
    assert study.trials[5].intermediate_values == {0: 0.8, 1: 0.4}


def test_recordings_of_the_test_split_are_neither_trained_on_nor_looked_at(
    tmp_path, small_archive, cache, without_training
):
    recordings = sorted(path.name for path in (small_archive / "soundscape_data").iterdir())
    splits = pd.DataFrame({"recording": recordings, "split": ["test", "validation", "test", *["train"] * 5]})
    splits.to_csv(tmp_path / "splits.csv", index=False)
    search(small_archive, tmp_path, cache, trials=1, folds=3, splits_file=tmp_path / "splits.csv")
    tables = [table.set_index("recording")["split"] for _, table in without_training]
    assert len(tables) == 3
    for table in tables:
        assert set(table.index) == set(recordings)
        assert sorted(table.index[table == "test"]) == [recordings[0], recordings[2]]
        assert (table == "train").any()
    # Each of the others validates once.
    validated = sorted(name for table in tables for name in table.index[table == "validation"])
    assert validated == sorted(set(recordings) - {recordings[0], recordings[2]})


def test_without_a_splits_file_the_test_split_is_that_of_training(tmp_path, small_archive, cache, without_training):
    search(small_archive, tmp_path, cache, trials=1)
    settings, table = without_training[0]
    usual = tuning.Run(settings.changed(output_dir=str(tmp_path / "new"))).builder.splits
    assert set(table.loc[table["split"] == "test", "recording"]) == set(
        usual.loc[usual["split"] == "test", "recording"]
    )


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"backbones": ["test_convnext", "test_convnext2"]}, "another space: backbone is None there"),
        ({"folds": 3}, "another folds: number is 2 there and 3 here"),
        ({"f_max_hz": 9000}, "another settings: f_max_hz is 15000.0 there and 9000.0 here"),
    ],
)
def test_a_study_of_something_else_is_refused(tmp_path, small_archive, cache, changes, told):
    search(small_archive, tmp_path, cache, trials=1)
    (tmp_path / "out").rename(tmp_path / "first")
    with pytest.raises(UserError, match=told):
        search(small_archive, tmp_path, cache, trials=2, **changes)
    assert not (tmp_path / "out").exists()
    (tmp_path / "first").rename(tmp_path / "out")
    with pytest.raises(UserError, match="has another study"):
        search(small_archive, tmp_path, cache, trials=2, **changes)


@pytest.mark.usefixtures("without_training")
def test_a_study_that_searches_a_given_setting_names_it(tmp_path, small_archive, cache):
    search(small_archive, tmp_path, cache, trials=1)
    with pytest.raises(UserError, match="has a study that searches --learning_rate: leave out these options"):
        search(small_archive, tmp_path, cache, trials=2, learning_rate=1e-3)


def test_workers_that_start_a_study_together_share_it(tmp_path):
    together = threading.Barrier(4)

    def begin(_):
        together.wait()
        study = TuningSettings(3, storage=f"sqlite:///{tmp_path}/study.db")
        return tuning._begin(study, 0, {"space": {"learning_rate": 1}}, tmp_path / "out")

    with ThreadPoolExecutor(4) as workers:
        assert [study.user_attrs for study in workers.map(begin, range(4))] == [{"space": {"learning_rate": 1}}] * 4
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/study.db") == ["kenya_birds"]
    assert json.loads((tmp_path / "out" / "study.json").read_text())["study_name"] == "kenya_birds"


def test_a_password_in_the_query_of_the_database_is_not_written(tmp_path):
    address = f"sqlite:///{tmp_path}/study.db"
    study = TuningSettings(3, storage=f"{address}?timeout=61")
    tuning._begin(study, 0, {"space": {}, "settings": {}}, tmp_path / "out")
    path = tmp_path / "out" / "study.json"
    written = json.loads(path.read_text())
    assert written["storage"] == address
    # A study of an earlier version is resumed.
    path.write_text(json.dumps({**written, "storage": study.storage}))
    tuning._begin(study, 0, {"space": {}, "settings": {}}, tmp_path / "out")
    assert json.loads(path.read_text()) == written
    password = "postgresql://me:secret@h/db?user=me&password=secret"
    assert tuning._shown(password) == "postgresql://me:***@h/db"


@pytest.mark.usefixtures("without_training")
def test_results_are_not_replaced_by_those_of_a_database_in_another_folder(
    tmp_path, small_archive, cache, monkeypatch
):
    def tune(folder, trials, output=tmp_path / "out"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        return tuning.tune(small_archive, output, TuningSettings(trials, folds=2), tuning_words(cache))

    tune(tmp_path / "first", 2)
    before = (tmp_path / "out" / "history.csv").read_text()
    with pytest.raises(UserError, match=r"its database .*second/study\.db does not exist: .*where it was first run"):
        tune(tmp_path / "second", 1)
    assert not list((tmp_path / "second").iterdir())
    tune(tmp_path / "second", 1, tmp_path / "other")
    with pytest.raises(UserError, match=r"history\.csv has 2 trials, but study kenya_birds has 1"):
        tune(tmp_path / "second", 3)
    assert (tmp_path / "out" / "history.csv").read_text() == before
    # Both may move together.
    (tmp_path / "moved").mkdir()
    (tmp_path / "first" / "study.db").rename(tmp_path / "moved" / "study.db")
    (tmp_path / "out").rename(tmp_path / "moved" / "out")
    assert len(tune(tmp_path / "moved", 3, tmp_path / "moved" / "out").trials) == 3


def test_a_setting_that_is_given_is_not_searched(tmp_path, small_archive, cache, without_training, caplog):
    caplog.set_level("INFO")
    given = {"weight_decay": 0.04, "drop_path_rate": 0.1, "loss_weight_power": 0.5}  # the last one is the default
    study = search(small_archive, tmp_path, cache, trials=2, backbones=("test_convnext", "test_convnext2"), **given)
    assert "Not searched, because they are given: weight_decay, loss_weight_power, drop_path_rate" in caplog.text
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert not given.keys() & {*best["space"], *study.trials[0].params}
    assert (best["flags"]["weight_decay"], best["flags"]["drop_path_rate"]) == (0.04, 0.1)
    used = {(run.training.weight_decay, run.model.drop_path_rate) for run, _ in without_training}
    assert used == {(0.04, 0.1)}
    assert len({run.training.learning_rate for run, _ in without_training}) == 2
    (tmp_path / "out").rename(tmp_path / "first")
    del given["weight_decay"]
    with pytest.raises(UserError, match=r"another space: weight_decay is None there and \{"):
        search(small_archive, tmp_path, cache, trials=3, backbones=("test_convnext", "test_convnext2"), **given)


@pytest.mark.usefixtures("without_training")
def test_a_study_of_another_archive_is_refused(tmp_path, small_archive, cache, monkeypatch):
    search(small_archive, tmp_path, cache, trials=1)
    (tmp_path / "out").rename(tmp_path / "first")
    monkeypatch.setattr(tuning, "archive_fingerprint", lambda folder: "0123")
    with pytest.raises(UserError, match=r"another archive: fingerprint is .* there and 0123 here"):
        search(small_archive, tmp_path, cache, trials=2)


@pytest.mark.usefixtures("blank_pictures")
def test_memory_that_others_need_uses_up_no_trials(tmp_path, small_archive, cache, monkeypatch):
    def full(settings, splits):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuning, "_best_epoch", full)
    with pytest.raises(UserError, match="too little memory: give half the --per_device_train_batch_size"):
        search(small_archive, tmp_path, cache, trials=2)
    monkeypatch.setattr(tuning, "_best_epoch", lambda settings, splits: (0.5, 1.0))
    study = search(small_archive, tmp_path, cache, trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


@pytest.mark.usefixtures("blank_pictures")
def test_a_backbone_that_needs_more_memory_than_another_is_pruned(tmp_path, small_archive, cache, monkeypatch, caplog):
    fitting = []

    def score(settings, splits):
        fitting.append(settings.model.backbone)
        if settings.model.backbone != fitting[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.5, 1.0

    monkeypatch.setattr(tuning, "_best_epoch", score)
    study = search(small_archive, tmp_path, cache, trials=6, backbones=("test_convnext", "test_convnext2"))
    states = {(trial.params["backbone"] == fitting[0], trial.state) for trial in study.trials}
    assert states == {(True, TrialState.COMPLETE), (False, TrialState.PRUNED)}
    assert any("is pruned: the device has too little memory" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--trials", "0"], "trials is 0"),
        (["--trials", "1", "--folds", "1"], "folds is 1: expected 2"),
        (["--trials", "1", "--backbones", "convnext_tinny"], "did you mean convnext_tiny"),
        (["--trials", "1", "--storage", "study.db"], "SQLAlchemy URL"),
        (["--trials", "1", "--storage", "sqlite:////no/such/folder/study.db"], "unable to open database file"),
        (["--trials", "1", "--", "--eval_strategy", "no", "--load_best_model_at_end", "False"], "eval_strategy"),
        (["--trials", "1", "--", "--no_such_flag", "1"], "no_such_flag"),
        (["--trials", "1", "--", "--output_dir", "x"], "--output_dir is among the flags"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, small_archive, cache, capsys, monkeypatch, more, told):
    monkeypatch.chdir(tmp_path)
    own, _, given = " ".join(more).partition(" -- ")
    words = tuning_words(cache)
    if "--backbones" in more:
        del words[(at := words.index("--backbone")) : at + 2]
    with pytest.raises(SystemExit) as stopped:
        main(["tune", str(small_archive), *own.split(), "--", *words, *given.split()])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert told in line
    assert not (tmp_path / "tuning").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, small_archive, cache):
    (tmp_path / "out" / "trial-0").mkdir(parents=True)
    with pytest.raises(UserError, match="exists and has no study"):
        search(small_archive, tmp_path, cache, trials=1)
    assert (tmp_path / "out" / "trial-0").is_dir()
