"""Starts training in the tests, in this process or in others."""

import contextlib
import io
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from tqdm import tqdm

import train_hf
from kenya_birds.training.flags import parse_train_flags
from kenya_birds.training.settings import Settings

ROOT = Path(__file__).parent.parent
FEATURES = {"noise_reduction": "none", "n_mels": 32, "hop_length": 1024}
SMALL = {
    "train_on": "clips",
    "backbone": "test_convnext",
    "init_from": "scratch",
    **FEATURES,
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


def tuning_words(cache_dir: Path, **settings) -> list[str]:
    """The flags of a small study, behind the `--` of the command line."""
    usual = {name: value for name, value in SMALL.items() if name not in ("learning_rate", "report_to")}
    settings = {**usual, "num_train_epochs": 1, "cache_dir": cache_dir, **settings}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def without_features(words: list[str]) -> list[str]:
    """A command line without those flags that a backbone with its own features refuses."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for flag, value in pairs if flag[2:] not in FEATURES for word in (flag, value)]


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


def run_script(script: str, *words: str | Path) -> subprocess.CompletedProcess:
    """Runs one of our scripts in this process, which has imported torch and transformers already."""
    path = str(ROOT / script)
    return run_here(lambda argv: _run_path(path, argv), *words)


def run_here(command: Callable[[list[str]], None], *words: str | Path) -> subprocess.CompletedProcess:
    """Calls a command with a command line, and gives what it printed and the code that it ended with."""
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            command([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


def _run_path(path: str, words: list[str]) -> None:
    before = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [path, *words], [str(Path(path).parent)]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def start(function: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Calls a function in a child: where it can, a fork of this process, which has imported all already."""
    child = multiprocessing.get_context("fork" if can_fork() else "spawn").Process(
        target=_call, args=(function, *arguments)
    )
    child.start()
    return child


def _call(function: Callable[..., None], *arguments: object) -> None:
    # Forks share the lock of progress bars: one that is killed while it holds it would stop all others for ever.
    tqdm.set_lock(threading.RLock())
    function(*arguments)


def can_fork() -> bool:
    """Whether a fork of this process can train: not with a GPU, nor with OpenMP threads, which do not survive it."""
    return sys.platform == "linux" and not torch.cuda.is_available() and torch.get_num_threads() == 1


def start_ranks(
    size: int, function: Callable[..., None], *arguments: object
) -> list[multiprocessing.process.BaseProcess]:
    """Calls a function in processes that are one run, with the environment variables that torchrun sets."""
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [start(_in_rank, {**shared, "RANK": rank, "LOCAL_RANK": rank}, function, arguments) for rank in range(size)]


def _in_rank(environment: dict[str, object], function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    AcceleratorState._reset_state(reset_partial_state=True)  # training in the parent has left that it is alone
    function(*arguments)


def wait_until(condition: Callable[[], object], timeout_s: float = 300) -> None:
    """Waits for what another process does; long enough for a busy machine."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


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


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
