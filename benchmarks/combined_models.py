"""A model that `kenya-birds combine` makes of several, against each of them.

    python benchmarks/combined_models.py ARCHIVE RUN,RUN[,RUN ...] [RUN,RUN[,RUN ...] ...]

The runs of a group were trained with the same splits and different seeds, such as those of one fold of
`benchmarks/recordings_against_clips.py`. The model of each run and the combined model score all windows of the
recordings that were used neither for training nor for validation. Their decision thresholds are chosen on the
validation recordings, as training does, but without calibration.

F1 counts pairs of window and species. The other metrics are means over species. All are means over groups; those of
single models are also means over the models of a group. The interval of the difference is from a bootstrap over
recordings.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from held_out import measure, print_table, resampled, score_held_out

from kenya_birds.console import one_line_errors
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.experiments.combined_model import combined
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.member_models import check_members


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("groups", nargs="+", metavar="RUN,RUN", help="output folders of train_hf.py, with commas")
    parser.add_argument("--resamples", type=int, default=500, help="resamples of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    groups = [[Path(run) for run in group.split(",")] for group in options.groups]
    for runs in groups:
        check_members(runs)
    single, together = [], []
    with tempfile.TemporaryDirectory() as cache:
        for runs in groups:
            loaded = [load_classifier(find_model(run)) for run in runs]
            models = [*(model for model, _ in loaded), combined(runs)]
            for model in models:
                Calibration().store(model.config)
            scored = score_held_out(runs[0], options.archive, Path(cache), models, loaded[0][1])
            weights = resampled(scored[0], options.resamples, options.seed)
            measured = [measure(windows, weights) for windows in scored]
            for name, values in zip([*options.groups[len(single)].split(","), "combined"], measured, strict=True):
                print(f"  {name}: " + ", ".join(f"{value:.3f}" for value in values[0]), flush=True)
            single.append(np.mean(measured[:-1], axis=0))
            together.append(measured[-1])
    values = {"single models": np.mean(single, axis=0), "combined": np.mean(together, axis=0)}
    print_table("", values, "combined minus single", values["combined"] - values["single models"])


if __name__ == "__main__":
    with one_line_errors("combined_models.py"):
        main()
