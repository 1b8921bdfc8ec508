"""Benchmarks that shall run on a bare GPU machine do."""

import sys

from running import ROOT, run

MISSING = ("datasets", "pyarrow", "pandas", "scipy", "sklearn", "soundfile", "soxr", "av", "noisereduce", "librosa")


def test_a_step_is_timed_with_torch_torchaudio_transformers_and_timm_alone():
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({MISSING}))
sys.argv = "training_speed.py step --steps 1 --repeats 1 --batch_size 2 --backbone test_convnext".split()
runpy.run_path("benchmarks/training_speed.py", run_name="__main__")
"""
    result = run(sys.executable, "-c", program, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert "| bare backbone |" in result.stdout
