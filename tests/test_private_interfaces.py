"""Undocumented parts of other libraries are used in one module, and each of them is still as it is used there."""

import ast
import functools
import importlib
import inspect
import pkgutil
import sys
from contextlib import contextmanager
from importlib.metadata import version

import datasets
import pyarrow as pa
import pytest
import torch
from running import ROOT
from transformers import Trainer, TrainingArguments

import kenya_birds
from kenya_birds.private_interfaces import (
    BuilderHooks,
    TrainerHooks,
    dataset_fingerprint,
    fake_tensors,
    operations_observed,
    table_key,
)

PLACE = "kenya_birds/private_interfaces.py"
# Its files are saved with every model, so that they cannot import the module above.
SAVED_WITH_MODELS = "kenya_birds.model."
# Programs: importing them runs them.
PROGRAMS = ("kenya_birds.__main__", "kenya_birds.publishing.standalone_check")
MODULES = [
    path
    for path in [*sorted((ROOT / "kenya_birds").rglob("*.py")), ROOT / "train_hf.py", ROOT / "push_model.py"]
    if path != ROOT / PLACE
]
# Names with an underscore that Python documents, and those of argparse, which comes with Python.
OF_PYTHON = {"_replace", "_fields", "_asdict", "_exit"}
OF_ARGPARSE = {"_actions", "_option_string_actions", "_SubParsersAction", "_format_action_invocation"}
# Methods that the libraries' documentation tells their users to write.
DOCUMENTED_METHODS = {
    "datasets": {"_info", "_split_generators", "_generate_tables"},
    "evaluate": {"_info", "_compute"},
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def parsed(path):
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def names_of(tree):
    """What `names_defined` finds; many modules import from the same ones."""
    return frozenset(names_defined(tree))


def names_defined(tree):
    """Functions, classes, variables and attributes that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def trees_of_bases(tree):
    """The modules of this package from which a module imports: its classes may inherit their private attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kenya_birds."):
            path = ROOT / f"{node.module.replace('.', '/')}.py"
            if path.is_file():  # otherwise it is a folder
                yield parsed(path)


def private_names_used(tree):
    """Private names of libraries, each with its line."""
    own = frozenset[str]().union(*map(names_of, (tree, *trees_of_bases(tree))))
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Attribute) and node.attr not in own | OF_PYTHON:
            found = [node.attr]
        elif isinstance(node, ast.Import):
            found = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            found = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            found = [str(node.args[1].value)] if isinstance(node.args[1], ast.Constant) else []
        yield from ((name, node.lineno) for name in found if is_private(name))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_module_uses_a_private_name_of_a_library(path):
    allowed = OF_ARGPARSE if path.name == "parsing.py" else set()
    used = [f"line {line}: {name}" for name, line in private_names_used(parsed(path)) if name not in allowed]
    assert not used, f"find a public way, or move this to {PLACE} and test it here"


@pytest.mark.parametrize(
    "code",
    [
        "from torch._subclasses import fake_tensor",
        "from datasets.builder import _rename",
        "import torch._dynamo",
        "print(clips._fingerprint)",
        "super()._prepare_inputs(x)",
        "getattr(trainer, '_train_batch_size')",
    ],
)
def test_a_private_name_is_found(code):
    assert [*private_names_used(ast.parse(code))]


@pytest.mark.parametrize("code", ["row._replace(a=1)", "self._a = 1\nprint(self._a)", "x.__class__", "import numpy"])
def test_public_and_own_names_are_allowed(code):
    assert not [*private_names_used(ast.parse(code))]


def test_no_other_class_overrides_a_private_method_of_a_library():
    found = []
    for info in pkgutil.walk_packages(kenya_birds.__path__, "kenya_birds."):
        if info.name in (BuilderHooks.__module__, *PROGRAMS) or info.name.startswith(SAVED_WITH_MODELS):
            continue
        for owner in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(owner) and owner.__module__ == info.name:
                found += [f"{owner.__qualname__}.{name}, of {base}" for name, base in overridden(owner)]
    assert not found, f"find a public way, or move this to {PLACE} and test it here"


def overridden(owner):
    """Private methods of libraries that a class replaces, each with its library."""
    for name, value in vars(owner).items():
        for base in owner.__mro__[1:]:
            library = base.__module__.partition(".")[0]
            if library in ("kenya_birds", *sys.stdlib_module_names) or name not in vars(base):
                continue
            if is_private(name) and callable(value) and name not in DOCUMENTED_METHODS.get(library, ()):
                yield name, library


@contextmanager
def unchanged(library, interface):
    """Ends a test with a message that names the library, its version and what has changed."""
    try:
        yield
    except Exception as error:
        pytest.fail(f"{library} {version(library)} has changed {interface}: adapt {PLACE} ({error!r})")


