"""Precision and recall of detections against an archive's centre-point annotations, from several scores on.

    kenya-birds detect MODEL ARCHIVE --output found --overlap_s 1.5 --merge
    python benchmarks/detection_quality.py found/detections.csv ARCHIVE MODEL

A detection is right if the centre of a call of its species lies in it; a call is found if its centre lies in a
detection of its species. Calls of species that the model does not know are left out. Only recordings count that the
model was not trained on: those of its own test split, or of another archive.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from kenya_birds.console import one_line_errors
from kenya_birds.data.archive import read_archive, select_classes
from kenya_birds.data.same_recording import with_names_of
from kenya_birds.data.splits import read_splits
from kenya_birds.inference.table_reader import read_detections
from kenya_birds.saved_models import find_model
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.training_recordings import overlap_of


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
    parser.add_argument("model", help="the model that made the detections: a folder, or OWNER/NAME on the Hub")
    parser.add_argument("--splits_file", type=Path, help="whose test recordings count; by default the model's own")
    parser.add_argument("--min_annotations", type=int, default=10, help="as in training")
    parser.add_argument("--scores", type=float, nargs="+", default=[0.0, 0.5, 0.8], help="least scores")
    options = parser.parse_args()

    found = read_detections(options.detections)
    found["recording"] = [Path(path).name for path in found["recording"]]
    archive = read_archive(options.data_dir)
    calls = archive.annotations
    calls = calls[calls["species"].isin(select_classes(calls, options.min_annotations))]
    saved = find_model(options.model)
    tested = set(calls["recording"])
    splits_file = options.splits_file or saved.folder / SPLITS_FILE
    if splits_file.is_file():
        splits = with_names_of(read_splits(splits_file), tested)
        # Of another archive, the model's own splits have no recording.
        if options.splits_file or tested & set(splits["recording"]):
            tested &= set(splits.loc[splits["split"] == "test", "recording"])
    overlap = overlap_of(saved, archive.fingerprints(sorted(tested)))
    overlap.refuse(saved.name, ["train", "validation"], "Give a --splits_file with other test recordings")
    print(overlap.note() or f"{len(tested)} recordings that the model was not trained on")
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
    with one_line_errors("detection_quality.py"):
        main()
