"""Published networks: what is known of some, and the checks of their files, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kenya_birds.errors import UserError
from kenya_birds.extras import check_extra
from kenya_birds.files import check_file, check_suffix, file_sha256
from kenya_birds.model.graph_kenya_birds import RUNTIMES, Graph, GraphTensor, open_graph
from kenya_birds.model.network_input_kenya_birds import network_input
from kenya_birds.saved_models import RUNTIME_EXTRAS

# A shorter input is no waveform: it may be an embedding.
LEAST_SAMPLES = 2048
LEAST_BINS = 33
SHOWN_TENSORS = 8
# What to do if a network was wrapped without its embedding.
WRAP_AGAIN = "wrap its network again with --embedding TENSOR (a wrong name, such as x, lists the tensors)"
# The spectrograms that networks may take: see `magnitude_spectrogram`.
MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class NetworkSettings:
    """What a network's file does not say; None: unknown, or read from the file.

    Attributes:
        name: Name of the network for the model card.
        sampling_rate: Rate of its waveforms in Hz.
        activation: What turns its scores into probabilities: `sigmoid` or `softmax`; `none` if they are such.
        clip_s: Length of a window in seconds.
        input: Name of the input.
        scores: Name of the output with a score for each label.
        embedding: Name of the tensor with the embedding.
        peak: Peak that each window is scaled to after its mean is removed; None: it is not scaled.
        spectrogram: `magnitude` if it takes spectrograms (see `magnitude_spectrogram`); None: it takes the waveform.
        f_min_hz: Lowest frequency that it uses; by default 0.
        f_max_hz: Highest frequency that it uses; by default half of the sampling rate.
        threshold: Decision threshold of all species.
        license: Licence of its weights, as the Hub spells it.
        source: Where it comes from.
    """

    name: str | None = None
    sampling_rate: int | None = None
    activation: str | None = None
    clip_s: float | None = None
    input: str | None = None
    scores: str | None = None
    embedding: str | None = None
    peak: float | None = None
    spectrogram: str | None = None
    f_min_hz: float | None = None
    f_max_hz: float | None = None
    threshold: float | None = None
    license: str | None = None
    source: str | None = None

    def front_end(self) -> dict[str, Any]:
        """Arguments of the feature extractor of a model with this network, without `feature_type`."""
        return {
            "sampling_rate": self.sampling_rate or 0,
            "clip_s": self.clip_s or 0,
            "noise_reduction": "none",
            "high_pass_hz": 0.0,
            "do_peak_normalize": False,
            "f_min_hz": self.f_min_hz or 0.0,
            "f_max_hz": self.f_max_hz or 0.0,
            "do_standardize": False,
        }


# The thresholds are the defaults of the networks' own programs: `--min_conf` of BirdNET-Analyzer 2, and `--min-conf`
# of the developer preview of BirdNET V3; BirdNET-STM32's program evaluates with 0.5. Perch has no such program.
PRESETS = {
    "birdnet-2.4": NetworkSettings(
        name="BirdNET 2.4",
        sampling_rate=48_000,
        activation="sigmoid",
        clip_s=3.0,
        embedding="model/GLOBAL_AVG_POOL/Mean",
        f_max_hz=15_000.0,
        threshold=0.25,
        license="cc-by-nc-sa-4.0",
        source="https://github.com/birdnet-team/BirdNET-Analyzer",
    ),
    "birdnet-v3": NetworkSettings(
        name="BirdNET+ V3.0 (developer preview)",
        sampling_rate=32_000,
        activation="none",
        clip_s=3.0,
        threshold=0.15,
        license="cc-by-sa-4.0",
        source="https://github.com/birdnet-team/birdnet-V3.0-dev",
    ),
    "birdnet-stm32": NetworkSettings(
        name="BirdNET-STM32",
        sampling_rate=22_050,
        activation="none",
        clip_s=3.0,
        embedding="dscnn_audio_1/gap_1/Mean",
        spectrogram=MAGNITUDE,
        f_min_hz=150.0,
        threshold=0.5,
        license="mit",
        source="https://github.com/birdnet-team/birdnet-stm32",
    ),
    "perch-2": NetworkSettings(
        name="Perch 2",
        sampling_rate=32_000,
        activation="softmax",
        clip_s=5.0,
        embedding="embedding",
        peak=0.25,
        f_min_hz=60.0,
        license="apache-2.0",
        source="https://www.kaggle.com/models/google/bird-vocalization-classifier",
    ),
}


def open_network(path: Path) -> Graph:
    """Opens a network's file.

    Raises:
        UserError: If the file does not exist, is no network, or its runtime is not installed.
    """
    check_suffix(path, tuple(RUNTIMES), "a network")
    check_file(path, "a published network (.onnx or .tflite)")
    check_extra(RUNTIME_EXTRAS[path.suffix], path.name)
    try:
        return open_graph(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def embedder_settings(path: Path, known: NetworkSettings) -> dict[str, Any]:
    """The settings of a network that only embeds, for `graph` of a model's config; it runs on two windows.

    Args:
        path: The network's file.
        known: Settings with the rate of its waveforms and the name of its embedding.

    Raises:
        UserError: If the network takes no waveform, has no such embedding, or does not run.
    """
    graph = open_network(path)
    assert known.sampling_rate is not None
    assert known.embedding is not None
    tensor = find_input(graph, known)
    samples = window_samples(tensor, known.sampling_rate, known, NetworkSettings())
    find_embedding(graph, known.embedding, is_required=True)
    (values,) = run_on_noise(graph, tensor, known, samples, [known.embedding])
    return graph_settings(path, known, tensor, samples, outputs=None, embedding_size=values.shape[1])


def graph_settings(
    path: Path,
    settings: NetworkSettings,
    tensor: GraphTensor,
    samples: int,
    *,
    outputs: int | None,
    embedding_size: int | None,
) -> dict[str, Any]:
    """`graph` of a model's config (see `KenyaBirdsConfig`), with the absolute path of the network's file.

    Args:
        path: The network's file.
        settings: Complete settings.
        tensor: Its input.
        samples: Length of a window.
        outputs: Number of scores; None if they are not used.
        embedding_size: Length of the embedding; None if there is none.
    """
    shape = spectrogram_shape(tensor)
    return {
        # Not resolved: on Windows a drive letter would become the name of another computer (see `find_graph`).
        "file": path.absolute().as_posix(),
        "sha256": file_sha256(path),
        "input": tensor.name,
        "scores": settings.scores,
        "embedding": settings.embedding,
        "outputs": outputs,
        "samples": samples,
        "embedding_size": embedding_size,
        "activation": settings.activation,
        "peak": settings.peak,
        "spectrogram": None if shape is None else list(shape),
        "name": settings.name,
        "license": settings.license,
        "source": settings.source,
    }


def find_input(graph: Graph, settings: NetworkSettings) -> GraphTensor:
    """The input of a network.

    Args:
        graph: The network.
        settings: The name that the input must have, if any, and whether it takes spectrograms.

    Raises:
        UserError: If there are several, or it takes no waveform or no spectrogram.
    """
    name = settings.input
    found = ", ".join(map(str, graph.inputs))
    if len(graph.inputs) != 1:
        raise UserError(f"{graph.path.name} has {len(graph.inputs)} inputs, expected one; found {found}")
    value = graph.inputs[0]
    if name is not None and name != value.name:
        raise UserError(f"{graph.path.name} has no input '{name}': found {found}")
    if settings.spectrogram is not None:
        _check_spectrogram(graph, value)
        return value
    is_waveform = (
        value.is_float
        and len(value.shape) == 2
        and value.shape[0] in (None, 1)
        and (value.shape[1] is None or value.shape[1] >= LEAST_SAMPLES)
    )
    if not is_waveform:
        raise UserError(
            f"{graph.path.name} takes no waveform: expected one float32 input of shape (windows, samples) with "
            f"{LEAST_SAMPLES} samples or more, for any number of windows or one at a time; found {found}. A "
            f"network of spectrograms needs --preset birdnet-stm32 or --spectrogram {MAGNITUDE}"
        )
    return value


def _check_spectrogram(graph: Graph, value: GraphTensor) -> None:
    shape = spectrogram_shape(value)
    fits = value.is_float and shape is not None and value.shape[0] in (None, 1) and value.shape[3] == 1
    if shape is None or not fits or shape[0] < LEAST_BINS:
        raise UserError(
            f"{graph.path.name} takes no spectrogram: expected one float32 input of shape (windows, bins, frames, 1) "
            f"with {LEAST_BINS} bins or more, for any number of windows or one at a time; found {value}"
        )


def spectrogram_shape(tensor: GraphTensor) -> tuple[int, int] | None:
    """Bins and frames of a network's input of shape `(windows, bins, frames, 1)`; None if it takes the waveform."""
    if len(tensor.shape) != 4 or tensor.shape[1] is None or tensor.shape[2] is None:
        return None
    return tensor.shape[1], tensor.shape[2]


