"""Ablation of training settings: test macro F1 of variants over folds and seeds, compared with the default.

    python benchmarks/ablation.py ARCHIVE WORK_DIR [--only NAME ...] [--arm 'NAME: FLAGS' ...] [--flags FLAGS]

All arms are trained on the same folds with the same seeds, and compared run by run with the first arm. Finished runs
are not repeated.
"""

import argparse

import numpy as np
from arms import ArmRun, add_arguments, plan_runs, train_missing

from kenya_birds.console import one_line_errors

ARMS: dict[str, str] = {
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


def main(arguments: list[str] | None = None) -> None:
    """Trains the missing runs, then prints the table.

    Args:
        arguments: Command line; by default the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ARMS)
    parser.set_defaults(folds=[0, 1, 2])
    options = parser.parse_args(arguments)
    options.flags = ["--train_on", "clips", *options.flags]
    runs = plan_runs(options)
    train_missing(runs, options.work_dir / "cache")
    print_table(runs)


def print_table(runs: dict[str, list[ArmRun]]) -> None:
    """Prints a line for each arm, with the mean difference to the first arm over the runs.

    Args:
        runs: The finished runs of each arm.
    """
    scores = {name: np.array([run.test["macro_f1"] for run in of_arm]) for name, of_arm in runs.items()}
    first = next(iter(scores))
    print(f"| arm | test macro F1 | minus {first} | standard error | runs |")
    print("| --- | --- | --- | --- | --- |")
    for name, score in scores.items():
        gain = score - scores[first]
        error = f"{gain.std(ddof=1) / np.sqrt(len(gain)):.3f}" if len(gain) > 1 else "-"
        print(f"| {name} | {score.mean():.3f} | {gain.mean():+.3f} | {error} | {len(gain)} |")


if __name__ == "__main__":
    with one_line_errors("ablation.py"):
        main()
