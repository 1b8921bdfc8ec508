"""Measures the time of detection on this machine and extrapolates to many hours: `python benchmarks/scale.py`.

Weights are random and sound is synthetic, which does not change the time. On a CPU, the CPU time of all threads is
measured, which depends little on other programs; on a GPU, the elapsed time.
"""

import argparse
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

SPECIES = 100
DAY_H, YEAR_H = 24, 24 * 365


def main() -> None:
    """Prints a row for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["convnext_atto", "convnext_tiny"], help="timm models")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the recording that is analysed")
    parser.add_argument("--overlap_s", type=float, default=0.0, help="overlap of neighbouring windows (s)")
    parser.add_argument("--noise_reduction", default="stationary", help="noise reduction of the feature extractor")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the fastest is reported")
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    unit = "GPU" if on_gpu else "core"
    where = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, threads: {torch.get_num_threads()}"
    print(f"{date.today()}, {where}, torch {torch.__version__}, overlap {options.overlap_s} s, FLAC at 32 kHz\n")
    print(f"| Backbone | {unit}-seconds per hour of sound | Hours per {unit}-day | {unit}-years for 1,000,000 hours |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        archive = synthesize_archive(
            Path(folder) / "archive", recordings=1, duration_s=60 * options.minutes, species=5, scene="quiet"
        )
        (recording,) = (archive / "soundscape_data").iterdir()
        for backbone in options.backbones:
            model = _save_model(Path(folder) / backbone, backbone, options.noise_reduction)
            find = SoundscapePipeline(
                model, overlap_s=options.overlap_s, settings=FindingSettings(threshold=0.5), device=options.device
            )
            clock = time.perf_counter if on_gpu else time.process_time
            find(recording)  # what is done once is not counted
            times_s = []
            for _ in range(options.repeats):
                begin_s = clock()
                find(recording)
                times_s.append(clock() - begin_s)
            per_hour_s = min(times_s) * 60 / options.minutes
            print(
                f"| `{backbone}` | {per_hour_s:.1f} | {DAY_H * 3600 / per_hour_s:,.0f} "
                f"| {1e6 * per_hour_s / 3600 / YEAR_H:.2f} |"
            )


def _save_model(folder: Path, backbone: str, noise_reduction: str) -> Path:
    config = KenyaBirdsConfig(backbone=backbone, id2label={label: f"bird{label}" for label in range(SPECIES)})
    KenyaBirdsForAudioClassification(config).save_pretrained(folder)
    KenyaBirdsFeatureExtractor(noise_reduction=noise_reduction).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
