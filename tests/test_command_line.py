"""Command lines: what users mistype ends at once with one line; help, defaults and ranges are those of the code."""

import argparse
import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
from functools import partial

import pytest
from fresh_python import run_fresh
from running import ROOT

from kenya_birds import cli
from kenya_birds.cli import _parser
from kenya_birds.console import one_line_errors, show_log
from kenya_birds.errors import LostProcessError, UserError
from kenya_birds.training.flags import GROUPS, TITLES, train_parser
from kenya_birds.training.trainer_arguments import TRACKERS, TrainerArguments, trainer_kinds
from kenya_birds.training.transformers_arguments import transformers_fields
from kenya_birds.values import Count, Folds, Kind, Range, Share, checked

HEAVY = (
    "torch",
    "transformers",
    "pandas",
    "scipy.special",
    "matplotlib",
    "sklearn",
    "datasets",
    "gradio",
    "optuna",
    "timm",
)
# Help reads neither numbers nor the Hub.
HEAVY_FOR_HELP = (*HEAVY, "numpy", "huggingface_hub")
# What training and tables need, and detection does not.
HEAVY_FOR_DETECTION = (
    *("sklearn", "pandas", "matplotlib", "datasets", "evaluate", "scipy.io"),
    *("onnx", "onnxruntime", "openvino", "librosa", "noisereduce", "optuna", "gradio", "tensorboard"),
)
DETECT = "kenya-birds detect MODEL RECORDING --output TMP/new"
EVALUATE = "kenya-birds evaluate MODEL ARCHIVE --output TMP/new"
TUNE = "kenya-birds tune ARCHIVE --output TMP/new --trials 3"
TRAIN = "train_hf.py --data_dir ARCHIVE --output_dir TMP/new"
PUSH = "push_model.py --model_dir MODEL --repo_id birds"
# What a user types, and what the one line says.
MISTAKES = {
    "kenya-birds": "required: COMMAND",
    "kenya-birds detct": "'detct'.*did you mean detect",
    "kenya-birds --versoin": "there is no --versoin: did you mean --version",
    f"{DETECT} --min_conf 0.5": "there is no --min_conf: did you mean --min_confidence",
    f"{DETECT} --min-confidense 0.5": "there is no --min-confidense: did you mean --min_confidence",
    f"{DETECT} --overlap 1": "there is no --overlap: did you mean --overlap_s",
    f"{DETECT} --threshold 50": "--threshold is 50.0: expected 0 to 1",
    f"{DETECT} --threshold nan": "--threshold is nan: expected 0 to 1",
    f"{DETECT} --threshold high": "--threshold is 'high': expected a number, 0 to 1",
    f"{DETECT} --threshold -0.1": "--threshold is -0.1: expected 0 to 1",
    f"{DETECT} --overlap_s 9": "overlap is 9.0 s: .*less than the 3 s of a window",
    f"{DETECT} --overlap_s -1": "--overlap_s is -1.0: expected 0 or more",
    f"{DETECT} --top_k 0": "--top_k is 0: expected 1 or more",
    f"{DETECT} --top_k 2.5": "--top_k is '2.5': expected a whole number, 1 or more",
    f"{DETECT} --smoothing 2": "--smoothing is 2: expected 1 or more, odd",
    f"{DETECT} --merge_score maximum": "--merge_score is 'maximum': expected one of mean, max; did you mean max",
    f"{DETECT} --merge_gap_s 2": "merge_gap_s is 2.0, but merge is not set",
    f"{DETECT} --formats csv,xls": "--formats is 'csv,xls': expected one or more of raven, audacity",
    f"{DETECT} --device gpu": "--device is 'gpu': expected cpu, cuda or cuda:NUMBER",
    f"{DETECT} --backend tensorrt": "--backend is 'tensorrt': expected one of auto, torch, onnx, openvino",
    f"{DETECT} --backend onnx --device cuda:0": "--backend onnx runs on a CPU, and the device is cuda:0",
    f"{DETECT} --backend onnx --precision bfloat16": "--backend onnx computes in float32",
    f"{DETECT} --batch_size": "--batch_size: expected one argument",
    f"{DETECT} --thresholds TMP/none.json": "there is no file TMP/none.json",
    f"{DETECT} --thresholds MODEL/config.json": "config.json has no thresholds of species",
    "kenya-birds combine TMP/one TMP/two --data_dir ARCHIVE --output_dir TMP/new": "there is no folder TMP/one",
    "kenya-birds verify": "required: STEP",
    "kenya-birds verify smaple": "'smaple'.*did you mean sample",
    "kenya-birds verify sample TMP/none --output TMP/new": "there is no folder TMP/none",
    "kenya-birds verify sample TMP --output TMP/new --per_species 0": "--per_species is 0: expected 1 or more",
    "kenya-birds verify sample TMP --output TMP/new --by year": "--by is 'year': expected one of site, night",
    "kenya-birds verify sample TMP --output TMP/new --recordings TMP/none": "there is no folder TMP/none",
    "kenya-birds verify page TMP/none": "there is no folder TMP/none",
    "kenya-birds verify page TMP": "there is no file TMP/sample.json",
    "kenya-birds verify page TMP --port 70000": "--port is 70000: expected 1 to 65535",
    "kenya-birds verify read TMP --output TMP/new": "there is no file TMP/sample.json",
    "kenya-birds verify read TMP --output TMP/new --precision 2": "--precision is 2.0: expected 0 to 1",
    f"{DETECT} --species TMP/none.txt": "there is no file TMP/none.txt: expected a text file with one species",
    f"{DETECT} --threshold 1e999": "--threshold is inf: expected 0 to 1",
    "kenya-birds detect MODEL RECORDING": "required: --output",
    "kenya-birds detect TMP/none RECORDING --output TMP/new": "there is no model 'TMP/none'",
    "kenya-birds detect ARCHIVE RECORDING --output TMP/new": "'ARCHIVE' is no model: expected a config.json",
    "kenya-birds detect MODEL TMP/none.flac --output TMP/new": "there is no file, folder or pattern 'TMP/none.flac'",
    "kenya-birds detect MODEL TMP/empty --output TMP/new": "contains no recording",
    "kenya-birds detect MODEL TMP/hi.txt --output TMP/new": "line 1 of TMP/hi.txt is not a recording: 'hi'",
    "kenya-birds detect MODEL RECORDING --output RECORDING": "is not a folder",
    "kenya-birds detect MODEL RECORDING --output ARCHIVE": "is not empty and not from an earlier run",
    "kenya-birds plot TMP/none.flac TMP/found.csv": "there is no file TMP/none.flac: expected a recording",
    "kenya-birds plot RECORDING TMP/none.csv": "there is no file TMP/none.csv: expected a table of detections",
    "kenya-birds plot RECORDING TMP/found.xlsx": "expected a name that ends in .csv or .parquet or .txt",
    "kenya-birds plot RECORDING TMP/found.csv --output TMP/a.gif": "a.gif is not the name of a picture",
    "kenya-birds plot RECORDING TMP/found.csv --output TMP/old.png": "exists already: .*--overwrite",
    "kenya-birds plot RECORDING TMP/found.csv --duration_s 601": "more than 0 and at most 600",
    "kenya-birds plot RECORDING TMP/found.csv --duration_s 60,5": "--duration_s is '60,5': .*did you mean 60.5",
    "kenya-birds activity TMP/found.csv --latitude -1,3": "--latitude is '-1,3': .*did you mean -1.3",
    "kenya-birds activity TMP/none.csv": "there is no file TMP/none.csv",
    "kenya-birds embed MODEL RECORDING --output TMP/a.csv": "expected a name that ends in .parquet",
    "kenya-birds embed MODEL RECORDING --output TMP/a.parquet --clip_s 0": "--clip_s is 0.0: expected more than 0",
    "kenya-birds embed MODEL RECORDING --output TMP/none/a.parquet": "TMP/none is not a writable folder",
    "kenya-birds search TMP/none.parquet RECORDING": "there is no file TMP/none.parquet",
    "kenya-birds synthesize ARCHIVE": "is not an empty folder",
    "kenya-birds synthesize TMP/new --recordings -1": "--recordings is -1: expected 1 or more",
    "kenya-birds synthesize TMP/new --duration_s 1": "--duration_s is 1.0: expected 3 or more",
    "kenya-birds download RECORDING": "cannot be created",
    "kenya-birds download TMP/new --record x": "--record is 'x': expected a whole number",
    "kenya-birds check TMP/none": "no archive at TMP/none",
    "kenya-birds check TMP/empty": "no annotations.csv in TMP/empty",
    "kenya-birds check ARCHIVE --num_proc 0": "--num_proc is 0",
    "kenya-birds report TMP/none": "no archive at TMP/none",
    "kenya-birds report ARCHIVE --output TMP/old.png": "exists already: .*--overwrite",
    "kenya-birds split ARCHIVE --output TMP/a.csv --folds 1": "--folds is 1: expected 2 or more",
    "kenya-birds split ARCHIVE --output TMP/a.csv --test_size 0.6": "more than 0 and at most 0.5",
    "kenya-birds split ARCHIVE": "required: --output",
    f"{EVALUATE} --split tset": "--split is 'tset': expected one of .*; did you mean test",
    f"{EVALUATE} --fold -1": "--fold is -1: expected 0 or more",
    f"{EVALUATE} --splits_file TMP/none.csv": "there is no file TMP/none.csv: expected a table of splits",
    "kenya-birds evaluate MODEL TMP/none": "no archive at TMP/none",
    "kenya-birds evaluate MODEL ARCHIVE --output ARCHIVE": "is not an empty folder: give another --output",
    "kenya-birds probe MODEL ARCHIVE --method svm": "--method is 'svm': expected one of linear, knn",
    "kenya-birds probe MODEL ARCHIVE --folds 2": "--folds is 2: expected 3 or more",
    "kenya-birds probe MODEL ARCHIVE --beside TMP/none": "expected the output folder of train_hf.py",
    f"{TUNE} -- --num_train_epoch 3": "there is no --num_train_epoch: did you mean --num_train_epochs",
    f"{TUNE} -- --batch_size 8": "there is no --batch_size: did you mean --per_device_train_batch_size",
    f"{TUNE} -- --data_dir x": "--data_dir is among the flags",
    f"{TUNE} --backbones resnet18 dla46_c -- --backbone vgg11": "--backbones and, after --, --backbone were given",
    f"{TUNE} --timeout 10": "there is no --timeout: did you mean --timeout_s",
    f"{TUNE} --cache_dir x": "there is no --cache_dir: give the flags of train_hf.py after --",
    "kenya-birds tune ARCHIVE": "required: --trials",
    "kenya-birds tune TMP/none --trials 3": "no archive at TMP/none",
    "kenya-birds estimate --batch_size -4": "--batch_size is -4: expected 1 or more",
    "kenya-birds estimate --device_tflops 10": "add --clips",
    "kenya-birds estimate birds": "unexpected argument 'birds'",
    "kenya-birds push-clips ARCHIVE --repo_id a/b/c": "is not a valid name of a dataset",
    "kenya-birds push-clips TMP/none --repo_id a": "no archive at TMP/none",
    "kenya-birds export MODEL --output ARCHIVE": "is not an empty folder",
    "kenya-birds export MODEL --output TMP/new --formats tflite": "--formats is 'tflite': expected onnx",
    "kenya-birds demo TMP/none": "there is no model 'TMP/none'",
    "kenya-birds demo MODEL --port 99999": "--port is 99999: expected 1 to 65535",
    "kenya-birds info TMP/none": "there is no model 'TMP/none'",
    "train_hf.py": "required: --data_dir, --output_dir",
    f"{TRAIN} --num_train_epoch 3": "there is no --num_train_epoch: did you mean --num_train_epochs",
    f"{TRAIN} --num_train 3": "there is no --num_train: did you mean --num_train_epochs",
    f"{TRAIN} --max_step 3": "there is no --max_step: did you mean --max_steps",
    f"{TRAIN} --batch_size 8": "there is no --batch_size: did you mean --per_device_train_batch_size",
    f"{TRAIN} --epochs 3": "there is no --epochs: did you mean --num_train_epochs",
    f"{TRAIN} --num-epochs=3": "there is no --num-epochs: did you mean --num_train_epochs",
    f"{TRAIN} --lr 1e-4": "there is no --lr: did you mean --learning_rate",
    f"{TRAIN} --gpu 0": "there is no --gpu: a GPU is used if there is one, unless you give --use_cpu",
    f"{TRAIN} --find_batch_size": r"there is no --find_batch_size: did you mean --(?!auto_find)",
    f"{TRAIN} --push_hub": r"there is no --push_hub(?!: did you mean --push_to_hub)",
    f"{TRAIN} 30": "unexpected argument '30'",
    f"{TRAIN} --learning_rate -1": "--learning_rate is -1.0: expected more than 0",
    f"{TRAIN} --learning_rate fast": "--learning_rate is 'fast': expected a number",
    f"{TRAIN} --adam_beta1 2": "adam_beta1 is 2.0: expected 0 to less than 1",
    f"{TRAIN} --max_steps ten": "--max_steps is 'ten': expected a whole number",
    f"{TRAIN} --gradient_accumulation_steps 0": "is 0: expected 1 or more",
    f"{TRAIN} --folds 1": "--folds is 1: expected 3 or more",
    f"{TRAIN} --folds 5 --fold 2": "fold is 2 and a cross-validation runs every fold",
    f"{TRAIN} --folds 5 --test_size 0.3": "--test_size has no effect with --folds: leave one of the two out",
    f"{TRAIN} --splits_file ARCHIVE/species.csv --split_seed 3": "--split_seed has no effect with --splits_file",
    f"{TRAIN} --test_size 0.7": "more than 0 and at most 0.5",
    f"{TRAIN} --snr_min_db 50": "snr_min_db 50.0 is above snr_max_db 35.0",
    f"{TRAIN} --noise_reduction median": "--noise_reduction is 'median': expected one of stationary",
    f"{TRAIN} --lr_scheduler_type cosin": "did you mean cosine",
    f"{TRAIN} --folds 3 --final_fit --lr_scheduler_type reduce_lr_on_plateau": "--final_fit trains without validation",
    f"{TRAIN} --teacher MODEL --lr_scheduler_type greedy": "--teacher trains without validation",
    f"{TRAIN} --optim adam": "--optim is 'adam': expected one of",
    f"{TRAIN} --problem_type multi_label": "did you mean multi_label_classification",
    f"{TRAIN} --bf16 maybe": "--bf16 is 'maybe': expected true or false",
    f"{TRAIN} --no_do_standardize false": "--no_do_standardize takes no value",
    f"{TRAIN} --report_to wandb": "report_to is 'wandb', which is not installed: run pip install wandb",
    f"{TRAIN} --report_to tensorbord": "did you mean tensorboard",
    f"{TRAIN} --remove_unused_columns": "remove_unused_columns must stay off",
    f"{TRAIN} --splits_file TMP/none.csv": "there is no file TMP/none.csv",
    f"{TRAIN} --params TMP/none.json": "TMP/none.json cannot be read",
    f"{TRAIN} --init_from TMP/none": "there is no model 'TMP/none'",
    f"{TRAIN} --init_from TMP/none.pt": "pickled weights are not loaded, because they can run code",
    f"{TRAIN} --front_end_from TMP/none": "the front end of 'TMP/none' is not known",
    f"{TRAIN} --init_from TMP/none.safetensors": "there is no file TMP/none.safetensors",
    f"{TRAIN} --resume_from_checkpoint TMP/none": "expected true, or the folder of a checkpoint",
    "train_hf.py --data_dir TMP/none --output_dir TMP/new": "no archive at TMP/none",
    "train_hf.py --data_dir ARCHIVE --output_dir MODEL": "not an empty folder.*--resume_from_checkpoint true",
    "push_model.py --repo_id birds": "required: --model_dir",
    "push_model.py --modle_dir MODEL --repo_id birds": "there is no --modle_dir: did you mean --model_dir",
    "push_model.py --model_dir TMP/none --repo_id birds": "TMP/none does not exist",
    f"{PUSH} --create_pr --private": "--create_pr goes to",
    f"{PUSH} --with_dataset ARCHIVE": "--with_dataset needs the licence of the recordings",
    f"{PUSH} --license MIT": "--license is 'MIT': expected the name that the Hub has",
    f"{PUSH} --data_license CC-BY-4.0": "--data_license is 'CC-BY-4.0': expected the name that the Hub has",
    f"{PUSH} --num_proc 0": "--num_proc is 0",
}
# Runs command lines one after the other in one process, as each would be run in one of its own.
RUNNER = """
import contextlib, io, json, runpy, sys, time

from kenya_birds.cli import main

for line in json.load(sys.stdin):
    program, *words = line
    error, code, began_s = io.StringIO(), 0, time.perf_counter()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            if program == "kenya-birds":
                main(words)
            else:
                sys.argv = line
                runpy.run_path(program, run_name="__main__")
        except SystemExit as ended:
            code = ended.code
    seconds = time.perf_counter() - began_s
    loaded = [name for name in HEAVY if name in sys.modules]
    print(json.dumps([code, error.getvalue(), output.getvalue(), loaded, seconds]), flush=True)
"""


