"""Coverage of 95% intervals: how often they contain the true value, without and with the shift to the metric.

`python benchmarks/interval_coverage.py` draws synthetic recordings, which differ in their species and difficulty, and
whose clips share errors. The true value is the metric of 3,000 other recordings.
"""

import argparse

import numpy as np

from kenya_birds.evaluation.intervals import LEVEL, METRICS, centred_interval, weighted_metrics
from kenya_birds.evaluation.metrics import evaluation_metrics, probabilities


def draw(generator: np.random.Generator, skill: np.ndarray, recordings: int, clips: int) -> tuple[np.ndarray, ...]:
    """Probabilities, class ids and recordings; species are as frequent as 1, 1/2, 1/3, ..."""
    classes = len(skill)
    references, logits = [], []
    for _ in range(recordings):
        present = generator.random(classes) < 0.5
        present[generator.integers(classes)] = True
        frequency = present / np.arange(1, classes + 1)
        label = generator.choice(classes, clips, p=frequency / frequency.sum())
        noise = generator.normal(size=(clips, classes)) + 0.8 * generator.normal(size=classes)
        noise[np.arange(clips), label] += skill[label] + 0.8 * generator.normal()
        references.append(label)
        logits.append(1.3 * noise)
    scores = probabilities(np.concatenate(logits), multi_label=False)
    return scores, np.concatenate(references), np.repeat(np.arange(recordings), clips)


def main() -> None:
    """Prints one table for each size of test split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200, help="test splits of each size")
    parser.add_argument("--resamples", type=int, default=400, help="resamples of each bootstrap")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    for classes, recordings, clips in ((10, 10, 40), (40, 8, 60), (40, 35, 60)):
        skill = generator.normal(2.5, 0.8, classes)
        scores, references, _ = draw(generator, skill, 3000, clips)
        truth = evaluation_metrics(scores, references)
        held = {name: np.zeros(2) for name in METRICS}
        found: dict[str, list[float]] = {name: [] for name in METRICS}
        for _ in range(options.repetitions):
            scores, references, group = draw(generator, skill, recordings, clips)
            metrics = evaluation_metrics(scores, references)
            weights = generator.multinomial(recordings, np.full(recordings, 1 / recordings), size=options.resamples)
            for name, values in weighted_metrics(scores, references, group, weights).items():
                if name not in held:
                    continue
                plain = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
                centred = centred_interval(values, metrics[name], LEVEL)
                assert centred is not None
                held[name] += [low <= truth[name] <= high for low, high in (plain, centred)]
                found[name].append(metrics[name])
        print(f"\n{recordings} recordings of {clips} clips, {classes} classes")
        print(f"{'':<14} {'truth':>7} {'mean':>7} {'percentiles':>12} {'centred':>8}")
        for name in METRICS:
            plain_share, centred_share = held[name] / options.repetitions
            print(
                f"{name:<14} {truth[name]:7.3f} {np.mean(found[name]):7.3f} {plain_share:12.0%} {centred_share:8.0%}"
            )


if __name__ == "__main__":
    main()
