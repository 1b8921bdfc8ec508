"""Optional libraries: whether they are installed, and how to install them."""

import importlib.metadata
import re
from importlib.util import find_spec

from kenya_birds.errors import UserError

PACKAGE = "kenya_birds"
# Modules of each extra in setup.cfg.
EXTRAS = {
    "demo": ("gradio",),
    "optuna": ("optuna",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "onnxruntime": ("onnxruntime",),
    "tflite": ("ai_edge_litert",),
    "crowsetta": ("crowsetta",),
}


def check_extra(extra: str, what: str) -> None:
    """Raises `UserError` with the command to install an extra, if it is not installed.

    Args:
        extra: Name of the extra in setup.cfg.
        what: Name of the feature that needs it.
    """
    if missing := _missing(extra):
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{what} needs {', '.join(missing)}, which {verb} not installed: run {install_line(extra)}")


def has_extra(extra: str) -> bool:
    """Returns whether the libraries of an extra are installed.

    Args:
        extra: Name of the extra in setup.cfg.
    """
    return not _missing(extra)


def _missing(extra: str) -> list[str]:
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def install_line(extra: str) -> str:
    """Returns the command that installs the libraries of an extra.

    The package is not on PyPI, so `pip install kenya_birds[extra]` would install something else.
    """
    wanted = [f'"{line}"' for line in requirements_of(extra)]
    return f"pip install {' '.join(wanted or EXTRAS[extra])}"


def requirements_of(extra: str) -> list[str]:
    """Returns the requirements of an extra, in pip's format; none if this package is not installed.

    Args:
        extra: Name of the extra in setup.cfg.
    """
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    mark = re.compile(rf""";\s*extra\s*==\s*['"]{extra}['"]""")
    return [line.partition(";")[0].strip() for line in lines if mark.search(line)]
