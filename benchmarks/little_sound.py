"""Scores of windows that are only partly sound, for several ways of padding.

    python benchmarks/little_sound.py MODEL ARCHIVE [ARCHIVE ...]

Windows with a call in their middle and windows without a call are drawn from the recordings that the model was not
trained on. Of each only the middle is kept. Recall is the share of calls whose species reaches its threshold. Named
is the share of windows without a call in which a species does; new, in which one does that does not in the whole
window. Below: the same of windows that were moved, and of windows with a gap of zeros.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kenya_birds.data.archive import read_archive
from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.planning import plan_clips, plan_no_call
from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.signal_kenya_birds import peak_normalize, power_to_db
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import THRESHOLDS_FILE, find_model

SHARES = (0.75, 0.5, 0.33, 0.25, 0.15)
MOVES_S = (0.01, 0.1, 0.5)
GAPS_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
Features = Callable[[np.ndarray], torch.Tensor]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("archives", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, default=120, help="windows with a call, and as many without")
    options = parser.parse_args()
    saved = find_model(options.model)
    model, extractor = load_classifier(saved)
    model.eval()
    classes = [model.config.id2label[label] for label in range(model.config.num_labels)]
    thresholds = Thresholds.read(saved.folder / THRESHOLDS_FILE).values(classes)
    splits = pd.read_csv(saved.folder / "splits.csv")
    trained = set(splits.loc[splits["split"] == "train", "recording"])
    calls, labels, others = draw_windows(options.archives, trained, classes, extractor, options.windows)
    multi_label = model.config.problem_type == "multi_label_classification"

    @torch.inference_mode()
    def reported(windows: np.ndarray, features: Features) -> np.ndarray:
        logits = torch.cat([model(features(part)).logits for part in np.array_split(windows, -(-len(windows) // 16))])
        return probabilities(logits.numpy(), multi_label=multi_label) >= thresholds

    def whole(windows: np.ndarray) -> torch.Tensor:
        return extractor.extract(torch.from_numpy(windows))

    before = reported(others, whole)

    def row(name: str, with_call: np.ndarray | None, without: np.ndarray) -> str:
        recall = "" if with_call is None else f"{with_call[np.arange(len(labels)), labels].mean():.2f}"
        named, new = without.any(axis=1).mean(), (without & ~before).any(axis=1).mean()
        return f"| {name} | {recall} | {named:.2f} | {new:.2f} |"

    print(f"{len(calls)} windows with a call, {len(others)} without")
    print("\n| window | recall | named | new |\n|---|---|---|---|")
    print(row("all", reported(calls, whole), before))
    for share in SHARES:
        for name, features in fillings(extractor).items():
            kept = [middle(windows, round(share * windows.shape[1])) for windows in (calls, others)]
            print(row(f"{share}, {name}", *(reported(windows, features) for windows in kept)), flush=True)
    rng = np.random.default_rng(0)
    for move_s in MOVES_S:
        moved = np.roll(others, round(move_s * extractor.sampling_rate), axis=1)
        print(row(f"moved by {move_s} s", None, reported(moved, whole)), flush=True)
    for gap_s in GAPS_S:
        gap = round(gap_s * extractor.sampling_rate)
        with_gap = others.copy()
        for window, start in zip(with_gap, rng.integers(0, others.shape[1] - gap, len(others)), strict=True):
            window[start : start + gap] = 0
        print(row(f"gap of {gap_s} s", None, reported(with_gap, whole)), flush=True)


def draw_windows(
    archives: list[Path], trained: set[str], classes: list[str], extractor: KenyaBirdsFeatureExtractor, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows with a call, its class ids, and windows without."""
    drawn: dict[bool, list[tuple[np.ndarray, int]]] = {True: [], False: []}
    for folder in archives:
        archive = read_archive(folder)
        unheard = sorted(set(archive.headers) - trained)
        rate, clip_s = extractor.sampling_rate, extractor.clip_s
        with_call = plan_clips(archive, classes, rate, clip_s)
        with_call = with_call[with_call["recording"].isin(unheard) & (with_call["start"] >= 0)]
        for plan in (with_call, plan_no_call(archive, unheard, rate, clip_s, margin_s=1.0)):
            for window in plan.sample(min(len(plan), number // len(archives)), random_state=0).itertuples():
                with RecordingReader(archive.recording_path(window.recording), rate) as reader:
                    if window.start + extractor.clip_samples <= reader.samples:
                        sound = reader.read(window.start, extractor.clip_samples)
                        drawn[window.label >= 0].append((sound, window.label))
    return (
        np.stack([sound for sound, _ in drawn[True]]),
        np.array([label for _, label in drawn[True]]),
        np.stack([sound for sound, _ in drawn[False]]),
    )


def middle(windows: np.ndarray, samples: int) -> np.ndarray:
    """The middle of windows `(n, samples)`."""
    start = (windows.shape[1] - samples) // 2
    return windows[:, start : start + samples]


def fillings(extractor: KenyaBirdsFeatureExtractor) -> dict[str, Features]:
    """Features of windows that are too short, by how they are filled up."""

    def padded(mode: str) -> Features:
        def features(windows: np.ndarray) -> torch.Tensor:
            missing = extractor.clip_samples - windows.shape[1]
            sides = ((0, 0), (missing // 2, missing - missing // 2))
            return extractor.extract(torch.from_numpy(np.pad(windows, sides, mode=mode)))  # type: ignore[call-overload]

        return features

    def sound_alone(windows: np.ndarray) -> torch.Tensor:
        """Noise, peak and mean level of the sound alone; frames without sound have the mean level."""
        missing = extractor.clip_samples - windows.shape[1]
        clean = peak_normalize(extractor.clean(torch.from_numpy(windows)), 1e-10)
        clean = torch.nn.functional.pad(clean, (missing // 2, missing - missing // 2))
        level_db = power_to_db(extractor.band_power(clean), extractor.top_db)
        place = torch.arange(level_db.shape[2]) * extractor.hop_length - missing // 2
        is_sound = (place >= 0) & (place < windows.shape[1])
        features = torch.zeros_like(level_db)
        sound_db = level_db[:, :, is_sound]
        features[:, :, is_sound] = (sound_db - sound_db.mean(dim=(1, 2), keepdim=True)) / sound_db.std(
            dim=(1, 2), keepdim=True
        )
        return features

    return {
        "mirrored": padded("symmetric"),
        "repeated": padded("wrap"),
        "zeros, measured on the sound alone": sound_alone,
        "zeros": padded("constant"),
    }


if __name__ == "__main__":
    main()
