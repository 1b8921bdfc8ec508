"""Everything that this package uses of other libraries without their documenting it.

`tests/test_private_interfaces.py` tests each of these, and that no other module uses a private name of a library. The
classes are mixins, which stand before the library's class among the bases of a class. Libraries are imported when they
are needed, because some modules must not import all of them. The files of `kenya_birds/model` are an exception: they
are saved with every model and cannot import this module.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import torch


def fake_tensors() -> AbstractContextManager[Any]:
    """In the `with` block, new tensors have shapes and types but no data, and may be on devices that do not exist."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def operations_observed(
    observe: Callable[[list["torch.Tensor"], list["torch.Tensor"]], None],
) -> Iterator[None]:
    """In the `with` block, calls a function after each operation of torch.

    Args:
        observe: Function of the tensors among the operation's arguments, and of those in its result.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def tensors(tree: Any) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    class Observer(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            observe(tensors((args, kwargs)), tensors(result))
            return result

    with Observer():
        yield


def dataset_fingerprint(dataset: "datasets.Dataset") -> str:
    """Hash of a data set's content, in the cache of `datasets`: of its source and of all its transforms."""
    return dataset._fingerprint


def table_key(shard: int, first: int) -> Any:
    """Key of a table of an `ArrowBasedBuilder`.

    Args:
        shard: Index of the shard.
        first: Index of the table's first row in the shard.
    """
    from datasets.builder import Key

    return Key(shard, first)


class BuilderHooks:
    """Mixin for builders of `datasets`."""

    def preparing(self, folder: Path) -> AbstractContextManager[None]:
        """Context in which the builder writes its files, while `datasets` holds the lock of their folder.

        Args:
            folder: Folder of the files; while they are not complete, its name ends in `.incomplete`.
        """
        return nullcontext()

    def _download_and_prepare(self, *args: Any, **settings: Any) -> None:
        builder: Any = self
        with self.preparing(Path(builder._output_dir)):
            super()._download_and_prepare(*args, **settings)  # type: ignore[misc]


class TrainerHooks:
    """Mixin for transformers' `Trainer`."""

    @property
    def clips_per_batch(self) -> int:
        """Number of clips in a training batch of one device."""
        trainer: Any = self
        return trainer._train_batch_size

    def train_sampler(self) -> Any:
        """The sampler of the training set."""
        raise NotImplementedError

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Turns a batch on the device into the inputs of `compute_loss`.

        Args:
            inputs: The batch, moved to the device.
        """
        raise NotImplementedError

    def end_mixed_precision(self) -> None:
        """Lets the model compute in the precision of its weights, as it does when it is loaded."""
        trainer: Any = self
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        trainer.accelerator.native_amp = False  # otherwise `predict` prepares a model that it has not trained

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.train_sampler()

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.prepare(super()._prepare_inputs(inputs))  # type: ignore[misc]
