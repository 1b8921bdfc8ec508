"""A new Python for a program of a test, without the seconds that torch takes to be imported.

This file, started as a program, imports torch and what transformers imports with it. It then forks itself for each
program that it is asked to run. Libraries that read environment variables when they are imported (huggingface_hub,
transformers, timm) and this package are left to the programs. Outside Linux an ordinary Python runs each program.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path

PRELOADED = (
    *("numpy", "scipy.signal", "scipy.optimize", "sympy", "PIL.Image", "soundfile", "httpx", "requests"),
    *("torch", "torch._dynamo", "torch.distributed.tensor", "torch.export", "torchvision", "torchaudio"),
)


def run_fresh(
    *words: str | Path, cwd: Path, env: Mapping[str, str], timeout_s: float = 300
) -> subprocess.CompletedProcess:
    """Runs a program in a Python of its own, as `python words` does.

    Args:
        words: `-I` on request, then the path of a script, `-m` and a module, or `-c` and a program; its arguments.
        cwd: Working directory.
        env: All environment variables.
        timeout_s: What takes longer is killed and an error.

    Returns:
        The exit code and what the program printed.
    """
    texts = [str(word) for word in words]
    if sys.platform != "linux":
        return subprocess.run(
            [sys.executable, *texts], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        print(json.dumps({"words": texts, "cwd": str(cwd), "env": dict(env), "files": files}), file=server.stdin)
        server.stdin.flush()
        pid = json.loads(server.stdout.readline())
        if not select.select([server.stdout], [], [], timeout_s)[0]:
            os.killpg(pid, signal.SIGKILL)
            server.stdout.readline()
            raise subprocess.TimeoutExpired(texts, timeout_s)
        code = json.loads(server.stdout.readline())
        output, errors = (Path(file).read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess(texts, code, output, errors)


def fork_check(patch) -> None:
    """Lets the check before publishing run its program in a fork.

    Args:
        patch: pytest's `monkeypatch`, which undoes it.
    """

    def run(command, *, cwd, env, timeout, **_):
        python, isolated, _, _, *words = command
        assert (python, isolated) == (sys.executable, "-I")
        return run_fresh(isolated, *words, cwd=cwd, env=env, timeout_s=timeout)

    replaced = types.SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    patch.setattr("kenya_birds.publishing.model_folder.subprocess", replaced)


@functools.lru_cache(maxsize=1)
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    atexit.register(server.stdin.close)
    return server


def _serve() -> dict | None:
    """Forks for each program. Returns the program in its fork, and None at the end in the server."""
    while line := sys.stdin.readline():
        pid = os.fork()
        if not pid:
            return json.loads(line)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def _become(program: dict) -> None:
    """Makes this process what Python is when it starts a program, and runs the program."""
    os.setsid()
    os.chdir(program["cwd"])
    os.environ.clear()
    os.environ.update(program["env"])
    for number, file in zip((0, 1, 2), (os.devnull, *program["files"]), strict=True):
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    words = program["words"]
    isolated = words[0] == "-I"
    option, *arguments = words[isolated:]
    if not isolated:
        sys.path[:0] = [path for path in program["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    if option == "-c":
        sys.path[:0] = [] if isolated else [""]
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif option == "-m":
        sys.path.insert(0, program["cwd"])
        sys.argv = ["-m", *arguments[1:]]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[:0] = [] if isolated else [str(Path(option).resolve().parent)]
        sys.argv = [option, *arguments]
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    for _name in PRELOADED:
        __import__(_name)
    gc.freeze()  # Otherwise garbage collection in a fork touches all objects, and copies their memory.
    if (_program := _serve()) is not None:
        _become(_program)
