"""Fingerprints of this package's code and versions of libraries, which affect results."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).parent
DECODERS = ("av", "soundfile", "soxr")
FRONT_END = ("numpy", "scipy", "torch")
MODEL = (*FRONT_END, "timm", "transformers")


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Returns the versions of installed libraries; missing libraries are skipped."""
    return {name: found for name in names if (found := _version(name)) is not None}


@functools.cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def weights_sha256(state: "Mapping[str, torch.Tensor]") -> str:
    """Returns the SHA-256 of a module's weights and their names; their order and memory format have no effect.

    Args:
        state: Its `state_dict`, on any device.
    """
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@functools.cache
def code_fingerprint(module: str) -> str:
    """Returns the SHA-256 of the source of a module and of all modules of this package that it imports.

    Args:
        module: Name of the module, such as `kenya_birds.inference.pipeline`.
    """
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source_path(name)
        if path is None or name in sources:
            continue
        sources[name] = path.read_bytes().replace(b"\r\n", b"\n")
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imported(ast.parse(sources[name]), package)
    total = hashlib.sha256()
    for name, source in sorted(sources.items()):
        total.update(name.encode() + hashlib.sha256(source).digest())
    return total.hexdigest()


def _source_path(module: str) -> Path | None:
    """Returns the path of a module's source; None for other packages, and for the top-level package."""
    package, *parts = module.split(".")
    if package != PACKAGE or not parts:
        return None
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yields the imports of a module, also in functions: modules, and names that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
