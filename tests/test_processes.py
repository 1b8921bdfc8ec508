"""Processes that share a run wait for each other, however long one of them takes."""

import json
import time
from datetime import timedelta

import pytest
import torch
from running import start_ranks

from kenya_birds.distributed import Team, _end_process_group, _group_without_timeout
from kenya_birds.errors import LostProcessError, UserError


def _wait_longer_than_the_group(folder):
    """Writes what a process learned from the others."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2))
    team = Team()

    def work():
        time.sleep(3)
        raise UserError(f"no clip can be read, says {team.rank}")

    with team.one_first():
        if team.is_first:
            time.sleep(3)
        entered_s = time.time()
    answer = {"size": team.size, "entered_s": team.gather(entered_s)}
    try:
        team.first_does(work)
    except UserError as error:
        answer["told"] = str(error)
    answer["done_by"] = team.first_does(lambda: f"rank {team.rank}")
    (folder / f"{team.rank}.json").write_text(json.dumps(answer))
    torch.distributed.destroy_process_group()


def test_no_time_out_of_the_process_group_ends_their_waiting(tmp_path):
    children = start_ranks(2, _wait_longer_than_the_group, tmp_path)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    first, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == other
    assert first["entered_s"] == sorted(first["entered_s"])
    assert (first["size"], first["told"], first["done_by"]) == (2, "no clip can be read, says 0", "rank 0")


def test_the_end_of_another_process_is_an_error_of_its_own(monkeypatch):
    def closed(*_, **__):
        raise RuntimeError("Connection closed by peer")

    team = Team()
    team.size = 2
    monkeypatch.setattr(torch.distributed, "all_gather_object", closed)
    with pytest.raises(LostProcessError, match="another process of this run has ended: see its error message"):
        team.wait()


def _end_with_a_group_of_nccl():
    """Ends as after an error: its own group is gone, that of NCCL is left."""
    torch.distributed.init_process_group("gloo")
    team = Team()
    team.wait()
    own = _group_without_timeout(torch.distributed.group.WORLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "get_backend", lambda: "nccl")
        _end_process_group()
    assert torch.distributed.is_initialized()
    with pytest.raises(ValueError, match="is not initialized"):
        torch.distributed.get_backend(own)
    torch.distributed.destroy_process_group()


def test_a_process_that_fails_does_not_wait_for_the_others_to_end_nccl():
    children = start_ranks(2, _end_with_a_group_of_nccl)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
