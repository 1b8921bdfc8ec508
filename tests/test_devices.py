"""Which device and how many readers a computation gets, on machines with GPUs that are not here."""

from types import SimpleNamespace

import pytest
import torch

from kenya_birds.distributed import Team
from kenya_birds.inference import devices
from kenya_birds.inference.devices import count_readers, device_for
from kenya_birds.training.logged_trainer import lay_out


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_a_published_network_runs_on_the_cpu():
    network, own = SimpleNamespace(config={"graph": {"file": "birds.onnx"}}), SimpleNamespace(config={"graph": None})
    assert [device_for(network, name).type for name in (None, "cuda:1", "cpu")] == ["cpu"] * 3
    assert [str(device_for(own, name)) for name in (None, "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]


def test_processes_on_a_machine_share_its_cores_to_read(monkeypatch):
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: range(12), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # as torchrun sets it
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    assert (count_readers(gpu, None), count_readers(gpu, 3), count_readers(cpu, None), count_readers(cpu, 3)) == (
        *(8, 3),
        *(1, 3),
    )
    for processes, readers in ((4, 3), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert count_readers(gpu, None) == readers


@pytest.mark.parametrize(("device", "format"), [("cpu", torch.channels_last), ("mps", torch.contiguous_format)])
def test_training_on_apples_gpus_leaves_the_memory_format_as_it_is(device, format):
    model = torch.nn.Conv2d(2, 3, kernel_size=3)
    assert lay_out(model, torch.device(device)) is model
    assert model.weight.is_contiguous(memory_format=format)


@pytest.mark.usefixtures("two_gpus")
def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch):
    assert [Team().device(name) for name in (None, "cuda", "cpu")] == [None, "cuda", "cpu"]
    monkeypatch.setattr(Team, "__init__", lambda self: None)
    team = Team()
    team.size, team.local_rank = 4, 3
    assert [team.device(name) for name in (None, "cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert team.device(None) is None
