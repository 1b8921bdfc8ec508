"""Runs that are stopped, moved, copied or resumed otherwise: the same model as without a stop, or a refusal."""

import contextlib
import json
import shutil
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from running import flags, settings_of, train
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import train_hf
from kenya_birds.errors import UserError, WriteError
from kenya_birds.locks import LOCK_FILE
from kenya_birds.saved_models import NOVELTY_FILE
from kenya_birds.training.run_folder import (
    DIGESTS_FILE,
    RECORD_FILES,
    RESULT_FILES,
    SETTINGS_FILE,
    SPLITS_FILE,
    STAGE_FILE,
    RunRecord,
    adopt,
    checkpoints,
    clear_results,
    find_start,
    forget_start,
    writing_results,
    writing_run,
)
from kenya_birds.training.training_run import Run

# The run has no first stage, and its validation split has too few windows with a call for novelty.
RESULTS = set(RESULT_FILES) - {NOVELTY_FILE}
RECORDS = set(RECORD_FILES) - {STAGE_FILE}
# The best epoch is the second. After two that are worse, the run stops at the fourth of eight.
SETTINGS = {
    "num_train_epochs": 8,
    "early_stopping_patience": 2,
    "learning_rate": 6e-3,
    "seed": 1,
    "n_mels": 128,
    "hop_length": 512,
    "drop_rate": 0.2,
    "save_total_limit": 10,
}
BEST, LAST = "checkpoint-16", "checkpoint-32"

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def finished(small_archive, cache, tmp_path_factory):
    """A run that early stopping has ended. It was moved since."""
    folder = tmp_path_factory.mktemp("resume")
    train(small_archive, folder / "first", cache, **SETTINGS)
    return (folder / "first").rename(folder / "birds")


def read(path):
    return json.loads(path.read_text())


def copy(finished, target, *, until=LAST, ended=True):
    """A copy of the run, as it was after a checkpoint, with or without what it wrote in the end."""
    shutil.copytree(finished, target)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > int(until.split("-")[1]):
            shutil.rmtree(checkpoint)
    if not ended:
        for name in (*RESULTS, DIGESTS_FILE):
            (target / name).unlink()
    return target


def resume(archive, output_dir, cache, **settings):
    settings = {**SETTINGS, "resume_from_checkpoint": "true", **settings}
    return train(archive, output_dir, cache, **settings)


def assert_same_model(output_dir, finished):
    found, expected = (load_file(folder / "model.safetensors") for folder in (output_dir, finished))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    told, before = (read(folder / "training_summary.json")["result"] for folder in (output_dir, finished))
    told["train_runtime_s"] = before["train_runtime_s"]
    assert told == before
    for name in ("metrics.json", "thresholds.json", *RECORDS):
        assert (output_dir / name).read_text() == (finished / name).read_text(), name


def refused(match, archive, output_dir, cache, **settings):
    """The run is refused and nothing in its folder changes."""
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    with pytest.raises(UserError, match=match) as caught:
        resume(archive, output_dir, cache, **settings)
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before
    return str(caught.value)


def test_early_stopping_ended_the_run(finished):
    result = read(finished / "training_summary.json")["result"]
    assert result["epochs"] == 4
    assert result["best_epoch"] == 2
    assert result["chosen_by"] == "macro_f1"
    assert "The best epoch was chosen by macro F1 on the validation split" in (finished / "README.md").read_text()


def test_a_run_that_is_killed_stops_where_it_would_have_stopped(finished, small_archive, cache, tmp_path):
    folder = copy(finished, tmp_path / "birds", until="checkpoint-24", ended=False)
    assert_same_model(resume(small_archive, folder, cache), finished)
    before, after = (
        read(path / LAST / "trainer_state.json")["stateful_callbacks"]["EarlyStoppingCallback"]
        for path in (finished, folder)
    )
    assert before == after


def test_a_run_that_had_ended_is_not_trained_on_and_the_best_checkpoint_is_found_by_its_step(
    finished, small_archive, cache, tmp_path, monkeypatch
):
    folder = copy(finished, tmp_path / "moved", ended=False)
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        # A path that exists, and is not that of the best.
        state = {**read(path), "best_model_checkpoint": str(folder / LAST)}
        path.write_text(json.dumps(state))
    monkeypatch.chdir(tmp_path)
    assert_same_model(resume(small_archive, Path("moved"), cache), finished)


