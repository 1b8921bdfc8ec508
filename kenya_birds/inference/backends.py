"""Backends that compute the backbone: which there are, what each needs, and which one `auto` is. Without torch."""

from typing import Literal, get_args

from kenya_birds.errors import UserError
from kenya_birds.extras import check_extra, has_extra
from kenya_birds.saved_models import SavedModel

Backend = Literal["auto", "torch", "onnx", "openvino"]
Precision = Literal["float32", "bfloat16"]
# Packages whose version affects the scores of a backend.
RUNTIME_PACKAGES = {
    "torch": (),
    "onnx": ("onnxruntime", "onnx", "onnx-ir", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnx-ir", "onnxscript"),
}
# From the fastest backbone; whole runs differ little (docs/detection.md has the measurements).
FASTEST_FIRST: tuple[Backend, ...] = ("openvino", "onnx")


def choose_backend(backend: Backend, precision: Precision, saved: SavedModel, device: str | None) -> Backend:
    """Checks the choice of a backend, and replaces `auto`.

    `auto` is OpenVINO if it is installed, otherwise onnxruntime if that is installed, otherwise torch. On a GPU, and
    for networks that are no timm models, it is torch. With bfloat16, onnxruntime is not chosen.

    Args:
        backend: The user's choice. Its extra has the name of the backend.
        precision: Precision of the backbone.
        saved: The model.
        device: The device, such as `cuda:1`; None: not known yet.

    Returns:
        `torch`, `onnx` or `openvino`.

    Raises:
        UserError: If the backend is not installed, or cannot run on the device or with the precision, or the network
            is no timm model.
    """
    if backend not in get_args(Backend):
        raise UserError(f"the backend is '{backend}': expected {', '.join(get_args(Backend))}")
    if backend == "torch":
        return backend
    on_gpu = device is not None and device.startswith("cuda")
    config = saved.config
    of_others = config.get("graph") or config.get("audio_model")
    if backend == "auto":
        if on_gpu or of_others:
            return "torch"
        usable = (name for name in FASTEST_FIRST if has_extra(name) and (name, precision) != ("onnx", "bfloat16"))
        return next(usable, "torch")
    if on_gpu:
        raise UserError(f"--backend {backend} runs on a CPU, and the device is {device}: give --device cpu")
    if of_others:
        raise UserError(
            f"'{saved.name}' has a published network ({of_others.get('name')}), which has a runtime of its own: "
            "--backend is for networks that were trained here; leave it out"
        )
    if (backend, precision) == ("onnx", "bfloat16"):
        raise UserError(
            "--backend onnx computes in float32: for --precision bfloat16 give --backend torch or openvino"
        )
    check_extra(backend, f"--backend {backend}")
    return backend
