"""Published networks: ONNX graphs, run by onnxruntime, and TFLite files, run by LiteRT.

This file imports the runtimes only where a network is opened.
"""

import hashlib
import importlib
import os
import shutil
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .network_input_kenya_birds import network_input

# Module of the runtime, and its name for pip, by the suffix of the network's file.
RUNTIMES = {".onnx": ("onnxruntime", "onnxruntime"), ".tflite": ("ai_edge_litert", "ai-edge-litert")}
# Arguments of `from_pretrained` that say where a model is.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
ACTIVATIONS = ("sigmoid", "softmax", "none")
IS_WINDOWS = os.name == "nt"


class GraphTensor(NamedTuple):
    """An input or output of a network.

    Attributes:
        name: Its name in the file.
        shape: Lengths of its axes; None: free.
        is_float: Whether it has float32 numbers, or is read as such.
    """

    name: str
    shape: tuple[int | None, ...]
    is_float: bool

    def __str__(self) -> str:
        """Name and shape, such as `waveform (free, 144000)`."""
        lengths = ", ".join("free" if length is None else str(length) for length in self.shape)
        return f"{self.name} ({lengths})" if self.is_float else f"{self.name} ({lengths}), no float32"


class Graph(ABC):
    """A network's file, opened by its runtime on the CPU; several threads may run it at the same time.

    Args:
        path: The file.

    Attributes:
        path: The file.
        inputs: Its inputs.
        outputs: Its outputs.
        inner: Tensors that are no outputs and can be read nevertheless.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If the file is no network that the runtime can open.
    """

    inputs: list[GraphTensor]
    outputs: list[GraphTensor]
    inner: list[GraphTensor]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inner = []

    @abstractmethod
    def run(self, values: np.ndarray, tensor: str, names: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """Runs the network.

        Args:
            values: Its input, float32, with a row for each window.
            tensor: Name of the input.
            names: Names of the tensors to read.
            threads: Threads of the runtime.

        Returns:
            An array with a row for each window, for each name.

        Raises:
            ValueError: If the runtime refuses the input.
        """


class OnnxGraph(Graph):
    """An ONNX graph (see `Graph`)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._sessions: dict[int, Any] = {}
        self._opening = threading.Lock()
        session = self._session(1)
        self.inputs = [self._tensor(value) for value in session.get_inputs()]
        self.outputs = [self._tensor(value) for value in session.get_outputs()]

    def run(self, values: np.ndarray, tensor: str, names: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """Runs the network (see `Graph`); windows one by one if it takes one at a time."""
        session = self._session(threads)
        fixed = next(value.shape[0] for value in self.inputs if value.name == tensor) == 1
        try:
            if not fixed:
                return session.run(list(names), {tensor: values})
            rows = [session.run(list(names), {tensor: row[None]}) for row in values]
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise ValueError(f"onnxruntime cannot run {self.path.name}: {_first_line(error)}") from None
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    def _session(self, threads: int) -> Any:
        with self._opening:
            if threads not in self._sessions:
                runtime = import_runtime(self.path)
                options = runtime.SessionOptions()
                options.intra_op_num_threads = threads
                options.log_severity_level = 3
                try:
                    session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
                except Exception as error:  # see above
                    raise ValueError(f"onnxruntime cannot open {self.path.name}: {_first_line(error)}") from None
                self._sessions[threads] = session
            return self._sessions[threads]

    @staticmethod
    def _tensor(value: Any) -> GraphTensor:
        shape = tuple(length if isinstance(length, int) else None for length in value.shape)
        return GraphTensor(value.name, shape, value.type == "tensor(float)")


class LiteGraph(Graph):
    """A TFLite file (see `Graph`). LiteRT runs windows one by one, which takes no longer than a batch.

    Outputs and inner tensors of 8 bits are read as float32.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._of_thread = threading.local()
        interpreter = self._interpreter(1, False)
        self.inputs = [self._tensor(value, is_input=True) for value in interpreter.get_input_details()]
        self.outputs = [self._tensor(value) for value in interpreter.get_output_details()]
        ends = {value.name for value in (*self.inputs, *self.outputs)}
        details = [value for value in interpreter.get_tensor_details() if value["name"]]
        self._quantization = {value["name"]: value["quantization"] for value in details if _is_quantized(value)}
        found = [self._tensor(value) for value in details]
        self.inner = [value for value in found if value.name not in ends]
        self._index = {value["name"]: value["index"] for value in details}

    def run(self, values: np.ndarray, tensor: str, names: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """Runs the network (see `Graph`)."""
        with_inner = not {value.name for value in self.outputs}.issuperset(names)
        interpreter = self._interpreter(threads, with_inner)
        place = self._index[tensor]
        rows = []
        try:
            if interpreter.get_input_details()[0]["shape"].tolist() != [1, *values.shape[1:]]:
                interpreter.resize_tensor_input(place, [1, *values.shape[1:]])
                interpreter.allocate_tensors()
            for row in values:
                interpreter.set_tensor(place, row[None])
                interpreter.invoke()
                rows.append([self._read(interpreter, name) for name in names])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"LiteRT cannot run {self.path.name}: {_first_line(error)}") from None
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    def _read(self, interpreter: Any, name: str) -> np.ndarray:
        values = interpreter.get_tensor(self._index[name])
        if name not in self._quantization:
            return values
        scale, zero = self._quantization[name]
        return (values.astype(np.float32) - zero) * np.float32(scale)

    def _interpreter(self, threads: int, with_inner: bool) -> Any:
        """The thread's own interpreter: one cannot be shared."""
        opened = self._of_thread.__dict__.setdefault("opened", {})
        if (threads, with_inner) not in opened:
            runtime = import_runtime(self.path, "interpreter")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # that inner tensors need memory
                    interpreter = runtime.Interpreter(
                        model_path=str(self.path), num_threads=threads, experimental_preserve_all_tensors=with_inner
                    )
                interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"LiteRT cannot open {self.path.name}: {_first_line(error)}") from None
            opened[threads, with_inner] = interpreter
        return opened[threads, with_inner]

    @staticmethod
    def _tensor(value: Any, is_input: bool = False) -> GraphTensor:
        signature = value["shape_signature"] if len(value["shape_signature"]) else value["shape"]
        shape = tuple(int(length) if length >= 0 else None for length in signature)
        return GraphTensor(
            value["name"], shape, value["dtype"] is np.float32 or (_is_quantized(value) and not is_input)
        )


