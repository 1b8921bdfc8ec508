"""A new Python for a program of a test, without the seconds that torch takes to be imported.

This file, started as a program, imports torch and what transformers imports with it. It then forks itself for each
program that it is asked to run. Libraries that read environment variables when they are imported (huggingface_hub,
transformers, timm) and this package are left to the programs. Outside Linux an ordinary Python runs each program.
"""

import atexit
import contextlib
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
from collections.abc import Callable, Mapping
from pathlib import Path

PRELOADED = (
    *("numpy", "scipy.signal", "scipy.optimize", "sympy", "PIL.Image", "soundfile", "httpx", "requests"),
    *("torch", "torch._dynamo", "torch.distributed.tensor", "torch.export", "torchvision", "torchaudio"),
)


def run_fresh(
    *words: str | Path,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float = 300,
    started: Callable[[int], object] = lambda process: None,
) -> subprocess.CompletedProcess:
    """Runs a program in a Python of its own, as `python words` does.

    Args:
        words: `-I` on request, then the path of a script, `-m` and a module, or `-c` and a program; its arguments.
        cwd: Working directory.
        env: All environment variables.
        timeout_s: What takes longer is killed and an error.
        started: Gets the number of the process as soon as it has one.

    Returns:
        The exit code and what the program printed.
    """
    texts = [str(word) for word in words]
    if sys.platform != "linux":
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, *texts], cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True
        ) as process:
            started(process.pid)
            try:
                output, errors = process.communicate(timeout=timeout_s)
            finally:
                process.kill()
        return subprocess.CompletedProcess(texts, process.returncode, output, errors)
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = (Path(folder) / name for name in ("stdout", "stderr"))
        program = FreshProgram(*texts, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        started(program.pid)
        try:
            code = program.wait(timeout_s)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
            raise
        output, errors = (file.read_text(encoding="utf-8") for file in (stdout, stderr))
    return subprocess.CompletedProcess(texts, code, output, errors)


class FreshProgram:
    """A program that runs in a fork, as `subprocess.Popen` has it; Linux only, and no other one until it has ended.

    Args:
        words: See `run_fresh`.
        cwd: Working directory.
        env: All environment variables.
        stdout: File that it prints to.
        stderr: File of its errors, which can be the same.
    """

    def __init__(self, *words: str | Path, cwd: Path, env: Mapping[str, str], stdout: Path, stderr: Path) -> None:
        self.words, self._server = [str(word) for word in words], _server()
        program = {"words": self.words, "cwd": str(cwd), "env": dict(env), "files": [str(stdout), str(stderr)]}
        print(json.dumps(program), file=self._server.stdin)
        self._server.stdin.flush()
        self.pid, self.code = json.loads(self._server.stdout.readline()), None

    def wait(self, timeout: float = 300) -> int:
        """Its exit code, once it has ended."""
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.words, timeout)
        self.code = json.loads(self._server.stdout.readline())
        return self.code

    def kill(self) -> None:
        """Ends it and the processes of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


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