def test_fake_tensors_have_a_shape_and_a_device_and_no_data():
    with unchanged("torch", "torch._subclasses.fake_tensor.FakeTensorMode"):
        with fake_tensors():
            product = torch.zeros(10**6, 10**7, device="cuda") @ torch.zeros(10**7, 3, device="cuda")
        assert product.shape == (10**6, 3)
        assert product.device.type == "cuda"


def test_every_operation_of_torch_is_observed_with_its_tensors():
    one, seen = torch.ones(2), []
    with unchanged("torch", "TorchDispatchMode, or tree_leaves of torch.utils._pytree"):
        with operations_observed(lambda arguments, results: seen.append((len(arguments), results))):
            pair = torch.stack([one, one])
            one.add_(1)
        pair.sum()
        (stacked, (made,)), (added, (changed,)) = seen
        assert (stacked, added) == (2, 1)
        assert made is pair
        assert changed.data_ptr() == one.data_ptr()


def test_a_data_set_tells_its_fingerprint():
    with unchanged("datasets", "Dataset._fingerprint"):
        numbers = datasets.Dataset.from_dict({"x": [1, 2]})
        doubled = numbers.map(lambda row: {"x": 2 * row["x"]}, new_fingerprint="0123")
        assert dataset_fingerprint(doubled) == "0123" != dataset_fingerprint(numbers)


class Numbers(BuilderHooks, datasets.ArrowBasedBuilder):
    """Two shards of numbers; it records when its files are written."""

    BUILDER_CONFIG_CLASS = datasets.BuilderConfig
    VERSION = datasets.Version("1.0.0")

    def _info(self):
        self.events = []
        return datasets.DatasetInfo(features=datasets.Features({"x": datasets.Value("int64")}))

    @contextmanager
    def preparing(self, folder):
        self.events.append(("begin", folder.is_dir(), folder.suffix))
        yield
        self.events.append(("end", len([*folder.glob("*.arrow")]) > 0, folder.suffix))

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator("train", gen_kwargs={"shards": [10, 20]})]

    def _generate_tables(self, shards):
        self.events.append(("tables",))
        for shard, first in enumerate(shards):
            yield table_key(shard, 0), pa.table({"x": [first, first + 1]})
            yield table_key(shard, 2), pa.table({"x": [first + 2]})


def test_a_builder_is_told_when_it_writes_its_files(tmp_path):
    with unchanged("datasets", "DatasetBuilder._download_and_prepare or ._output_dir, or datasets.builder.Key"):
        builder = Numbers(cache_dir=str(tmp_path))
        builder.download_and_prepare()
        assert builder.events == [("begin", True, ".incomplete"), ("tables",), ("end", True, ".incomplete")]
        assert builder.as_dataset("train")["x"][:] == [10, 11, 12, 20, 21, 22]


class Line(torch.nn.Module):
    """A model with one parameter."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return {"loss": (self.slope * x - y).square().mean()}


class RecordingTrainer(TrainerHooks, Trainer):
    """Records the calls of its hooks."""

    def train_sampler(self):
        self.samplers = [*getattr(self, "samplers", []), self.clips_per_batch]
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def prepare(self, inputs):
        self.batches = [*getattr(self, "batches", []), inputs["x"].tolist()]
        return {**inputs, "y": 2 * inputs["x"]}


def test_a_trainer_asks_its_hooks_for_its_sampler_and_its_inputs(tmp_path):
    with unchanged("transformers", "Trainer._get_train_sampler, ._prepare_inputs or ._train_batch_size"):
        settings = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "remove_unused_columns": False}
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=3, max_steps=2, disable_tqdm=True, **settings
        )
        trainer = RecordingTrainer(Line(), arguments, train_dataset=[{"x": float(n)} for n in range(6)])
        trainer.train()
        assert trainer.samplers == [3]
        assert trainer.batches == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        assert trainer.model.slope > 0


@pytest.mark.parametrize("is_trained", [True, False])
def test_mixed_precision_ends_with_training(tmp_path, is_trained):
    class Precise(Line):
        seen = ()

        def forward(self, x, y):
            self.seen = [*self.seen, torch.is_autocast_enabled("cpu")]
            return super().forward(x, y)

    with unchanged("accelerate", "Accelerator.native_amp, or what unwrap_model restores"):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            remove_unused_columns=False,
            use_cpu=True,
            bf16=True,
            report_to="none",
            disable_tqdm=True,
        )
        rows = [{"x": float(n)} for n in range(6)]
        trainer = RecordingTrainer(Precise(), arguments, train_dataset=rows)
        if is_trained:
            trainer.train()
        trainer.end_mixed_precision()
        trainer.predict(rows)
        assert trainer.model.seen == [True] * is_trained + [False]
