"""Heads on the embedding of a clip, and on those of three windows around it: linear, mean, and attention.

    python benchmarks/neighbour_windows.py birdnet archive folds.csv

Clips are annotated calls, with the embedder's window round the centre of each. The other two windows lie half a window
earlier and later. Heads are trained as `train_hf.py` does (AdamW, cosine, class weights n^-0.5, 30 epochs); the epoch
is chosen on the next fold. Attention: one weight for each window, by a softmax over the windows of a linear function.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch
from torch import nn

from kenya_birds.evaluation.metrics import average_precisions, class_targets, classification_metrics
from kenya_birds.model_loading import load_model
from kenya_birds.training.batches import power_weights

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 30, 32, 1e-3, 0.05
# The windows of the clip alone, and what is done with three windows.
HEADS = ("clip alone", "clip and mean", "mean", "attention")


class Head(nn.Module):
    """A linear head on embeddings `(clips, windows, size)`, which starts at zero."""

    def __init__(self, embeddings: torch.Tensor, classes: int, kind: str) -> None:
        super().__init__()
        deviation, self.mean = torch.std_mean(embeddings.flatten(0, 1), dim=0)
        self.scale = torch.where(deviation > 1e-6, deviation, 1)
        self.kind, size = kind, embeddings.shape[2]
        self.output = nn.Linear(2 * size if kind == "clip and mean" else size, classes)
        self.weight = nn.Linear(size, 1)
        for parameter in (self.output.weight, self.output.bias, self.weight.weight):
            nn.init.zeros_(parameter)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits `(clips, classes)`."""
        values = (embeddings - self.mean) / self.scale
        clip, mean = values[:, values.shape[1] // 2], values.mean(dim=1)
        if self.kind == "clip alone":
            return self.output(clip)
        if self.kind == "clip and mean":
            return self.output(torch.cat([clip, mean], dim=1))
        if self.kind == "mean":
            return self.output(mean)
        return self.output((self.weight(values).softmax(dim=1) * values).sum(dim=1))


def embed(model_dir: str, archive: Path) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Embeddings `(clips, 3, size)`, class ids and recordings of the annotated calls of an archive."""
    model, extractor = load_model(model_dir)
    calls = pd.read_csv(archive / "annotations.csv")
    rate, length = extractor.sampling_rate, extractor.clip_samples
    found, labels, recordings = [], [], []
    codes = sorted(calls["Species eBird Code"].unique())
    for name, of_recording in calls.groupby("Filename"):
        sound, own_rate = soundfile.read(archive / "soundscape_data" / str(name), dtype="float32", always_2d=True)
        wave = soxr.resample(sound[:, 0], own_rate, rate)
        for _, call in of_recording.iterrows():
            centre = (call["Start Time (s)"] + call["End Time (s)"]) / 2 * rate
            starts = [centre - length / 2 + shift * length / 2 for shift in (-1, 0, 1)]
            inside = [int(np.clip(round(start), 0, len(wave) - length)) for start in starts]
            windows = torch.from_numpy(np.stack([wave[start : start + length] for start in inside]))
            with torch.inference_mode():
                found.append(model.embed(extractor.extract(windows)))
            labels.append(codes.index(call["Species eBird Code"]))
            recordings.append(name)
    return torch.stack(found).clone(), np.array(labels), np.array(recordings)


def fit(
    data: tuple[torch.Tensor, torch.Tensor], parts: tuple[np.ndarray, np.ndarray, np.ndarray], kind: str, seed: int
) -> np.ndarray:
    """Trains on the first part, chooses the epoch on the second; returns probabilities of the third."""
    (embeddings, labels), (train, validation, test) = data, parts
    classes = int(labels.max()) + 1
    torch.manual_seed(seed)
    generator, best, probabilities = np.random.default_rng(seed), -1.0, np.zeros(0)
    head = Head(embeddings[train], classes, kind)
    weights = torch.tensor(power_weights(np.bincount(labels[train], minlength=classes), 0.5), dtype=torch.float32)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    per_epoch = len(train) // BATCH
    total, warm = EPOCHS * per_epoch, EPOCHS * per_epoch // 10
    for step in range(total):
        if step % per_epoch == 0:
            order = generator.permutation(train)
        rows = order[step % per_epoch * BATCH :][:BATCH]
        share = step / warm if step < warm else 0.5 + 0.5 * np.cos(np.pi * (step - warm) / (total - warm))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * share
        losses = nn.functional.cross_entropy(head(embeddings[rows]), labels[rows], reduction="none")
        optimizer.zero_grad()
        (losses * weights[labels[rows]]).mean().backward()
        optimizer.step()
        if (step + 1) % per_epoch == 0:
            with torch.no_grad():
                logits = head(embeddings[validation]).numpy()
                metrics = classification_metrics(logits, labels[validation].numpy(), multi_label=False)
                if metrics["macro_f1"] > best:
                    best, probabilities = metrics["macro_f1"], head(embeddings[test]).softmax(dim=1).numpy()
    return probabilities


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of kenya-birds wrap")
    parser.add_argument("archive", type=Path)
    parser.add_argument("folds_file", type=Path, help="recording and fold")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    embeddings, numbers, recordings = embed(options.model, options.archive)
    labels, classes = torch.from_numpy(numbers), int(numbers.max()) + 1
    folds = pd.read_csv(options.folds_file).set_index("recording")["fold"].loc[recordings].to_numpy()
    count = int(folds.max()) + 1
    print("| Head | Macro F1 | cmAP |\n| --- | --- | --- |")
    for kind in HEADS:
        scores, precisions = [], []
        for seed in range(options.seeds):
            probabilities = np.zeros((len(numbers), classes), dtype=np.float32)
            for fold in range(count):
                following = (fold + 1) % count
                parts = [np.flatnonzero(folds == fold) for fold in (following, fold)]
                train = np.flatnonzero((folds != fold) & (folds != following))
                probabilities[parts[1]] = fit((embeddings, labels), (train, *parts), kind, seed)
                found = average_precisions(probabilities[parts[1]], class_targets(numbers[parts[1]], classes))
                precisions.append(np.nanmean(found))
            logits = np.log(probabilities + 1e-12)
            scores.append(classification_metrics(logits, numbers, multi_label=False)["macro_f1"])
        print(f"| {kind} | {np.mean(scores):.3f} | {np.mean(precisions):.3f} |", flush=True)


if __name__ == "__main__":
    main()
