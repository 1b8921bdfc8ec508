"""Audio models of transformers as frozen backbones, such as AST and wav2vec 2.0: one vector for each window."""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import SequenceFeatureExtractor

# Others may load weights of further files: timm_wrapper, and those whose parts may be of any type.
AUDIO_MODELS = (
    *("audio-spectrogram-transformer", "clap", "data2vec-audio", "granite_speech5_encoder", "hubert", "lasr_encoder"),
    *("moonshine", "nemotron_asr_streaming_encoder", "parakeet_encoder", "qwen2_audio_encoder", "sew", "sew-d"),
    *("speech_to_text", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm"),
    "whisper",
)


def check_type(model_type: Any) -> None:
    """Raises `ValueError` if a model's `model_type` is not in `AUDIO_MODELS`."""
    if model_type not in AUDIO_MODELS:
        raise ValueError(f"it has the model_type {model_type}: expected one of {', '.join(AUDIO_MODELS)}")


class AudioModel(nn.Module):
    """An audio model of transformers with its feature extractor.

    In a model with encoder and decoder (Whisper) the encoder is used, in a model of sound and text (CLAP) the part for
    sound.

    Args:
        model: The model without a head, as `AutoModel` loads it.
        extractor: Its feature extractor, which takes waveforms.

    Attributes:
        model: The part of the model that is used.
        extractor: The feature extractor.
        how: The model's output that is used, in words; known after the first window.
    """

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__()
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self.model: Any = getattr(model, "audio_model", model)
        self.extractor: Any = extractor
        self.how = ""

    @classmethod
    def of_settings(cls, config: dict[str, Any], extractor: dict[str, Any]) -> "AudioModel":
        """A model with random weights.

        Args:
            config: Its configuration, with `model_type`, which must be in `AUDIO_MODELS`.
            extractor: Settings of its feature extractor, with `feature_extractor_type`.

        Raises:
            ValueError: If it is no such model, or transformers has no such feature extractor.
        """
        check_type(config["model_type"])
        kind: Any = getattr(transformers, str(extractor["feature_extractor_type"]), None)
        if not (isinstance(kind, type) and issubclass(kind, SequenceFeatureExtractor)):
            raise ValueError(f"transformers has no feature extractor {extractor['feature_extractor_type']}")
        # auto_map names code of another repository, _name_or_path where it is; others with _ are no settings either.
        values = {
            name: value for name, value in config.items() if name not in ("model_type", "auto_map") and name[0] != "_"
        }
        # Not imported above: with the Auto classes our own classes are imported, which import this file.
        settings = transformers.AutoConfig.for_model(config["model_type"], **values)
        # Not in the precision that the configuration states: heads are trained on embeddings in float32.
        dtype = torch.get_default_dtype()
        model = transformers.AutoModel.from_config(settings, dtype=dtype, trust_remote_code=False)
        return cls(model, kind(**extractor))

    def features(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's inputs of windows, on the CPU.

        Args:
            waveform: Shape `(windows, samples)`.
        """
        windows = list(waveform.detach().float().cpu().numpy())
        options: dict[str, Any] = {"sampling_rate": self.extractor.sampling_rate, "return_tensors": "pt"}
        return dict(self.extractor(windows, return_attention_mask=True, **options))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Embeds windows: the pooled output, or the mean over time of the last hidden state.

        If the feature extractor pads a window with silence and returns an attention mask (Whisper), the mean is over
        the sound only.

        Args:
            waveform: Shape `(windows, samples)`.

        Returns:
            Shape `(windows, size)`.

        Raises:
            ValueError: If the model has neither output.
        """
        inputs = self.features(waveform)
        mask = inputs.pop("attention_mask", None)
        if "is_longer" in inputs:
            # CLAP's feature extractor marks a random window of a batch as too long; none is.
            inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
        output = self.model(**{name: self._moved(value) for name, value in inputs.items()})
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            self.how = "pooled output"
            return pooled
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None or hidden.ndim != 3:
            raise ValueError("it has neither a pooled output nor a last hidden state over time")
        self.how = "mean over time of the last hidden state"
        steps = hidden.shape[1]
        if mask is not None:
            steps = max(1, int(-(-steps * int(mask[0].sum()) // mask.shape[1])))
        return hidden[:, :steps].mean(dim=1)

    def _moved(self, values: torch.Tensor) -> torch.Tensor:
        weights = next(self.model.parameters())
        return values.to(weights.device, weights.dtype if values.is_floating_point() else None)
