"""Trains arms, which are variants of training settings, on the same folds with the same seeds.

Benchmarks that compare settings take their options and their runs from here.
"""

import argparse
import gc
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for train_hf.py

from kenya_birds.errors import UserError  # noqa: E402
from kenya_birds.files import read_json, write_json  # noqa: E402
from kenya_birds.process import keep_freed_memory  # noqa: E402
from kenya_birds.training.run_folder import last_whole_checkpoint  # noqa: E402

METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Arm:
    """A variant of the settings.

    Attributes:
        name: Name in the tables.
        flags: Flags of `train_hf.py`.
    """

    name: str
    flags: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """Reads `NAME: FLAGS`.

        Raises:
            ValueError: If the name or the colon is missing.
        """
        name, colon, flags = text.partition(":")
        if not (name.strip() and colon):
            raise ValueError(text)
        return cls(name.strip(), tuple(shlex.split(flags)))


@dataclass(frozen=True)
class ArmRun:
    """One training: an arm, its test fold and its seed.

    Attributes:
        arm: The arm.
        fold: Index of the test fold.
        seed: Seed of the training.
        folder: The model folder.
        words: Command line of `train_hf.py`, without the folders of the output and the cache.
    """

    arm: Arm
    fold: int
    seed: int
    folder: Path
    words: tuple[str, ...]

    @property
    def record(self) -> Path:
        """The run's command line and metrics; it exists when the training is finished."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def test(self) -> dict[str, Any] | None:
        """The metrics on the test split; None if the training is not finished."""
        return read_json(self.record)["metrics"]["test"] if self.record.is_file() else None


def add_arguments(parser: argparse.ArgumentParser, arms: Mapping[str, str]) -> None:
    """Adds the options of a benchmark that trains arms.

    Args:
        parser: The parser.
        arms: Flags of the arms that are trained by default, by name. The first arm is the one to compare with.
    """
    listed = "; ".join(f"{name}: {flags}" if flags else name for name, flags in arms.items())
    parser.set_defaults(known_arms=dict(arms))
    parser.add_argument("archive", type=Path)
    parser.add_argument("work_dir", type=Path, help="folder of the runs and of the cache")
    parser.add_argument("--folds_file", type=Path, help="CSV file with columns recording and fold")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="folds to test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="train each fold with each seed")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=arms,
        metavar="NAME",
        help=f"arms to train; by default all, or none if there is an --arm. {listed}".replace("%", "%%"),
    )
    parser.add_argument(
        "--arm",
        type=Arm.parse,
        action="append",
        default=[],
        metavar="'NAME: FLAGS'",
        help="another arm, with flags of train_hf.py, in which {fold} is the number of the fold; may be repeated",
    )
    parser.add_argument("--flags", type=shlex.split, default=[], help="flags of train_hf.py for all arms")


def plan_runs(options: argparse.Namespace) -> dict[str, list[ArmRun]]:
    """The runs of each arm, by name, in the order of the options.

    Args:
        options: What a parser with `add_arguments` gave.

    Raises:
        UserError: If two arms have the same name or folder, or a folder has a run with other flags.
    """
    named = options.only if options.only or options.arm else list(options.known_arms)
    arms = [Arm(name, tuple(shlex.split(options.known_arms[name]))) for name in named or []] + options.arm
    if len({_slug(arm.name) for arm in arms}) < len(arms):
        raise UserError(f"the arms are {', '.join(arm.name for arm in arms)}: expected a different name for each")
    runs = {
        arm.name: [_plan(options, arm, fold, seed) for seed in options.seeds for fold in options.folds] for arm in arms
    }
    for run in (run for of_arm in runs.values() for run in of_arm):
        if run.record.is_file() and (found := read_json(run.record)["command"]) != list(run.words):
            raise UserError(
                f"{run.record} is of a run with other flags: '{shlex.join(found)}', not '{shlex.join(run.words)}': "
                "give another WORK_DIR, or another name of the arm"
            )
    return runs


def _plan(options: argparse.Namespace, arm: Arm, fold: int, seed: int) -> ArmRun:
    folds = ["--splits_file", options.folds_file] if options.folds_file else []
    chosen = ["--data_dir", options.archive, *folds, "--fold", fold, "--seed", seed]
    # The arm's flags are last, so they have priority.
    given = [word.replace("{fold}", str(fold)) for word in [*options.flags, *arm.flags]]
    words = tuple(str(word) for word in [*chosen, *given])
    return ArmRun(arm, fold, seed, options.work_dir / f"{_slug(arm.name)}-fold{fold}-seed{seed}", words)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()


def train_missing(runs: Mapping[str, Sequence[ArmRun]], cache_dir: Path) -> None:
    """Trains the runs that are not finished; an interrupted run resumes at its last checkpoint.

    Fold by fold, so that an interrupted benchmark has compared all arms on some folds.

    Args:
        runs: From `plan_runs`.
        cache_dir: Folder for clips and decoded recordings.

    Raises:
        UserError: If a run cannot be trained.
    """
    keep_freed_memory()  # as train_hf.py does
    for run in _by_fold(runs):
        if run.record.is_file():
            continue
        print(f"{run.arm.name}, fold {run.fold}, seed {run.seed}", file=sys.stderr, flush=True)
        _train(run, cache_dir)
        metrics = read_json(run.folder / METRICS_FILE)
        write_json(
            {
                "arm": run.arm.name,
                "fold": run.fold,
                "seed": run.seed,
                "command": list(run.words),
                "metrics": {split: metrics[split] for split in ("validation", "test")},
            },
            run.record,
        )


def _by_fold(runs: Mapping[str, Sequence[ArmRun]]) -> Iterator[ArmRun]:
    for of_one_fold in zip(*runs.values(), strict=True):
        yield from of_one_fold


def _train(run: ArmRun, cache_dir: Path) -> None:
    # Imported late, for a quick --help.
    import train_hf

    where = ["--output_dir", str(run.folder), "--cache_dir", str(cache_dir), "--save_total_limit", "1"]
    quiet = ["--report_to", "none", "--disable_tqdm", "true"]
    if run.folder.is_dir() and last_whole_checkpoint(run.folder) is not None:
        quiet += ["--resume_from_checkpoint", "true"]
    elif run.folder.is_dir():
        shutil.rmtree(run.folder)  # stopped before its first checkpoint
    train_hf.main([*where, *quiet, *run.words])
    gc.collect()
