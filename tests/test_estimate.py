"""The estimate: counts that the literature and hand arithmetic know, and memory that real tensors confirm."""

import functools
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from fresh_python import run_fresh
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training import estimate as estimate_module
from kenya_birds.training.estimate import (
    LiveBytes,
    count_flops,
    default_feature_size,
    format_estimate,
    run_cost,
    saved_bytes,
)

# An estimate takes a second or more, and several tests look at the same ones.
estimate = functools.cache(estimate_module.estimate)
CLASSES = 176
ROOT = Path(__file__).parent.parent
FAMILIES = ["test_convnext", "convnext_tiny", "tf_efficientnetv2_b0", "test_efficientnet"]


@pytest.fixture(scope="module")
def convnext_tiny():
    """ConvNeXt-T as its paper has it, 1000 classes and 224 x 224, but for our one input channel."""
    return estimate("convnext_tiny", batch_size=2, num_labels=1000, bands=224, frames=224)


def build(backbone="test_convnext", device="cpu", classes=10):
    torch.manual_seed(0)
    with torch.device(device):
        return KenyaBirdsForAudioClassification(KenyaBirdsConfig(backbone=backbone, num_labels=classes))


def batch(size, bands=64, frames=96, device="cpu"):
    return torch.zeros(size, bands, frames, device=device), torch.zeros(size, dtype=torch.long, device=device)


# Against the literature


def test_convnext_tiny_has_the_parameters_of_its_paper_less_two_channels_of_the_stem(convnext_tiny):
    stem_of_two_channels = 2 * 96 * 4 * 4
    assert convnext_tiny.parameters == 28_589_128 - stem_of_two_channels
    assert convnext_tiny.parameters - convnext_tiny.backbone_parameters == 768 * 1000 + 1000


def test_each_class_costs_a_row_of_the_classifier(convnext_tiny):
    fewer = estimate("convnext_tiny", batch_size=64, num_labels=CLASSES)
    assert convnext_tiny.parameters - fewer.parameters == (1000 - CLASSES) * (768 + 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_gradients_take_114_mb_and_adamw_twice_that(convnext_tiny, precision):
    memory = convnext_tiny.memory[precision]
    assert memory.weights == memory.gradients == 4 * convnext_tiny.parameters == pytest.approx(114e6, abs=0.5e6)
    assert memory.optimizer == 2 * memory.weights


def test_convnext_tiny_takes_4_5_gmacs_at_224_x_224_with_the_stem_of_three_channels(convnext_tiny):
    stem_macs_of_two_channels = 56 * 56 * 96 * 2 * 4 * 4
    assert convnext_tiny.forward_flops_per_clip / 2 + stem_macs_of_two_channels == pytest.approx(4.46e9, rel=0.003)


def test_convnext_tiny_takes_1_5_gmacs_at_128_x_130_and_1_8_as_padded_to_128_x_160():
    backbone = build("convnext_tiny", "meta").backbone
    unpadded, _ = count_flops(backbone, torch.zeros(1, 1, 128, 130, device="meta"))
    padded, _ = count_flops(backbone, torch.zeros(1, 1, 128, 160, device="meta"))
    ours = estimate("convnext_tiny", batch_size=1, num_labels=10, bands=128, frames=130)
    assert unpadded / 2e9 == pytest.approx(1.45, abs=0.01)
    assert ours.forward_flops_per_clip == padded + 2 * 768 * 10
    assert ours.forward_flops_per_clip / 2e9 == pytest.approx(1.81, abs=0.01)


def test_features_are_those_of_the_default_extractor_unless_told():
    assert default_feature_size() == (128, 188)
    by_default = estimate("test_convnext", batch_size=1, num_labels=CLASSES)
    assert by_default == estimate("test_convnext", batch_size=1, num_labels=CLASSES, bands=128, frames=188)
    assert estimate("convnext_tiny", batch_size=1, num_labels=10, bands=128, frames=130).frames == 130


# Against hand arithmetic


def test_flops_of_a_linear_layer():
    model = nn.Linear(30, 7)
    forward, backward = count_flops(model, torch.zeros(5, 30, requires_grad=True))
    assert forward == 2 * 5 * 30 * 7
    assert backward == 2 * forward


@settings(max_examples=20)
@given(groups=st.sampled_from([1, 2, 4, 8]), stride=st.integers(1, 3), size=st.integers(3, 9), clips=st.integers(1, 4))
def test_flops_of_a_convolution_with_groups(groups, stride, size, clips):
    model = nn.Conv2d(8, 16, kernel_size=3, padding=1, stride=stride, groups=groups)
    forward, backward = count_flops(model, torch.zeros(clips, 8, size, size, requires_grad=True))
    outputs = clips * 16 * ((size - 1) // stride + 1) ** 2
    assert forward == 2 * outputs * 9 * 8 // groups
    assert backward == 2 * forward


def test_the_first_layer_has_no_gradient_of_its_input_to_compute():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    forward, backward = count_flops(model, torch.zeros(1, 1, 4, 4))
    convolution, linear = 2 * 4 * 4 * 9, 2 * 16 * 3
    assert forward == convolution + linear
    assert backward == convolution + 2 * linear


@pytest.mark.parametrize("backbone", FAMILIES)
def test_backward_costs_about_twice_the_forward_pass(backbone):
    result = estimate(backbone, batch_size=64, num_labels=CLASSES)
    assert 2.9 < result.training_flops_per_clip / result.forward_flops_per_clip <= 3


def test_saved_bytes_of_a_perceptron():
    model = nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 3))
    # The input, the hidden layer before GELU and after it.
    assert saved_bytes(model, torch.zeros(4, 10)) == 4 * 4 * (10 + 20 + 20)


