"""Time of the feature extractor on a CPU, stage by stage, and compared with the time of backbones.

    python benchmarks/front_end_speed.py [--n_mels 64 --hop_length 640] [--threads 1 2] [--backbones NAME ...]

Times are the least of several runs that take turns, so that other work on the machine hits all alike. Processor time
is that of all threads together; other work changes it little. Ratios are of processor times. Clips are noise, one
or a few at a time as the extractor works. Backbones have random weights, which take as long as others, and compute
channels-last.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import torch

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import NOISE_REDUCTIONS, SPECTROGRAM, KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model.noise_reduction_kenya_birds import GATE_HOP_LENGTH, GATE_N_FFT, reduce_noise
from kenya_birds.model.signal_kenya_birds import (
    hann_window,
    high_pass,
    in_chunks,
    istft,
    peak_normalize,
    stft,
)
from kenya_birds.process import keep_freed_memory

CLASSES = 100
WHOLE = "all, noise reduction "


def stages(waveform: torch.Tensor, features: dict[str, int]) -> dict[str, Callable[[], object]]:
    """Functions that compute one stage of all clips.

    Args:
        waveform: Clips, shape `(clips, samples)`.
        features: Arguments of the feature extractor.
    """
    extractor = KenyaBirdsFeatureExtractor(**features)  # type: ignore[arg-type]
    rate_hz, window = extractor.sampling_rate, hann_window(GATE_N_FFT, waveform.device)
    chunks = waveform.split(1)
    spectra = [stft(chunk, window, GATE_HOP_LENGTH).transpose(1, 2) for chunk in chunks]
    powers = [extractor.band_power(chunk) for chunk in chunks]
    samples = waveform.shape[1]
    each: dict[str, Callable[[], object]] = {
        "stationary noise reduction": lambda: [reduce_noise(chunk, rate_hz) for chunk in chunks],
        "of it: Fourier transform": lambda: [stft(chunk, window, GATE_HOP_LENGTH) for chunk in chunks],
        "of it: inverse transform": lambda: [istft(part, window, GATE_HOP_LENGTH, samples) for part in spectra],
        "high-pass": lambda: in_chunks(lambda chunk: high_pass(chunk, rate_hz, extractor.high_pass_hz), waveform),
        "peak normalisation": lambda: in_chunks(lambda chunk: peak_normalize(chunk, 1e-10), waveform),
        "power in mel bands": lambda: in_chunks(extractor.band_power, waveform),
        "decibels, standardised": lambda: [extractor.to_level(power) for power in powers],
    }
    for noise_reduction in NOISE_REDUCTIONS:
        whole = KenyaBirdsFeatureExtractor(noise_reduction=noise_reduction, **features)  # type: ignore[arg-type]
        each[WHOLE + noise_reduction] = lambda whole=whole: whole.extract(waveform)  # type: ignore[misc]
    bare = KenyaBirdsFeatureExtractor(noise_reduction=SPECTROGRAM, prop_decrease=0.0, **features)  # type: ignore[arg-type]
    each[f"{WHOLE}{SPECTROGRAM}, prop_decrease 0"] = lambda: bare.extract(waveform)
    return each


def least_times(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Least time and least processor time of each function in seconds, after one run that does not count."""
    least = dict.fromkeys(ways, (float("inf"), float("inf")))
    for turn in range(repeats + 1):
        for way, function in ways.items():
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            function()
            taken = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
            if turn:
                least[way] = min(least[way][0], taken[0]), min(least[way][1], taken[1])
    return least


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints one table for each number of threads.

    Args:
        arguments: Command line; by default the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="*", default=["convnext_atto", "tf_efficientnet_lite0"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--n_mels", type=int, default=128)
    parser.add_argument("--hop_length", type=int, default=512)
    parser.add_argument("--clips", type=int, default=16, help="clips in a batch")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as commands do
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")

    features = {"n_mels": options.n_mels, "hop_length": options.hop_length}
    samples = KenyaBirdsFeatureExtractor().clip_samples
    waveform = 0.1 * torch.randn(options.clips, samples, generator=torch.Generator().manual_seed(0))
    ways = stages(waveform, features)
    picture = KenyaBirdsFeatureExtractor(**features).extract(waveform)
    for backbone in options.backbones:
        config = KenyaBirdsConfig(backbone=backbone, num_labels=CLASSES)
        model = KenyaBirdsForAudioClassification(config).eval().to(memory_format=torch.channels_last)
        ways[f"backbone {backbone}"] = lambda model=model: model(picture)  # type: ignore[misc]
    for threads in options.threads:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            times_s = least_times(ways, options.repeats)
        heads = [
            f"threads: {threads}",
            "ms per clip",
            "ms of processor time",
            *(f"/ {backbone}" for backbone in options.backbones),
        ]
        print(f"\n| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
        for way, (seconds, cpu_s) in times_s.items():
            cells = [f"{1000 * taken / len(waveform):.2f}" for taken in (seconds, cpu_s)]
            cells += [f"{cpu_s / times_s[f'backbone {backbone}'][1]:.2f}" for backbone in options.backbones]
            print(f"| {' | '.join([way, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
