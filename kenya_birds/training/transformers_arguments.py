"""Arguments of transformers' trainer, read from its source code, so that command lines are checked without torch."""

import ast
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.values import Kind

BASES = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class TransformersField:
    """A field of `TrainingArguments`.

    Attributes:
        name: Its name.
        kind: Its type and choices.
        default: Its default; None also for a computed default.
        help: Its help text in transformers.
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
    # Each value separately, because some others are computed.
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    values = {_constant(key): _constant(value) for key, value in pairs}
    if values.get("choices"):
        kind = replace(kind, choices=tuple(values["choices"]))
    text = " ".join((values.get("help") or "").split()).replace("%%", "%")  # as argparse would show it
    return TransformersField(name, kind, _constant(options.get("default")), text)


def _kind(annotation: ast.expr, classes: dict[str, ast.ClassDef]) -> Kind | None:
    """The type of a flag for an annotation such as `SchedulerType | str`; None if a flag cannot have this type."""
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


_RESUME = "a resumed run would differ from an uninterrupted run"
_EVALUATION = "the metrics need the scores and labels of all clips, and there are no other outputs"
_LANGUAGE = "it is for language models"
_ONE_DEVICE = "these models fit on one device: start several processes with accelerate launch or torchrun instead"
_HALF = "the saved model would have half precision: --fp16 and --bf16 speed up evaluation during training without that"
# Why an argument has to keep its default.
KEPT = {
    "auto_find_batch_size": "it changes the clips per step, and with them the result: give a smaller "
    "--per_device_train_batch_size and more --gradient_accumulation_steps",
    "train_sampling_strategy": "clips are drawn uniformly, or by --sampler_weight_power",
    "ignore_data_skip": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    **dict.fromkeys(("fp16_full_eval", "bf16_full_eval"), _HALF),
    **dict.fromkeys(("prediction_loss_only", "label_names", "include_for_metrics", "batch_eval_metrics"), _EVALUATION),
    **dict.fromkeys(("eval_do_concat_batches", "eval_use_gather_object"), _EVALUATION),
    **dict.fromkeys(("neftune_noise_alpha", "use_liger_kernel"), _LANGUAGE),
    **dict.fromkeys(("fsdp", "deepspeed", "parallelism_config"), _ONE_DEVICE),
}
HUB_PREFIXES = ("push_to_hub", "hub_")
_BATCH, _EPOCHS = "did you mean --per_device_train_batch_size?", "did you mean --num_train_epochs?"
_DEVICE = "a GPU is used if there is one, unless you give --use_cpu"
# What is said of the flags of other programs that are called otherwise here.
USUAL_FLAGS = {
    **dict.fromkeys(
        ("batch_size", "batchsize", "train_batch_size", "train_batch", "per_device_batch_size", "batch"), _BATCH
    ),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "n_epochs", "n_epoch", "max_epochs", "max_epoch"), _EPOCHS),
    **dict.fromkeys(("lr", "lr_rate"), "did you mean --learning_rate?"),
    "model": "did you mean --backbone?",
    "patience": "did you mean --early_stopping_patience?",
    **dict.fromkeys(("workers", "num_workers"), "did you mean --dataloader_num_workers?"),
    **dict.fromkeys(("device", "gpu", "gpus", "num_gpus", "cuda", "no_cuda", "use_gpu"), _DEVICE),
}


# Metrics of an evaluation during training, by which the best epoch can be chosen.
METRICS = ("macro_f1", "weighted_f1", "accuracy", "cmap", "loss")


def refused_arguments() -> set[str]:
    """Names of transformers' arguments that have to keep their defaults."""
    return {*KEPT, *(name for name in transformers_fields() if name.startswith(HUB_PREFIXES))}


def check_inherited(values: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuses arguments that transformers would accept but silently ignore or apply with unwanted results.

    Args:
        values: Training arguments by name; others have their defaults.
        usual: The defaults.

    Raises:
        UserError: If an argument that has to keep its default is set, or the best checkpoint would not have the best
            metric.
    """
    for name in usual.keys() & values.keys():
        value = values[name]
        if not (value or usual[name]) or getattr(value, "value", value) == usual[name]:
            continue
        if name.startswith(HUB_PREFIXES):
            raise UserError(
                f"{name} cannot be used, because training uploads nothing: publish the trained model with "
                "push_model.py, which searches it for secrets and skips pickled files"
            )
        if name in KEPT:
            raise UserError(f"{name} has to keep its default, {usual[name]}: {KEPT[name]}")
    given = values.get("metric_for_best_model", usual["metric_for_best_model"])
    metric = (given or METRICS[0]).removeprefix("eval_")
    if metric not in METRICS:
        raise UserError(f"metric_for_best_model is {given!r}: expected one of {', '.join(METRICS)}")
    greater = values.get("greater_is_better")
    if given and greater is (metric == "loss"):
        raise UserError(
            f"greater_is_better is {greater} and metric_for_best_model is {metric}, so the worst epoch would be kept "
            "as the best: omit --greater_is_better"
        )


def defaults(group: Any) -> dict[str, Any]:
    """The defaults of a group's fields, in the form of JSON; fields without a default are skipped."""
    found = {}
    for field in dataclasses.fields(group):
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        if value is not dataclasses.MISSING:
            found[field.name] = getattr(value, "value", value)
    return found
