"""How well novelty tells calls of species that a model did not learn, and what it costs.

    python benchmarks/unknown_sounds.py separate birds archive   # a cross-validation, and its archive
    python benchmarks/unknown_sounds.py cost model recordings    # time with novelty, relative to that without it

Unknown are windows in which only species call that the archive annotates and the models did not learn, because they
have fewer annotations than `--min_annotations`; known are windows in which only species call that they learned. Each
fold's model computes the windows of its test recordings. Highest score: that of any species; a low one may show an
unknown sound too.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from kenya_birds.data.archive import Archive, read_archive
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.inference.postprocessing import FindingSettings
from kenya_birds.saved_models import NOVELTY_FILE

LIMIT = 0.95


def windows_of(model: Path, archive: Archive) -> pd.DataFrame:
    """The windows of a model's test recordings.

    Args:
        model: Its folder.
        archive: The archive.

    Returns:
        `kind` (`known`, `unknown`, `empty`), `score` (the highest one), `novelty`, and `reported`: whether a species
        reaches its decision threshold.
    """
    splits = pd.read_csv(model / "splits.csv")
    names = splits.loc[splits["split"] == "test", "recording"].tolist()
    pipeline = SoundscapePipeline(model, settings=FindingSettings(threshold=0.0, novelty=True))
    cuts = dict(
        zip(pipeline.classes, Thresholds.read(model / "thresholds.json").values(pipeline.classes), strict=True)
    )
    rate = pipeline.sampling_rate
    targets = WindowTargets.of(
        archive.annotations,
        archive.unknown,
        {name: round(archive.headers[name].duration_s * rate) for name in names},
        pipeline.classes,
        sampling_rate=rate,
        window=pipeline.grid.window_samples,
    )
    parts = []
    for index, name in enumerate(names):
        rows = pd.DataFrame(map(vars, pipeline(archive.recording_path(name))))
        rows["reported"] = rows["score"] >= rows["species"].map(cuts)
        one = rows.groupby("start_sample").agg({"score": "max", "novelty": "first", "reported": "any"}).reset_index()
        place = np.full(len(one), index), one["start_sample"].to_numpy()
        found, other, empty = targets(*place), targets.has_other(*place), targets.is_empty(*place)
        known, unknown = (found == 1).any(axis=1) & ~other, other & (found == 0).all(axis=1)
        one["kind"] = np.select([known, unknown, empty], ["known", "unknown", "empty"], "")
        parts.append(one)
    return pd.concat(parts)


def separate(options: argparse.Namespace) -> None:
    """Prints two tables: AUROC in each fold, and shares of the windows of all folds."""
    archive = read_archive(options.archive)
    folds = [
        windows_of(folder, archive)
        for folder in sorted(path.parent for path in options.folds.glob(f"fold-*/{NOVELTY_FILE}"))
    ]
    print(
        "| Fold | Unknown | Known | AUROC of novelty | AUROC of a low highest score |\n| --- | --- | --- | --- | --- |"
    )
    values = []
    for fold, table in enumerate(folds):
        calls = table[table["kind"].isin(["known", "unknown"])]
        unknown = calls["kind"] == "unknown"
        is_defined = 0 < unknown.sum() < len(unknown)
        measures = (calls["novelty"], -calls["score"])
        values.append([roc_auc_score(unknown, measure) if is_defined else np.nan for measure in measures])
        print(f"| {fold} | {unknown.sum()} | {(~unknown).sum()} | {values[-1][0]:.3f} | {values[-1][1]:.3f} |")
    mean = np.nanmean(values, axis=0)
    print(f"| mean | | | {mean[0]:.3f} | {mean[1]:.3f} |\n")
    every = pd.concat(folds)
    print(f"| Windows | Number | Novelty above {LIMIT} | Reported | Of these, novelty above {LIMIT} |")
    print("| --- | --- | --- | --- | --- |")
    for kind in ("known", "unknown", "empty"):
        its = every[every["kind"] == kind]
        named = its[its["reported"]]
        far, named_far = (table["novelty"].gt(LIMIT).mean() for table in (its, named))
        print(f"| {kind} | {len(its)} | {far:.2f} | {len(named)} | {named_far:.2f} |")


def cost(options: argparse.Namespace) -> None:
    """Prints the processor time of detection with novelty, relative to that without it: the least of several runs."""
    pipelines = {
        novelty: SoundscapePipeline(options.model, settings=FindingSettings(threshold=0.5, novelty=novelty))
        for novelty in (False, True)
    }
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.repeats):
        for novelty, pipeline in pipelines.items():
            begin_s = time.process_time()
            for _found in pipeline.detect(options.recordings):
                pass
            spent[novelty].append(time.process_time() - begin_s)
    without_s, with_s = min(spent[False]), min(spent[True])
    print(f"without novelty {without_s:.1f} s, with novelty {with_s:.1f} s: {with_s / without_s:.3f} times as much")


def main(words: list[str] | None = None) -> None:
    """Parses the flags, and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("separate")
    command.add_argument("folds", type=Path, help="output folder of train_hf.py --folds")
    command.add_argument("archive", type=Path)
    command.set_defaults(run=separate)
    command = commands.add_parser("cost")
    command.add_argument("model", type=Path)
    command.add_argument("recordings", nargs="+")
    command.add_argument("--repeats", type=int, default=3)
    command.set_defaults(run=cost)
    options = parser.parse_args(words)
    options.run(options)


if __name__ == "__main__":
    main()
