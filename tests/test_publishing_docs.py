"""What docs/publishing.md tells works: its Python, against a Hub on this machine, and its commands."""

import json
import re
import shlex
import shutil

import datasets
import pytest
import soundfile
from fake_hub import FakeHub
from fresh_python import run_fresh
from reference_model import LABELS, save_reference_model
from running import ROOT

import push_model
from kenya_birds import cli
from kenya_birds.publishing.clips_dataset import push_clips
from kenya_birds.publishing.model_folder import VERSIONS

PAGE = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        server.redirect(monkeypatch, tmp_path / "home")
        yield server


@pytest.mark.usefixtures("forked_check")
def test_its_python_runs_from_top_to_bottom(hub, clips, tmp_path, monkeypatch, capsys):
    model_dir = save_reference_model("single", tmp_path / "birds")
    (model_dir / "training_summary.json").write_text(json.dumps({"versions": dict.fromkeys(VERSIONS, "1")}))
    shutil.copy(ROOT / "README.md", model_dir)
    soundfile.write(tmp_path / "clip.wav", [[0.1, 0.1], [-0.1, -0.1]] * 24_000, 32_000)
    few = datasets.DatasetDict({split: clips[split].select(range(2)) for split in clips})
    push_clips(few, "ann/birds-of-baringo-clips", title="Clips")

    publishing, *loading = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(publishing, {})
    commit, told = capsys.readouterr()
    environment = {**hub.environment(tmp_path / "other home"), "PYTHONPATH": str(ROOT)}
    done = run_fresh("-c", "\n".join(loading), cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert hub.token not in commit + told + done.stdout + done.stderr
    *code, first, second, third, model, clip = done.stdout.splitlines()
    oid = hub.repos["ann/birds-of-baringo"]["branches"]["v2"][-1]["oid"]
    assert commit.splitlines()[-1] == f"{hub.endpoint}/ann/birds-of-baringo/commit/{oid}"
    assert [line.split()[0] for line in code] == sorted(path.name for path in model_dir.glob("*.py"))
    guesses = [line.split() for line in (first, second, third)]
    assert {label for label, _ in guesses} < set(LABELS)
    assert [float(score) for _, score in guesses] == sorted((float(score) for _, score in guesses), reverse=True)
    assert model == f"{LABELS[0]} 32000"
    assert clip in clips["test"].features["label"].names


def test_its_commands_are_ones_that_there_are():
    commands = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    assert [words[0] for words in commands].count("python") == 5
    for words in commands:
        match words:
            case ["python", "push_model.py", *flags]:
                push_model._parser().parse_args(flags)
            case ["kenya-birds", *flags]:
                cli._parser().parse_args(flags)
            case _:
                assert words == ["hf", "auth", "login"]


def test_it_tells_of_every_flag():
    told = set(re.findall(r"`(--\w+)", PAGE))
    flags = {
        flag for action in push_model._parser()._actions for flag in action.option_strings if flag.startswith("--")
    }
    assert flags - {"--help", "--version", "--model_dir", "--num_proc", "--dry_run"} <= told
