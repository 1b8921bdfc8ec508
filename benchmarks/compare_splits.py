"""Compares the stratified and the balanced splits of recordings, on synthetic archives and on a real one."""

import argparse
import logging
import os
import time

import pandas as pd

from kenya_birds.data.archive import read_archive
from kenya_birds.data.balanced_split import make_splits
from kenya_birds.data.split_audit import audit_split
from kenya_birds.data.synthetic import synthetic_annotations


def main() -> None:
    """Prints one table: a line for each archive, task and strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--data_dir", default=os.environ.get("KENYA_BIRDS_ARCHIVE"), help="a real archive (or $KENYA_BIRDS_ARCHIVE)"
    )
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation")
    parser.add_argument(
        "--time_limit_s", type=float, default=60.0, help="time limit of each balanced split in seconds"
    )
    options = parser.parse_args()

    full_size = synthetic_annotations(recordings=35, duration_s=3600.0, species=176, annotations=10_294, scene="quiet")
    archives = {
        "synthetic, 10 or more": _frequent(full_size, 10),
        "synthetic, all species": full_size,
    }
    if options.data_dir:
        archives["real, 10 or more"] = _frequent(read_archive(options.data_dir).annotations, 10)

    logging.disable(logging.WARNING)
    lines = [
        _line(archive, annotations, strategy, folds, options.time_limit_s)
        for archive, annotations in archives.items()
        for folds in (None, options.folds)
        for strategy in ("stratified", "balanced")
    ]
    print(pd.DataFrame(lines).to_string(index=False))


def _frequent(annotations: pd.DataFrame, least: int) -> pd.DataFrame:
    counts = annotations["species"].value_counts()
    return annotations[annotations["species"].isin(counts.index[counts >= least])]


def _line(
    archive: str, annotations: pd.DataFrame, strategy: str, folds: int | None, time_limit_s: float
) -> dict[str, object]:
    begin_s = time.monotonic()
    table = make_splits(annotations, strategy, folds=folds, time_limit_s=time_limit_s)
    seconds = time.monotonic() - begin_s
    summary = audit_split(annotations, table).summary
    return {
        "archive": archive,
        "into": f"{folds} folds" if folds else "3 splits",
        "strategy": strategy,
        "classes": summary["classes"],
        "in every part": summary["covered_classes"],
        "not learned": len(summary["unlearned"]),
        "not scored": len(summary["unscored"]),
        "mean distance": f"{summary['mean_distance']:.3f}",
        "greatest": f"{summary['max_distance']:.3f}",
        "annotations, %": " ".join(f"{100 * share:.0f}" for share in summary["annotation_shares"].values()),
        "recordings": " ".join(map(str, summary["recordings_per_part"].values())),
        "time, s": f"{seconds:.1f}",
    }


if __name__ == "__main__":
    main()
