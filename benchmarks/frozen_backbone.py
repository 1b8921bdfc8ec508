"""Benefit of fine-tuning: probes of the frozen backbone before training, compared with a run of train_hf.py.

    python benchmarks/frozen_backbone.py ARCHIVE WORK_DIR RUN_DIR --init_from WEIGHTS

RUN_DIR is the output folder of a run or a cross-validation of train_hf.py, WEIGHTS its initial weights. The frozen
backbones (with those weights, and with random ones) use the run's feature extractor and its splits or folds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from kenya_birds.experiments.heads import METHODS
from kenya_birds.experiments.probe import ProbeSettings, TrainedRun, probe
from kenya_birds.experiments.results import OUT_OF_FOLD
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.starting_points import initialize

SHOWN = ("macro_f1", "accuracy", "cmap", "auroc", "ece")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("work_dir", type=Path, help="folder for models, probes and clips")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--init_from", required=True, help="initial weights, as in train_hf.py")
    options = parser.parse_args()
    trained = TrainedRun.read(options.run_dir)
    rows: dict[str, tuple[dict[str, Any], float | None]] = {}
    for weights in (options.init_from, "scratch"):
        name = "random" if weights == "scratch" else "starting"
        folder = save_frozen(options.work_dir / name, options.run_dir, weights)
        for method in METHODS:
            output = options.work_dir / f"{name}_{method}"
            begin_s = time.perf_counter()
            probe(
                str(folder),
                options.archive,
                output,
                ProbeSettings(method=method),
                beside=options.run_dir,
                cache_dir=options.work_dir / "cache",
            )
            told = json.loads((output / "metrics.json").read_text("utf-8"))
            rows[f"{name} weights, {method}"] = told.get(OUT_OF_FOLD, told.get("test")), time.perf_counter() - begin_s
    rows["fine-tuned"] = trained.metrics, None
    print(
        f"| {trained.metrics['clips']} clips of {trained.metrics['recordings']} recordings |", *SHOWN, "s |", sep=" | "
    )
    print("| --- " * (len(SHOWN) + 2) + "|")
    for name, (metrics, spent_s) in rows.items():
        cells = [f"{metrics[metric]:.3f}" for metric in SHOWN]
        low, high = metrics["intervals"]["macro_f1"]
        cells[0] += f" ({low:.3f} to {high:.3f})"
        print("|", " | ".join([name, *cells, "" if spent_s is None else f"{spent_s:.0f}"]), "|")


def save_frozen(folder: Path, run_dir: Path, weights: str) -> Path:
    """A model with the run's backbone and front end, and weights that the run did not train."""
    one_run = run_dir / "fold-0" if (run_dir / "fold-0").is_dir() else run_dir
    extractor = KenyaBirdsFeatureExtractor.from_pretrained(one_run)
    torch.manual_seed(0)
    config = KenyaBirdsConfig(backbone=json.loads((one_run / "config.json").read_text("utf-8"))["backbone"])
    model = KenyaBirdsForAudioClassification(config)
    initialize(model, weights, extractor)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