def run_lines(lines, places, heavy=HEAVY):
    """Exit code, stderr, stdout, heavy modules, seconds of each line."""
    words = [[replace(word, places) for word in line.split()] for line in lines]
    process = subprocess.run(
        [sys.executable, "-c", RUNNER.replace("HEAVY", repr(heavy))],
        cwd=ROOT,
        input=json.dumps(words),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def replace(text, places):
    for name, path in places.items():
        text = text.replace(name, str(path))
    return text


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """An archive and a model that look whole from outside, and files for mistakes."""
    folder = tmp_path_factory.mktemp("places")
    archive, model = folder / "archive", folder / "model"
    (archive / "soundscape_data").mkdir(parents=True)
    recording = archive / "soundscape_data" / "a.wav"
    for path in (archive / "annotations.csv", archive / "species.csv", recording):
        path.write_text("x")
    model.mkdir()
    for name in ("model.safetensors", "README.md"):
        (model / name).write_text("x")
    config = {"model_type": "kenya_birds", "id2label": {"0": "a"}, "backbone": "test_convnext"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "preprocessor_config.json").write_text(json.dumps({"clip_s": 3.0, "sampling_rate": 32000}))
    (model / "thresholds.json").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "hi.txt").write_text("hi\n")
    for name in ("found.csv", "found.xlsx", "old.png"):
        (folder / name).write_text("x")
    return {"ARCHIVE": archive, "MODEL": model, "RECORDING": recording, "TMP": folder}