def test_a_tensor_saved_twice_is_counted_once():
    class Square(nn.Module):
        def forward(self, x):
            y = x.exp()
            return (y * y.view(-1, 1).view_as(y)).sum()

    assert saved_bytes(Square(), torch.zeros(6, requires_grad=True)) == 4 * (6 + 6)


def test_live_bytes_are_the_most_at_once_and_not_the_sum():
    with LiveBytes() as alive:
        x = torch.zeros(100)
        for _ in range(5):
            x = x + 1
        x.view(10, 10).add_(1)
    assert alive.peak == 4 * (100 + 100)


def test_weights_and_views_of_them_are_not_live_bytes():
    model = nn.Linear(1000, 3)
    with LiveBytes() as alive, torch.no_grad():
        model(torch.zeros(2, 1000))
    assert alive.peak == 4 * (2 * 1000 + 2 * 3)


# Against real tensors


@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet"])
def test_what_a_real_forward_pass_saves_is_what_the_estimate_tells(backbone):
    told = estimate(backbone, batch_size=3, num_labels=10, bands=64, frames=96).memory["fp32"]
    assert told.saved == saved_bytes(build(backbone), *batch(3))


def test_what_is_alive_in_a_real_forward_pass_is_what_the_estimate_tells():
    told = estimate("test_convnext", batch_size=3, num_labels=10, bands=64, frames=96).memory["fp32"]
    model = build().eval()
    with LiveBytes() as alive, torch.no_grad():
        model(batch(3)[0])
    assert told.live == alive.peak


@pytest.mark.parametrize("backbone", FAMILIES)
def test_at_the_default_batch_the_sum_of_the_parts_is_within_4_percent_of_the_most_alive_in_a_step(backbone):
    told = estimate(backbone, batch_size=64, num_labels=CLASSES).memory["fp32"]
    with LiveBytes() as alive:
        model = build(backbone, "meta", CLASSES).train()
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        for _ in range(2):
            features, labels = batch(64, 128, 188, device="meta")
            optimizer.zero_grad()
            model(features, labels=labels).loss.backward()
            optimizer.step()
    assert told.training == pytest.approx(alive.peak, rel=0.04)


# Properties


@pytest.mark.parametrize("batch_size", [7, 64])
def test_memory_is_linear_in_the_batch_and_flops_are_the_same_for_each_clip(batch_size):
    one, some = (estimate("test_convnext", batch_size=size, num_labels=CLASSES) for size in (1, batch_size))
    assert some.forward_flops_per_clip == one.forward_flops_per_clip
    assert some.training_flops_per_clip == one.training_flops_per_clip
    # The loss saves one number for the batch: its weight.
    constant = 4
    assert some.memory["fp32"].saved - constant == batch_size * (one.memory["fp32"].saved - constant)


# One with layer normalisation and one with batch normalisation.
@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet"])
def test_bf16_saves_about_half_and_copies_of_the_weights(backbone):
    results = [estimate(backbone, batch_size=size, num_labels=CLASSES) for size in (7, 64)]
    small, large = (result.memory for result in results)
    per_clip = {name: (large[name].saved - small[name].saved) / (64 - 7) for name in small}
    # Layer normalisation keeps float32 under CUDA's autocast.
    assert 0.48 < per_clip["bf16"] / per_clip["fp32"] < 0.6
    # The classifier computes in float32.
    copies = small["bf16"].saved - 7 * per_clip["bf16"]
    assert 0.9 * 2 * results[0].backbone_parameters < copies < 1.1 * 2 * results[0].backbone_parameters