def test_a_finished_run_can_be_resumed_in_place(finished, small_archive, cache, tmp_path):
    folder = copy(finished, tmp_path / "birds")
    assert_same_model(resume(small_archive, folder, cache), finished)


def test_without_the_best_checkpoint_no_other_passes_for_it(finished, small_archive, cache, tmp_path):
    for until in (LAST, "checkpoint-24"):
        folder = copy(finished, tmp_path / until, until=until)
        shutil.rmtree(folder / BEST)
        with pytest.raises(UserError, match=f"{BEST}, the best epoch of the run, is not in .*: restore it"):
            resume(small_archive, folder, cache)
        assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_checkpoint_is_taken_to_a_new_folder_with_the_best_one(finished, small_archive, cache, tmp_path):
    source = copy(finished, tmp_path / "source", ended=False)
    folder = resume(small_archive, tmp_path / "new", cache, resume_from_checkpoint=source / LAST)
    shutil.rmtree(source)
    assert_same_model(folder, finished)
    assert {path.name for path in folder.glob("checkpoint-*")} == {BEST, LAST}
    assert_same_model(resume(small_archive, folder, cache), finished)


# What a resumed run must not change


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fold": 1}, ["fold was 0 and is 1 now"]),
        ({"n_mels": 64, "clip_s": 2.0}, ["n_mels was 128 and is 64 now", "clip_s was 3.0 and is 2.0 now"]),
        (
            {"problem_type": "multi_label_classification"},
            ["problem_type was single_label_classification and is multi"],
        ),
        ({"num_train_epochs": 9}, ["num_train_epochs was 8.0 and is 9.0 now"]),
        ({"min_annotations": 20}, ["min_annotations was 8 and is 20 now"]),
        ({"edge_tolerance_s": 0.5, "seed": 2}, ["edge_tolerance_s was 0.0 and is 0.5 now", "seed was 1 and is 2 now"]),
        ({"gradient_accumulation_steps": 2}, ["clips_per_step was 8 and is 16 now"]),
        ({"mixup_probability": 0.5}, ["mixup_probability was 0.0 and is 0.5 now"]),
        ({"early_stopping_patience": 0}, ["early_stopping_patience was 2 and is 0 now"]),
    ],
)
def test_a_run_with_other_settings_is_refused(finished, small_archive, cache, monkeypatch, changes, told):
    monkeypatch.setattr("kenya_birds.training.training_run.clips_builder", None)  # the archive is not read
    message = refused("was started with other settings", small_archive, finished, cache, **changes)
    assert all(part in message for part in told)
    assert "\n" not in message


def planned(archive, output_dir, cache, **settings):
    settings = {**SETTINGS, "resume_from_checkpoint": "true", **settings}
    return Run(settings_of(flags(archive, output_dir, cache, **settings)))


def test_what_decides_nothing_may_change(finished, small_archive, cache, tmp_path):
    archive = shutil.copytree(small_archive, tmp_path / "elsewhere")
    run = planned(
        archive,
        finished,
        tmp_path / "cache",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        per_device_eval_batch_size=7,
        init_from=tmp_path / "gone",
        logging_steps=5,
        num_proc=2,
        dataloader_num_workers=1,
        splits_file=finished / SPLITS_FILE,
    )
    assert run.splits.equals(pd.read_csv(finished / SPLITS_FILE))
    assert run.record.starting_point == "scratch"