@pytest.fixture(scope="module")
def ended(places):
    """How each mistake ended."""
    return dict(zip(MISTAKES, run_lines(MISTAKES, places), strict=True))


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_with_one_line_before_anything_heavy_is_imported(line, ended, places):
    code, error, output, loaded, _ = ended[line]
    assert (code, output, loaded) == (2, "", []), error
    (said,) = error.splitlines()
    command = " ".join(line.split()[:2]) if re.match("kenya-birds [a-z]", line) else line.split()[0]
    if "detct" in line:
        command = "kenya-birds"
    if re.match("kenya-birds verify (sample|page|read) ", line):
        command = " ".join(line.split()[:3])
    assert said.startswith(f"{command}: error: ")
    assert re.search(replace(MISTAKES[line], places), said), said
    assert not (places["TMP"] / "new").exists()


def test_mistakes_are_noticed_at_once(ended):
    seconds = sorted(seconds for *_, seconds in ended.values())
    assert seconds[len(seconds) // 2] < 0.5
    assert seconds[-1] < 5  # however busy the machine is


HELPS = [
    "kenya-birds --help",
    "kenya-birds verify sample --help",
    "kenya-birds verify page --help",
    "kenya-birds verify read --help",
    *(f"kenya-birds {name} --help" for name in next(a for a in _parser()._actions if a.dest == "command").choices),
    "train_hf.py --help",
    "train_hf.py --help_all",
    "push_model.py --help",
]


@pytest.fixture(scope="module")
def helps(places):
    return dict(zip(HELPS, run_lines(HELPS, places, HEAVY_FOR_HELP), strict=True))


@pytest.mark.parametrize("line", HELPS)
def test_help_is_quick_and_ends_with_an_example_and_shows_no_empty_default(line, helps):
    code, error, output, loaded, seconds = helps[line]
    assert (code, error) == (0, "")
    assert loaded == []
    assert seconds < 5
    assert "\nexample:\n  " in output
    assert "default: None" not in output
    assert "%%" not in output
    assert max(map(len, output.splitlines())) <= 130
    example = output.partition("\nexample:\n")[2].split("\n")[0].split()
    assert line.split()[0] in example


@pytest.mark.parametrize("program", ["kenya-birds", "kenya-birds detect", "train_hf.py", "push_model.py"])
def test_every_program_tells_its_version(program, places):
    ((code, _, output, loaded, _),) = run_lines([f"{program} --version"], places)
    assert code == 0
    assert re.fullmatch(r"kenya_birds \d+\.\d+\.\d+\n", output)
    assert loaded == []


def test_the_transformers_fields_that_are_read_are_those_of_the_class():
    from transformers import TrainingArguments
    from transformers.hf_argparser import HfArgumentParser

    real = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    read = transformers_fields()
    assert read.keys() == real.keys() - {"parallelism_config"}
    actions = {action.dest: action for action in reversed(HfArgumentParser(TrainingArguments)._actions)}
    for name, field in read.items():
        if field.default is not None:
            assert field.default == real[name].default, name
        assert field.help == " ".join(real[name].metadata["help"].split()).replace("%%", "%")
        choices = actions[name].choices
        # Those of the log levels are computed: this package states them.
        kind = trainer_kinds()[name] if name.startswith("log_level") else field.kind
        assert kind.choices == tuple(choices or ()), name
        if not choices:
            wanted = {"string_to_bool": bool, "int": int, "float": float}.get(
                getattr(actions[name].type, "__name__", ""), str
            )
            # transformers takes a switch there, though its help names texts that it may be.
            assert field.kind.base is (str if name == "include_num_input_tokens_seen" else wanted), name
        assert field.kind.repeated == (actions[name].nargs == "+" and name != "debug"), name  # which it splits


def test_the_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert INTEGRATION_TO_CALLBACK.keys() == TRACKERS.keys()


def test_every_training_argument_of_ours_is_shown_in_one_group_of_the_help():
    titled = [name for names in TITLES.values() for name in names]
    assert len(titled) == len(set(titled))
    own = {field.name for group in GROUPS for field in dataclasses.fields(group)}
    kept = {"remove_unused_columns", "dataloader_drop_last", "restore_callback_states_from_checkpoint"}
    assert own - set(titled) == kept  # must stay as they are
    assert set(titled) - own - transformers_fields().keys() == {"params"}
    shown = {action.dest for action in train_parser()._actions if action.help != argparse.SUPPRESS}
    assert set(titled) <= shown


def test_switches_are_turned_on_and_off_as_in_transformers():
    words = ["--data_dir", "a", "--output_dir", "b"]
    for line, expected in {
        "--bf16": {"bf16": True},
        "--bf16 false": {"bf16": False},
        "--bf16 True": {"bf16": True},
        "--no_do_standardize": {"do_standardize": False},
        "--no-do-standardize": {"do_standardize": False},
        "--do_standardize no": {"do_standardize": False},
        "--load_best_model_at_end": {"load_best_model_at_end": True},
        "--num-train-epochs=3": {"num_train_epochs": 3.0},
        "--tf32 true": {"tf32": True},
        "--include_for_metrics a b": {"include_for_metrics": ["a", "b"]},
    }.items():
        given = vars(train_parser().parse_args([*words, *line.split()]))
        assert given == {"data_dir": ["a"], "output_dir": "b", **expected}


def test_a_switch_shows_its_own_help_once():
    text = " ".join(train_parser().format_help().split())
    assert (
        "--do_standardize, --no_do_standardize give each clip's features mean 0 and standard deviation 1 (default: on)"
        in text
    )


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (Count, [1, 10], [0, -1, 1.0, True, "1", None]),
        (Count | None, [1, None], [0]),
        (Share, [0, 1, 0.5], [-0.1, 1.1, float("nan"), float("inf"), "0.5", None]),
        (Folds, [3], [2]),
        (float, [-1.5, 2], [float("nan"), "a"]),
        (bool, [True, False], [1, "true"]),
    ],
)
def test_values_are_checked_by_their_annotation(annotation, good, bad):
    for value in good:
        Kind.of(annotation).check("x", value)
    for value in bad:
        with pytest.raises(UserError, match="x is "):
            Kind.of(annotation).check("x", value)


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    Kind.of(Count).check("x", np.int64(3))
    Kind.of(Share).check("x", np.float32(0.5))
    Kind.of(bool).check("x", np.bool_(True))


