"""Processes that share a run wait for each other, however long one of them takes."""

import sys

from running import ROOT, run

SCRIPT = """
import time
from datetime import timedelta

import torch

from kenya_birds.errors import UserError
from kenya_birds.distributed import Team

torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2))
team = Team()


def work():
    time.sleep(4)
    raise UserError(f"no clip can be read, says {team.rank}")


order = []
with team.one_first():
    if team.is_first:
        time.sleep(4)
    order.append(time.time())
assert [time for time, *_ in team.gather(order)] == sorted(time for time, *_ in team.gather(order))
try:
    team.first_does(work)
except UserError as error:
    told = str(error)
assert team.first_does(lambda: f"rank {team.rank}") == "rank 0"
print(f"{team.rank} of {team.size}: {told}")
torch.distributed.destroy_process_group()
"""


def test_no_time_out_of_the_process_group_ends_their_waiting(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = run(*launcher, str(tmp_path / "script.py"), PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        "0 of 2: no clip can be read, says 0",
        "1 of 2: no clip can be read, says 0",
    ]
