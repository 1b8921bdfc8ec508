"""Embedding models: models of this package, and audio models of transformers."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel, PreTrainedModel, SequenceFeatureExtractor

from kenya_birds.console import enough_memory, user_errors
from kenya_birds.data.builders import DEFAULT_CLIP_S
from kenya_birds.errors import UserError
from kenya_birds.inference.devices import device_for
from kenya_birds.model.audio_model_kenya_birds import AudioModel, check_type
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load, load_classifier
from kenya_birds.saved_models import SavedModel, find_model
from kenya_birds.waveform_networks import WRAP_AGAIN

# Long enough for the last step of any feature extractor.
_END_S = 0.025
# Exceptions of a model and its feature extractor for windows that they cannot process.
_UNSUITABLE = (ValueError, RuntimeError, TypeError, LookupError, AttributeError)


class Embedder(ABC):
    """A frozen model that computes one vector for each window of sound, in float32 on every device.

    Args:
        saved: The model's files.
        sampling_rate: Rate of the windows in Hz.
        clip_samples: Length of a window.
        device: Device for the computation.

    Attributes:
        saved: The model's files.
        sampling_rate: Rate of the windows in Hz.
        clip_samples: Length of a window.
        size: Dimension of an embedding.
        how: The model's output that is used, in words.
        device: Device for the computation.
    """

    size: int
    how: str

    def __init__(self, saved: SavedModel, sampling_rate: int, clip_samples: int, device: torch.device) -> None:
        self.saved = saved
        self.sampling_rate = sampling_rate
        self.clip_samples = clip_samples
        self.device = device

    @property
    def highest_hz(self) -> float:
        """Highest frequency of the model's input."""
        return self.sampling_rate / 2

    @property
    def clip_s(self) -> float:
        """Length of a window in seconds."""
        return self.clip_samples / self.sampling_rate

    @torch.inference_mode()
    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """Embeds windows.

        Args:
            sound: float32, shape `(windows, clip_samples)`.

        Returns:
            float32, shape `(windows, size)`. Numbers of digital silence that are not finite are 0.

        Raises:
            UserError: If an embedding of sound is not finite.
        """
        embeddings = self._embed(sound).float().cpu().numpy()
        is_sound = sound.any(axis=1)  # the last batch of a run is filled up with zeros
        if not is_sound.all():
            embeddings[~is_sound] = np.nan_to_num(embeddings[~is_sound], posinf=0, neginf=0)
        if not np.isfinite(embeddings).all():
            raise UserError(f"'{self.saved.name}' gives embeddings that are not finite: its weights are damaged")
        return embeddings

    @abstractmethod
    def _embed(self, sound: np.ndarray) -> torch.Tensor:
        """Embeds windows without the check; returns a tensor."""


class OwnEmbedder(Embedder):
    """A model of this package; the embedding is the input of its classifier head.

    Args:
        saved: The model's files.
        model: The classifier.
        extractor: Its feature extractor.
        device: Device for the computation.
    """

    how = "input of the classifier head"

    def __init__(
        self,
        saved: SavedModel,
        model: KenyaBirdsForAudioClassification,
        extractor: KenyaBirdsFeatureExtractor,
        device: torch.device,
    ) -> None:
        super().__init__(saved, extractor.sampling_rate, extractor.clip_samples, device)
        to_device: Any = model.eval().to
        self._model = to_device(device, memory_format=torch.channels_last)
        self._extractor = extractor
        self.size = model.embedding_size

    @property
    def highest_hz(self) -> float:
        """Highest frequency of the model's input."""
        return float(self._extractor.f_max_hz)

    def _embed(self, sound: np.ndarray) -> torch.Tensor:
        waveform = torch.from_numpy(sound).to(self.device)
        return self._model.embed(self._extractor.extract(waveform))