def test_arguments_of_a_checked_function_are_checked_however_they_are_given():
    @checked
    def function(first: Count, *rest: int, second: Share = 0.5, **more: int) -> int:
        return first

    assert function(1, 2, 3, second=1, third=4) == 1
    for arguments, named in (((0,), {}), ((1,), {"second": 2})):
        with pytest.raises(UserError, match="expected"):
            function(*arguments, **named)


def test_ranges_are_told_in_words():
    assert [str(one) for one in (Range(0, 1), Range(1), Range(0, above=True), Range(0, 0.5, above=True), Range())] == [
        *("0 to 1", "1 or more", "more than 0", "more than 0 and at most 0.5", ""),
    ]


def test_the_trainer_arguments_are_checked_in_python_too():
    from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments

    for name, value in (("learning_rate", 0), ("seed", -1), ("clips_on_device", "maybe"), ("report_to", "wandb")):
        with pytest.raises(UserError, match=f"{name} is "):
            KenyaBirdsTrainingArguments(output_dir="x", use_cpu=True, **{name: value})
    assert dataclasses.fields(KenyaBirdsTrainingArguments)
    TrainerArguments().check()


def test_info_shows_what_there_is_of_a_model_and_imports_nothing_heavy(places):
    text, as_json = run_lines(["kenya-birds info MODEL", "kenya-birds info MODEL --json"], places)
    assert (text[0], text[1], text[3]) == (0, "", [])
    assert "test_convnext, 1 species, single_label_classification\n" in text[2]  # its config has no problem_type
    assert "None" not in text[2]
    about = json.loads(as_json[2])
    assert about["clip_s"] == 3.0
    assert about["species"][0]["code"] == "a"
    assert about["figures"] is None


