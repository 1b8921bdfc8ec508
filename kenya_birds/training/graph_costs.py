"""What a pass through a module costs, counted on its graph: FLOPs, bytes kept for backward, bytes alive at once.

Works on real tensors, on the meta device (no data at all) and on torch's fake tensors (no data, but a kind of device).
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def count_flops(model: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """FLOPs of one forward pass and of one backward pass in train mode.

    Args:
        model: The model; its gradients are thrown away.
        *inputs: Its arguments, on its device. Its output's `loss` goes backward, or else the sum of the output.

    Returns:
        Forward and backward; a multiply-add is two.
    """
    model.train()
    with FlopCounterMode(display=False) as counter:
        output = model(*inputs)
    forward = counter.get_total_flops()
    loss = output.loss if hasattr(output, "loss") else output.sum()
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        loss.backward()
    model.zero_grad()
    return forward, counter.get_total_flops()


def saved_bytes(model: nn.Module, *inputs: torch.Tensor) -> int:
    """Bytes that training keeps between the forward and the backward pass, beside parameters and buffers.

    Args:
        model: The model.
        *inputs: Its arguments, on its device; they count too.
    """
    own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in inputs}

    def pack(tensor: torch.Tensor) -> None:
        # Held until the count is done, so that no id is used twice.
        storages[id(tensor.untyped_storage())] = tensor.untyped_storage()

    def unpack(packed: None) -> torch.Tensor:
        raise AssertionError("nothing was kept to go backward with")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        model.train()(*inputs)
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)


class LiveBytes(TorchDispatchMode):
    """Context in which `peak` becomes the most bytes that were alive at once, of tensors made in it.

    What a kernel allocates for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            # A view, or what is changed in place, is in its arguments' storage.
            if id(storage) not in known | self._alive:
                self._alive.add(id(storage))
                self._now += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _forget(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self._now -= size


@contextmanager
def bf16_autocast(device_type: str, enabled: bool = True) -> Iterator[None]:
    """bfloat16 autocast, for fake tensors too: without a GPU, `torch.autocast("cuda")` turns itself off.

    Args:
        device_type: Kind of device, such as `"cuda"`; autocast has a list of operations for each.
        enabled: Whether anything changes.
    """
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, enabled)
    torch.set_autocast_dtype(device_type, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _convolution_backward_flops(
    grad_output: Any, x: Any, weight: Any, *arguments: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Each of the two gradients costs as much as the forward pass.

    torch's own formula multiplies that of the weight by the number of groups: several times too much for depthwise
    convolutions (torch 2.12).
    """
    _bias_sizes, _stride, _padding, _dilation, transposed, _output_padding, _groups, output_mask = arguments
    return sum(output_mask[:2]) * conv_flop_count(x, weight, grad_output, transposed)
