"""Speed of an exported graph on the CPU, compared with its model.

    python benchmarks/export_speed.py      # whole and backbone alone: torch, its variants, onnxruntime

Needs the `onnx` extra. Times are the least of several runs that take turns, so that other work on the machine hits all
alike. Backbones have random weights, which take as long as others.
"""

import argparse
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from training_speed import least_s

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.publishing.export import WaveformClassifier, write_classifier

CLASSES = 100


def waveforms(extractor: KenyaBirdsFeatureExtractor, clips: int) -> torch.Tensor:
    """Noise."""
    return 0.1 * torch.randn(clips, extractor.clip_samples, generator=torch.Generator().manual_seed(0))


def session_run(path: Path, batch: np.ndarray, threads: int, at_once: int) -> Callable[[], None]:
    """Runs a graph on a batch, so many clips at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between runs would take the cores from torch's turns.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run() -> None:
        for first in range(0, len(batch), at_once):
            session.run(None, {name: batch[first : first + at_once]})

    return run


def measure_graph(options: argparse.Namespace) -> None:
    """Whole graph and backbone alone, in torch and in onnxruntime."""
    extractor = KenyaBirdsFeatureExtractor()
    waveform = waveforms(extractor, options.batch_size)
    features = extractor.extract(waveform)
    print(
        "| backbone | threads | program | ms per clip | time of torch / this time |\n| --- | --- | --- | --- | --- |"
    )
    for backbone in options.backbones:
        torch.manual_seed(0)
        config = KenyaBirdsConfig(backbone=backbone, num_labels=CLASSES)
        model = KenyaBirdsForAudioClassification(config).eval()
        laid_out = KenyaBirdsForAudioClassification(config).eval().to(memory_format=torch.channels_last)
        compiled = torch.compile(laid_out) if options.compile else None
        with tempfile.TemporaryDirectory() as folder:
            whole, alone = Path(folder) / "whole.onnx", Path(folder) / "alone.onnx"
            write_classifier(WaveformClassifier(model, extractor).eval(), whole, {})
            torch.onnx.export(
                model,
                (features[:2],),
                alone,
                dynamo=True,
                dynamic_shapes={"input_features": {0: torch.export.Dim.DYNAMIC}},
                verbose=False,
            )
            for threads in options.threads:
                torch.set_num_threads(threads)

                def whole_of_torch(model: torch.nn.Module = model) -> None:
                    model(extractor.extract(waveform))

                def in_bfloat16(model: torch.nn.Module = laid_out) -> None:
                    with torch.autocast("cpu", torch.bfloat16):
                        model(features)

                sound, pictures = waveform.numpy(), features.numpy()
                ways: dict[str, Callable[[], object]] = {
                    "whole, torch": whole_of_torch,
                    f"whole, onnxruntime, {options.batch_size} clips at once": session_run(
                        whole, sound, threads, options.batch_size
                    ),
                    "whole, onnxruntime, 4 clips at once": session_run(whole, sound, threads, 4),
                    "backbone, torch": lambda model=model: model(features),  # type: ignore[misc]
                    "backbone, torch, channels-last": lambda model=laid_out: model(features),  # type: ignore[misc]
                    "backbone, torch, channels-last, bfloat16": in_bfloat16,
                    f"backbone, onnxruntime, {options.batch_size} clips at once": session_run(
                        alone, pictures, threads, options.batch_size
                    ),
                    "backbone, onnxruntime, 4 clips at once": session_run(alone, pictures, threads, 4),
                }
                if compiled is not None:
                    ways["backbone, torch.compile, channels-last"] = lambda model=compiled: model(features)  # type: ignore[misc]
                with torch.no_grad():
                    times_s = dict(zip(ways, least_s(*ways.values(), repeats=options.repeats), strict=True))
                for way, seconds in times_s.items():
                    ratio = times_s[f"{way.split(',')[0]}, torch"] / seconds
                    print(
                        f"| {backbone} | {threads} | {way} | {1000 * seconds / len(waveform):.2f} | {ratio:.2f} |",
                        flush=True,
                    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["convnext_atto", "tf_efficientnet_lite0"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    measure_graph(options)


if __name__ == "__main__":
    main()