class TransformersEmbedder(Embedder):
    """An audio model of transformers (see `AudioModel`).

    Args:
        saved: The model's files.
        model: The model without a head, as `AutoModel` loads it.
        extractor: Its feature extractor, which takes waveforms.
        clip_s: Length of a window in seconds.
        device: Device for the computation.

    Attributes:
        audio_model: The model and its feature extractor.

    Raises:
        UserError: If the model cannot embed windows of this length, or crops them.
    """

    def __init__(
        self,
        saved: SavedModel,
        model: PreTrainedModel,
        extractor: SequenceFeatureExtractor,
        clip_s: float,
        device: torch.device,
    ) -> None:
        rate = extractor.sampling_rate
        super().__init__(saved, rate, round(clip_s * rate), device)
        self.audio_model: Any = AudioModel(model, extractor).eval().to(device)
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, self.clip_samples)).astype(np.float32)
        try:
            with enough_memory("end other programs that use it, or give --device cpu"):
                self._check_not_cropped(noise)
                with torch.inference_mode():
                    self.size = self._embed(noise).shape[1]
        except _UNSUITABLE as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"'{saved.name}' ({type(model).__name__}) cannot embed windows of {clip_s:g} s "
                f"({type(error).__name__}: {reason}): give another --clip_s, or another model"
            ) from None

    def _embed(self, sound: np.ndarray) -> torch.Tensor:
        embeddings = self.audio_model(torch.from_numpy(sound))
        self.how = self.audio_model.how
        return embeddings

    def _features(self, sound: np.ndarray) -> dict[str, torch.Tensor]:
        return self.audio_model.features(torch.from_numpy(sound))

    def _check_not_cropped(self, noise: np.ndarray) -> None:
        """Raises `UserError` if the feature extractor crops windows, at a fixed or random position."""
        name = self.audio_model.extractor.model_input_names[0]
        first, second = (self._features(noise)[name] for _ in range(2))
        louder = noise.copy()
        louder[:, -max(1, round(_END_S * self.sampling_rate)) :] *= 10
        if not torch.equal(first, second) or torch.equal(first, self._features(louder)[name]):
            raise UserError(f"'{self.saved.name}' crops windows of {self.clip_s:g} s: give a smaller --clip_s")


def load_embedder(
    model: str | Path | SavedModel, *, clip_s: float | None = None, device: str | None = None
) -> Embedder:
    """Loads a model for embeddings.

    Args:
        model: A folder, `owner/name` or `owner/name@revision` on the Hub, or a `SavedModel`: a model of this package,
            or an audio model of transformers (`AUDIO_MODELS`).
        clip_s: Length of a window in seconds, for a model of transformers; by default 3. Models of this package have
            their own length.
        device: Device such as `cpu` or `cuda:1`; by default a GPU if there is one.

    Raises:
        UserError: If the model or device does not exist, or the model cannot embed such windows.
    """
    if clip_s is not None and not 0 < clip_s < float("inf"):
        raise UserError(f"clip_s is {clip_s}: expected more than 0 s")
    saved = model if isinstance(model, SavedModel) else find_model(model)
    chosen = device_for(saved, device)
    if saved.config.get("model_type") == KenyaBirdsConfig.model_type:
        classifier, own = load_classifier(saved)
        if clip_s is not None and round(clip_s * own.sampling_rate) != own.clip_samples:
            raise UserError(f"clip_s is {clip_s}, but '{saved.name}' has windows of {own.clip_s:g} s: remove --clip_s")
        if not classifier.embedding_size:
            raise UserError(f"the embedding of '{saved.name}' is not known: {WRAP_AGAIN}")
        return OwnEmbedder(saved, classifier, own, chosen)
    try:
        check_type(saved.config.get("model_type"))
    except ValueError as error:
        raise UserError(f"'{saved.name}' is no audio model that can be used: {error}, or kenya_birds") from None
    foreign = load(saved, AutoModel, heads_may_differ=True, trust_remote_code=False)
    with user_errors(OSError, ValueError, ImportError):
        extractor = AutoFeatureExtractor.from_pretrained(saved.folder, local_files_only=True, trust_remote_code=False)
    if not isinstance(extractor, SequenceFeatureExtractor):
        raise UserError(
            f"'{saved.name}' is no audio model: expected a feature extractor of waveforms, found a "
            f"{type(extractor).__name__}"
        )
    return TransformersEmbedder(saved, foreign, extractor, DEFAULT_CLIP_S if clip_s is None else clip_s, chosen)
