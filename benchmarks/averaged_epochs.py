"""The mean of the weights of the best epochs against the weights of the best epoch, of the same trainings.

    python benchmarks/averaged_epochs.py ARCHIVE RUN [RUN ...]

The runs were trained on recordings of the archive with `--average_epochs`, such as those of
`benchmarks/recordings_against_clips.py`; their checkpoints have not been deleted. Both models of each run score all
windows of the recordings that were used neither for training nor for validation. Their decision thresholds are chosen
on the validation recordings, as training does, but without calibration.

F1 counts pairs of window and species. The other metrics are means over species. All are means over runs, and the
interval of a difference is from a bootstrap over recordings.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from held_out import measure, print_table, resampled, score_held_out

from kenya_birds.console import one_line_errors
from kenya_birds.errors import UserError
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.files import read_json
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.run_folder import STATE_FILE, SUMMARY_FILE, best_checkpoint, last_whole_checkpoint


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of train_hf.py --average_epochs")
    parser.add_argument("--resamples", type=int, default=500, help="resamples of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folders = [models_of(run) for run in options.runs]
    names = list(folders[0])
    tables = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        for of_run in folders:
            loaded = [load_classifier(find_model(folder)) for folder in of_run.values()]
            models, extractor = [model for model, _ in loaded], loaded[0][1]
            for model in models:
                Calibration().store(model.config)
            scored = score_held_out(of_run["mean"], options.archive, Path(cache), models, extractor)
            weights = resampled(scored[0], options.resamples, options.seed)
            for name, windows in zip(names, scored, strict=True):
                tables[name].append(measure(windows, weights))
                print(f"  {name}: " + ", ".join(f"{value:.3f}" for value in tables[name][-1][0]), flush=True)
    values = {name: np.mean(tables[name], axis=0) for name in names}
    print_table("Weights", values, "mean minus best epoch", values["mean"] - values["best epoch"])


def models_of(run: Path) -> dict[str, Path]:
    """The folders of a run's models: of the mean, and of the best epoch."""
    last = last_whole_checkpoint(run)
    if last is None or "averaged_epochs" not in read_json(run / SUMMARY_FILE)["result"]:
        raise UserError(f"{run}: expected a run with --average_epochs, with its checkpoints")
    return {"mean": run, "best epoch": best_checkpoint(run, read_json(last / STATE_FILE)["best_global_step"])}


if __name__ == "__main__":
    with one_line_errors("averaged_epochs.py"):
        main()
