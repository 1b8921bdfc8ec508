"""What chance does not change on a clip's way to the model: computed once, kept in the cache of `datasets`."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from kenya_birds.data.audio import decode_wav
from kenya_birds.fingerprints import FRONT_END, code_fingerprint, library_versions
from kenya_birds.model import signal_kenya_birds
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor

CLIPS_PER_BATCH = 64
FULL_SCALE = 32767
# What `clean` depends on: clean clips are large, and serve every kind of features.
WAVEFORM_SETTINGS = (
    *("sampling_rate", "noise_reduction", "prop_decrease"),
    *("high_pass_hz", "pre_emphasis", "do_peak_normalize", "min_peak_dbfs"),
)


def clean_clips(clips: Dataset, extractor: KenyaBirdsFeatureExtractor, device: torch.device) -> Dataset:
    """Replaces the audio of clips by what the extractor's waveform stage makes of it, context included.

    Args:
        clips: Rows of `load_clips`.
        extractor: Its `clean` is applied.
        device: Where to compute.

    Returns:
        The rows with `waveform` (int16, `samples` values, its peak at full scale) and `scale` instead of `audio`: the
        clean waveform is `waveform * scale`, to 98 dB below its peak. Noise reduction hears the context too, so that
        its threshold is not quite the one of the clip alone, which evaluation and serving hear.
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
    """Replaces the audio of clips by the features that the model sees when it is evaluated or used.

    Args:
        clips: Rows of `load_clips`; the middle of those with context is heard.
        extractor: The front end.
        device: Where to compute.

    Returns:
        The rows with `input_features` (float32, `bands * frames` values) instead of `audio`.
    """

    def extract(waveform: torch.Tensor) -> dict[str, pa.Array]:
        features = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
        flat = features.flatten(1).cpu().numpy()
        return {"input_features": pa.FixedSizeListArray.from_arrays(flat.reshape(-1), flat.shape[1])}

    columns = Features({"input_features": List(Value("float32"), length=int(np.prod(extractor.feature_shape)))})
    # Its arguments alone: saving adds what features do not depend on to the extractor's JSON.
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
    # By default the fingerprint would be of this function, and would not notice another signal processing.
    made_from = (clips._fingerprint, stage, settings, code_fingerprint(__name__), library_versions(FRONT_END))
    done = clips.with_format("arrow").map(
        replace,
        batched=True,
        batch_size=CLIPS_PER_BATCH,
        writer_batch_size=CLIPS_PER_BATCH,
        remove_columns=["audio"],
        features=features,
        new_fingerprint=Hasher.hash(made_from),
        desc={"clean": "Cleaning clips", "features": "Computing features"}[stage],
    )
    return done.with_format(None)