def window_samples(tensor: GraphTensor, rate: int, chosen: NetworkSettings, given: NetworkSettings) -> int:
    """Length of a network's window.

    Args:
        tensor: Its input.
        rate: Its sampling rate in Hz.
        chosen: All settings.
        given: Those of the user.

    Raises:
        UserError: If the length is not known, or the settings have another one than the network.
    """
    shape = spectrogram_shape(tensor)
    fixed = tensor.shape[1] if shape is None else None
    wanted = None if chosen.clip_s is None else round(chosen.clip_s * rate)
    if fixed is None:
        least = LEAST_SAMPLES if shape is None else max(LEAST_SAMPLES, shape[1])
        if wanted is None:
            raise UserError("the network's file does not say how long its windows are: give --clip_s SECONDS")
        if wanted < least:
            raise UserError(f"--clip_s {chosen.clip_s:g} is too short: expected {least} samples or more")
        return wanted
    if wanted is not None and wanted != fixed:
        what = f"--clip_s {chosen.clip_s:g}" if given.clip_s is not None else "the preset's window"
        raise UserError(
            f"the network takes {fixed:,} samples, which are {fixed / rate:g} s at {rate} Hz, but {what} needs "
            f"{wanted:,}: check --sampling_rate, --clip_s and --preset"
        )
    return fixed


