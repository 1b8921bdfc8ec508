"""Published networks: what is known of some of them, and the plan of a model folder, made without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kenya_birds.errors import UserError
from kenya_birds.extras import check_extra
from kenya_birds.files import check_file, check_suffix
from kenya_birds.inference.network_labels import NetworkLabel, read_labels, restrict_labels
from kenya_birds.model.graph_kenya_birds import ACTIVATIONS, RUNTIMES, Graph, GraphTensor, open_graph, with_peak
from kenya_birds.saved_models import RUNTIME_EXTRAS

# A shorter input is no waveform: it may be an embedding.
LEAST_SAMPLES = 2048
SHOWN_TENSORS = 8


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
    f_min_hz: float | None = None
    f_max_hz: float | None = None
    threshold: float | None = None
    license: str | None = None
    source: str | None = None


# The thresholds are the defaults of the networks' own programs: `--min_conf` of BirdNET-Analyzer 2, and `--min-conf`
# of the developer preview of BirdNET V3. Perch has no such program.
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


@dataclass(frozen=True)
class NetworkPlan:
    """A network whose file, tensors and labels fit together.

    Attributes:
        path: Its file.
        settings: Complete settings: only `embedding`, `peak`, `threshold`, `license` and `source` may be None.
        samples: Length of a window.
        outputs: Number of its scores.
        embedding_size: Length of its embedding; None if it has none.
        labels: Labels of the model by their index in the network.
    """

    path: Path
    settings: NetworkSettings
    samples: int
    outputs: int
    embedding_size: int | None
    labels: dict[int, NetworkLabel]


def plan_network(
    path: Path,
    labels_file: Path,
    given: NetworkSettings,
    *,
    preset: str | None = None,
    species: Path | None = None,
) -> NetworkPlan:
    """Checks a network's file and labels, and finds its window and its tensors; the network runs on two windows.

    Args:
        path: The file, `.onnx` or `.tflite`.
        labels_file: See `read_labels`.
        given: Settings of the user, which replace those of the preset.
        preset: Key of `PRESETS`.
        species: See `restrict_labels`; by default all species of the network.

    Raises:
        UserError: If a file does not exist, the runtime is not installed, the network takes no waveform, its scores
            have no fixed number or another number than the labels, or a setting is missing or does not fit.
    """
    check_suffix(path, tuple(RUNTIMES), "a network")
    check_file(path, "a published network (.onnx or .tflite)")
    check_file(labels_file, "the network's labels, one per line")
    check_extra(RUNTIME_EXTRAS[path.suffix], path.name)
    labels = read_labels(labels_file)
    kept = restrict_labels(labels, species) if species else dict(enumerate(labels))
    known = PRESETS[preset] if preset else NetworkSettings()
    chosen = replace(known, **{name: value for name, value in vars(given).items() if value is not None})
    try:
        graph = open_graph(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    rate = _required(chosen.sampling_rate, "sampling_rate", "HZ", "the rate of the network's waveforms")
    activation = _required(
        chosen.activation, "activation", "|".join(ACTIVATIONS), "what makes probabilities of scores"
    )
    waveform = _find_input(graph, chosen.input)
    samples = _samples(waveform, rate, chosen, given)
    scores = _find_scores(graph, chosen.scores, len(labels), labels_file)
    embedding = _find_embedding(graph, chosen.embedding, is_required=given.embedding is not None)
    settings = replace(
        chosen,
        name=chosen.name or path.stem,
        clip_s=samples / rate,
        input=waveform.name,
        scores=scores.name,
        embedding=embedding.name if embedding else None,
        f_min_hz=chosen.f_min_hz or 0.0,
        f_max_hz=min(chosen.f_max_hz or rate / 2, rate / 2),
    )
    size = _try_out(graph, settings, samples, len(labels), activation)
    return NetworkPlan(path, settings, samples, len(labels), size, kept)


def _required(value: Any, name: str, form: str, what: str) -> Any:
    if value is None:
        raise UserError(f"the network's file does not say {what}: give --{name} {form}, or a --preset")
    return value


def _find_input(graph: Graph, name: str | None) -> GraphTensor:
    found = ", ".join(map(str, graph.inputs))
    if len(graph.inputs) != 1:
        raise UserError(f"{graph.path.name} has {len(graph.inputs)} inputs, expected one, a waveform; found {found}")
    value = graph.inputs[0]
    if name is not None and name != value.name:
        raise UserError(f"{graph.path.name} has no input '{name}': found {found}")
    is_waveform = (
        value.is_float
        and len(value.shape) == 2
        and value.shape[0] in (None, 1)
        and (value.shape[1] is None or value.shape[1] >= LEAST_SAMPLES)
    )
    if not is_waveform:
        raise UserError(
            f"{graph.path.name} takes no waveform: expected one float32 input of shape (windows, samples) with "
            f"{LEAST_SAMPLES} samples or more, for any number of windows or one at a time; found {found}"
        )
    return value


def _samples(waveform: GraphTensor, rate: int, chosen: NetworkSettings, given: NetworkSettings) -> int:
    fixed = waveform.shape[1]
    wanted = None if chosen.clip_s is None else round(chosen.clip_s * rate)
    if fixed is None:
        if wanted is None:
            raise UserError("the network takes windows of any length: give --clip_s SECONDS")
        if wanted < LEAST_SAMPLES:
            raise UserError(f"--clip_s {chosen.clip_s:g} is too short: expected {LEAST_SAMPLES} samples or more")
        return wanted
    if wanted is not None and wanted != fixed:
        what = f"--clip_s {chosen.clip_s:g}" if given.clip_s is not None else "the preset's window"
        raise UserError(
            f"the network takes {fixed:,} samples, which are {fixed / rate:g} s at {rate} Hz, but {what} needs "
            f"{wanted:,}: check --sampling_rate, --clip_s and --preset"
        )
    return fixed


def _find_scores(graph: Graph, name: str | None, labels: int, labels_file: Path) -> GraphTensor:
    found = _listed(graph.outputs)
    candidates = [value for value in graph.outputs if name in (None, value.name)]
    if not candidates:
        raise UserError(f"{graph.path.name} has no output '{name}': found {found}")
    flat = [value for value in candidates if value.is_float and len(value.shape) == 2]
    fixed = [value for value in flat if value.shape[1] is not None]
    fitting = [value for value in fixed if value.shape[1] == labels]
    if not fixed or (not fitting and len(fixed) < len(flat)):
        raise UserError(
            f"{graph.path.name} has no scores of a fixed number: expected a float32 output of shape (windows, "
            f"classes) whose number of classes the file states; found {found}"
        )
    if not fitting:
        numbers = " or ".join(str(value.shape[1]) for value in fixed)
        raise UserError(
            f"{labels_file} has {labels} labels, but {graph.path.name} has {numbers} scores: found {found}"
        )
    if len(fitting) > 1:
        raise UserError(
            f"{graph.path.name} has several outputs of {labels} numbers: give --scores NAME; found {found}"
        )
    return fitting[0]


def _find_embedding(graph: Graph, name: str | None, *, is_required: bool) -> GraphTensor | None:
    if name is None:
        return None
    found = next((value for value in (*graph.outputs, *graph.inner) if value.name == name), None)
    if found is None and is_required:
        near = [value for value in (*graph.outputs, *graph.inner[::-1]) if len(value.shape) == 2]
        raise UserError(f"{graph.path.name} has no tensor '{name}': found {_listed(near)}")
    if found is not None and not (found.is_float and len(found.shape) == 2):
        raise UserError(f"{found} is no embedding: expected a float32 tensor of shape (windows, size)")
    return found


def _try_out(graph: Graph, settings: NetworkSettings, samples: int, outputs: int, activation: str) -> int | None:
    """Runs the network on noise; returns the length of its embedding."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (2, samples)).astype(np.float32)
    if settings.peak is not None:
        noise = with_peak(noise, settings.peak)
    names = [name for name in (settings.scores, settings.embedding) if name]
    try:
        results = graph.run(noise, str(settings.input), names)
    except ValueError as error:
        raise UserError(str(error)) from None
    for name, values in zip(names, results, strict=True):
        if values.ndim != 2 or len(values) != len(noise) or not np.isfinite(values).all():
            raise UserError(
                f"{graph.path.name} gives {name} of shape {values.shape} for {len(noise)} windows of noise: expected "
                "a row of finite numbers for each"
            )
    if results[0].shape[1] != outputs:
        raise UserError(f"{graph.path.name} gives {results[0].shape[1]} scores, expected {outputs}")
    low, high = float(results[0].min()), float(results[0].max())
    if activation == "none" and not 0 <= low <= high <= 1:
        raise UserError(
            f"the scores of {graph.path.name} are no probabilities: for noise they are {low:.3g} to {high:.3g}; give "
            "--activation sigmoid or softmax"
        )
    return results[1].shape[1] if len(results) > 1 else None


def _listed(tensors: Sequence[GraphTensor]) -> str:
    shown = ", ".join(map(str, tensors[:SHOWN_TENSORS]))
    return f"{shown}, ..." if len(tensors) > SHOWN_TENSORS else shown or "none"
