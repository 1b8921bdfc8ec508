"""What the answers of a sample teach, by --choose: heads on a frozen backbone that learn from more and more answers.

    kenya-birds embed MODEL ARCHIVE/soundscape_data --output embeddings.parquet
    python benchmarks/informative_samples.py ARCHIVE embeddings.parquet

MODEL is a network that these recordings have not trained, such as one saved after `initialize(model, WEIGHTS,
extractor)` (`kenya_birds.training.starting_points`). ARCHIVE is annotated completely, and its annotations give the
answers: a window holds a call if the middle of the call is in it. A half of the recordings is the pool, the other half
the test; another seed divides them otherwise. Each species has a logistic head. The first heads learn from `--start`
random windows with a call and ten times as many without. In each round, each way draws `--per_species` new detections
of each species from the pool, with the scores of its own heads, and its heads learn from these answers too.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from kenya_birds.console import one_line_errors
from kenya_birds.data.archive import read_archive
from kenya_birds.errors import UserError
from kenya_birds.verification.informative import INFORMATIVE, draw_informative
from kenya_birds.verification.strata import Drawn, draw_clips, make_strata

WAYS = ("random", "score", "uncertain", "diverse")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("embeddings", type=Path, help="file of kenya-birds embed")
    parser.add_argument("--per_species", type=int, default=21, help="answers of each species and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--start", type=int, default=3, help="calls of each species that the first heads learn from")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    vectors, calls, recordings = read_windows(options.archive, options.embeddings)
    results = np.stack([one_seed(vectors, calls, recordings, seed, options) for seed in range(options.seeds)])
    print(f"{len(vectors)} windows, {calls.shape[1]} species, {calls.mean():.3f} of windows and species have a call")
    print(
        "| Answers | Way | Right answers | Macro average precision | more than random | Macro F1 | more than random |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for turn in range(options.rounds + 1):
        for way, name in enumerate(WAYS[: 1 if turn == 0 else None]):
            right, precision, f1 = results[:, way, turn].T
            _, base_precision, base_f1 = results[:, 0, turn].T
            cells = [str(turn * options.per_species * calls.shape[1]), name if turn else "(start)"]
            cells += [f"{right.mean():.2f}" if turn else "", f"{precision.mean():.3f}"]
            cells += [paired(precision - base_precision) if way else "", f"{f1.mean():.3f}"]
            print("| " + " | ".join([*cells, paired(f1 - base_f1) if way else ""]) + " |")


def read_windows(archive: Path, embeddings: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised embeddings, whether each species calls (windows x species), and the recording of each window."""
    table = pd.read_parquet(embeddings)
    annotations = read_archive(archive).annotations
    species = sorted(annotations["species"].unique())
    names = table["recording"].map(lambda path: Path(path).name).to_numpy()
    calls = np.zeros((len(table), len(species)), dtype=bool)
    row: Any  # pandas does not know the types of columns
    for row in annotations.itertuples():
        at_call = (table["start_s"] <= row.center_s) & (row.center_s < table["end_s"])
        inside = (names == Path(row.recording).name) & at_call
        calls[inside, species.index(row.species)] = True
    vectors = np.stack(table["embedding"].to_numpy())
    return (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6), calls, names


def one_seed(
    vectors: np.ndarray, calls: np.ndarray, recordings: np.ndarray, seed: int, options: argparse.Namespace
) -> np.ndarray:
    """Share of right answers, macro average precision and macro F1, of shape `(ways, rounds + 1, 3)`."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.unique(recordings))
    in_pool = np.isin(recordings, order[: len(order) // 2])
    pool, test = np.flatnonzero(in_pool), np.flatnonzero(~in_pool)
    start = np.zeros((len(pool), calls.shape[1]), dtype=bool)
    for species in range(calls.shape[1]):
        own = calls[pool, species]
        if not own.any():
            raise UserError(
                f"species {species + 1} of {calls.shape[1]} has no call in the pool of seed {seed}: expected calls of "
                "each species in most recordings"
            )
        with_call, without = generator.permutation(np.flatnonzero(own)), generator.permutation(np.flatnonzero(~own))
        start[with_call[: options.start], species] = True
        start[without[: 10 * options.start], species] = True
    results = np.zeros((len(WAYS), options.rounds + 1, 3))
    for place, way in enumerate(WAYS):
        known, right = start.copy(), np.nan
        for turn in range(options.rounds + 1):
            every = scores_of(vectors, pool, calls, known)
            results[place, turn] = right, *quality(every[test], calls[test])
            if turn < options.rounds:
                new = answered(way, every[pool], vectors[pool], known, options.per_species, seed * 100 + turn)
                right = calls[pool][new].mean()
                known |= new
    return results


def scores_of(vectors: np.ndarray, pool: np.ndarray, calls: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Scores of all windows by heads that learn from the known answers, shape `(windows, species)`."""
    scores = np.empty(calls.shape)
    for species in range(calls.shape[1]):
        rows = pool[known[:, species]]
        head = LogisticRegression(C=0.01, max_iter=200).fit(vectors[rows], calls[rows, species])
        scores[:, species] = expit(head.decision_function(vectors))
    return scores


def answered(
    way: str, scores: np.ndarray, vectors: np.ndarray, known: np.ndarray, clips: int, seed: int
) -> np.ndarray:
    """The new answers: windows x species."""
    windows, species = np.nonzero(~known)
    own = scores[windows, species]
    keys = [(f"species{number}", "") for number in range(scores.shape[1])]
    strata = list(make_strata(keys, species, own, clips, by_score=way == "score"))
    drawn: list[Drawn] = []
    if way in INFORMATIVE:
        drawn = draw_informative(strata, own, clips, seed, way, lambda rows: vectors[windows[rows]])
    else:
        for key in keys:
            drawn += draw_clips([one for one in strata if one[0].species == key[0]], clips, seed)
    rows = np.concatenate([one.rows for one in drawn])
    new = np.zeros_like(known)
    new[windows[rows], species[rows]] = True
    return new


def quality(scores: np.ndarray, calls: np.ndarray) -> tuple[float, float]:
    """Macro average precision, and macro F1 at 0.5, over the species with a call."""
    have = calls.any(axis=0)
    precision = average_precision_score(calls[:, have], scores[:, have], average="macro")
    return float(precision), float(f1_score(calls[:, have], scores[:, have] >= 0.5, average="macro", zero_division=0))


def paired(differences: np.ndarray) -> str:
    """Mean difference with its 95% interval over the seeds (Student's t)."""
    seeds, mean = len(differences), differences.mean()
    half = t.ppf(0.975, seeds - 1) * differences.std(ddof=1) / seeds**0.5
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


if __name__ == "__main__":
    with one_line_errors("informative_samples.py"):
        main()