def test_the_splits_of_the_run_hold_where_annotations_were_corrected(finished, small_archive, cache, tmp_path, caplog):
    archive = shutil.copytree(small_archive, tmp_path / "archive")
    table = pd.read_csv(archive / "annotations.csv")
    splits = pd.read_csv(finished / SPLITS_FILE)
    # So that a split that is made anew would be another.
    before = Run(settings_of(flags(archive, tmp_path / "new", cache, **SETTINGS))).splits
    assert before.equals(splits)
    rng = table.sample(frac=0.5, random_state=3).index
    codes = table["Species eBird Code"]
    table.loc[rng, "Species eBird Code"] = codes[rng].sample(frac=1, random_state=1).to_numpy()
    table.to_csv(archive / "annotations.csv", index=False)
    anew = Run(settings_of(flags(archive, tmp_path / "new", cache, **SETTINGS))).splits
    assert not anew.equals(splits)
    folder = copy(finished, tmp_path / "birds")
    run = planned(archive, folder, cache)
    assert run.splits.equals(splits)
    assert "annotations.csv has changed since this run was started" in caplog.text
    with run:
        for name in RECORDS:
            assert (folder / name).read_text() == (finished / name).read_text()


def changed_archive(small_archive, target, change):
    archive = shutil.copytree(small_archive, target)
    table = pd.read_csv(archive / "annotations.csv")
    recordings = sorted(table["Filename"].unique())
    if change == "new":
        new = table[table["Filename"] == recordings[0]].assign(Filename="new.wav")
        suffix = recordings[0].rpartition(".")[2]
        new["Filename"] = f"new.{suffix}"
        table = pd.concat([table, new])
        shutil.copyfile(archive / "soundscape_data" / recordings[0], archive / "soundscape_data" / f"new.{suffix}")
    elif change == "fewer":
        table = table[table["Filename"] != recordings[0]]
    else:
        rare = table["Species eBird Code"].value_counts().index[-1]
        common = table.index[table["Species eBird Code"] != rare][:10]
        table.loc[common, "Species eBird Code"] = rare
    table.to_csv(archive / "annotations.csv", index=False)
    return archive


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("new", r"lacks recordings of the archive: new.*\(the splits are those that the run of .* was started with"),
        ("fewer", "has recordings without clips in the archive"),
        ("species", "was trained on other species: 5 then and 6 now, which differ in "),
    ],
)
def test_an_archive_with_other_recordings_or_species_is_refused(
    finished, small_archive, cache, tmp_path, change, told
):
    archive = changed_archive(small_archive, tmp_path / "archive", change)
    refused(told, archive, finished, cache)


def test_another_table_of_splits_is_refused(finished, small_archive, cache, tmp_path):
    table = pd.read_csv(finished / SPLITS_FILE)
    table["split"] = table["split"].map({"train": "train", "validation": "test", "test": "validation"})
    table.to_csv(tmp_path / "other.csv", index=False)
    refused(
        r"started with other splits: \d+ recordings were in another one",
        small_archive,
        finished,
        cache,
        splits_file=tmp_path / "other.csv",
    )


# Other people's files and folders


def test_a_checkpoint_of_another_folder_does_not_replace_what_is_there(finished, small_archive, cache, tmp_path):
    source = copy(finished, tmp_path / "source", ended=False)
    refused(
        "is not in --output_dir .*, which is not empty",
        small_archive,
        finished,
        cache,
        resume_from_checkpoint=source / LAST,
    )
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    refused(
        "is not in --output_dir",
        small_archive,
        tmp_path / "notes",
        cache,
        resume_from_checkpoint=source / LAST,
    )


@pytest.mark.parametrize(
    ("name", "ended", "told"),
    [
        ("README.md", True, "README.md was changed since training wrote it"),
        ("thresholds.json", True, "thresholds.json was changed since training wrote it"),
        ("README.md", False, "README.md was not written by training"),
    ],
)
def test_files_that_somebody_changed_or_added_are_not_replaced(
    finished, small_archive, cache, tmp_path, name, ended, told
):
    folder = copy(finished, tmp_path / "birds", ended=ended)
    (folder / name).write_text("checked by me")
    refused(told, small_archive, folder, cache)
    assert (folder / name).read_text() == "checked by me"


def test_two_runs_do_not_share_a_folder(finished, small_archive, cache, tmp_path):
    folder = copy(finished, tmp_path / "birds")
    (tmp_path / "new").mkdir()
    with filelock.FileLock(folder / LOCK_FILE), filelock.FileLock(tmp_path / "new" / LOCK_FILE):
        refused("another run is writing to", small_archive, folder, cache)
        with pytest.raises(UserError, match="another run is writing to"):
            train(small_archive, tmp_path / "new", cache, **SETTINGS)
    first, second = (Run(settings_of(flags(small_archive, tmp_path / "both", cache, **SETTINGS))) for _ in range(2))
    with first, pytest.raises(UserError, match="another run is writing to"):
        second.__enter__()
    shutil.copytree(finished, tmp_path / "both", dirs_exist_ok=True)
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        second.__enter__()


