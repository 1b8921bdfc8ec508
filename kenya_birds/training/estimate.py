"""Estimates of the memory and FLOPs of training, without allocating the model.

FLOPs are counted on the meta device. Memory is counted with fake CUDA tensors, which have shapes and types but no data
and need no GPU. A large backbone with a large batch is estimated on a laptop within seconds.
"""

import json
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from kenya_birds.console import user_errors
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.private_interfaces import fake_tensors, operations_observed
from kenya_birds.values import Count, Positive, checked


def count_flops(model: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """FLOPs of one forward pass and of one backward pass in train mode.

    Args:
        model: The model; its gradients are deleted.
        *inputs: Its arguments, on its device. The backward pass starts at the output's `loss`, or at the sum of the
            output if there is no loss.

    Returns:
        FLOPs of the forward pass and of the backward pass; a multiply-add is two FLOPs.
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
    """Bytes that training stores between forward and backward pass, without parameters and buffers.

    Args:
        model: The model.
        *inputs: Its arguments, on its device; they are included.
    """
    own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in inputs}

    def pack(tensor: torch.Tensor) -> None:
        # References are kept until the end of the count, so that no id is used twice.
        storages[id(tensor.untyped_storage())] = tensor.untyped_storage()

    def unpack(packed: None) -> torch.Tensor:
        raise AssertionError("the forward pass stored no tensors for a backward pass")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        model.train()(*inputs)
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)


class LiveBytes:
    """Context that measures `peak`, the largest number of bytes in tensors created in it.

    Temporary memory of kernels is not included.
    """

    def __init__(self) -> None:
        self.peak = self._now = 0
        self._alive: set[int] = set()
        self._context = ExitStack()

    def __enter__(self) -> "LiveBytes":
        """Starts to measure."""
        self._context.enter_context(operations_observed(self._count))
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the measurement."""
        self._context.close()

    def _count(self, arguments: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        known = {id(tensor.untyped_storage()) for tensor in arguments}
        for tensor in results:
            storage = tensor.untyped_storage()
            # Views and results of in-place operations share the storage of their arguments.
            if id(storage) not in known | self._alive:
                self._alive.add(id(storage))
                self._now += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.peak = max(self.peak, self._now)

    def _forget(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self._now -= size


@contextmanager
def bf16_autocast(device_type: str, enabled: bool = True) -> Iterator[None]:
    """bfloat16 autocast, for fake tensors too: without a GPU, `torch.autocast("cuda")` turns itself off.

    Args:
        device_type: Type of the device, such as `"cuda"`; each has its own list of autocast operations.
        enabled: Whether autocast is on.
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


def _convolution_backward_flops(
    grad_output: Any, x: Any, weight: Any, *arguments: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """FLOPs of a convolution's backward pass: each of the two gradients costs as much as the forward pass.

    torch's own formula multiplies the cost of the weight's gradient by the number of groups, which is several times
    too much for depthwise convolutions (torch 2.12).
    """
    _bias_sizes, _stride, _padding, _dilation, transposed, _output_padding, _groups, output_mask = arguments
    return sum(output_mask[:2]) * conv_flop_count(x, weight, grad_output, transposed)


PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Memory:
    """Memory in bytes for one precision; `bf16` is autocast, with weights, gradients and optimiser in float32.

    Attributes:
        weights: Parameters and buffers.
        gradients: One per parameter.
        optimizer: AdamW's two moments of each parameter.
        saved: The batch and the tensors that the forward pass stores for the backward pass; with autocast, also the
            bfloat16 copies of weights.
        live: Peak memory of inference without the weights, including the batch.
    """

    weights: int
    gradients: int
    optimizer: int
    saved: int
    live: int

    @property
    def training(self) -> int:
        """Bytes of a training step: the sum of its four parts, as if all gradients existed from the start."""
        return self.weights + self.gradients + self.optimizer + self.saved

    @property
    def serving(self) -> int:
        """Bytes of a forward pass without gradients."""
        return self.weights + self.live


@dataclass(frozen=True)
class Estimate:
    """Cost of a model at a batch size. A multiply-add is two FLOPs; only matrix products and convolutions count."""

    backbone: str
    num_labels: int
    bands: int
    frames: int
    batch_size: int
    parameters: int
    backbone_parameters: int
    forward_flops_per_clip: int
    training_flops_per_clip: int
    memory: dict[str, Memory]


@checked
def estimate(
    backbone: str, *, batch_size: Count, num_labels: Count, bands: Count | None = None, frames: Count | None = None
) -> Estimate:
    """Estimates the cost of a `KenyaBirdsForAudioClassification`; no weights are downloaded or allocated.

    Args:
        backbone: Name of a timm image model.
        batch_size: Clips per batch.
        num_labels: Number of classes.
        bands: Bands of the features; by default those of the default feature extractor.
        frames: Frames of the features; by default those of the default feature extractor.

    Raises:
        UserError: If a number is below 1, timm does not have the backbone, or the backbone cannot process the batch.
    """
    if bands is None or frames is None:
        default_bands, default_frames = default_feature_size()
        bands, frames = bands if bands is not None else default_bands, frames if frames is not None else default_frames
    sizes = {"batch_size": batch_size, "num_labels": num_labels, "bands": bands, "frames": frames}
    config = KenyaBirdsConfig(backbone=backbone, num_labels=num_labels)
    # timm has no such model, or torch cannot pass such a batch through it: too small to halve or normalise, too large.
    with user_errors(ValueError, RuntimeError):
        with torch.device("meta"):
            model = KenyaBirdsForAudioClassification(config)
        forward, backward = count_flops(model, *_batch(batch_size, bands, frames, "meta"))
    weights = _bytes(model.parameters()) + _bytes(model.buffers())
    gradients = _bytes(model.parameters())
    memory = {}
    with fake_tensors():
        # CUDA, because the list of autocast operations depends on the device type.
        model.to_empty(device="cuda")
        for precision in PRECISIONS:
            with bf16_autocast("cuda", precision == "bf16"):
                saved = saved_bytes(model, *_batch(batch_size, bands, frames, "cuda"))
            with bf16_autocast("cuda", precision == "bf16"), LiveBytes() as alive, torch.no_grad():
                model.eval()(_batch(batch_size, bands, frames, "cuda")[0])
            memory[precision] = Memory(weights, gradients, 2 * gradients, saved, alive.peak)
    return Estimate(
        backbone=backbone,
        **sizes,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        backbone_parameters=sum(parameter.numel() for parameter in model.backbone.parameters()),
        forward_flops_per_clip=forward // batch_size,
        training_flops_per_clip=(forward + backward) // batch_size,
        memory=memory,
    )


def default_feature_size() -> tuple[int, int]:
    """Bands and frames of the default feature extractor."""
    return KenyaBirdsFeatureExtractor().feature_shape


@checked
def run_cost(
    result: Estimate, *, clips: Count, epochs: Positive, device_tflops: Positive | None = None
) -> dict[str, float | int]:
    """FLOPs of training, and its time if the device's speed is given; evaluation is not included.

    Args:
        result: The estimate.
        clips: Training clips.
        epochs: Passes over them.
        device_tflops: Sustained speed of the device, in 10^12 FLOPs per second.

    Returns:
        The arguments, `tflops_per_epoch` and `tflops_per_run` (in 10^12 FLOPs), and if the speed is given
        `hours_per_epoch` and `hours_per_run`.

    Raises:
        UserError: If a number is not above 0.
    """
    per_epoch = clips * result.training_flops_per_clip / 1e12
    cost = {"clips": clips, "epochs": epochs, "tflops_per_epoch": per_epoch, "tflops_per_run": epochs * per_epoch}
    if device_tflops is not None:
        hours = per_epoch / device_tflops / 3600
        cost |= {"device_tflops": device_tflops, "hours_per_epoch": hours, "hours_per_run": epochs * hours}
    return cost


def to_json(result: Estimate, cost: dict[str, float | int] | None = None) -> str:
    """The estimate as JSON with sizes in bytes.

    Args:
        result: The estimate.
        cost: The result of `run_cost`, if the JSON should contain it as `run`.
    """
    memory = {
        precision: {**asdict(memory), "training": memory.training, "serving": memory.serving}
        for precision, memory in result.memory.items()
    }
    return json.dumps({**asdict(result), "memory": memory, "run": cost}, indent=2)


def format_estimate(result: Estimate, cost: dict[str, float | int] | None = None) -> str:
    """The estimate as a text table.

    Args:
        result: The estimate.
        cost: The result of `run_cost`, if the table should contain it.
    """
    forward, training = result.forward_flops_per_clip / 1e9, result.training_flops_per_clip / 1e9
    lines = [
        f"{result.backbone}, {result.num_labels} classes, features of {result.bands} x {result.frames}, "
        f"batches of {result.batch_size}",
        f"  parameters           {result.parameters:,}, {result.backbone_parameters:,} of them in the backbone",
        f"  forward              {forward:.2f} GFLOPs a clip ({forward / 2:.2f} GMACs: a multiply-add is 2 FLOPs)",
        f"  forward + backward   {training:.2f} GFLOPs a clip ({training / 2:.2f} GMACs)",
        "",
        "Memory, MB (10^6 bytes)" + "".join(f"{name:>11}" for name in ("fp32", "bf16")),
    ]
    rows = [
        ("Training", "training"),
        ("  weights", "weights"),
        ("  gradients", "gradients"),
        ("  AdamW's two moments", "optimizer"),
        ("  batch, activations", "saved"),
        ("Serving", "serving"),
        ("  weights", "weights"),
        ("  most alive at once", "live"),
    ]
    for title, name in rows:
        sizes = [getattr(result.memory[precision], name) / 1e6 for precision in PRECISIONS]
        lines.append(f"{title:<23}" + "".join(f"{size:>11,.1f}" for size in sizes))
    if cost:
        per_epoch, per_run = f"{cost['tflops_per_epoch']:,.0f} TFLOPs", f"{cost['tflops_per_run']:,.0f} TFLOPs"
        if "device_tflops" in cost:
            speed = f" at {cost['device_tflops']:g} TFLOPs a second"
            per_epoch += f", {cost['hours_per_epoch']:.3g} h{speed}"
            per_run += f", {cost['hours_per_run']:.3g} h{speed}"
        lines += ["", f"An epoch of {cost['clips']:,} clips: {per_epoch}", f"{cost['epochs']:g} epochs: {per_run}"]
    return "\n".join(lines)


def _bytes(tensors: Iterator[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _batch(batch_size: int, bands: int, frames: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of a batch."""
    return (
        torch.zeros(batch_size, bands, frames, device=device),
        torch.zeros(batch_size, dtype=torch.long, device=device),
    )
