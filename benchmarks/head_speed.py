"""CPU seconds that a head takes to train on embeddings that are in memory, with the trainer of train_hf.py.

    OMP_NUM_THREADS=1 python benchmarks/head_speed.py --windows 100000 --epochs 10

Embeddings are random, and of the size of BirdNET 2.4. A tenth of as many windows validates each epoch, and each epoch
ends with a checkpoint. The embedding itself is not counted. On one thread, CPU seconds are those of a machine without
other work.
"""

import argparse
import logging
import tempfile
import time

import datasets
import numpy as np
import torch

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.embedded_data import EmbeddedRows, EmbeddedTraining
from kenya_birds.training.trainer import KenyaBirdsTrainer
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments


class DrawnEmbeddings:
    """Random embeddings, in place of `FrozenEmbeddings`."""

    versions = 1

    def __init__(self, model: KenyaBirdsForAudioClassification, classes: int, size: int) -> None:
        self.model = model
        self._centers = np.random.default_rng(0).normal(size=(classes, size)).astype(np.float32)

    def training_clips(self, clips: datasets.Dataset, *_: object) -> EmbeddedTraining:
        """Embeddings of training windows."""
        return EmbeddedTraining([self._drawn(clips, 1)], [torch.tensor(clips["label"][:])])

    def evaluation_clips(self, clips: datasets.Dataset, *_: object) -> EmbeddedRows:
        """Embeddings of windows to evaluate on."""
        return EmbeddedRows(self._drawn(clips, 2), torch.tensor(clips["label"][:]))

    def _drawn(self, clips: datasets.Dataset, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, 5, (len(clips), self._centers.shape[1]))
        return self._centers[np.asarray(clips["label"][:])] + noise.astype(np.float32)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=176)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden_sizes", type=int, nargs="+", default=[0, 512], help="0: the head is linear")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 512])
    options = parser.parse_args()
    logging.getLogger("kenya_birds").setLevel(logging.ERROR)
    print(
        f"{options.windows} windows, {options.size} numbers each, {options.classes} classes, {options.epochs} epochs"
    )
    print("| Head | Windows per step | CPU seconds per epoch | in all |")
    print("| --- | --- | --- | --- |")
    for hidden_size in options.hidden_sizes:
        for batch_size in options.batch_sizes:
            took_s = train(options, hidden_size or None, batch_size)
            name = f"mlp, {hidden_size}" if hidden_size else "linear"
            print(f"| {name} | {batch_size} | {took_s / options.epochs:.2f} | {took_s:.1f} |")


def train(options: argparse.Namespace, hidden_size: int | None, batch_size: int) -> float:
    """Trains a head; returns the seconds.

    Args:
        options: The command line.
        hidden_size: Size of the hidden layer; None: there is none.
        batch_size: Windows per step.
    """
    graph = {"embedding_size": options.size, "name": "none"}
    head = {"hidden_size": hidden_size, "network_scores": False}
    labels = dict(enumerate(f"species{label}" for label in range(options.classes)))
    model = KenyaBirdsForAudioClassification(KenyaBirdsConfig(id2label=labels, graph=graph, head=head))
    with tempfile.TemporaryDirectory() as folder:
        args = KenyaBirdsTrainingArguments(
            folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=256,
            learning_rate=1e-3,
            early_stopping_patience=0,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = KenyaBirdsTrainer(
            model,
            args,
            KenyaBirdsFeatureExtractor(),
            rows(options.windows, options.classes),
            rows(options.windows // 10, options.classes),
            frozen=DrawnEmbeddings(model, options.classes, options.size),
        )
        begin_s = time.process_time()
        trainer.train()
        return time.process_time() - begin_s


def rows(number: int, classes: int) -> datasets.Dataset:
    """Windows with labels, and without sound.

    Args:
        number: Number of windows.
        classes: Number of classes.
    """
    label = np.arange(number) % classes
    return datasets.Dataset.from_dict({"label": label, "labels": [[int(one)] for one in label]})


if __name__ == "__main__":
    main()
