"""What is seen while a command runs: a line for each epoch, TensorBoard, each warning once, how much is done."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from kenya_birds.console import show_log
from kenya_birds.inference.progress_bar import RecordingsBar
from kenya_birds.inference.sources import Source
from kenya_birds.training.callbacks import EpochLog, RunTensorBoard, StepLosses, format_time, log_folder, write_results

ARGS = {"per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none", "disable_tqdm": True}


class OneProcess:
    """An accelerator with one process."""

    def reduce(self, tensor, reduction):
        assert reduction == "mean"
        return tensor


def epoch_lines(caplog, args, scores, stop_at=None):
    """The lines of a run with these macro F1 after its epochs of two steps."""
    losses = StepLosses(OneProcess())
    log, control = EpochLog(losses), TrainerControl()
    log.epochs = stop_at
    state = TrainerState(max_steps=2 * len(scores), num_train_epochs=len(scores))
    with caplog.at_level(logging.INFO):
        log.on_train_begin(args, state, control)
        for epoch, score in enumerate(scores, start=1):
            log.on_epoch_begin(args, state, control)
            for _ in range(2):
                losses.add(torch.tensor(float(epoch)), is_step=False)
                losses.add(torch.tensor(0.5), is_step=True)
                state.global_step += 1
                log.on_step_end(args, state, control)
            state.epoch = float(epoch)
            log.on_epoch_end(args, state, control)
            if score is not None:
                metrics = {"eval_loss": 0.25, "eval_macro_f1": score, "eval_cmap": 1 - score}
                state.log_history.append({**metrics, "epoch": state.epoch})
                log.on_evaluate(args, state, control, metrics=metrics)
        log.on_train_end(args, state, control)
    return [re.sub(r"[\d,]+ clips/s", "N clips/s", record.message) for record in caplog.records]


def test_an_epoch_is_one_line_with_loss_score_speed_and_time_left(caplog, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), eval_strategy="epoch", **ARGS)
    assert epoch_lines(caplog, args, [0.5, 0.25, 0.75]) == [
        "Epoch 1 of 3: loss 1.5, validation loss 0.25, macro F1 0.5000 (the best so far), N clips/s, 0 s left",
        "Epoch 2 of 3: loss 2.5, validation loss 0.25, macro F1 0.2500 (best: 0.5000 in epoch 1), N clips/s, 0 s left",
        "Epoch 3 of 3: loss 3.5, validation loss 0.25, macro F1 0.7500 (the best so far), N clips/s",
    ]


def test_the_best_epoch_is_that_of_the_metric_that_is_shown(caplog, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), eval_strategy="epoch", metric_for_best_model="cmap", **ARGS)
    lines = epoch_lines(caplog, args, [0.5, 0.25, 0.75])
    assert "mean average precision 0.7500 (the best so far)" in lines[1]
    assert "mean average precision 0.2500 (best: 0.7500 in epoch 2)" in lines[2]


def test_a_run_without_evaluation_tells_its_loss_and_where_it_stops(caplog, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), eval_strategy="no", **ARGS)
    assert epoch_lines(caplog, args, [None] * 3, stop_at=2.0) == [
        "Epoch 1 of 2: loss 1.5, N clips/s, 0 s left",
        "Epoch 2 of 2: loss 2.5, N clips/s",
        "Epoch 3 of 2: loss 3.5, N clips/s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3600 * 30 + 61, "30 h 01 min")]
)
def test_times_are_told_in_words(seconds, text):
    assert format_time(seconds) == text


def test_tensorboard_has_curves_that_change_and_the_runs_own_name(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path / "birds"), **ARGS)
    state, control = TrainerState(), TrainerControl()
    logs = {"loss": 1.0, "epoch": 1.0, "learning_rate": 0.1, "total_flos": 0, "eval_classes": 5, "eval_loss": 2.0}
    for first in (0, 10):  # the second time as a run that is resumed at step 10
        callback = RunTensorBoard()
        state.global_step = first
        callback.on_train_begin(args, state, control)
        for step in range(first + 1, first + 13):
            state.global_step = step
            callback.on_log(args, state, control, logs={**logs, "eval_macro_f1": step / 100, "eval_cmap": 0.5})
        callback.on_log(args, state, control, logs={"train_runtime": 3.0, "train_samples_per_second": 1.0})
        callback.on_train_end(args, state, control)
    (tmp_path / "birds").mkdir(exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), 200, dtype=np.uint8)).save(tmp_path / "birds" / "confusion_matrix.png")
    write_results(tmp_path / "birds", 22, {"macro_f1": 0.5, "auroc": None})

    assert log_folder(tmp_path / "birds") == tmp_path / "birds" / "runs" / "birds"
    events = EventAccumulator(str(tmp_path / "birds" / "runs" / "birds")).Reload()
    curves = {"train/loss", "train/learning_rate", "eval/loss", "eval/macro_f1", "eval/cmap"}
    assert set(events.Tags()["scalars"]) == {*curves, "test/macro_f1"}
    assert [event.step for event in events.Scalars("eval/macro_f1")] == list(range(1, 23))
    assert events.Tags()["images"] == ["confusion_matrix"]


def test_what_is_said_of_an_archive_is_said_once(capsys):
    show_log()
    for _ in range(2):
        logging.getLogger("kenya_birds.data.archive").warning("Dropped %d species", 3)
        logging.getLogger("kenya_birds.training.training_run").info("Fold")
    assert capsys.readouterr().err.splitlines() == ["WARNING: Dropped 3 species", "INFO: Fold", "INFO: Fold"]


def bar_of(tmp_path, seconds, suffix=".wav"):
    """A bar for recordings of these lengths, and their names."""
    names = [str(tmp_path / f"{number}{suffix}") for number in range(len(seconds))]
    for name, length_s in zip(names, seconds, strict=True):
        soundfile.write(name, np.zeros(length_s * 8000, dtype=np.int16), 8000, format="WAV")
    sizes = {name: Path(name).stat().st_size for name in names}
    return RecordingsBar([Source(name) for name in names], sizes), names


def test_a_bar_has_all_hours_and_files_before_anything_is_analysed(tmp_path, capsys):
    bar, names = bar_of(tmp_path, [3600, 7200, 1800])
    with bar:
        assert "file 1 of 3:   0%|" in capsys.readouterr().err
        assert bar.total_h == pytest.approx(3.5, rel=1e-3)
        bar.advance(3600)
        bar.finish(names[0], 3600.0)
        bar.finish(names[1], 0.0)  # it could not be read
        assert bar.total_h == pytest.approx(1.5)
        bar.advance(1800)
        bar.finish(names[2], 1800.0)
        assert bar.total_h == pytest.approx(1.5)
    assert re.search(r"file 3 of 3: 100%\|.*\| 1\.50 of 1\.50 h \[", capsys.readouterr().err)


def test_where_headers_do_not_tell_at_once_the_first_recording_does(tmp_path, capsys):
    bar, names = bar_of(tmp_path, [3600, 7200], ".mp3")
    with bar:
        assert bar.total_h is None
        bar.advance(3600)
        assert "file 1 of 2: 0.00 h [" in capsys.readouterr().err
        bar.finish(names[0], 3600.0)
        assert bar.total_h == pytest.approx(3.0, rel=1e-3)
        bar.finish(names[1], 7200.0)


def test_a_bar_of_damaged_files_or_of_none_says_nothing_wrong(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with RecordingsBar([Source(str(tmp_path / "a.wav"))], {}) as bar:
        assert bar.total_h is None
        bar.finish(str(tmp_path / "a.wav"), 0.0)
    with RecordingsBar([], {}) as bar:
        bar.advance(1.0)
