"""Speed of `kenya-birds detect`, compared with its parts, and its memory.

    python benchmarks/detection_speed.py speed               # decoding, features and backbone alone; then end to end
    python benchmarks/detection_speed.py memory              # peak memory for 1 h against 12 h of sound

The sound is a synthetic archive's, the weights are random, windows do not overlap. Speeds are in times real time, the
best of several runs that take turns, so that other work on the machine hits all of them. The limit is the slower of
decoding alone and the backbone alone, each on all cores.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch

from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.inference.detect import run_detection
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model

CLASSES = 100
BLOCK_FRAMES = 30 * 32_000


def save_random_model(folder: Path, backbone: str) -> Path:
    """A model with random weights and the default front end, noise reduction included."""
    torch.manual_seed(0)
    config = KenyaBirdsConfig(backbone=backbone, num_labels=CLASSES, problem_type="multi_label_classification")
    KenyaBirdsForAudioClassification(config).save_pretrained(folder)
    KenyaBirdsFeatureExtractor().save_pretrained(folder)
    return folder


def make_pipeline(model: Path, options: argparse.Namespace) -> SoundscapePipeline:
    """The pipeline of the command; about one detection in two windows."""
    settings = FindingSettings(threshold=0.0, top_k=1) if options.find_all else FindingSettings(threshold=0.9)
    return SoundscapePipeline(model, settings=settings, device=options.device, batch_size=options.batch_size)


def measure_speed(options: argparse.Namespace) -> None:
    """One table: each part alone, and all of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = synthesize_archive(
            folder / "archive", recordings=options.recordings, duration_s=options.duration_s, scene="quiet"
        )
        files = sorted((archive / "soundscape_data").iterdir())
        model = save_random_model(folder / "model", options.backbone)
        device = make_pipeline(model, options).scorer._device
        threads = torch.get_num_threads() if device.type == "cpu" else 2
        steps = parts_alone(model, files, device, threads, options.batch_size)
        runs = 0

        def end_to_end() -> float:
            nonlocal runs
            runs += 1
            pipeline = make_pipeline(model, options)
            report = run_detection(pipeline, files, folder / f"output{runs}", formats=["raven", "csv"])
            assert report is not None
            shares.append(report.content["this_run"]["share_of_busy_time"])
            return report.content["this_run"]["times_real_time"]

        shares: list[dict[str, float]] = []
        steps["end to end"] = end_to_end
        speeds: dict[str, float] = {}
        for _ in range(options.repeats):
            for step, function in steps.items():
                speeds[step] = max(speeds.get(step, 0.0), function())
    limit = min(speeds["decode alone"], speeds["backbone alone"])
    print(
        f"{options.backbone}, {options.recordings} recordings of {options.duration_s:g} s, {device}, {threads} threads"
    )
    print("| step | times real time | share of the limit |\n| --- | --- | --- |")
    for step, speed in speeds.items():
        print(f"| {step} | {speed:.0f} | {speed / limit:.2f} |")
    print(
        "share of the end-to-end time by part: "
        + ", ".join(f"{part} {share:.1%}" for part, share in shares[-1].items())
    )
    print(f"load of the machine in the last minute: {os.getloadavg()[0]:.1f}")


def parts_alone(
    model: Path, files: list[Path], device: torch.device, threads: int, batch_size: int | None
) -> dict[str, Callable[[], float]]:
    """Functions that do one part of the work on all cores and return its speed in times real time."""
    classifier, extractor = load_classifier(find_model(str(model)))
    classifier.eval().to(device, memory_format=torch.channels_last)
    size = batch_size or (16 if device.type == "cpu" else 128)
    sound, _ = soundfile.read(files[0], frames=size * extractor.clip_samples, dtype="float32")
    # A recording may be shorter than a batch.
    waveform = torch.from_numpy(np.resize(sound, (size, extractor.clip_samples))).to(device)
    batches = 12 if device.type == "cpu" else 100

    def decode(path: Path) -> float:
        with RecordingReader(path) as reader:
            return sum(block.frames for block in reader.blocks(BLOCK_FRAMES)) / reader.header.sample_rate_hz

    def timed(function: Callable[[ThreadPoolExecutor], float]) -> float:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            function(pool)  # once to warm up
            begin_s = time.perf_counter()
            seconds = function(pool)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return seconds / (time.perf_counter() - begin_s)

    def on_batches(function: Callable[[], object]) -> Callable[[ThreadPoolExecutor], float]:
        @torch.inference_mode()
        def one(_: int) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and function is backbone):
                function()

        def run(pool: ThreadPoolExecutor) -> float:
            list(pool.map(one, range(batches)))
            return batches * size * extractor.clip_s

        return run

    with torch.inference_mode():
        ready = extractor.extract(waveform)

    def backbone() -> object:
        return classifier(ready).logits

    return {
        "decode alone": lambda: timed(lambda pool: sum(pool.map(decode, files))),
        "features alone": lambda: timed(on_batches(lambda: extractor.extract(waveform))),
        "backbone alone": lambda: timed(on_batches(backbone)),
    }


def measure_memory(options: argparse.Namespace) -> None:
    """Peak memory of a run on one short and one long recording, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = synthesize_archive(folder / "archive", recordings=1, duration_s=600, scene="quiet")
        sound, rate = soundfile.read(next((archive / "soundscape_data").iterdir()), dtype="int16")
        save_random_model(folder / "model", options.backbone)
        print(f"{options.backbone}, windows overlap by {options.overlap_s} s")
        print("| recording | loaded (MB) | peak (MB) | peak minus loaded (MB) | times real time |")
        print("| --- | --- | --- | --- | --- |")
        peaks = []
        for hours in options.hours:
            path = folder / f"{hours:g}h.flac"
            with soundfile.SoundFile(path, "w", rate, 1) as file:
                for _ in range(round(hours * 6)):
                    file.write(sound)
            words = ["one", str(folder / "model"), str(path), str(folder / f"output{hours:g}")]
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
    pipeline = SoundscapePipeline(
        options.model,
        overlap_s=options.overlap_s,
        settings=FindingSettings(threshold=0.0, top_k=1),
        device=options.device,
        batch_size=options.batch_size,
    )
    loaded = peak_mb()
    report = run_detection(pipeline, [options.recording], options.output, formats=["raven", "csv", "parquet"])
    assert report is not None
    speed = report.content["this_run"]["times_real_time"]
    print(json.dumps({"loaded": loaded, "peak": peak_mb(), "speed": speed}))


def peak_mb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Parses and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "one"))
    parser.add_argument("model", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("recording", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("output", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--backbone", default="convnext_atto")
    parser.add_argument("--recordings", type=int, default=4)
    parser.add_argument("--duration_s", type=float, default=300.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--device")
    parser.add_argument("--overlap_s", type=float, default=0.0)
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 12.0])
    parser.add_argument("--find_all", action="store_true", help="a detection in every window")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    {"speed": measure_speed, "memory": measure_memory, "one": measure_one}[options.what](options)


if __name__ == "__main__":
    main()
