"""Time and memory of the bootstrap intervals: `python benchmarks/interval_cost.py`.

Scores are random, which is as much work as any. Memory is what the intervals need beside the scores; Linux only.
"""

import argparse
import time

import numpy as np

from kenya_birds.evaluation.intervals import RESAMPLES, metric_intervals


def memory_mb(name: str) -> float:
    """Resident memory of this process: `VmRSS` now, `VmHWM` the largest so far."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1000


def main() -> None:
    """Prints one line for each problem type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=176)
    parser.add_argument("--recordings", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--multi_label", action="store_true", help="two species in a clip on average, instead of one")
    options = parser.parse_args()

    generator = np.random.default_rng(0)
    size = options.clips, options.classes
    frequency = 1 / np.arange(1, options.classes + 1)
    frequency /= frequency.sum()
    scores = generator.random(size)
    if options.multi_label:
        references = (generator.random(size, dtype=np.float32) < 2 * frequency).astype(np.int8)
    else:
        scores /= scores.sum(axis=1, keepdims=True)
        references = generator.choice(options.classes, options.clips, p=frequency)
    recordings = generator.integers(0, options.recordings, options.clips)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the largest so far is forgotten
    before_mb = memory_mb("VmRSS")
    began_s = time.perf_counter()
    metric_intervals(scores, references, recordings, generator, resamples=options.resamples)
    print(
        f"{options.clips:,} clips, {options.classes} classes, {options.recordings:,} recordings, "
        f"{options.resamples:,} resamples: {time.perf_counter() - began_s:.1f} s, "
        f"{memory_mb('VmHWM') - before_mb:,.0f} MB (the scores are {scores.nbytes / 1e6:,.0f} MB)"
    )


if __name__ == "__main__":
    main()
