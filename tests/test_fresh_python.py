"""Programs of tests find what a new Python gives them, although it is a fork."""

import json
import os
import subprocess

import pytest
from fresh_python import run_fresh

TELL = """
import json, os, sys
print(json.dumps([os.environ["BIRD"], os.getcwd(), sys.argv[1:], sys.stdin.read(), __name__]))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
print("problem", file=sys.stderr)
sys.exit(3)
"""


def test_a_program_has_its_own_environment_folder_and_arguments_and_no_library_that_reads_them(tmp_path):
    done = run_fresh("-c", TELL, "a b", tmp_path, cwd=tmp_path, env={**os.environ, "BIRD": "é"})
    told, loaded = map(json.loads, done.stdout.splitlines())
    assert told == ["é", str(tmp_path), ["a b", str(tmp_path)], "", "__main__"]
    assert not {"huggingface_hub", "transformers", "timm", "datasets", "kenya_birds"} & set(loaded)
    assert (done.returncode, done.stderr) == (3, "problem\n")


def test_scripts_and_modules_run_and_what_one_program_did_the_next_one_does_not_see(tmp_path):
    (tmp_path / "song.py").write_text(
        "import sys, torch\nprint(sys.argv[1:], hasattr(torch, 'bird'))\ntorch.bird = 1\n"
    )
    for words in (("song.py", "x"), ("-m", "song", "x"), ("-c", "import song", "x")):
        assert run_fresh(*words, cwd=tmp_path, env=os.environ).stdout == "['x'] False\n"
    assert "No module named 'song'" in run_fresh("-I", "-c", "import song", cwd=tmp_path, env=os.environ).stderr


def test_what_takes_too_long_is_ended_and_the_next_program_runs(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        run_fresh("-c", "import time; time.sleep(600)", cwd=tmp_path, env=os.environ, timeout_s=0.2)
    assert run_fresh("-c", "1 / 0", cwd=tmp_path, env=os.environ).stderr.endswith(
        "ZeroDivisionError: division by zero\n"
    )
