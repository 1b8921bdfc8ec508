"""Load test of `kenya-birds demo` with many visitors at the same time.

    python benchmarks/demo_load.py --model FOLDER --users 50

The server is a process of its own. Each visitor does over HTTP what the page does in a browser: loads it, holds its
heartbeat, uploads a recording of its own (FLAC, cut from a synthetic archive), has it heard, and fetches the rows, the
three downloads and the picture. All come at the same moment. A visitor that is asked to come back is refused; anything
else that goes wrong is a failure, as is another visitor's answer. The exit code is 1 if a visitor failed, the server
does not answer afterwards, or something of the visitors is left. Linux only: the memory is read from /proc.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import soundfile
from speed import save_random_model

from kenya_birds.console import one_line_errors
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.errors import UserError

API = "/gradio_api"
REFUSALS = (413, 503, 507)  # too large, the queue is full, no room on the disk
OVERLAP_S = 0.0
FILTERS = (False, 0.05, [], False)  # own thresholds, minimum score, species, merge: as many rows as there are
START_S = 300.0
LEAVING_S = 60.0


class Refused(Exception):
    """The server asks to come back later, or to send something else."""


@dataclass
class Visit:
    """How it went.

    Attributes:
        outcome: `answered`, `refused` or `failed`.
        said: Why not answered.
        rows: How many there were.
        rows_s: From the arrival until the rows were there, in seconds.
        picture_s: The same until the picture was there.
    """

    outcome: str
    said: str = ""
    rows: int = 0
    rows_s: float = 0.0
    picture_s: float = 0.0


class Visitor:
    """A page in a browser, without the browser."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._http = httpx.Client(base_url=address, timeout=timeout_s)
        self._session = secrets.token_hex(8)
        self._functions: dict[str, int] = {}

    def visit(self, recording: Path) -> Visit:
        """From the arrival to the picture; then the page is closed."""
        begin_s = time.monotonic()
        try:
            with self._http, self._page():
                rows = self._rows(recording)
                rows_s = time.monotonic() - begin_s
                (picture,) = self._queued("section", 0, *FILTERS)
                address = re.search("src='(gradio_api/[^']*)'", picture)
                if address is None or not self._ask("GET", f"/{address[1]}").content.startswith(b"\x89PNG"):
                    raise RuntimeError("the picture is no PNG")
                return Visit("answered", "", rows, rows_s, time.monotonic() - begin_s)
        except Refused as refused:
            return Visit("refused", str(refused))
        except (httpx.HTTPError, RuntimeError, ValueError, LookupError, TypeError) as error:
            return Visit("failed", f"{type(error).__name__}: {error}")

    @contextlib.contextmanager
    def _page(self) -> Iterator[None]:
        self._ask("GET", "/")
        config = self._ask("GET", "/config").json()
        # The page's functions, by the first of each name.
        for one in reversed(config["dependencies"]):
            self._functions[one["api_name"]] = one["id"]
        with self._http.stream("GET", f"{API}/heartbeat/{self._session}"):
            yield

    def _rows(self, recording: Path) -> int:
        with recording.open("rb") as file:
            (path,) = self._ask("POST", f"{API}/upload", files={"files": (recording.name, file)}).json()
        upload = {"path": path, "orig_name": recording.name, "meta": {"_type": "gradio.FileData"}}
        about = self._ask("POST", f"{API}/run/predict", json=self._event("open", upload)).json()["data"][0]
        self._expect(f"{recording.name} is in the queue", about)
        about = self._queued("analyse", OVERLAP_S)[0]
        self._expect(f"{recording.name}: ", about)
        _, by_time, *_, raven, audacity, csv = self._queued("show", *FILTERS)
        *_, table = [self._fetch(download).decode() for download in (raven, audacity, csv)]
        self._expect(recording.name, table)
        rows = len(by_time["data"])
        if not rows:
            raise RuntimeError("no rows")
        return rows

    def _expect(self, text: str, said: str) -> None:
        if text not in said:
            raise RuntimeError(f"expected {text!r}, the page says: {said[:200]}")

    def _event(self, function: str, *data: Any) -> dict[str, Any]:
        return {"data": data, "fn_index": self._functions[function], "session_hash": self._session}

    def _queued(self, function: str, *data: Any) -> list[Any]:
        """What an event that waits in the queue gives."""
        self._ask("POST", f"{API}/queue/join", json=self._event(function, *data))
        with self._http.stream("GET", f"{API}/queue/data?session_hash={self._session}") as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"{function}: {message['output']}")
                    return message["output"]["data"]
        raise RuntimeError(f"{function}: the server ended the stream without an answer")

    def _fetch(self, output: dict[str, Any]) -> bytes:
        """The content of a file that is shown or can be downloaded."""
        file = output["value"] if output.get("__type__") == "update" else output
        return self._ask("GET", f"{API}/file={file['path']}").content

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self._http.request(method, path, **options)
        if answer.status_code in REFUSALS:
            raise Refused(f"{answer.status_code} {answer.text[:200]}")
        return answer.raise_for_status()


