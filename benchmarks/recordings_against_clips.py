"""Training on clips against training on whole recordings: metrics on whole test recordings, over folds and seeds.

    python benchmarks/recordings_against_clips.py ARCHIVE WORK_DIR --folds_file FOLDS.csv [--folds 0 1 2]
        [--seeds 0 1] [--only NAME ...] [--arm 'focal: --focal_gamma 2' ...] [--flags FLAGS]

All arms are trained on the same folds with the same seeds. Finished runs are not repeated, interrupted runs resume.

Each test recording is scored by the model of its own fold, with the decision thresholds of that model. The windows of
all folds are then pooled, and the metrics are computed over all recordings; with several seeds, they are means over
seeds. Intervals are from a bootstrap over recordings. Each arm is compared with the first one on the same resampled
recordings. WORK_DIR/comparison.json has the numbers of the table, and WORK_DIR/RUN.json the metrics of each run.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from arms import ArmRun, add_arguments, plan_runs, train_missing

from kenya_birds.console import one_line_errors
from kenya_birds.files import write_json

ARMS = {
    "clips": "--train_on clips",
    "clips, multi-label": "--train_on clips --problem_type multi_label_classification",
    "recordings": "",
    "recordings, bce": "--window_loss bce",
    "recordings, focal 2": "--focal_gamma 2",
    "recordings, loss weights n^0": "--loss_weight_power 0",
    "recordings, 3/4 around calls": "--call_windows 0.75 --empty_windows 0.15",
}


def main(arguments: list[str] | None = None) -> None:
    """Trains the missing runs, then prints the table.

    Args:
        arguments: Command line; by default the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ARMS)
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of the bootstrap")
    options = parser.parse_args(arguments)
    if options.folds_file is None:
        parser.error("--folds_file is required: kenya-birds split --folds writes it")
    runs = plan_runs(options)
    train_missing(runs, options.work_dir / "cache")
    content = compare(options, runs)
    write_json(content, options.work_dir / "comparison.json")
    print(format_table(content))


def compare(options: argparse.Namespace, runs: dict[str, list[ArmRun]]) -> dict[str, Any]:
    """Pools the test recordings of each arm's folds and computes the metrics.

    Args:
        options: `archive`, `folds`, `seeds` and `resamples`.
        runs: The finished runs of each arm.

    Returns:
        `recordings`, `hours`, `calls`, `folds` and `seeds`; and by arm in `arms` the `metrics` and, but for the first
        arm, the `difference` to it: the value and the interval of each metric (see `event_intervals`).

    Raises:
        UserError: If the archive or the windows of a run cannot be read.
    """
    from kenya_birds.data.archive import read_archive
    from kenya_birds.evaluation.event_metrics import event_intervals
    from kenya_birds.experiments.whole_recordings import pool_folds

    archive = read_archive(options.archive)
    systems = {
        name: MeanOfSeeds(
            [pool_folds([run.folder for run in of_arm if run.seed == seed], archive) for seed in options.seeds]
        )
        for name, of_arm in runs.items()
    }
    first = next(iter(systems.values()))
    recordings = first.per_recording()
    arms: dict[str, Any] = {}
    for name, system in systems.items():
        pair = [system] if system is first else [system, first]
        results = event_intervals(pair, np.random.default_rng(0), resamples=options.resamples)
        arms[name] = {"metrics": results[0]} | ({} if system is first else {"difference": results[2]})
    return {
        "recordings": len(recordings),
        "hours": float(recordings["duration_s"].sum() / 3600),
        "calls": int(recordings["calls"].sum()),
        "folds": options.folds,
        "seeds": options.seeds,
        "arms": arms,
    }


class MeanOfSeeds:
    """The mean over seeds of an arm's metrics, with the interface of `EventScores` that `event_intervals` uses.

    Args:
        seeds: The pooled scores of each seed, on the same recordings.
    """

    def __init__(self, seeds: Sequence[Any]) -> None:
        self._seeds = seeds

    def per_recording(self) -> Any:
        """See `EventScores.per_recording`; of the first seed."""
        return self._seeds[0].per_recording()

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `EventScores.weighted`."""
        each = [seed.weighted(weights) for seed in self._seeds]
        return {name: np.mean([values[name] for values in each], axis=0) for name in each[0]}


def format_table(content: dict[str, Any]) -> str:
    """The result of `compare` as two Markdown tables: metrics, and differences to the first arm."""
    from kenya_birds.evaluation.event_metrics import METRICS
    from kenya_birds.experiments.score import DESCRIPTIONS

    arms = content["arms"]
    first, *others = arms
    lines = [
        f"{content['recordings']} recordings, {content['hours']:.2f} h, {content['calls']} annotated calls, folds "
        f"{', '.join(map(str, content['folds']))}, seeds {', '.join(map(str, content['seeds']))}. In brackets: 95% "
        "interval from a bootstrap over recordings.",
    ]
    for part, names in (("metrics", [first, *others]), ("difference", others)):
        if names:
            heads = names if part == "metrics" else [f"{name} minus {first}" for name in names]
            lines += ["", f"| | {' | '.join(heads)} |", "| --- " * (len(names) + 1) + "|"]
            for metric in METRICS:
                cells = [_cell(arms[name][part][metric], signed=part == "difference") for name in names]
                lines.append(f"| {DESCRIPTIONS[metric]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(metric: dict[str, Any], *, signed: bool) -> str:
    if metric["value"] is None:
        return "-"
    form = f"{'+' if signed else ''}.{1 if abs(metric['value']) >= 10 else 3}f"
    text = format(metric["value"], form)
    return (
        text if metric["interval"] is None else f"{text} ({' to '.join(format(x, form) for x in metric['interval'])})"
    )


if __name__ == "__main__":
    with one_line_errors("recordings_against_clips.py"):
        main()