def test_of_a_run_that_fails_before_training_nothing_is_left(small_archive, cache, tmp_path):
    run = Run(settings_of(flags(small_archive, tmp_path / "run", cache, **SETTINGS)))
    run.__enter__()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK_FILE, *RECORDS}
    (tmp_path / "run" / ".DS_Store").touch()  # which Finder makes
    run.__exit__(UserError, UserError("no clip can be read"), None)
    assert not (tmp_path / "run").exists()


# The folder alone


def checkpoint_in(folder, step, *, whole=True, best=None):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").touch()
    if whole:
        state = {"global_step": step, "best_global_step": best}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    RunRecord({"seed": 1}, "scratch", "0123").write(checkpoint)
    (checkpoint / SPLITS_FILE).write_text("recording,split\n")
    return checkpoint


def test_a_lock_or_the_start_of_a_killed_run_leaves_a_folder_free(tmp_path):
    assert find_start(tmp_path / "none", None) is None
    (tmp_path / LOCK_FILE).touch()
    assert find_start(tmp_path, None) is None
    RunRecord({"seed": 1}, "scratch", "0123").write(tmp_path)
    (tmp_path / SPLITS_FILE).touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / ".DS_Store").touch()
    checkpoint_in(tmp_path, 8, whole=False)
    assert find_start(tmp_path, None) is None
    with pytest.raises(UserError, match="no checkpoint to resume from in"):
        find_start(tmp_path, "true")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        find_start(tmp_path, None)


def test_a_folder_with_a_table_of_splits_is_not_taken_for_a_run(tmp_path):
    (tmp_path / SPLITS_FILE).touch()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        find_start(tmp_path, None)


def test_the_last_whole_checkpoint_is_found_and_others_are_refused(tmp_path):
    checkpoint_in(tmp_path, 9)
    last = checkpoint_in(tmp_path, 10)
    partial = checkpoint_in(tmp_path, 11, whole=False)
    checkpoint_in(tmp_path, "best")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-11"]
    assert find_start(tmp_path, "True") == last
    assert find_start(tmp_path, str(last / ".." / "checkpoint-9")).samefile(tmp_path / "checkpoint-9")
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        find_start(tmp_path, str(partial))
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        find_start(tmp_path, str(tmp_path))
    (last / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"has no optimizer\.pt, because of --save_only_model"):
        find_start(tmp_path, "true")


def test_what_an_older_version_started_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match=f"has no {SETTINGS_FILE}"):
        RunRecord.read(tmp_path)
    (tmp_path / SETTINGS_FILE).write_text('{"settings": {}}')
    with pytest.raises(UserError, match="has no 'starting_point'"):
        RunRecord.read(tmp_path)


def test_a_copy_of_a_checkpoint_that_was_stopped_can_be_made_again(tmp_path):
    source, target = checkpoint_in(tmp_path / "a", 9, best=7), tmp_path / "b"
    with pytest.raises(UserError, match="checkpoint-7, the best epoch of the run, is not in"):
        adopt(source, target)
    best = checkpoint_in(tmp_path / "a", 7, best=7)
    (best / "model.safetensors").write_text("the best")
    target.mkdir()
    for _ in range(2):
        assert find_start(target, str(source)) == source
        assert adopt(source, target) == target / "checkpoint-9"
        # As if it had been killed just before its end.
        for state in target.glob("checkpoint-*/trainer_state.json"):
            state.unlink()
    adopt(source, target)
    assert (target / "checkpoint-7" / "model.safetensors").read_text() == "the best"
    assert (target / SPLITS_FILE).is_file()
    assert find_start(target, "true") == target / "checkpoint-9"


