"""Small published networks, as ONNX graphs and TFLite files: an embedding of the waveform, and scores of it."""

from pathlib import Path

import ai_edge_litert.schema_py_generated as schema
import flatbuffers
import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper

from kenya_birds.cli import main

RATE, SAMPLES, SIZE = 8_000, 8_000, 5
# A network that takes spectrograms, and the scale and zero of its embedding.
BINS, FRAMES, QUANTIZATION = 33, 20, (0.05, 3)
LABELS = ("Pycnonotus barbatus_Common Bulbul", "Bradypterus brachypterus_Little Rush Warbler", "Engine_Engine")
CODES = tuple(label.partition("_")[0] for label in LABELS)


def weights(classes: int = len(LABELS), samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the embedding `(samples, size)` and of the scores `(size, classes)`."""
    rng = np.random.default_rng(7)
    return (rng.normal(0, 0.1, (samples, SIZE)).astype("f4"), rng.normal(0, 1, (SIZE, classes)).astype("f4"))


def write_labels(path: Path, labels=LABELS) -> Path:
    path.write_text("\n".join(labels) + "\n", encoding="utf-8")
    return path


def write_onnx(
    path: Path,
    *,
    classes: int = len(LABELS),
    batch: int | str = "windows",
    samples: int | str = SAMPLES,
    activation: str = "",
    gain: float = 1.0,
) -> Path:
    """An ONNX graph of the network.

    Args:
        path: File to write.
        classes: Number of scores.
        batch: Windows that it takes; a text: any number.
        samples: Length of a window that its input states; a text: any length. It is SAMPLES in truth.
        activation: ONNX operator on the scores, such as `Sigmoid`.
        gain: Factor of the weights, so that files differ.
    """
    first, second = weights(classes)
    last = "scores" if not activation else "logits"
    nodes = [
        helper.make_node("MatMul", ["waveform", "first"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "second"], [last]),
    ]
    if activation:
        nodes.append(helper.make_node(activation, ["logits"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [batch, samples])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, SIZE]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes]),
        ],
        [numpy_helper.from_array(gain * first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(_model(graph), path)
    return path


def write_free_onnx(path: Path) -> Path:
    """A graph whose number of scores depends on the sound."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["waveform"], ["highest"], keepdims=0, axes=[0]),
            helper.make_node("Greater", ["highest", "zero"], ["is_high"]),
            helper.make_node("Compress", ["waveform", "is_high"], ["scores"], axis=1),
        ],
        "network",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["windows", SAMPLES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["windows", "classes"])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)
    onnx.save(model, path)
    return path


def write_spectrogram_onnx(path: Path) -> Path:
    """A graph that takes spectrograms."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["spectrogram"], ["scores"])],
        "network",
        [helper.make_tensor_value_info("spectrogram", TensorProto.FLOAT, ["windows", 1, 3, 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["windows", 3])],
    )
    onnx.save(_model(graph), path)
    return path


def _model(graph) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_tflite(path: Path, samples: int = SAMPLES) -> Path:
    """A TFLite file of the network; its embedding is no output, as in BirdNET 2.4."""
    first, second = weights(samples=samples)
    tensors = {
        "INPUT": ([1, samples], None),
        "first": ([SIZE, samples], first.T),
        "POOL": ([1, SIZE], None),
        "second": ([len(LABELS), SIZE], second.T),
        "Identity": ([1, len(LABELS)], None),
    }
    return _write_lite(path, tensors, [_dense(0, 1, 2), _dense(2, 3, 4)], ["FULLY_CONNECTED"])


def write_spectrogram_tflite(path: Path) -> Path:
    """A TFLite file that takes spectrograms of BINS and FRAMES; its embedding has 8 bits, as in BirdNET-STM32."""
    first, second = weights(samples=BINS * FRAMES)
    tensors = {
        "INPUT": ([1, BINS, FRAMES, 1], None),
        "first": ([SIZE, BINS * FRAMES], first.T),
        "dense": ([1, SIZE], None),
        "POOL": ([1, SIZE], QUANTIZATION),
        "back": ([1, SIZE], None),
        "second": ([len(LABELS), SIZE], second.T),
        "logits": ([1, len(LABELS)], None),
        "scores": ([1, len(LABELS)], None),
    }
    operators = [_dense(0, 1, 2), _unary(1, 2, 3), _unary(2, 3, 4), _dense(4, 5, 6), _unary(3, 6, 7)]
    return _write_lite(path, tensors, operators, ["FULLY_CONNECTED", "QUANTIZE", "DEQUANTIZE", "LOGISTIC"])


def _write_lite(path: Path, tensors: dict, operators: list, codes: list[str]) -> Path:
    """Writes a TFLite file from its first tensor to its last. Tensors have weights, a scale with zero, or nothing."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes = 3, [_buffer(None)], []
    graph.tensors, graph.operators = [], operators
    for name, (shape, values) in tensors.items():
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), shape, schema.TensorType.FLOAT32
        tensor.buffer = 0
        if isinstance(values, tuple):
            tensor.type = schema.TensorType.INT8
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [values[0]], [values[1]]
        elif values is not None:
            model.buffers.append(_buffer(values))
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = [0], [len(tensors) - 1]
    for name in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = 1
        model.operatorCodes.append(code)
    model.subgraphs = [graph]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _unary(code: int, source: int, target: int):
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, [source], [target]
    return operator


def _buffer(values: np.ndarray | None):
    buffer = schema.BufferT()
    buffer.data = None if values is None else np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    return buffer


def _dense(source: int, weight: int, target: int):
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [source, weight, -1], [target]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    return operator


def wrapped(folder, archive, *more, network=write_onnx):
    """A network whose labels are two species of the archive and one of another, as a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    species = pd.read_csv(archive / "species.csv")["Scientific Name"].tolist()
    graph = network(folder / f"birds{'.tflite' if network is write_tflite else '.onnx'}")
    labels = write_labels(folder / "labels.txt", (f"{species[1]}_B", "Nobody nobody_N", f"{species[0]}_A"))
    words = ["wrap", graph, "--labels", labels, "--output", folder / "wrapped", "--sampling_rate", RATE]
    words += ["--activation", "sigmoid", "--embedding", "POOL" if network is write_tflite else "embedding"]
    assert main([str(word) for word in (*words, *more)]) in (None, 0)
    return folder / "wrapped"