def test_a_large_batch_is_estimated_without_its_memory():
    result = estimate("convnext_tiny", batch_size=2048, num_labels=10)
    assert result.memory["fp32"].training > 90e9


def test_autocast_is_off_again_after_an_estimate():
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    estimate_module.estimate("test_convnext", batch_size=1, num_labels=2)
    assert (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")) == before


def test_the_numbers_of_the_readme():
    result = estimate("convnext_tiny", batch_size=64, num_labels=CLASSES)
    assert result.forward_flops_per_clip / 1e9 == pytest.approx(4.35, abs=0.005)
    assert result.training_flops_per_clip / 1e9 == pytest.approx(13.06, abs=0.005)
    gigabytes = {name: (memory.training / 1e9, memory.serving / 1e9) for name, memory in result.memory.items()}
    assert gigabytes["fp32"] == pytest.approx((3.9, 0.5), abs=0.05)
    assert gigabytes["bf16"] == pytest.approx((2.4, 0.4), abs=0.05)


# Run and command


def test_hours_are_operations_by_speed():
    result = estimate("test_convnext", batch_size=1, num_labels=CLASSES)
    cost = run_cost(result, clips=1000, epochs=3, device_tflops=2)
    assert cost["tflops_per_epoch"] == pytest.approx(1000 * result.training_flops_per_clip / 1e12)
    assert cost["hours_per_run"] == pytest.approx(3 * cost["tflops_per_epoch"] / 2 / 3600)


def test_without_a_speed_no_hours_are_told():
    result = estimate("test_convnext", batch_size=1, num_labels=CLASSES)
    assert " h" not in format_estimate(result, run_cost(result, clips=10, epochs=1)).split("An epoch")[1]


def test_the_command_prints_a_table(capsys):
    main(["estimate", "--backbone", "test_convnext", "--batch_size", "8", "--clips", "6000", "--device_tflops", "1"])
    printed = capsys.readouterr().out
    assert "features of 128 x 188, batches of 8" in printed
    assert "AdamW" in printed
    assert "30 epochs: " in printed


def test_the_command_prints_json(capsys):
    main(["estimate", "--backbone", "test_convnext", "--num_labels", str(CLASSES), "--json"])
    printed = json.loads(capsys.readouterr().out)
    result = estimate("test_convnext", batch_size=64, num_labels=CLASSES)
    assert printed["parameters"] == result.parameters
    assert printed["memory"]["bf16"]["training"] == result.memory["bf16"].training
    assert printed["run"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "convnext_tyni"], "has no model 'convnext_tyni': did you mean"),
        (["--backbone", "vit_base_patch16_224"], "takes images of one size only"),
        (["--batch_size", "-4"], "batch_size is -4: expected 1 or more"),
        (["--frames", "0"], "frames is 0"),
        (["--clips", "-1"], "clips is -1: expected 1 or more"),
        (["--clips", "10", "--device_tflops", "0"], "device_tflops is 0.0"),
        (["--device_tflops", "10"], "needs the number of clips: add --clips"),
    ],
)
def test_what_cannot_be_estimated_is_one_line_and_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", "--backbone", "test_convnext", *words])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize(
    ("backbone", "batch_size", "message"),
    [
        ("resnet18", 1, "more than 1 value per channel"),
        ("inception_v3", 2, "Output size is too small"),
        ("resnet18", 10**18, "overflow"),
    ],
)
def test_a_batch_that_the_backbone_cannot_take_is_the_users_error(backbone, batch_size, message):
    with pytest.raises(UserError, match=message):
        estimate(backbone, batch_size=batch_size, num_labels=2, bands=32, frames=32)


def test_the_module_needs_neither_datasets_nor_librosa():
    script = (
        "import sys; sys.modules.update(datasets=None, librosa=None, pandas=None)\n"
        "from kenya_birds.training.estimate import estimate\n"
        "print(estimate('test_convnext', batch_size=1, num_labels=2).parameters)"
    )
    process = run_fresh("-c", script, cwd=ROOT, env=os.environ)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 100_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_says_in_one_line_that_it_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["estimate_memory.py"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "benchmarks" / "estimate_memory.py"), run_name="__main__")
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "run it on a machine with one" in printed
    assert printed.count("\n") == 1