@pytest.mark.parametrize(
    "names", [["run_settings.json.part"], ["run_settings.json", "splits.csv.part"], ["run_settings.json", "runs"]]
)
def test_a_run_that_was_killed_while_it_wrote_its_first_files_starts_again(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    assert find_start(tmp_path, None) is None
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        find_start(tmp_path, None)


def test_results_are_known_by_their_digests(tmp_path):
    with writing_results(tmp_path):
        (tmp_path / "metrics.json").write_text("1")
        (tmp_path / "notes.txt").write_text("mine")
    writing = writing_results(tmp_path)
    writing.__enter__()
    (tmp_path / "metrics.json").write_text("2")
    writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with writing_results(tmp_path):  # whatever was written when it was stopped
        (tmp_path / "metrics.json").write_text("3")
    clear_results(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    forget_start(tmp_path)
    assert (tmp_path / "notes.txt").is_file()


def test_every_result_of_training_is_known(finished):
    names = {path.name for path in finished.iterdir() if path.is_file()}
    assert names == {*RESULTS, *RECORDS, LOCK_FILE, DIGESTS_FILE}
    assert read(finished / DIGESTS_FILE).keys() == RESULTS


@contextlib.contextmanager
def largest_file(size):
    """Writing more than this into a file fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("until", "step"),
    [pytest.param("checkpoint-24", "fit", id="checkpoint"), pytest.param(LAST, "save_model", id="model")],
)
def test_a_disk_that_is_full_ends_training_with_one_line_and_it_can_be_resumed(
    finished, small_archive, cache, tmp_path, monkeypatch, until, step
):
    step_of_run = getattr(Run, step)

    def on_a_full_disk(*arguments):
        with largest_file(100_000):
            return step_of_run(*arguments)

    monkeypatch.setattr(Run, step, on_a_full_disk)
    folder = copy(finished, tmp_path / "birds", until=until, ended=False)
    told = rf"{folder} cannot be written to \(.*File too large.*\): .*; resume with the same command and --resume_from"
    with pytest.raises(UserError, match=told):
        resume(small_archive, folder, cache)
    monkeypatch.undo()
    assert_same_model(resume(small_archive, folder, cache), finished)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: save_file({"a": torch.zeros(50_000)}, folder / "a.safetensors"),
        lambda folder: torch.save(torch.zeros(50_000), folder / "a.pt"),
        lambda folder: torch.save(torch.zeros(1), folder / "none" / "a.pt"),
        lambda folder: np.save(folder / "a.npy", np.zeros(50_000)),
        lambda folder: (folder / "none" / "a.txt").write_text(""),
    ],
    ids=["safetensors", "torch", "torch without a folder", "numpy", "no folder"],
)
def test_every_way_of_writing_tells_that_the_folder_cannot_be_written_to(tmp_path, write):
    with (
        pytest.raises(WriteError, match=f"{tmp_path} cannot be written to"),
        largest_file(1000),
        writing_run(tmp_path),
    ):
        write(tmp_path)


def test_errors_of_other_files_pass(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(FileNotFoundError), writing_run(tmp_path / "run"):
        (tmp_path / "recording.wav").read_bytes()
    with pytest.raises(SafetensorError), writing_run(tmp_path):
        load_file(tmp_path / "bad.safetensors")
    with pytest.raises(RuntimeError, match="CUDA"), writing_run(tmp_path):
        raise RuntimeError("CUDA out of memory")


def test_a_checkpoint_whose_state_was_cut_is_not_complete(tmp_path, caplog):
    # A run was killed, or the disk was full, while the state was written.
    whole, cut = checkpoint_in(tmp_path, 9), checkpoint_in(tmp_path, 10)
    (cut / "trainer_state.json").write_text('{"global_st')
    assert find_start(tmp_path, "true") == whole
    assert "checkpoint-10 is not complete: the run resumes from checkpoint-9" in caplog.text
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        find_start(tmp_path, str(cut))


def test_the_command_ends_with_one_line(finished, small_archive, cache, capsys):
    from kenya_birds.console import one_line_errors

    words = flags(small_archive, finished, cache, **{**SETTINGS, "n_mels": 64}, resume_from_checkpoint="true")
    with pytest.raises(SystemExit, match="2"), one_line_errors("train_hf.py"):
        train_hf.main(words)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "n_mels was 128 and is 64 now" in line
