"""The plan of a model folder of a published network, made without torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.files import check_file
from kenya_birds.inference.network_labels import NetworkLabel, read_labels, restrict_labels
from kenya_birds.model.graph_kenya_birds import ACTIVATIONS, Graph, GraphTensor
from kenya_birds.waveform_networks import (
    PRESETS,
    NetworkSettings,
    find_embedding,
    find_input,
    listed,
    open_network,
    run_on_noise,
    window_samples,
)


@dataclass(frozen=True)
class NetworkPlan:
    """A network whose file, tensors and labels fit together.

    Attributes:
        path: Its file.
        settings: Complete settings: only `embedding`, `peak`, `spectrogram`, `threshold`, `license` and `source` may
            be None.
        tensor: Its input.
        samples: Length of a window.
        outputs: Number of its scores.
        embedding_size: Length of its embedding; None if it has none.
        labels: Labels of the model by their index in the network.
    """

    path: Path
    settings: NetworkSettings
    tensor: GraphTensor
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
        UserError: If a file does not exist, the runtime is not installed, the network takes another input, its scores
            have no fixed number or another number than the labels, or a setting is missing or does not fit.
    """
    check_file(labels_file, "the network's labels, one per line")
    graph = open_network(path)
    labels = read_labels(labels_file)
    kept = restrict_labels(labels, species) if species else dict(enumerate(labels))
    known = PRESETS[preset] if preset else NetworkSettings()
    chosen = replace(known, **{name: value for name, value in vars(given).items() if value is not None})
    rate = _required(chosen.sampling_rate, "sampling_rate", "HZ", "the rate of the network's waveforms")
    _required(chosen.activation, "activation", "|".join(ACTIVATIONS), "what makes probabilities of scores")
    tensor = find_input(graph, chosen)
    samples = window_samples(tensor, rate, chosen, given)
    scores = _find_scores(graph, chosen.scores, len(labels), labels_file)
    embedding = find_embedding(graph, chosen.embedding, is_required=given.embedding is not None)
    settings = replace(
        chosen,
        name=chosen.name or path.stem,
        clip_s=samples / rate,
        input=tensor.name,
        scores=scores.name,
        embedding=embedding.name if embedding else None,
        f_min_hz=chosen.f_min_hz or 0.0,
        f_max_hz=min(chosen.f_max_hz or rate / 2, rate / 2),
    )
    size = _try_out(graph, tensor, settings, samples, len(labels))
    return NetworkPlan(path, settings, tensor, samples, len(labels), size, kept)


def _required(value: Any, name: str, form: str, what: str) -> Any:
    if value is None:
        raise UserError(f"the network's file does not say {what}: give --{name} {form}, or a --preset")
    return value


def _find_scores(graph: Graph, name: str | None, labels: int, labels_file: Path) -> GraphTensor:
    found = listed(graph.outputs)
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


def _try_out(graph: Graph, tensor: GraphTensor, settings: NetworkSettings, samples: int, outputs: int) -> int | None:
    """Runs the network on noise; returns the length of its embedding."""
    names = [name for name in (settings.scores, settings.embedding) if name]
    results = run_on_noise(graph, tensor, settings, samples, names)
    if results[0].shape[1] != outputs:
        raise UserError(f"{graph.path.name} gives {results[0].shape[1]} scores, expected {outputs}")
    low, high = float(results[0].min()), float(results[0].max())
    if settings.activation == "none" and not 0 <= low <= high <= 1:
        raise UserError(
            f"the scores of {graph.path.name} are no probabilities: for noise they are {low:.3g} to {high:.3g}; give "
            "--activation sigmoid or softmax"
        )
    return results[1].shape[1] if len(results) > 1 else None
