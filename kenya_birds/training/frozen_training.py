"""Heads on frozen backbones: the model, and the embeddings of its clips and windows."""

import hashlib
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file

from kenya_birds.console import user_errors
from kenya_birds.data.audio import decode_wav
from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.same_recording import file_identity
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.fingerprints import DECODERS, MODEL, code_fingerprint, library_versions, weights_sha256
from kenya_birds.inference.embedding_models import TransformersEmbedder, load_embedder
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.graph_kenya_birds import RUNTIMES
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load
from kenya_birds.saved_models import WEIGHTS_FILE, SavedModel
from kenya_birds.training.arguments import ModelArguments
from kenya_birds.training.augmentation import DRAWS, Augmentation
from kenya_birds.training.batches import WEIGHT, ClipDraw, TrainingClips, clip_targets
from kenya_birds.training.embedded_data import EmbeddedRows, EmbeddedTraining, EmbeddedWindows, EmbeddedWindowSampler
from kenya_birds.training.embedding_cache import Block, EmbeddingCache, blocks_of, rows_of
from kenya_birds.training.frozen_backbones import FrozenBackbone
from kenya_birds.training.window_training import WindowPlan

logger = logging.getLogger(__name__)

BATCH = 32


class FrozenEmbeddings:
    """The inputs of a head for clips and windows, computed once by a frozen backbone and kept in a cache.

    Args:
        model: The model; it is in evaluation mode while it embeds.
        extractor: Its feature extractor.
        builder: Plan of the clips: its archive, cache and channel are used.
        device: Where the backbone runs; a published network runs on the CPU.
        settings: The numbers of versions and the distance of windows.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        builder: KenyaBirds,
        device: torch.device,
        settings: ModelArguments,
        seed: int,
    ) -> None:
        self.model, self.extractor, self.builder, self.device = model, extractor, builder, device
        self.versions, self.seed = settings.embedded_versions, seed
        self.hop_s = settings.embedding_hop_s or extractor.clip_s / 2
        size = model.embedding_size + (model.config.num_labels if model.needs_scores else 0)
        self.cache = EmbeddingCache(builder.cache_root, self._made_from(), size)

    def _made_from(self) -> tuple[Any, ...]:
        graph = self.model.config.graph
        if graph is None:
            config, weights = self.model.config, weights_sha256(self.model.backbone.state_dict())
            network: Any = (config.backbone, config.backbone_variant, config.audio_model, weights)
            runtime: tuple[str, ...] = ()
        else:
            parts = ("sha256", "input", "embedding", "peak", "spectrogram", "samples")
            network = tuple(graph.get(name) for name in parts)
            if self.model.needs_scores:
                outputs = tuple(self.model.output_of_class.tolist())
                network += (graph["scores"], graph["activation"], outputs)
            runtime = (RUNTIMES[Path(graph["file"]).suffix][1],)
        extractor = self.extractor.to_dict()
        return (
            network,
            sorted((name, repr(value)) for name, value in extractor.items() if name != "auto_map"),
            self.device.type,
            [
                code_fingerprint(part.__module__)
                for part in (EmbeddingCache, Augmentation, type(self.model), decode_wav)
            ],
            sorted(library_versions((*MODEL, *DECODERS, *runtime)).items()),
        )

    def training_clips(self, clips: Dataset, multi_label: bool, prepared: TrainingClips | None) -> EmbeddedTraining:
        """Embeds training clips: as they are, and in augmented versions.

        Args:
            clips: Rows of `load_clips`; with a column `weight`, that of each clip in the loss.
            multi_label: Whether targets are multi-label.
            prepared: The clips for augmentation; None if there is one version only.
        """
        inputs, targets = [self.clips(clips, "training clips")], [clip_targets(clips, multi_label)]
        for version in range(1, self.versions):
            assert prepared is not None
            chance = self._chance(clips["recording"][:], version)
            inputs.append(self._augmented_clips(clips, prepared, chance, version))
            amounts = prepared.augmentation.amounts(chance)
            targets.append(prepared.shifted(np.arange(len(clips)), amounts)[1])
        weights = np.asarray(clips[WEIGHT][:]) if WEIGHT in clips.column_names else None
        return EmbeddedTraining(inputs, targets, weights)

    def _augmented_clips(
        self, clips: Dataset, prepared: TrainingClips, chance: np.ndarray, version: int
    ) -> np.ndarray:
        starts, changes = np.asarray(clips["start_s"][:]), (*self._identity(prepared.augmentation), version)

        def features(rows: np.ndarray) -> torch.Tensor:
            return _augmented(prepared, rows, chance[rows], self.device)

        def made_from(name: str, rows: np.ndarray) -> tuple[Any, ...]:
            # The same sound has other changes under another name, such as that of a joined archive.
            drawn = hashlib.sha256(chance[rows].tobytes()).hexdigest()
            return (*self._sound(name), "clip", prepared.context, starts[rows].tolist(), changes, drawn)

        blocks = blocks_of(clips["recording"][:], made_from)
        what = f"training clips, version {version + 1} of {self.versions}"
        return self.cache.get(blocks, self._in_batches(features), what)

    def evaluation_clips(self, clips: Dataset, multi_label: bool) -> EmbeddedRows:
        """Embeds clips to evaluate on; clips with context are centre-cropped.

        Args:
            clips: Rows of `load_clips`.
            multi_label: Whether targets are multi-label.
        """
        return EmbeddedRows(self.clips(clips, "clips to evaluate on"), clip_targets(clips, multi_label))

    def clips(self, clips: Dataset, what: str) -> np.ndarray:
        """Inputs of the head for clips as they are.

        Args:
            clips: Rows of `load_clips`.
            what: The clips, for the log.

        Returns:
            float32, shape `(clips, size)`.
        """
        starts = np.asarray(clips["start_s"][:])

        def features(rows: np.ndarray) -> torch.Tensor:
            audio = clips[rows.tolist()]["audio"]
            waveform = torch.from_numpy(np.stack([decode_wav(clip["bytes"]) for clip in audio])).to(self.device)
            rate = self.extractor.sampling_rate
            return self.extractor(waveform, sampling_rate=rate, return_tensors="pt")["input_features"]

        blocks = blocks_of(
            clips["recording"][:], lambda name, rows: (*self._sound(name), "clip", starts[rows].tolist())
        )
        return self.cache.get(blocks, self._in_batches(features), what)

    def training_grid(self, plan: WindowPlan) -> RecordingWindowGrid:
        """The windows of the training recordings that are embedded."""
        return RecordingWindowGrid.of(
            plan.decoded, self.extractor.clip_samples, max(self.extractor.clip_s - self.hop_s, 0.0)
        )

    def training_windows(self, plan: WindowPlan, augmentation: Augmentation) -> EmbeddedWindows:
        """Embeds windows of training recordings: as they are, and in augmented versions.

        Args:
            plan: The training recordings, and how windows are drawn from them.
            augmentation: Random changes.
        """
        grid = self.training_grid(plan)
        inputs = [self.windows(grid, "windows of the training recordings")]
        for version in range(1, self.versions):
            chance = self._chance(grid.names.tolist(), version)

            def features(rows: np.ndarray, chance: np.ndarray = chance) -> torch.Tensor:
                sound = torch.from_numpy(np.stack([grid.sound(row) for row in rows])).to(self.device)
                amounts = augmentation.amounts(chance[rows])
                amounts.pop("shift", None)  # windows lie anywhere already
                return augmentation(self.extractor.clean(sound), _moved(amounts, self.device))

            what = f"windows of the training recordings, version {version + 1} of {self.versions}"
            made_from = (*self._identity(augmentation), version)
            inputs.append(self.cache.get(self._grid_blocks(grid, made_from), self._in_batches(features), what))
        labels = grid.targets(plan.targets)
        weights = None if plan.weights is None else plan.weights[grid.recording]
        return EmbeddedWindows(
            inputs, labels, decoded=plan.decoded, targets=plan.targets, length=plan.length, weights=weights
        )

    def window_sampler(self, plan: WindowPlan, **settings: Any) -> EmbeddedWindowSampler:
        """The sampler of `training_windows`.

        Args:
            plan: The training recordings, and how windows are drawn from them.
            **settings: `length`, `windows_per_step`, `seed` and `species_power` (see `EmbeddedWindowSampler`).
        """
        grid = self.training_grid(plan)
        is_whole = grid.end - grid.start == grid.window
        label = plan.targets.label
        return EmbeddedWindowSampler(
            grid.targets(plan.targets),
            grid.recording,
            plan.targets.is_empty(grid.recording, grid.start) & is_whole,
            plan.targets.is_partial(plan.targets.offset[grid.recording]),
            np.bincount(label[label >= 0], minlength=len(plan.targets.classes)),
            call_share=plan.call_share,
            empty_share=plan.empty_share,
            **settings,
        )

    def windows(self, grid: RecordingWindowGrid, what: str) -> np.ndarray:
        """Inputs of the head for windows of recordings as they are.

        Args:
            grid: The windows.
            what: The windows, for the log.

        Returns:
            float32, shape `(windows, size)`.
        """

        def features(rows: np.ndarray) -> torch.Tensor:
            sound = np.stack([grid.sound(row) for row in rows])
            return self.extractor.extract(torch.from_numpy(sound).to(self.device))

        return self.cache.get(self._grid_blocks(grid, ()), self._in_batches(features), what)

    def clip_logits(self, clips: Dataset, what: str) -> np.ndarray:
        """Logits of clips, as `score_clips` returns them."""
        return self._logits(self.clips(clips, what))

    def window_logits(self, grid: RecordingWindowGrid, what: str) -> np.ndarray:
        """Logits of windows, as `RecordingWindowGrid.logits` returns them."""
        return self._logits(self.windows(grid, what))

    @torch.inference_mode()
    def _logits(self, inputs: np.ndarray) -> np.ndarray:
        self.model.eval()
        logits = [np.zeros((0, self.model.config.num_labels), dtype=np.float32)]
        for part in torch.from_numpy(inputs).split(1024):
            logits.append(self.model(head_input=part.to(self.model.device)).logits.float().cpu().numpy())
        return np.concatenate(logits)

    def _grid_blocks(self, grid: RecordingWindowGrid, more: tuple[Any, ...]) -> list[Block]:
        def made_from(name: str, rows: np.ndarray) -> tuple[Any, ...]:
            return (*self._sound(name), "window", grid.start[rows].tolist(), grid.end[rows].tolist(), more)

        return blocks_of(grid.names.tolist(), made_from)

    def _in_batches(self, features: Callable[[np.ndarray], torch.Tensor]) -> Callable[[Block], np.ndarray]:
        """A function that embeds a block, from one that computes the features of some rows."""

        def embed(block: Block) -> np.ndarray:
            is_training = self.model.training
            # Not in inference mode: weights that are moved in it can never be trained or changed in place.
            self.model.eval().to(self.device)
            found = []
            with torch.inference_mode():
                for first in range(0, len(block.rows), BATCH):
                    inputs = self.model.head_input(features(block.rows[first : first + BATCH]))
                    found.append(inputs.float().cpu().numpy())
            self.model.train(is_training)
            return np.concatenate(found)

        return embed

    def _sound(self, recording: str) -> tuple[Any, ...]:
        """What identifies the sound of a recording."""
        return (*file_identity(self.builder.archive.recording_path(recording)), self.builder.config.channel)

    def _chance(self, recordings: Sequence[str], version: int) -> np.ndarray:
        """Random numbers of windows, which depend on the seed, the version, the recording and the place in it."""
        chance = np.empty((len(recordings), len(DRAWS)))
        for name, rows in rows_of(recordings).items():
            generator = np.random.default_rng([self.seed, version, zlib.crc32(str(name).encode())])
            chance[rows] = generator.random((len(rows), len(DRAWS)))
        return chance

    def _identity(self, augmentation: Augmentation) -> tuple[Any, ...]:
        background = augmentation.background
        sound = None if background is None else hashlib.sha256(background.cpu().numpy().tobytes()).hexdigest()
        return (sorted(asdict(augmentation.args).items()), sound, self.seed)


def _augmented(prepared: TrainingClips, rows: np.ndarray, chance: np.ndarray, device: torch.device) -> torch.Tensor:
    """Features of augmented training clips."""
    draws = [ClipDraw(row, row, numbers) for row, numbers in zip(rows.tolist(), chance, strict=True)]
    batch = prepared.__getitems__(draws)
    return prepared.augmentation(prepared.waveform(batch).to(device), _moved(batch["amounts"], device))


def _moved(amounts: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: values.to(device) for name, values in amounts.items()}


def load_backbone(model: KenyaBirdsForAudioClassification, backbone: FrozenBackbone | None) -> str | None:
    """Opens the published network of a new model, or loads the weights of the model that is its backbone.

    Args:
        model: A model with the settings of the backbone.
        backbone: The backbone; None if it is timm's.

    Returns:
        The origin of the weights (see `starting_points.initialize`), `"network"` for a published network; None if
        nothing was loaded.

    Raises:
        UserError: If the file cannot be opened, or the weights cannot be loaded.
    """
    if backbone is None:
        return None
    if backbone.graph is not None:
        with user_errors(OSError, ValueError, ImportError):
            model.open_network(Path(backbone.graph["file"]))
        return "network"
    assert backbone.saved is not None
    if backbone.is_foreign:
        model.backbone.load_state_dict(_embedder(backbone).audio_model.state_dict())
    else:
        copy_backbone(model, backbone.saved)
    return backbone.saved.starting_point


def audio_model_settings(backbone: FrozenBackbone | None) -> dict[str, Any] | None:
    """`audio_model` of the config of a new model; None if its backbone is no audio model of transformers.

    Raises:
        UserError: If the model cannot be loaded, or cannot embed windows of this length.
    """
    if backbone is None or backbone.saved is None:
        return None
    if not backbone.is_foreign:
        return backbone.saved.config.get("audio_model")
    embedder = _embedder(backbone)
    return {
        "config": backbone.saved.config,
        "extractor": embedder.audio_model.extractor.to_dict(),
        "embedding_size": embedder.size,
        "name": backbone.public_name,
    }


def _embedder(backbone: FrozenBackbone) -> TransformersEmbedder:
    assert backbone.saved is not None
    embedder = load_embedder(backbone.saved, clip_s=backbone.features.clip_s, device="cpu")
    assert isinstance(embedder, TransformersEmbedder)
    return embedder


def copy_backbone(model: KenyaBirdsForAudioClassification, saved: SavedModel) -> None:
    """Copies the weights of the backbone of another model.

    Raises:
        UserError: If it cannot be loaded.
    """
    given = load(saved, KenyaBirdsForAudioClassification)
    model.backbone.load_state_dict(given.backbone.state_dict())


def make_head(
    model: ModelArguments, backbone: FrozenBackbone | None, classes: Sequence[str], species: dict[str, dict[str, str]]
) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Settings of the head of a new model.

    Args:
        model: The backbone and the head.
        backbone: The backbone; None if it is timm's.
        classes: eBird codes of the archive by class id.
        species: Names by eBird code.

    Returns:
        `head` of the model's config, and the network's output of each class, -1 for those that it does not know; None
        if the head does not use its scores.

    Raises:
        UserError: If the scores are asked for, and the network knows none of the species.
    """
    outputs = None
    if backbone is not None and backbone.graph is not None and backbone.saved is not None:
        outputs = None if model.network_scores is False else _known_outputs(backbone.saved, classes, species)
    if outputs is not None:
        known = int((outputs >= 0).sum())
        logger.info("The network knows %d of the %d species: their scores are inputs of the head", known, len(classes))
        if not known:
            if model.network_scores:
                raise UserError(
                    f"the network '{model.backbone}' knows none of the {len(classes)} species of the archive: leave "
                    "--network_scores out"
                )
            outputs = None
    hidden_size = model.head_hidden_size if model.head == "mlp" else None
    return {"hidden_size": hidden_size, "network_scores": outputs is not None}, outputs