def test_detection_imports_nothing_that_only_training_and_tables_need():
    program = f"import sys, kenya_birds.inference.detect; print(*set({HEAVY_FOR_DETECTION}) & set(sys.modules))"
    result = run_fresh("-c", program, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


@pytest.mark.parametrize("command", ["detect", "download", "tune", "check", "embed", "export"])
def test_ctrl_c_ends_a_command_with_one_line_on_how_to_resume(command, monkeypatch, capsys):
    def stopped(_):
        raise KeyboardInterrupt

    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser,
        "parse_args",
        lambda *args: argparse.Namespace(**{**vars(real(*args)), "run": stopped}),
    )
    words = {
        "detect": ["model", "sound", "--output", "x"],
        "embed": ["model", "sound", "--output", "x"],
        "export": ["model", "--output", "x"],
        "tune": ["archive", "--trials", "1"],
    }
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *words.get(command, ["archive"])])
    assert ended.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"kenya-birds {command}: stopped; .*run the same command again.*", line)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(KeyboardInterrupt(), 130, "stopped"), (LostProcessError("another has ended"), 2, "error: another has ended")],
)
def test_a_stopped_training_says_whether_it_can_be_resumed(error, code, told, tmp_path, monkeypatch, capsys):
    import train_hf

    def stopped(_):
        raise error

    monkeypatch.setattr(train_hf, "train", stopped)
    monkeypatch.setattr(
        train_hf, "parse_train_flags", lambda *_: argparse.Namespace(training={"output_dir": tmp_path})
    )
    for made, said in (
        (None, "no checkpoint was saved yet; run the same command again"),
        ("checkpoint-3", "no checkpoint was saved yet; run the same command again"),
        ("checkpoint-3/trainer_state.json", "resume with the same command and --resume_from_checkpoint true"),
    ):
        if made == "checkpoint-3":
            (tmp_path / made).mkdir()
        elif made:
            (tmp_path / made).write_text("{}", encoding="utf-8")
        with pytest.raises(SystemExit) as ended, one_line_errors("train_hf.py"):
            train_hf.main([])
        assert ended.value.code == code
        assert capsys.readouterr().err == f"train_hf.py: {told}; {said}\n"