def find_embedding(graph: Graph, name: str | None, *, is_required: bool) -> GraphTensor | None:
    """The tensor of a network with its embedding; None if it has none of this name and needs none.

    Args:
        graph: The network.
        name: Name of the tensor.
        is_required: Whether the network must have it.

    Raises:
        UserError: If it is required and missing, or is no embedding.
    """
    if name is None:
        return None
    found = next((value for value in (*graph.outputs, *graph.inner) if value.name == name), None)
    if found is None and is_required:
        near = [value for value in (*graph.outputs, *graph.inner[::-1]) if len(value.shape) == 2]
        raise UserError(f"{graph.path.name} has no tensor '{name}': found {listed(near)}")
    if found is not None and not (found.is_float and len(found.shape) == 2):
        raise UserError(f"{found} is no embedding: expected a float32 tensor of shape (windows, size)")
    return found


def run_on_noise(
    graph: Graph, tensor: GraphTensor, settings: NetworkSettings, samples: int, names: Sequence[str]
) -> list[np.ndarray]:
    """Runs a network on two windows of noise; returns the tensors.

    Args:
        graph: The network.
        tensor: Its input.
        settings: The peak of its windows.
        samples: Length of a window.
        names: Tensors to read.

    Raises:
        UserError: If it does not run, or a tensor has no row of finite numbers for each window.
    """
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (2, samples)).astype(np.float32)
    try:
        results = graph.run(network_input(noise, settings.peak, spectrogram_shape(tensor)), tensor.name, names)
    except ValueError as error:
        raise UserError(str(error)) from None
    for name, values in zip(names, results, strict=True):
        if values.ndim != 2 or len(values) != len(noise) or not np.isfinite(values).all():
            raise UserError(
                f"{graph.path.name} gives {name} of shape {values.shape} for {len(noise)} windows of noise: expected "
                "a row of finite numbers for each"
            )
    return results


def listed(tensors: Sequence[GraphTensor]) -> str:
    """Names and shapes of tensors, for messages."""
    shown = ", ".join(map(str, tensors[:SHOWN_TENSORS]))
    return f"{shown}, ..." if len(tensors) > SHOWN_TENSORS else shown or "none"


def license_terms(license: str | None, what: str) -> str:
    """What the licence of a network means for a model with it, in sentences for the card.

    Args:
        license: The licence, as the Hub spells it; None if it is not known.
        what: What the reader has besides the network, such as `this folder`.
    """
    if license is None:
        return "Its licence is not stated here: look it up before you use or share the model or its detections."
    terms = f"Its licence is `{license}`"
    if "-nc" in license.lower():
        terms += (
            f", which excludes commercial use: neither the network nor {what} may be used or shared for commercial "
            "purposes"
        )
    if "-sa" in license.lower():
        terms += ". What is derived from the network must be shared under the same licence"
    return f"{terms}."
