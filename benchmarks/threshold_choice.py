"""Decision thresholds chosen on few recordings, in several ways, and how well they do on other recordings.

    python benchmarks/threshold_choice.py ARCHIVE MODEL [MODEL ...]

The models were trained on recordings of the archive, such as those of `benchmarks/recordings_against_clips.py`. Each
model scores all windows of the recordings that it was not trained on. In each of `--draws` draws, some of these
recordings (`--recordings`) choose the thresholds, and the others are the test. Each model's own validation recordings
are also drawn, although they chose its epoch. In the last rows, they choose the thresholds, and the model's own test
recordings are the test. Two ways are compared with `choose_window_thresholds`: 0.5 for each species, and the way
before 2026-11-29. In that way, a species without a window was not reported, the best shared threshold was used as it
is, and 50 windows of a species gave its own threshold half of the weight.

F1, precision and recall count pairs of window and species in all draws of all models together; macro F1 is the mean
over species. The interval of a difference is from a bootstrap over recordings.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from held_out import PRESENT, REPORTED, Scored, counted, difference, f1_of, score_held_out

from kenya_birds.console import one_line_errors
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import choose_thresholds
from kenya_birds.model.modeling_kenya_birds import MULTI_LABEL
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model

RESAMPLES = 2000


Way = Callable[[Scored], np.ndarray]


def earlier_way(windows: Scored) -> np.ndarray:
    """Thresholds as they were chosen before 2026-11-29, shape `(classes,)`; infinite: never reported."""
    return choose_thresholds(windows.scores, windows.targets, windows.classes, shrinkage_clips=50).values(
        windows.classes
    )


def same_for_all(windows: Scored) -> np.ndarray:
    """0.5 for each species, shape `(classes,)`."""
    return np.full(len(windows.classes), 0.5)


WAYS: dict[str, Way] = {
    "chosen": Scored.chosen_thresholds,
    "as before 2026-11-29": earlier_way,
    "0.5 for each species": same_for_all,
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("models", nargs="+", type=Path, help="model folders of runs on recordings of the archive")
    parser.add_argument("--recordings", type=int, nargs="+", default=[1, 2, 4, 8], help="that choose thresholds")
    parser.add_argument("--draws", type=int, default=20, help="draws of recordings, for each model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        models = [score_windows(folder, options.archive, Path(cache)) for folder in options.models]
    least = min(len(np.unique(one.recording)) for one in models)
    if max(options.recordings) >= least:
        raise UserError(
            f"--recordings {max(options.recordings)}: expected at most {least - 1}, because a model has {least} "
            "recordings that it was not trained on, and the test needs one"
        )
    windows, calls = sum(len(one.scores) for one in models), sum(int((one.targets == 1).sum()) for one in models)
    print(f"{len(models)} models, {windows} windows, {calls} pairs of window and species with a call")
    print("| Recordings, windows with a call | Thresholds | F1 | minus chosen | Macro F1 | Precision | Recall |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for number in options.recordings:
        print_rows(str(number), *compare(models, number, options.draws, options.seed), options.seed)
    print_rows("validation", *compare(models, None, 1, options.seed), options.seed)


def print_rows(name: str, counts: dict[str, np.ndarray], calls: float, seed: int) -> None:
    """Prints a row for each way."""
    weights = resampled(counts, seed)
    f1 = {way: f1_of(np.tensordot(weights, counts[way].sum(axis=1), axes=1)) for way in WAYS}
    for way in WAYS:
        apart = "" if way == "chosen" else difference(f1[way] - f1["chosen"])
        right, reported, present = counts[way].sum(axis=(0, 1))
        macro = np.nanmean(f1_of(counts[way].sum(axis=0)))
        precision = f"{right / reported:.3f}" if reported else "-"
        cells = [f"{name}, {calls:.0f}", way, f"{f1[way][0]:.3f}", apart, f"{macro:.3f}"]
        print("| " + " | ".join([*cells, precision, f"{right / present:.3f}"]) + " |", flush=True)


def score_windows(folder: Path, data_dir: Path, cache_dir: Path) -> Scored:
    """Scores the recordings of an archive that a model was not trained on."""
    model, extractor = load_classifier(find_model(folder))
    if model.config.problem_type != MULTI_LABEL:
        raise UserError(f"{folder} is a single-label model: expected one that was trained on recordings")
    return score_held_out(folder, data_dir, cache_dir, [model], extractor)[0]


def compare(
    models: Sequence[Scored], number: int | None, draws: int, seed: int
) -> tuple[dict[str, np.ndarray], float]:
    """Counts of each way on test recordings, and the mean number of windows with a call that chose the thresholds.

    Args:
        models: The scored windows of each model.
        number: Recordings that choose the thresholds; None: each model's validation recordings.
        draws: Draws of recordings.
        seed: Of the draws.

    Returns:
        For each way, right, reported and present pairs, shape `(recordings, classes, 3)`; and the mean.
    """
    recordings = 1 + max(int(windows.recording.max()) for windows in models)
    counts = {way: np.zeros((recordings, len(models[0].classes), 3)) for way in WAYS}
    calls = []
    for windows in models:
        generator = np.random.default_rng(seed)
        every = np.unique(windows.recording)
        for _ in range(draws):
            if number is None:
                part, rest = (windows.select(windows.split == split) for split in ("validation", "test"))
            else:
                is_chosen = np.isin(windows.recording, generator.choice(every, number, replace=False))
                part, rest = windows.select(is_chosen), windows.select(~is_chosen)
            if not (part.targets == 1).any():
                continue
            calls.append((part.targets == 1).sum())
            for way, choose in WAYS.items():
                np.add.at(counts[way], rest.recording, counted(rest, choose(part)))
    return counts, float(np.mean(calls))


def resampled(counts: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """Weights of recordings, shape `(1 + resamples, recordings)`; the first row is the sample itself."""
    tested = np.flatnonzero(counts["chosen"][:, :, PRESENT].sum(axis=1) + counts["chosen"][:, :, REPORTED].sum(axis=1))
    weights = np.zeros((1 + RESAMPLES, len(counts["chosen"])))
    weights[0] = 1
    weights[1:, tested] = np.random.default_rng(seed).multinomial(
        len(tested), np.full(len(tested), 1 / len(tested)), size=RESAMPLES
    )
    return weights


if __name__ == "__main__":
    with one_line_errors("threshold_choice.py"):
        main()