@pytest.mark.parametrize("told", ["CUDA out of memory. Tried to allocate", "MPS backend out of memory", "CUDA error"])
def test_a_device_with_too_little_memory_ends_a_command_with_one_line(told, tmp_path, monkeypatch, capsys):
    import torch

    import train_hf

    def fail(*_):
        raise torch.OutOfMemoryError(told) if "CUDA out" in told else RuntimeError(told)

    monkeypatch.setattr(train_hf, "train", fail)
    monkeypatch.setattr(
        train_hf, "parse_train_flags", lambda *_: argparse.Namespace(training={"output_dir": tmp_path})
    )
    monkeypatch.setattr("kenya_birds.commands.evaluation._evaluate", fail)
    evaluate = ["evaluate", "birds", "archive", "--output", str(tmp_path / "x")]
    for command, advice in (
        (train_hf.command, "give half the --per_device_train_batch_size and twice the --gradient_accumulation_steps"),
        (partial(cli.main, evaluate), "give a smaller --batch_size, or end other programs that use it"),
    ):
        if told == "CUDA error":  # another error
            with pytest.raises(RuntimeError, match=told):
                command()
            continue
        with pytest.raises(SystemExit, match="2"):
            command()
        (line,) = capsys.readouterr().err.splitlines()
        assert f"error: the device has too little memory: {advice}" in line