@contextlib.contextmanager
def serving(model: str, uploads: Path, concurrency: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The demo in a process of its own, which keeps what is sent to it under `uploads`; its process and address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["demo", model, "--port", str(port), "--concurrency", str(concurrency)]
    process = subprocess.Popen(
        [sys.executable, "-m", "kenya_birds", *words],
        env={**os.environ, "TMPDIR": str(uploads)},
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        if "The page is at" not in process.stdout.readline():
            raise UserError(f"the demo of {model} did not start: see what it says above")
        timer.cancel()
        yield process, f"http://127.0.0.1:{port}"
    finally:
        timer.cancel()
        process.terminate()
        process.wait(60)


def cut_recordings(folder: Path, count: int, duration_s: float) -> list[Path]:
    """So many different recordings, one after the other out of a synthetic archive's."""
    archive = synthesize_archive(folder / "archive", recordings=1, duration_s=count * duration_s, scene="quiet")
    with soundfile.SoundFile(next((archive / "soundscape_data").iterdir())) as whole:
        paths = []
        for number in range(count):
            paths.append(folder / f"visitor{number:03}.flac")
            soundfile.write(
                paths[-1], whole.read(round(duration_s * whole.samplerate), dtype="int16"), whole.samplerate
            )
    return paths


def memory_mb(process: subprocess.Popen[str], name: str) -> float:
    """`VmRSS` or `VmHWM` (its peak) of a process, in MB (10^6)."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(kib) * 1024 / 1e6


def sessions_left(uploads: Path) -> int:
    """How many visitors' folders there are, a minute after all have left at the latest."""
    deadline_s = time.monotonic() + LEAVING_S
    while (left := len(list(uploads.glob("*/session-*")))) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    return left


def measure(options: argparse.Namespace) -> bool:
    """Prints how it went; whether it went well."""
    with tempfile.TemporaryDirectory() as name:
        folder, uploads = Path(name), Path(name) / "uploads"
        uploads.mkdir()
        model = options.model or str(save_random_model(folder / "model", options.backbone))
        first, *recordings = cut_recordings(folder, options.users + 1, options.duration_s)
        with serving(model, uploads, options.concurrency) as (process, address):
            alone = Visitor(address, options.timeout_s).visit(first)
            if alone.outcome != "answered":
                raise UserError(f"a visitor alone got no answer: {alone.said}")
            before_mb = memory_mb(process, "VmRSS")
            together = threading.Barrier(options.users)

            def come(recording: Path) -> Visit:
                visitor = Visitor(address, options.timeout_s)
                together.wait()
                return visitor.visit(recording)

            with ThreadPoolExecutor(options.users) as pool:
                visits = list(pool.map(come, recordings))
            left = sessions_left(uploads)
            after = Visitor(address, options.timeout_s).visit(first)
            peak_mb = memory_mb(process, "VmHWM") if process.poll() is None else float("nan")
    return report(visits, alone, after, left, before_mb, peak_mb)


def report(visits: list[Visit], alone: Visit, after: Visit, left: int, before_mb: float, peak_mb: float) -> bool:
    """Prints it; whether it went well."""
    counts = Counter(visit.outcome for visit in visits)
    print(", ".join(f"{outcome} {counts[outcome]}" for outcome in ("answered", "refused", "failed")))
    for (outcome, said), count in Counter((visit.outcome, visit.said) for visit in visits if visit.said).items():
        print(f"  {outcome} {count} times: {said}")
    answered = [visit for visit in visits if visit.outcome == "answered"]
    print("| wait (s) until | alone | median | worst |\n| --- | --- | --- | --- |")
    for what, field in (("rows and downloads", "rows_s"), ("picture", "picture_s")):
        waits_s = [getattr(visit, field) for visit in answered] or [float("nan")]
        print(f"| {what} | {getattr(alone, field):.1f} | {statistics.median(waits_s):.1f} | {max(waits_s):.1f} |")
    print(f"rows of a visitor: {min((visit.rows for visit in answered), default=0)} or more")
    print(f"memory of the server, MB (10^6): {before_mb:.0f} before, {peak_mb:.0f} at its peak")
    print(f"visitors' folders left: {left}")
    print(f"a visitor afterwards: {after.outcome}{f' ({after.said})' if after.said else f' in {after.rows_s:.1f} s'}")
    return counts["failed"] == 0 and left == 0 and after.outcome == "answered"


def main() -> None:
    """Parses and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's folder, or its name on the Hub; by default one with random weights")
    parser.add_argument("--backbone", default="convnext_atto", help="backbone of the model with random weights")
    parser.add_argument("--users", type=int, default=50, help="visitors at the same time")
    parser.add_argument("--duration_s", type=float, default=10.0, help="length of a recording")
    parser.add_argument(
        "--concurrency", type=int, default=1, help="recordings that the server analyses at the same time"
    )
    parser.add_argument("--timeout_s", type=float, default=600.0, help="seconds that a visitor waits for an answer")
    options = parser.parse_args()
    with one_line_errors("demo_load.py"):
        if options.users < 1:
            raise UserError(f"--users is {options.users}: expected 1 or more")
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.users} visitors with "
            f"{options.duration_s:g} s each, concurrency {options.concurrency}"
        )
        if not measure(options):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
