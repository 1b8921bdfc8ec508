"""Ablation of training settings: test macro F1 of variants over folds, compared with the default.

    python benchmarks/ablation.py ARCHIVE WORK_DIR [--only NAME ...] [--flags 'FLAGS OF train_hf.py']

Fold k is trained with seed k, and all variants are trained on the same folds: the difference to the default is
computed per fold. Existing runs are not repeated.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
VARIANTS: dict[str, str] = {
    "default": "",
    "no augmentation": "--shift_probability 0 --pitch_probability 0 --speed_probability 0 --gain_probability 0 "
    "--noise_probability 0 --mask_probability 0",
    "no shift": "--shift_probability 0",
    "shift from 0.9 s of context": "--context_s 0.9",
    "no pitch, no speed": "--pitch_probability 0 --speed_probability 0",
    "no noise": "--noise_probability 0",
    "no masks": "--mask_probability 0",
    "background 0.5": "--background_probability 0.5",
    "mixup 0.5, alpha 0.4": "--mixup_probability 0.5",
    "label smoothing 0.1": "--label_smoothing_factor 0.1",
    "loss weights n^0": "--loss_weight_power 0",
    "loss weights n^-1": "--loss_weight_power 1",
    "sampler n^-0.5, loss n^0": "--sampler_weight_power 0.5 --loss_weight_power 0",
    "no noise reduction": "--noise_reduction none",
    "280 to 7600 Hz": "--f_min_hz 280 --f_max_hz 7600",
    "learning rate / 2": "--learning_rate 2.5e-4",
    "learning rate x 2": "--learning_rate 1e-3",
}


def main() -> None:
    """Trains the missing runs, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("work_dir", type=Path, help="runs and cut clips are kept there")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--flags", type=shlex.split, default=[], help="flags of train_hf.py for all runs")
    options = parser.parse_args()
    for fold in range(options.folds):
        for name in options.only:
            train(options, name, fold)
    print_table(options)


def output_dir(options: argparse.Namespace, name: str, fold: int) -> Path:
    """Output folder of a run."""
    return options.work_dir / f"{name} fold {fold}".replace(" ", "_").replace("/", "over")


def train(options: argparse.Namespace, name: str, fold: int) -> None:
    """Trains one run, unless it exists or is being trained."""
    output = output_dir(options, name, fold)
    if output.exists():
        return
    # Flags of the variant are last, so they have priority.
    words = ["--fold", fold, "--seed", fold, *options.flags, *VARIANTS[name].split(), "--output_dir", output]
    fixed = ["--data_dir", options.archive, "--cache_dir", options.work_dir / "cache", "--save_total_limit", 1]
    quiet = ["--report_to", "none", "--disable_tqdm", "true"]
    command = [sys.executable, "train_hf.py", *map(str, [*fixed, *quiet, *words])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(f"{name}, fold {fold}: {result.stderr.strip().splitlines()[-2:]}", file=sys.stderr, flush=True)


def print_table(options: argparse.Namespace) -> None:
    """Prints one line per variant."""
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name in options.only:
        files = [output_dir(options, name, fold) / "metrics.json" for fold in range(options.folds)]
        if all(file.is_file() for file in files):
            runs = [json.loads(file.read_text("utf-8")) for file in files]
            scores[name] = {split: np.array([run[split]["macro_f1"] for run in runs]) for split in runs[0]}
    print("| variant | test macro F1 | over the default | its standard error | validation |")
    print("| --- | --- | --- | --- | --- |")
    for name, score in scores.items():
        gain = score["test"] - scores["default"]["test"]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        print(
            f"| {name} | {score['test'].mean():.3f} | {gain.mean():+.3f} | {error:.3f} "
            f"| {score['validation'].mean():.3f} |"
        )


if __name__ == "__main__":
    main()
