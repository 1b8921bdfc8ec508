"""A small model with random weights, and recordings for it."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from kenya_birds.inference.detect import run_detection
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

RATE = 16_000
CLIP_S = 1.0
CODES = ("abcde1", "bcdef1", "cdefg1", "defgh1")
FORMATS = ("raven", "audacity", "csv", "parquet", "json", "kaleidoscope")


def save_model(folder: Path, seed: int = 0, threshold: float | None = 0.5) -> Path:
    """A multi-label model of four species that abstains from the last."""
    torch.manual_seed(seed)
    config = KenyaBirdsConfig(
        backbone="test_convnext",
        id2label=dict(enumerate(CODES)),
        label2id={code: label for label, code in enumerate(CODES)},
        problem_type="multi_label_classification",
        species={code: {"scientific_name": f"Avis {code}", "common_name": f"Bird {code}"} for code in CODES},
        # Scores far enough from each other that some windows hold a species and some do not.
        logit_scale=40.0,
    )
    KenyaBirdsForAudioClassification(config).save_pretrained(folder)
    extractor(noise_reduction="none").save_pretrained(folder)
    if threshold is not None:
        species = {**dict.fromkeys(CODES, threshold), CODES[-1]: None}
        thresholds = {"wanted_precision": None, "every_species": threshold, "species": species}
        (folder / "thresholds.json").write_text(json.dumps(thresholds))
    return folder


def extractor(**settings) -> KenyaBirdsFeatureExtractor:
    return KenyaBirdsFeatureExtractor(
        sampling_rate=RATE, clip_s=CLIP_S, f_max_hz=7500, n_fft=512, hop_length=256, n_mels=32, **settings
    )


def chirps(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """int16 noise with a tone that jumps every 0.7 s, so that windows differ."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * rate)
    pitch = np.repeat(rng.uniform(300, 0.4 * rate, samples // (7 * rate // 10) + 1), 7 * rate // 10)[:samples]
    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.02 * rng.standard_normal(samples)
    return (sound * 32767).astype(np.int16)


def write_recordings(folder: Path, lengths_s: tuple[float, ...], rate: int = RATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, length_s in enumerate(lengths_s):
        soundfile.write(folder / f"KEN_{number:03}_20211207_153852.flac", chirps(length_s, number, rate), rate)
    return folder


def run_in_folder(
    model: Path, paths: list, output: Path, *, team=None, resume=True, formats=FORMATS, time_zone=None, **options
):
    """A run in this process; settings of what counts as a detection go into `settings`."""
    settings = FindingSettings(**options.pop("settings", {}))
    options = {"overlap_s": 0.5, "device": "cpu", "batch_size": 4, **options}
    pipeline = SoundscapePipeline(model, settings=settings, **options)
    return run_detection(pipeline, paths, output, formats=formats, resume=resume, team=team, time_zone=time_zone)


def tables(output: Path) -> dict[str, bytes]:
    """Everything that a run left but its account of itself and its journal."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and ".kenya_birds" not in path.parts and path.name != "run.json"
    }
