"""Training by clips against training by whole recordings: figures on whole test recordings over folds and seeds.

    python benchmarks/recordings_against_clips.py ARCHIVE WORK_DIR --folds_file FOLDS.csv [--only NAME ...]
        [--flags 'FLAGS OF train_hf.py']

Each variant is trained on the same folds with the same seeds and the same number of seen windows.
Runs that are there already are not repeated. Figures are means over the runs, with their standard error.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
VARIANTS = {
    "clips": "",
    "clips, multi-label": "--problem_type multi_label_classification",
    "recordings": "--train_on recordings",
    "recordings, focal 2": "--train_on recordings --focal_gamma 2",
    "recordings, softmax": "--train_on recordings --window_loss softmax",
    "recordings, loss weights n^0": "--train_on recordings --loss_weight_power 0",
    "recordings, 3/4 round calls": "--train_on recordings --call_windows 0.75 --empty_windows 0.15",
}
METRICS = {
    "cmap": "cmAP of windows",
    "best_f1": "best F1",
    "f1": "F1, own thresholds",
    "recall": "recall, own",
    "false_per_h": "false an hour, own",
    "named_empty_windows": "empty windows named",
    "recall_at_10_false_per_h": "recall at 10 false an hour",
}


def main() -> None:
    """Trains what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("work_dir", type=Path, help="runs and decoded recordings are kept there")
    parser.add_argument("--folds_file", type=Path, required=True, help="recording,fold")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="which folds are tested")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--flags", type=shlex.split, default=[], help="flags of train_hf.py for all runs")
    options = parser.parse_args()
    runs = [(fold, seed) for fold in options.folds for seed in options.seeds]
    for fold, seed in runs:
        for name in options.only:
            train(options, name, fold, seed)
    print_table(options, runs)


def output_dir(options: argparse.Namespace, name: str, fold: int, seed: int) -> Path:
    """Where a run is."""
    plain = name.replace(",", "").replace("^", "").replace("/", "over").replace(" ", "_")
    return options.work_dir / f"{plain}_fold{fold}_seed{seed}"


def train(options: argparse.Namespace, name: str, fold: int, seed: int) -> None:
    """Trains one run, unless it is there or being trained."""
    output = output_dir(options, name, fold, seed)
    if output.exists():
        return
    fixed = ["--data_dir", options.archive, "--cache_dir", options.work_dir / "cache", "--save_total_limit", 1]
    chosen = ["--splits_file", options.folds_file, "--fold", fold, "--seed", seed, "--output_dir", output]
    quiet = ["--report_to", "none", "--disable_tqdm", "true"]
    words = [*fixed, *chosen, *quiet, *options.flags, *VARIANTS[name].split()]
    result = subprocess.run(
        [sys.executable, "train_hf.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    ended = "done" if result.returncode == 0 else result.stderr.strip().splitlines()[-1:]
    print(f"{name}, fold {fold}, seed {seed}: {ended}", file=sys.stderr, flush=True)


def print_table(options: argparse.Namespace, runs: list[tuple[int, int]]) -> None:
    """One line a variant."""
    print(f"| variant | runs | {' | '.join(METRICS.values())} |")
    print("| --- " * (len(METRICS) + 2) + "|")
    for name in options.only:
        files = [output_dir(options, name, *run) / "metrics.json" for run in runs]
        found = [json.loads(file.read_text("utf-8"))["test"]["whole_recordings"] for file in files if file.is_file()]
        if not found:
            continue
        cells = []
        for metric in METRICS:
            values = np.array([run["metrics"][metric]["value"] for run in found], dtype=float)
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            digits = 0 if metric == "false_per_h" else 3
            cells.append(f"{values.mean():.{digits}f} ± {error:.{digits}f}")
        print(f"| {name} | {len(found)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
