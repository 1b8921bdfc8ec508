"""Tiny models of transformers with random weights, saved as the Hub has them."""

from pathlib import Path

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save_ast(folder: Path) -> Path:
    """With a classifier on it; hears at most 1.3 s."""
    return _save(
        folder,
        lambda: ASTForAudioClassification(ASTConfig(**SIZES, max_length=128, num_mel_bins=32)),
        ASTFeatureExtractor(max_length=128, num_mel_bins=32),
    )


def save_wav2vec2(folder: Path) -> Path:
    config = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    return _save(folder, lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **config)), Wav2Vec2FeatureExtractor())


def save_whisper(folder: Path) -> Path:
    config = WhisperConfig(
        **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20},
        **{f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        **{"suppress_tokens": None, "begin_suppress_tokens": None},
    )
    return _save(folder, lambda: WhisperForConditionalGeneration(config), WhisperFeatureExtractor())


def save_clap(folder: Path) -> Path:
    """Of the kind that fuses pieces of long sounds."""
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    config = ClapConfig(
        text_config={**SIZES, "vocab_size": 20}, audio_config={**audio, "enable_fusion": True}, projection_dim=8
    )
    return _save(folder, lambda: ClapModel(config), ClapFeatureExtractor())


def _save(folder: Path, make, extractor) -> Path:
    torch.manual_seed(0)
    make().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
