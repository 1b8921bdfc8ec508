"""Precision and recall of detections against an archive's centre-point annotations, from several scores on.

    kenya-birds detect MODEL ARCHIVE --output found --overlap_s 1.5 --merge
    python benchmarks/detection_quality.py found/detections.csv ARCHIVE --splits_file MODEL/splits.csv

A detection is right if the centre of a call of its species lies in it; a call is found if its centre lies in a
detection of its species. Calls of species that the model does not know are left out.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from kenya_birds.data.archive import read_archive, select_classes
from kenya_birds.data.splits import read_splits
from kenya_birds.inference.reading import read_detections


def matches(found: pd.DataFrame, calls: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right, and which calls are found.

    Args:
        found: `recording` (name), `code`, `start_s` and `end_s` of detections.
        calls: `recording`, `species` and `center_s` of annotations.
    """
    right, heard = np.zeros(len(found), dtype=bool), np.zeros(len(calls), dtype=bool)
    own = calls.assign(row=np.arange(len(calls))).groupby(["recording", "species"])
    for i, (recording, code, start_s, end_s) in enumerate(
        found[["recording", "code", "start_s", "end_s"]].itertuples(index=False)
    ):
        if (recording, code) in own.groups:
            group = own.get_group((recording, code))
            inside = group["row"][(group["center_s"] >= start_s) & (group["center_s"] < end_s)]
            right[i] = len(inside) > 0
            heard[inside] = True
    return right, heard


def main() -> None:
    """Prints one table: a line for each score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detections", type=Path, help="table that kenya-birds detect wrote")
    parser.add_argument("data_dir", type=Path, help="the archive")
    parser.add_argument("--splits_file", type=Path, help="splits of the model: only its test recordings count")
    parser.add_argument("--min_annotations", type=int, default=10, help="as in training")
    parser.add_argument("--scores", type=float, nargs="+", default=[0.0, 0.5, 0.8], help="least scores")
    options = parser.parse_args()

    found = read_detections(options.detections)
    found["recording"] = [Path(path).name for path in found["recording"]]
    calls = read_archive(options.data_dir).annotations
    calls = calls[calls["species"].isin(select_classes(calls, options.min_annotations))]
    if options.splits_file:
        splits = read_splits(options.splits_file)
        tested = set(splits.loc[splits["split"] == "test", "recording"])
        found, calls = (table[table["recording"].isin(tested)] for table in (found, calls))
    lines = []
    for least in options.scores:
        reported = found[found["score"] >= least]
        right, heard = matches(reported, calls)
        lines.append(
            {
                "score from": least,
                "detections": len(right),
                "precision": right.mean() if len(right) else np.nan,
                "calls": len(heard),
                "recall": heard.mean() if len(heard) else np.nan,
            }
        )
    print(pd.DataFrame(lines).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
