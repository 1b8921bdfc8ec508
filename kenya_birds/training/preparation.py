"""Preparation of clips without randomness, computed once and stored in the cache of `datasets`."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value

from kenya_birds.data.audio import decode_wav
from kenya_birds.data.clips_cache import map_clips
from kenya_birds.fingerprints import FRONT_END, code_fingerprint, library_versions
from kenya_birds.model import signal_kenya_birds
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.private_interfaces import dataset_fingerprint

CLIPS_PER_BATCH = 64
FULL_SCALE = 32767
# The settings that `clean` depends on: clean clips are large, and shared by all kinds of features.
WAVEFORM_SETTINGS = (
    *("sampling_rate", "noise_reduction", "prop_decrease"),
    *("high_pass_hz", "pre_emphasis", "do_peak_normalize", "min_peak_dbfs"),
)


def clean_clips(clips: Dataset, extractor: KenyaBirdsFeatureExtractor, device: torch.device) -> Dataset:
    """Replaces the audio of clips by the output of the extractor's waveform stage, with context.

    Args:
        clips: Rows of `load_clips`.
        extractor: The feature extractor, whose `clean` is applied.
        device: Device for the computation.

    Returns:
        The rows with `waveform` (int16, `samples` values, its peak at full scale) and `scale` instead of `audio`: the
        clean waveform is `waveform * scale`, with a resolution of 98 dB below its peak. Noise reduction includes the
        context, so its threshold differs a little from that of the clip alone in evaluation and detection.
    """

    def clean(waveform: torch.Tensor) -> dict[str, pa.Array]:
        cleaned = signal_kenya_birds.in_chunks(extractor.clean, waveform)
        scale = cleaned.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny * FULL_SCALE) / FULL_SCALE
        samples = (cleaned / scale[:, None]).round().to(torch.int16).cpu().numpy()
        return {
            "waveform": pa.FixedSizeListArray.from_arrays(samples.reshape(-1), samples.shape[1]),
            "scale": pa.array(scale.cpu().numpy()),
        }

    samples = len(decode_wav(clips[0]["audio"]["bytes"]))
    columns = Features({"waveform": List(Value("int16"), length=samples), "scale": Value("float32")})
    settings = {name: getattr(extractor, name) for name in WAVEFORM_SETTINGS}
    return _replace_audio(clips, clean, columns, "clean", settings, device)


def extract_features(clips: Dataset, extractor: KenyaBirdsFeatureExtractor, device: torch.device) -> Dataset:
    """Replaces the audio of clips by the features for evaluation.

    Args:
        clips: Rows of `load_clips`; clips with context are centre-cropped.
        extractor: The feature extractor.
        device: Device for the computation.

    Returns:
        The rows with `input_features` (float32, `bands * frames` values) instead of `audio`.
    """

    def extract(waveform: torch.Tensor) -> dict[str, pa.Array]:
        features = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
        flat = features.flatten(1).cpu().numpy()
        return {"input_features": pa.FixedSizeListArray.from_arrays(flat.reshape(-1), flat.shape[1])}

    columns = Features({"input_features": List(Value("float32"), length=int(np.prod(extractor.feature_shape)))})
    # Only its arguments: the extractor's JSON also has values that features do not depend on.
    settings = {name: getattr(extractor, name, None) for name in inspect.signature(type(extractor)).parameters}
    return _replace_audio(clips, extract, columns, "features", settings, device)


def _replace_audio(
    clips: Dataset,
    function: Callable[[torch.Tensor], dict[str, pa.Array]],
    columns: Features,
    stage: str,
    settings: dict[str, Any],
    device: torch.device,
) -> Dataset:
    def replace(table: pa.Table) -> pa.Table:
        audio = table["audio"].combine_chunks().field("bytes").to_pylist()
        waveform = torch.from_numpy(np.stack([decode_wav(data) for data in audio])).to(device)
        with torch.no_grad():
            computed = function(waveform)
        kept = {name: table[name] for name in table.column_names if name != "audio"}
        return pa.table({**kept, **computed})

    features = Features({**{name: kind for name, kind in clips.features.items() if name != "audio"}, **columns})
    # The default fingerprint covers only this function, not changes of the signal processing.
    made_from = (dataset_fingerprint(clips), stage, settings, code_fingerprint(__name__), library_versions(FRONT_END))
    desc = {"clean": "Cleaning clips", "features": "Computing features"}[stage]
    return map_clips(clips, replace, features, CLIPS_PER_BATCH, made_from, desc)