def test_a_command_whose_other_process_has_ended_says_how_to_resume(capsys):
    for error, told in (
        (LostProcessError("another has ended"), "another has ended; do it again"),
        (UserError("x"), "x"),
    ):
        with pytest.raises(SystemExit, match="2"), one_line_errors("me", "do it again"):
            raise error
        assert capsys.readouterr().err == f"me: error: {told}\n"


def test_no_name_of_a_file_gives_orders_to_the_terminal(capsys):
    name = "a\x1b]0;owned\x07\x9b2J ä ሰላም می\u200cخواهم 🦉.wav"
    shown = name.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\x9b", "\\x9b")
    with pytest.raises(SystemExit, match="2"), one_line_errors("me"):
        raise UserError(f"{name} is missing")
    assert capsys.readouterr().err == f"me: error: {shown} is missing\n"
    show_log()
    logging.getLogger("kenya_birds").warning("%s:\n\t2 rows", name)
    assert capsys.readouterr().err == f"WARNING: {shown}:\n\t2 rows\n"


@pytest.mark.parametrize("command", ["evaluate", "embed", "tune", "combine", "verify read", "info", "detect"])
def test_commands_that_work_in_one_process_refuse_a_launcher_s(command, monkeypatch, capsys):
    words = {
        "evaluate": ["birds", "archive", "--output", "x"],
        "embed": ["birds", "sound", "--output", "x"],
        "tune": ["archive", "--trials", "1", "--", "--num_train_epochs", "1"],
        "combine": ["a", "b", "--data_dir", "archive", "--output_dir", "x"],
        "verify read": ["sample", "--output", "x"],
        "info": ["birds"],
        "detect": ["missing/model", "sound", "--output", "x"],
    }
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", command == "detect")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command.split(), *words[command]])
        told = capsys.readouterr().err
        assert told.count("\n") == lines
        if lines:
            start = f"kenya-birds {command}: error: "
            assert told.startswith(start)
            assert ("works in one process, and WORLD_SIZE is 2" in told) == (command != "detect")


def test_one_process_of_several_reports_a_mistake_in_their_command_line(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            cli.main(["detect", "--outputs", "x"])
        assert capsys.readouterr().err.count("\n") == lines