def open_graph(path: str | Path) -> Graph:
    """Opens a network.

    Args:
        path: A file that ends in `.onnx` or `.tflite`.

    Raises:
        ImportError: If its runtime is not installed.
        ValueError: If it has another suffix, or cannot be opened.
    """
    path = Path(path)
    if path.suffix not in RUNTIMES:
        raise ValueError(f"{path.name} is no network: expected a name that ends in {' or '.join(RUNTIMES)}")
    return OnnxGraph(path) if path.suffix == ".onnx" else LiteGraph(path)


def import_runtime(path: Path, part: str = "") -> Any:
    """Imports the runtime of a network's file, or a module in it.

    Raises:
        ImportError: If it is not installed.
    """
    module, name = RUNTIMES[path.suffix]
    try:
        return importlib.import_module(f"{module}.{part}" if part else module)
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs {name}, which is not installed: run pip install {name} ({error})"
        ) from None


def is_elsewhere(file: str) -> bool:
    """Whether Windows may ask another computer about a file: its path begins with a slash, not with a drive letter.

    Such a question sends the user's name and a hash of the password to that computer. Other systems never do so.

    Args:
        file: The path.
    """
    return IS_WINDOWS and file[:1] in ("/", "\\")


def find_graph(graph: dict[str, Any], model: Any, **options: Any) -> Path:
    """Finds the file of a published network: in the model's folder or repository, or at the path that it had.

    Args:
        graph: `graph` of the model's config.
        model: The model's folder, or its name on the Hub.
        **options: Those of `from_pretrained` that say where the model is: see `HUB_OPTIONS`.

    Raises:
        OSError: If it is in neither place, or the path is on another computer.
    """
    path = Path(graph["file"])
    is_asked = not is_elsewhere(str(graph["file"]))
    places = [path] if is_asked else []
    if Path(model).is_dir():
        places.insert(0, Path(model) / options.get("subfolder", "") / path.name)
    else:
        from transformers.utils import cached_file

        with suppress(OSError):  # it is not in the repository
            places.insert(0, Path(cached_file(model, path.name, **options)))
    found = next((file for file in places if file.is_file()), None)
    if found is None:
        where = "there" if path.name == str(path) else f"there or at {path}"
        if not is_asked:
            where = f"there, and a file on another computer ({path}) is not opened"
        source = f"get it from {graph['source']} and " if graph.get("source") else ""
        raise FileNotFoundError(
            f"the file of its published network, {path.name}, is not {where}: {source}put it into the model's folder "
            "(download a model on the Hub to a folder first)"
        )
    return found


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raises `ValueError` if a file has another SHA-256."""
    found = file_sha256(path)
    if found != expected:
        raise ValueError(
            f"{path} is another file than the model was made with: expected the SHA-256 {expected}, found {found}; "
            "get the right file, or wrap this one again"
        )


class GraphRunner:
    """The network of a model: its file, and the tensors that are its scores and its embeddings.

    Args:
        settings: `graph` of the model's config (see `KenyaBirdsConfig`).
        path: The network's file.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If the file is another one than the config says, or cannot be opened.
    """

    def __init__(self, settings: dict[str, Any], path: Path) -> None:
        check_sha256(path, settings["sha256"])
        self._settings = settings
        self._graph = open_graph(path)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy opens the file again: an open network can be neither pickled nor copied."""
        return GraphRunner, (self._settings, self._graph.path)

    def save(self, folder: Path) -> None:
        """Copies the file into a folder, unless it is there."""
        target = folder / self._graph.path.name
        if not target.is_file() or file_sha256(target) != self._settings["sha256"]:
            shutil.copyfile(self._graph.path, target)

    def __call__(self, waveform: np.ndarray, parts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """Runs the network.

        Args:
            waveform: Windows, float32, shape `(windows, samples)`.
            parts: What to return: `"embedding"`, `"scores"` or both.
            threads: Threads of the runtime.

        Returns:
            Embeddings `(windows, size)` and scores `(windows, outputs)`, in the order of the parts.
        """
        values = network_input(waveform, self._settings.get("peak"), self._settings.get("spectrogram"))
        names = [self._settings[part] for part in parts]
        return self._graph.run(values, self._settings["input"], names, threads)


def _is_quantized(value: dict[str, Any]) -> bool:
    """Whether a TFLite tensor has integers of 8 bits with one scale."""
    return value["dtype"] in (np.int8, np.uint8) and len(value["quantization_parameters"]["scales"]) == 1


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
