"""A teacher: a trained model whose embeddings and scores of windows of sound are learned by another one."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from kenya_birds.data.same_recording import file_identity
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.fingerprints import DECODERS, MODEL, code_fingerprint, library_versions
from kenya_birds.inference.detect import hash_model
from kenya_birds.inference.embedding_models import Embedder, load_embedder
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import MULTI_LABEL, KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model, runtime_of
from kenya_birds.training.embedding_cache import Block, EmbeddingCache, blocks_of
from kenya_birds.training.frozen_training import known_classes
from kenya_birds.waveform_networks import WRAP_AGAIN

logger = logging.getLogger(__name__)

BATCH = 32


class Teacher:
    """A model that says what is in windows of sound.

    Args:
        name: A folder, or `owner/name` or `owner/name@revision` on the Hub.
        classes: eBird codes of the archive by class id.
        species: Names by eBird code.
        targets: `embeddings`, `scores` or `both`.
        clip_s: Length of a window, for a model of transformers; other models have their own.
        device: Device for the computation; on one of Apple's GPUs, models of transformers run on the CPU.

    Attributes:
        saved: The model's files.
        device: Device for the computation.
        sampling_rate: In Hz.
        clip_samples: Length of a window at that rate.
        embedding_size: Numbers of an embedding; 0 if embeddings are not learned.
        known: Class ids of the archive of those species whose scores are learned.

    Raises:
        UserError: If the model cannot be loaded, has no embedding, or knows none of the species.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        species: Mapping[str, Mapping[str, str]],
        *,
        targets: str,
        clip_s: float,
        device: torch.device,
    ) -> None:
        self.saved = find_model(name)
        self.device, self._targets = device, targets
        self.embedding_size, self.known, self._their = 0, np.zeros(0, dtype=np.int64), torch.zeros(0, dtype=torch.long)
        self._embedder: Embedder | None = None
        self._model: KenyaBirdsForAudioClassification | None = None
        if self.saved.config.get("model_type") == KenyaBirdsConfig.model_type:
            self._model, self._extractor = load_classifier(self.saved)
            self._model.eval().to(device)
            self.sampling_rate, self.clip_samples = self._extractor.sampling_rate, self._extractor.clip_samples
            size = self._model.embedding_size
        else:
            if device.type not in ("cpu", "cuda"):  # not every model of transformers computes on Apple's GPUs
                self.device = torch.device("cpu")
            self._embedder = load_embedder(self.saved, clip_s=clip_s, device=str(self.device))
            self.sampling_rate, self.clip_samples = self._embedder.sampling_rate, self._embedder.clip_samples
            size = self._embedder.size
        if targets != "scores":
            if not size:
                raise UserError(
                    f"the embedding of the teacher '{name}' is not known: {WRAP_AGAIN}, or learn its scores only with "
                    "--teacher_targets scores"
                )
            self.embedding_size = size
        if targets != "embeddings":
            self._find_species(classes, species)

    def _find_species(self, classes: Sequence[str], species: Mapping[str, Mapping[str, str]]) -> None:
        config = self.saved.config if self._model is not None else {}
        known = known_classes(config, classes, species)
        self.known, self._their = np.flatnonzero(known.numpy() >= 0), known[known >= 0]
        if not len(self.known):
            raise UserError(
                f"the teacher '{self.saved.name}' knows none of the {len(classes)} species of the archive, by "
                "scientific name or code: learn its embeddings only with --teacher_targets embeddings, or choose "
                "another teacher"
            )
        logger.info(
            "The teacher '%s' knows %d of the %d species", self.saved.public_name, len(self.known), len(classes)
        )

    @property
    def clip_s(self) -> float:
        """Length of a window in seconds."""
        return self.clip_samples / self.sampling_rate

    @property
    def size(self) -> int:
        """Numbers that the teacher gives for a window: its embedding, then a probability for each known species."""
        return self.embedding_size + len(self.known)

    def identity(self) -> tuple[Any, ...]:
        """All that its answers depend on, besides the sound."""
        versions = library_versions((*MODEL, *DECODERS, *runtime_of(self.saved)))
        return (
            *(hash_model(self.saved), self._targets, self.clip_samples, self._their.tolist(), self.device.type),
            *(code_fingerprint(__name__), sorted(versions.items())),
        )

    @torch.inference_mode()
    def __call__(self, sound: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Embeddings and probabilities of windows.

        Args:
            sound: float32, shape `(windows, samples)`, as long as `clip_s`.
            sampling_rate: In Hz; sound at another rate than the teacher's is resampled.

        Returns:
            float32, shape `(windows, size)`.

        Raises:
            UserError: If a number is not finite.
        """
        if sampling_rate != self.sampling_rate:
            sound = soxr.resample(sound.T, sampling_rate, self.sampling_rate).T
        waveform = np.zeros((len(sound), self.clip_samples), dtype=np.float32)
        waveform[:, : sound.shape[1]] = sound[:, : self.clip_samples]  # the length may be rounded to one more or less
        answers = self._answers(waveform) if self._embedder is None else self._embedder(waveform)
        if not np.isfinite(answers).all():
            raise UserError(f"the teacher '{self.saved.name}' gives numbers that are not finite: choose another one")
        return answers

    def _answers(self, waveform: np.ndarray) -> np.ndarray:
        assert self._model is not None
        model, parts = self._model, []
        features = self._extractor.extract(torch.from_numpy(waveform).to(self.device))
        # A network without a head of ours gives either its embedding or its scores.
        head_input = None if model.classifier is None else model.head_input(features)
        if self.embedding_size:
            parts.append(model.embed(features) if head_input is None else head_input[:, : self.embedding_size])
        if len(self.known):
            logits = model(input_features=features, head_input=head_input).logits
            is_multi = model.config.problem_type == MULTI_LABEL
            scores = logits.sigmoid() if is_multi else logits.softmax(dim=1)
            parts.append(scores[:, self._their.to(scores.device)])
        return torch.cat([part.float().cpu() for part in parts], dim=1).numpy()

    def windows(
        self, grid: RecordingWindowGrid, paths: Mapping[str, Path], cache_dir: str, channel: str | None
    ) -> np.ndarray:
        """What the teacher says of windows; answers are kept in a cache, block by block.

        Args:
            grid: The windows, as long as `clip_s`.
            paths: File of each recording by its name.
            cache_dir: Folder of the cache.
            channel: Channel that the recordings were decoded with.

        Returns:
            float32, shape `(windows, size)`.
        """
        rate = grid.decoded.sampling_rate
        cache = EmbeddingCache(cache_dir, (self.identity(), rate, channel), self.size)

        def made_from(name: str, rows: np.ndarray) -> tuple[Any, ...]:
            return (*file_identity(paths[name]), "teacher", grid.start[rows].tolist(), grid.end[rows].tolist())

        def embed(block: Block) -> np.ndarray:
            found = []
            for first in range(0, len(block.rows), BATCH):
                sound = np.stack([grid.sound(row) for row in block.rows[first : first + BATCH]])
                found.append(self(sound, rate))
            return np.concatenate(found)

        return cache.get(blocks_of(grid.names.tolist(), made_from), embed, "windows by the teacher")
