"""The fields of transformers' `TrainingArguments`, read from its source: importing it takes seconds, this a moment.

Parsers need names, types and help of the fields to refuse a mistyped flag at once. A test compares what is read here
with the class itself.
"""

import ast
import functools
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kenya_birds.values import Kind

BASES = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class TransformersField:
    """A field of `TrainingArguments`.

    Attributes:
        name: Its name.
        kind: Its type and choices.
        default: Its default; None also where that is computed.
        help: What transformers says of it.
    """

    name: str
    kind: Kind
    default: Any
    help: str


@functools.cache
def transformers_fields() -> dict[str, TransformersField]:
    """The fields that can be given on a command line, by name, in transformers' order."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("transformers is not installed", name="transformers")
    folder = Path(spec.origin).parent
    trees = [
        ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        for module in ("training_args", "trainer_utils", "debug_utils")
    ]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    found = {}
    for node in classes["TrainingArguments"].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = _field(node.target.id, node, classes)
            if field is not None:
                found[field.name] = field
    return found


def _field(name: str, node: ast.AnnAssign, classes: dict[str, ast.ClassDef]) -> TransformersField | None:
    if not isinstance(node.value, ast.Call):
        return None
    options = {keyword.arg: keyword.value for keyword in node.value.keywords}
    kind = _kind(node.annotation, classes)
    if kind is None or "init" in options:
        return None
    metadata = options.get("metadata")
    # Value by value: some of the others are computed.
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    told = {_constant(key): _constant(value) for key, value in pairs}
    if told.get("choices"):
        kind = replace(kind, choices=tuple(told["choices"]))
    text = " ".join((told.get("help") or "").split()).replace("%%", "%")  # as argparse would show it
    return TransformersField(name, kind, _constant(options.get("default")), text)


def _kind(annotation: ast.expr, classes: dict[str, ast.ClassDef]) -> Kind | None:
    """What a command line can give for an annotation such as `SchedulerType | str`; None: nothing."""
    parts = [part for part in _parts(annotation) if ast.unparse(part) != "None"]
    optional = len(parts) < len(_parts(annotation))
    names = [ast.unparse(part.value if isinstance(part, ast.Subscript) else part) for part in parts]
    for name in names:
        if choices := _choices(classes.get(name)):
            return Kind(str, choices=choices, optional=optional)
    if names == ["list"] and isinstance(parts[0], ast.Subscript):
        return Kind(BASES[ast.unparse(parts[0].slice)], optional=optional, repeated=True)
    if "str" in names or "dict" in names:  # a dictionary is given as JSON
        return Kind(str, optional=optional)
    return Kind(BASES[names[0]], optional=optional) if names[0] in BASES else None


def _parts(annotation: ast.expr) -> list[ast.expr]:
    """The types in a union."""
    if isinstance(annotation, ast.BinOp):
        return _parts(annotation.left) + _parts(annotation.right)
    return [annotation]


def _choices(node: ast.ClassDef | None) -> tuple[str, ...]:
    """Values of an enumeration."""
    if node is None or not any("Enum" in ast.unparse(base) for base in node.bases):
        return ()
    values = [_constant(line.value) for line in node.body if isinstance(line, ast.Assign)]
    return tuple(value for value in values if isinstance(value, str))


def _constant(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
