"""Benchmarks run: those of speed on a bare machine, the comparison of settings on a small archive."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pandas as pd
import pytest
from archives import write_archive
from detecting import save_model
from fresh_python import run_fresh
from running import ROOT, SMALL, can_fork, run_script, start

from kenya_birds import cli
from kenya_birds.data.synthetic import synthesize_archive

MISSING = (
    "datasets",
    "pyarrow",
    "pandas",
    "scipy",
    "sklearn",
    "soundfile",
    "soxr",
    "av",
    "noisereduce",
    "librosa",
    "torchaudio",
)


def test_a_step_is_timed_with_torch_transformers_and_timm_alone():
    program = f"""
import runpy, sys
there = [name for name in sys.modules if name.partition(".")[0] in {MISSING}]
sys.modules.update(dict.fromkeys([*{MISSING}, *there]))
sys.argv = "training_speed.py step --steps 1 --repeats 1 --batch_size 2 --backbone test_convnext".split()
runpy.run_path("benchmarks/training_speed.py", run_name="__main__")
"""
    result = run_fresh("-c", program, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    assert "| bare backbone |" in result.stdout


def test_what_many_hours_take_is_measured_and_reckoned():
    words = ("--backbones", "test_convnext", "--minutes", "0.2", "--repeats", "1", "--device", "cpu")
    result = run_script("benchmarks/scale.py", *words)
    assert result.returncode == 0, result.stderr
    backbone, seconds, hours_a_day, years = (
        cell.strip() for cell in result.stdout.splitlines()[-1].strip("|").split("|")
    )
    assert backbone == "`test_convnext`"
    assert 0.1 < float(seconds) < 600
    assert float(hours_a_day.replace(",", "")) == pytest.approx(86_400 / float(seconds), rel=0.02)
    assert float(years) == pytest.approx(1e6 * float(seconds) / 3600 / 8760, rel=0.02, abs=0.006)


def test_stages_of_the_feature_extractor_are_timed_beside_a_backbone():
    words = ("--backbones", "test_convnext", "--clips", "2", "--repeats", "1", "--threads", "1")
    result = run_script("benchmarks/front_end_speed.py", *words)
    assert result.returncode == 0, result.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines()[4:]]
    assert {"high-pass", "all, noise reduction spectrogram", "backbone test_convnext"} <= {row[0] for row in rows}
    assert all(float(cell) >= 0 for row in rows for cell in row[1:])
    assert float(rows[-1][-1]) == 1


def _serve(words, environment, output):
    """What `python -m kenya_birds` does."""
    os.environ.update(environment)
    tempfile.tempdir = None
    os.dup2(output, 1)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    cli.main(words)


class ForkedDemo(subprocess.Popen):
    """`python -m kenya_birds` in a fork, which has imported torch already; other programs as ever."""

    _child_created = False  # not by `subprocess`

    def __new__(cls, words, **settings):
        if words[1:3] == ["-m", "kenya_birds"]:
            return super().__new__(cls)
        return cls.__base__(words, **settings)

    def __init__(self, words, *, env, **_):
        ours, its = os.pipe()
        self._child = start(_serve, words[3:], env, its)
        os.close(its)
        self.pid, self.stdout = self._child.pid, os.fdopen(ours)
        self.kill, self.terminate = self._child.kill, self._child.terminate

    def poll(self):
        return self._child.exitcode

    def wait(self, timeout=None):
        self._child.join(timeout)
        if self._child.exitcode is None:
            raise subprocess.TimeoutExpired("the demo", timeout)
        return self._child.exitcode


@pytest.fixture
def forked_demo(monkeypatch):
    """The demo is served by a fork, where there are any."""
    if can_fork():
        monkeypatch.setattr(subprocess, "Popen", ForkedDemo)


@pytest.mark.usefixtures("forked_demo")
def test_visitors_of_the_demo_that_come_at_once_are_counted_and_timed(tmp_path):
    model = save_model(tmp_path / "model")
    words = ("--model", str(model), "--users", "2", "--duration_s", "3")
    result = run_script("benchmarks/demo_load.py", *words)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1] == "answered 2, refused 0, failed 0"
    alone_s, median_s, worst_s = map(float, lines[4].strip("|").split("|")[1:])
    assert 0 < median_s <= worst_s
    assert alone_s > 0
    assert "visitors' folders left: 0" in lines


def test_detection_is_timed_beside_its_parts_in_each_backend(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    speed = importlib.import_module("speed")
    words = ["--backbones", "test_convnext", "--backends", "torch", "onnx", "--number", "1", "--duration_s", "6"]
    words += ["--repeats", "1", "--batch_size", "2", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["speed.py", "table", *words, "--wrapped", str(save_model(tmp_path / "wrapped"))])
    speed.main()
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [(row[0].strip(), row[2].strip()) for row in rows] == [
        ("`test_convnext`", "torch"),
        ("`test_convnext`", "onnx"),
        ("`wrapped`", "torch"),
    ]
    for row in rows:
        decode, _, backbone, detect, share = map(float, row[3:8])
        assert share == pytest.approx(detect / min(decode, backbone), rel=0.05, abs=0.02)


def compared(archive, folder, *words):
    """What the comparison of arms prints for the first fold of three, after one epoch."""
    recordings = sorted(path.name for path in (archive / "soundscape_data").iterdir())
    lines = [f"{name},{number % 3}" for number, name in enumerate(recordings)]
    (folder / "folds.csv").write_text("\n".join(["recording,fold", *lines]) + "\n")
    small = {name: value for name, value in SMALL.items() if name not in ("report_to", "disable_tqdm")}
    shared = " ".join(f"--{name} {value}" for name, value in {**small, "num_train_epochs": 1}.items())
    options = ["--folds_file", folder / "folds.csv", "--folds", "0", "--flags", shared, "--resamples", "50"]
    return run_script("benchmarks/recordings_against_clips.py", archive, folder / "work", *options, *words)


@pytest.mark.usefixtures("blank_figures")
def test_arms_are_trained_once_and_compared_on_whole_recordings(small_archive, tmp_path, monkeypatch):
    arms = (
        "--only",
        "clips",
        "--arm",
        "focal 2.0: --train_on recordings --windows_per_epoch 32 --num_train_epochs 6 --average_epochs 2 "
        "--early_stopping_patience 0 --focal_gamma 2 --run_name fold{fold}",
    )
    first = compared(small_archive, tmp_path, *arms)
    assert first.returncode == 0, first.stderr
    head, _, *rows = first.stdout.splitlines()
    assert head.startswith("3 recordings, 0.02 h, ")
    assert rows[0] == "| | clips | focal 2.0 |"
    assert "| | focal 2.0 minus clips |" in rows
    assert sum("F1 of events" in row for row in rows) == 2
    record = json.loads((tmp_path / "work" / "focal-2.0-fold0-seed0.json").read_text())
    assert record["command"][-4:] == ["--focal_gamma", "2", "--run_name", "fold0"]
    assert 0 <= record["metrics"]["test"]["macro_f1"] <= 1
    monkeypatch.setattr("train_hf.main", None)  # nothing is trained again
    assert compared(small_archive, tmp_path, *arms).stdout == first.stdout
    changed = compared(small_archive, tmp_path, "--arm", "focal 2.0: --train_on recordings")
    assert changed.returncode == 2
    assert "is of a run with other flags" in changed.stderr
    words = (small_archive, tmp_path / "work" / "focal-2.0-fold0-seed0", "--draws", "2", "--recordings")
    chosen = run_script("benchmarks/threshold_choice.py", *words, "1")
    assert chosen.returncode == 0, chosen.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in chosen.stdout.splitlines()[4:]]
    assert [row[1] for row in rows] == ["chosen", "as before 2026-11-29", "0.5 for each species"] * 2
    assert all(0 <= float(row[2]) <= 1 for row in rows)
    assert run_script("benchmarks/threshold_choice.py", *words, "9").returncode == 2
    averaged = run_script("benchmarks/averaged_epochs.py", *words[:2], "--resamples", "20")
    assert averaged.returncode == 0, averaged.stderr
    mean, best = (np.array(line.split(": ")[1].split(", "), float) for line in averaged.stdout.splitlines()[1:3])
    *_, apart = averaged.stdout.splitlines()
    assert float(apart.split("|")[2].split()[0]) == pytest.approx(mean[0] - best[0], abs=0.0011)
    run = tmp_path / "work" / "clips-fold0-seed0"
    assert "expected a run with --average_epochs" in run_script("benchmarks/averaged_epochs.py", words[0], run).stderr
    # A model with itself is the same model.
    group = f"{words[1]},{shutil.copytree(words[1], tmp_path / 'again')}"
    combined = run_script("benchmarks/combined_models.py", words[0], group, "--resamples", "20")
    assert combined.returncode == 0, combined.stderr
    single, again, together = (line.split(": ")[1] for line in combined.stdout.splitlines()[1:4])
    assert single == again == together
    assert combined.stdout.splitlines()[-1].count("+0.000 (+0.000 to +0.000)") == 4


def test_a_head_trains_on_random_embeddings():
    words = ("--windows", "200", "--classes", "4", "--size", "8", "--epochs", "1", "--batch_sizes", "16")
    result = run_script("benchmarks/head_speed.py", *words, "--hidden_sizes", "0", "6")
    assert result.returncode == 0, result.stderr
    rows = [line.strip("|").split("|") for line in result.stdout.splitlines()[-2:]]
    assert [row[0].strip() for row in rows] == ["linear", "mlp, 6"]
    assert all(float(row[3]) > 0 for row in rows)


@pytest.mark.usefixtures("blank_figures")
def test_answers_go_round_the_circle_into_another_model(small_archive, tmp_path):
    small = {**SMALL, "num_train_epochs": 1, "windows_per_epoch": 32}
    shared = " ".join(f"--{name} {value}" for name, value in small.items())
    words = (tmp_path, "--archive", small_archive, "--per_species", "6", "--flags", shared)
    result = run_script("benchmarks/verification_circle.py", *words, "--again", "--learning_rate 1e-3")
    assert result.returncode == 0, result.stderr
    answers = re.search(r"(\d+) detections: (\d+) right, (\d+) wrong, (\d+) other, (\d+) unsure", result.stdout)
    number, right, *others = map(int, answers.groups())
    assert right > 0
    assert right + sum(others) == number
    assert f"{number} checked detections" in result.stdout
    *_, with_answers, _, difference = result.stdout.splitlines()
    assert with_answers.startswith("| trained on with answers |")
    assert difference.startswith("| trained on with answers minus trained on without answers |")
    learned = pd.read_csv(tmp_path / "with" / "training_recordings.csv", keep_default_na=False)
    checked = learned[learned["recording"].str.startswith("checked/")]
    assert set(checked["split"]) == {"train"}
    assert len(checked) == 3


def taught(folder, rows):
    """What the answers of a sample teach about windows of 1 s whose embeddings say which species calls."""
    archive = write_archive(folder / "archive", [(name, at + 0.5, code) for name, at, code in rows])
    windows = [(name, second) for name in sorted({name for name, *_ in rows}) for second in range(10)]
    species = sorted({code for *_, code in rows})
    vectors = [[float((*window, code) in rows) for code in species] for window in windows]
    columns = {"recording": [name for name, _ in windows], "start_s": [float(second) for _, second in windows]}
    table = pd.DataFrame({**columns, "embedding": vectors})
    table.assign(end_s=table["start_s"] + 1).to_parquet(folder / "embeddings.parquet")
    words = ("--seeds", "2", "--rounds", "1", "--per_species", "9", "--start", "1")
    return run_script("benchmarks/informative_samples.py", archive, folder / "embeddings.parquet", *words)


def test_all_ways_end_with_the_same_answers_when_they_draw_all_there_are(tmp_path):
    calls = [(f"{name}.wav", at, code) for name in "abcd" for code, at in (("lark", 2), ("lark", 6), ("owl", 4))]
    result = taught(tmp_path, calls)
    assert result.returncode == 0, result.stderr
    head, *_, start, random, score, uncertain, diverse = result.stdout.splitlines()
    assert head == "40 windows, 2 species, 0.150 of windows and species have a call"
    assert start.startswith("| 0 | (start) |  | 1.000 |")
    # Of the 20 windows of a half, 1 with a call and 10 without are known: 3 larks and 1 owl are in the 18 others.
    assert random.startswith("| 18 | random | 0.22 | 1.000 |  |")
    for name, row in {"score": score, "uncertain": uncertain, "diverse": diverse}.items():
        assert row.startswith(f"| 18 | {name} | 0.22 | 1.000 | +0.000 (+0.000 to +0.000) |")
    rare = taught(tmp_path / "rare", [*calls, ("d.wav", 8, "crow")])
    assert rare.returncode == 2
    assert "species 1 of 3 has no call in the pool of seed" in rare.stderr


@pytest.mark.usefixtures("blank_figures")
def test_folders_of_species_are_learned_from_beside_annotated_recordings(tmp_path):
    archive = tmp_path / "archive"
    synthesize_archive(archive, recordings=5, duration_s=20, species=2, annotations=30, scene="quiet", seed=1)
    small = {**SMALL, "num_train_epochs": 1, "n_mels": 32, "min_annotations": 2}
    shared = " ".join(f"--{name} {value}" for name, value in small.items())
    result = run_script("benchmarks/weak_labels.py", archive, tmp_path / "work", "--flags", shared)
    assert result.returncode == 0, result.stderr
    signal, *_, known, weak, most = result.stdout.splitlines()
    found, calls = map(int, re.match(r"(\d+) of (\d+) calls have signal within 2.5 s", signal).groups())
    assert found == calls  # they are clear
    names, clips = zip(*([cell.strip() for cell in row.split("|")[1:3]] for row in (known, weak, most)), strict=True)
    assert names == (
        "annotated part alone",
        "and folders of species, weight 0.5",
        "and annotations of the same recordings",
    )
    alone, with_weak, with_all = map(int, clips)
    assert with_all - alone == calls  # each call of the other recordings is in one excerpt, with its neighbours
    assert with_weak - alone > calls
