"""How often intervals from checked samples contain the truth, and which precision thresholds from them reach.

    python benchmarks/verification_coverage.py

Each of many simulated species has detections whose probability of being right rises with the score. A sample of clips
is drawn as by `kenya-birds verify sample`, and evaluated as by `kenya-birds verify read`. The first table has the
coverage of the intervals, and how many times as many clips a random sample needs for an equally wide interval. The
second one has the true precision from the threshold on.
"""

import argparse

import numpy as np
import pandas as pd
from scipy.special import expit

from kenya_birds.evaluation.call_density import shares_of_right, spread
from kenya_birds.verification.strata import bin_edges, draw_clips, make_strata
from kenya_birds.verification.verified_species import VerifiedSpecies

# Limits of intercept and slope: the probability is expit(intercept + slope x), with a normal x.
SPECIES = {
    "common": ((-1.5, 1.0), (1.0, 2.5)),
    "rare": ((-6.0, -4.0), (1.5, 2.5)),
    "rare, clearly separated": ((-10.0, -7.0), (4.0, 6.0)),
    "hardly separated": ((-2.5, -0.5), (0.0, 0.6)),
}
# Limits as above, and the probability at the highest scores: with less than 1, the logistic fit is wrong.
THRESHOLD_SPECIES = {
    "common": (SPECIES["common"], 1.0),
    "rare": (((-7.0, -5.0), (3.0, 5.0)), 1.0),
    "confused with another": (((-1.5, 1.0), (3.0, 5.0)), 0.8),
}
# Sizes of random samples, relative to that by bins, that are tried.
FACTORS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)


def main() -> None:
    """Prints a table of coverage and widths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--thresholds", type=int, default=200, help="simulations for the table of thresholds")
    parser.add_argument("--detections", type=int, default=2000)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    sizes = np.diff([*bin_edges(np.arange(options.detections), options.clips), options.detections]).astype(int)
    print(f"{options.simulations} simulations, {options.detections} detections, {options.clips} clips, bins {sizes}")
    print(f"{'species':24} {'part':14} {'true':>6} {'coverage':>9} {'width':>7} {'random needs':>13}")
    for name, limits in SPECIES.items():
        is_right = _species(limits, options, generator)
        clips = spread(options.clips, sizes)
        right = np.add.reduceat(is_right, np.cumsum([0, *sizes[:-1]]), axis=1, dtype=int)
        heard = generator.hypergeometric(right, sizes - right, clips)
        for bins in (len(sizes), len(sizes) // 2 + 1, len(sizes) // 2):
            part = f"highest {sizes[-bins:].sum() / options.detections:.1%}"
            cut = (slice(None), slice(-bins, None))
            shape = np.broadcast_to(sizes, right.shape)[cut], np.broadcast_to(clips, right.shape)[cut]
            _, low, high = shares_of_right(heard[cut], shape[1], shape[0])
            truth = right[cut].sum(axis=1) / shape[0].sum(axis=1)
            coverage = ((low <= truth + 1e-9) & (truth <= high + 1e-9)).mean()
            width = (high - low).mean()
            top = int(shape[0][0].sum())
            needed = _random_factor(right[cut].sum(axis=1), top, options, width, generator)
            print(f"{name:24} {part:14} {truth.mean():6.3f} {coverage:9.3f} {width:7.3f} {needed:>13}")
    print(f"\n{'species':24} {'wanted':>6} {'reached':>8} {'5% below':>9} {'recall':>7} {'no threshold':>13}")
    for name in THRESHOLD_SPECIES:
        _thresholds(name, options, generator)


def _species(
    limits: tuple[tuple[float, float], tuple[float, float]],
    options: argparse.Namespace,
    generator: np.random.Generator,
) -> np.ndarray:
    """Whether each detection is right, from the lowest score to the highest, shape `(simulations, detections)`."""
    intercept, slope = (generator.uniform(*ends, (options.simulations, 1)) for ends in limits)
    x = np.sort(generator.standard_normal(options.detections))
    return generator.random((options.simulations, options.detections)) < expit(intercept + slope * x)


def _thresholds(name: str, options: argparse.Namespace, generator: np.random.Generator) -> None:
    """Prints the true precision of the detections from the chosen threshold on."""
    limits, highest = THRESHOLD_SPECIES[name]
    found: dict[float, list[tuple[float, float]]] = {wanted: [] for wanted in (0.9, 0.95)}
    for seed in range(options.thresholds):
        intercept, slope = (generator.uniform(*ends) for ends in limits)
        x = generator.standard_normal(options.detections)
        scores = expit(2 * x - 2).round(6)
        is_right = generator.random(options.detections) < highest * expit(intercept + slope * x)
        strata = list(make_strata([("a", "")], np.zeros(len(x), dtype=int), scores, options.clips, by_score=True))
        drawn = draw_clips(strata, options.clips, seed)
        rows = np.concatenate([one.rows for one in drawn])
        names = [one.stratum.name for one in drawn for _ in one.rows]
        verdicts = np.where(is_right[rows], "right", "wrong")
        clips = pd.DataFrame({"score": scores[rows], "stratum": names, "verdict": verdicts})
        verified = VerifiedSpecies("a", "", tuple(stratum for stratum, _ in strata), clips)
        for wanted, results in found.items():
            threshold = verified.score_of(wanted)
            if threshold is not None:
                above = is_right[scores >= threshold]
                results.append((above.mean(), above.sum() / is_right.sum()))
    for wanted, results in found.items():
        share = 1 - len(results) / options.thresholds
        if results:
            precision, recall = np.array(results).T
            low = np.quantile(precision, 0.05)
            print(f"{name:24} {wanted:6} {precision.mean():8.3f} {low:9.3f} {recall.mean():7.3f} {share:13.2f}")
        else:
            print(f"{name:24} {wanted:6} {'':8} {'':9} {'':7} {share:13.2f}")


def _random_factor(
    right: np.ndarray, top: int, options: argparse.Namespace, width: float, generator: np.random.Generator
) -> str:
    """How many times as many clips a random sample of all detections needs for the same mean width."""
    for factor in FACTORS:
        clips = min(round(factor * options.clips), options.detections)
        among = generator.hypergeometric(top, options.detections - top, clips, options.simulations)
        among = np.maximum(among, 1)
        heard = generator.hypergeometric(right, top - right, among)
        _, low, high = shares_of_right(heard[:, None], among[:, None], np.full((len(among), 1), top))
        if (high - low).mean() <= width:
            return f"{factor:g} x"
    return f"> {FACTORS[-1]:g} x"


if __name__ == "__main__":
    main()
