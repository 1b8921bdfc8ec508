"""Starts training in the tests, in this process or in others."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import train_hf
from kenya_birds.training.flags import parse_train_flags
from kenya_birds.training.settings import Settings

ROOT = Path(__file__).parent.parent
SMALL = {
    "backbone": "test_convnext",
    "init_from": "scratch",
    "noise_reduction": "none",
    "min_annotations": 8,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "num_train_epochs": 2,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}


def flags(archive: Path, output_dir: Path, cache_dir: Path, **settings) -> list[str]:
    """The command line of a small run."""
    settings = {"data_dir": archive, "output_dir": output_dir, "cache_dir": cache_dir, **SMALL, **settings}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def settings_of(words: list[str]) -> Settings:
    """The settings that a command line gives."""
    return parse_train_flags(words, new_output=False).settings()


def train(archive: Path, output_dir: Path, cache_dir: Path, **settings) -> Path:
    """Trains in this process."""
    train_hf.main(flags(archive, output_dir, cache_dir, **settings))
    return output_dir


def run(*words: str, timeout_s: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command at the top of the repository; whatever it started ends with it."""
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_script(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs one of our scripts with this Python."""
    return run(sys.executable, script, *words, **environment)


def losses(output_dir: Path) -> list[float]:
    """The losses that the last checkpoint of a run remembers, one a step."""
    last = max(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def metrics(output_dir: Path) -> dict[str, dict[str, float]]:
    """The metrics of a run by split, without what depends on the machine's speed."""
    names = ("loss", "macro_f1", "weighted_f1", "accuracy", "classes")
    table = json.loads((output_dir / "metrics.json").read_text())
    return {split: {name: values[name] for name in names} for split, values in table.items()}
