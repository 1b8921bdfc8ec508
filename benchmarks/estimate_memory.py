"""Compares the memory estimates of `kenya-birds estimate` with measurements of training and inference on a GPU."""

import argparse
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kenya_birds.console import one_line_errors
from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training.estimate import PRECISIONS, estimate

BACKBONES = ("convnext_atto", "convnext_tiny", "tf_efficientnetv2_s", "mobilenetv4_conv_small")


def main() -> None:
    """Prints one table: a line for each backbone and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="timm image models")
    parser.add_argument("--batch_size", type=int, default=64, help="clips of a batch")
    options = parser.parse_args()
    with one_line_errors("estimate_memory.py"):
        if not torch.cuda.is_available():
            raise UserError("no CUDA GPU here, and its memory is what this measures: run it on a machine with one")
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batches of {options.batch_size}, MB (10^6)")
        titles = ("training", "measured", "ratio", "serving", "measured", "ratio")
        print(f"{'backbone':<28}{'':<6}" + "".join(f"{title:>10}" for title in titles))
        for backbone in options.backbones:
            _compare(backbone, options.batch_size)


def _compare(backbone: str, batch_size: int) -> None:
    result = estimate(backbone, batch_size=batch_size, num_labels=176)
    for precision in PRECISIONS:
        memory = result.memory[precision]
        cells = ""
        for told, step in ((memory.training, _train), (memory.serving, _serve)):
            measured = _peak_bytes(partial(step, result, precision == "bf16"))
            cells += f"{told / 1e6:>10,.0f}{measured / 1e6:>10,.0f}{told / measured:>10.3f}"
        print(f"{backbone:<28}{precision:<6}{cells}")


def _train(result: Any, bf16: bool) -> None:
    model, features, labels = _model_and_batch(result)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # AdamW's moments are there from the first step's end on: the second step has the peak.
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = model.train()(features, labels=labels).loss
        loss.backward()
        optimizer.step()


def _serve(result: Any, bf16: bool) -> None:
    model, features, _ = _model_and_batch(result)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        model.eval()(features)


def _model_and_batch(result: Any) -> tuple[KenyaBirdsForAudioClassification, torch.Tensor, torch.Tensor]:
    model = KenyaBirdsForAudioClassification(
        KenyaBirdsConfig(backbone=result.backbone, num_labels=result.num_labels)
    ).cuda()
    features = torch.randn(result.batch_size, result.bands, result.frames, device="cuda")
    return model, features, torch.zeros(result.batch_size, dtype=torch.long, device="cuda")


def _peak_bytes(run: Callable[[], None]) -> int:
    """Most bytes in tensors and workspaces at once while `run` goes on, beside what was there before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