def _known_outputs(saved: SavedModel, classes: Sequence[str], species: dict[str, dict[str, str]]) -> torch.Tensor:
    """The network's output of each class, found by scientific name or code; -1 for others."""
    outputs = load_file(saved.folder / WEIGHTS_FILE).get("output_of_class")
    if outputs is None:  # a head without scores was trained on it
        return torch.full((len(classes),), -1)
    known = known_classes(saved.config, classes, species)
    return torch.where(known >= 0, outputs[known.clamp(min=0)], -1)


def known_classes(
    config: Mapping[str, Any], classes: Sequence[str], species: Mapping[str, Mapping[str, str]]
) -> torch.Tensor:
    """Class ids that a model has for the species of an archive, found by scientific name or code.

    Args:
        config: The model's config.
        classes: eBird codes of the archive by class id.
        species: Names by eBird code.

    Returns:
        int64, shape `(classes,)`; -1 for species that the model does not know.
    """
    by_name: dict[str, int] = {}
    for index, code in config.get("id2label", {}).items():
        names = (config.get("species") or {}).get(code, {})
        for name in (code, names.get("scientific_name")):
            if name:
                by_name.setdefault(_plain(name), int(index))
    found = [by_name.get(_plain(species[code]["scientific_name"]), by_name.get(_plain(code), -1)) for code in classes]
    return torch.tensor(found)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
