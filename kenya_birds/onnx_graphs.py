"""ONNX graphs of torch modules, and graphs of backbones that are kept in the cache."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants

from kenya_birds.errors import UserError
from kenya_birds.files import file_sha256, whole_file
from kenya_birds.fingerprints import MODEL, code_fingerprint, library_versions, weights_sha256
from kenya_birds.locks import shared_lock
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

logger = logging.getLogger(__name__)

# Opset that onnxruntime 1.18 (2024) and later can read in the format that torch writes.
OPSET = 18
FOLDER = "kenya_birds_graphs"
# A graph takes up to a minute.
LONGEST_WAIT_S = 600.0
INPUT, OUTPUT = "features", "embeddings"


def write_graph(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    tensors: tuple[str, Sequence[str]],
    metadata: dict[str, str],
    name: str,
) -> None:
    """Traces a module and writes its graph, for any number of clips.

    Args:
        module: In evaluation mode, on the CPU.
        example: An input; its first axis has the clips.
        path: File to write.
        tensors: Names of the input and of the outputs.
        metadata: Metadata of the graph.
        name: Name of the backbone, for the error.

    Raises:
        UserError: If the module has an operator that ONNX does not support.
    """
    with torch.no_grad():
        # Also fills the caches of filters and windows, so that the trace contains them as constants.
        module(example)
        try:
            with warnings.catch_warnings(), _errors_only("onnxscript"):  # it warns of what it does not simplify
                warnings.simplefilter("ignore", FutureWarning)  # warnings of torch about its own exporter
                program = torch.onnx.export(
                    module,
                    (example,),
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=[tensors[0]],
                    output_names=list(tensors[1]),
                    dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                    verbose=False,
                )
        except (torch.onnx.errors.OnnxExporterError, NotImplementedError) as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise UserError(f"backbone '{name}' cannot be exported to ONNX: {reason}") from None
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path)


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Hides the warnings of a logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Backbone(torch.nn.Module):
    """The network from features to embeddings."""

    def __init__(self, model: KenyaBirdsForAudioClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.embed(features)


def backbone_graph(model: KenyaBirdsForAudioClassification, features: torch.Tensor) -> Path:
    """The backbone of a model as an ONNX graph from features to embeddings, from the cache or newly made.

    It is in the folder `kenya_birds_graphs` of the cache of Hugging Face (`HF_HOME`), under a fingerprint of weights,
    configuration, input size, code and versions of libraries. It is written completely or not at all, and made again
    if the file is not the one that was written. If another process makes it, this one waits.

    Args:
        model: In evaluation mode, on the CPU.
        features: Input of some clips, shape `(clips, bands, frames)`.

    Raises:
        UserError: If the model cannot be exported, or the cache cannot be written.
    """
    folder = Path(constants.HF_HOME) / FOLDER
    path = folder / f"{_fingerprint(model, features)}.onnx"
    if _is_whole(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with shared_lock(path.with_suffix(".lock"), f"the graph {path}", LONGEST_WAIT_S):
            if not _is_whole(path):  # another process may have made it in the meantime
                logger.info("Making a graph of the network (once for each model, takes up to a minute) ...")
                name = model.config.backbone
                with whole_file(path) as partial:
                    module = _Backbone(model).eval()
                    write_graph(module, features, partial, tensors=(INPUT, (OUTPUT,)), metadata={}, name=name)
                with whole_file(_digest_path(path)) as partial:
                    partial.write_text(file_sha256(path), encoding="utf-8")
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"{folder} cannot be written: {error}; free disk space there, or set HF_HOME to another folder"
        ) from None
    return path


def _fingerprint(model: KenyaBirdsForAudioClassification, features: torch.Tensor) -> str:
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    made_with = {
        "code": code_fingerprint(__name__),
        "versions": library_versions((*MODEL, "onnx", "onnx-ir", "onnxscript")),
        "config": config,
        "shape": list(features.shape[1:]),
        "weights": weights_sha256(model.state_dict()),
    }
    return hashlib.sha256(json.dumps(made_with, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    try:
        return _digest_path(path).read_text(encoding="utf-8") == file_sha256(path)
    except (OSError, ValueError):
        return False
