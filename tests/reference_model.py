"""Two tiny models whose every weight is known, and what they answer in a clean process.

`python tests/reference_model.py > tests/reference_answers.json` writes the answers anew, as they have to be when the
model or the front end is changed on purpose.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from fresh_python import run_fresh

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import EARLIER_SETTINGS, KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.publishing.model_folder import PROGRAM

LABELS = ["combul2", "gnbcam2", "hartur1", "rbsrob1"]
MODELS = {
    "single": ({"logit_scale": 0.5}, {"noise_reduction": "stationary"}),
    "multi": (
        {"logit_scale": [0.5, 1.0, 2.0, 1.0], "logit_offset": [1.0, 0.0, -1.0, 0.5]},
        {"noise_reduction": "none", "feature_type": "stft"},
    ),
}


def save_reference_model(problem: str, folder: Path) -> Path:
    """Saves one of the models with its front end and code; no random number of torch or timm is in it."""
    calibration, front_end = MODELS[problem]
    config = KenyaBirdsConfig(
        backbone="test_convnext",
        problem_type=f"{problem}_label_classification",
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        **calibration,
    )
    model = KenyaBirdsForAudioClassification(config)
    generator = np.random.default_rng(0)
    for _, weight in sorted(model.state_dict().items()):
        values = generator.standard_normal(weight.shape)
        # Matrices keep the size of what goes through them, norms and biases are near what they are at the start.
        fan_in = np.prod(weight.shape[1:])
        values = values / np.sqrt(fan_in) if weight.ndim > 1 else float(weight.mean()) + 0.1 * values
        weight.copy_(torch.from_numpy(values))
    model.save_pretrained(folder)
    KenyaBirdsFeatureExtractor(**front_end).save_pretrained(folder)
    if problem == "single":  # as it was published before these settings existed, and has to stay
        path = folder / "preprocessor_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        for name in EARLIER_SETTINGS:
            del settings[name]
        path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def ask(python: str, folder: Path, home: Path, **environment: str) -> dict:
    """What a model answers in a process of that Python that cannot import this package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    used = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    words = ("-I", PROGRAM, folder)
    if python == sys.executable:
        done = run_fresh(*words, cwd=home, env=kept | used)
    else:
        done = subprocess.run(
            [python, *words], cwd=home, env=kept | used, capture_output=True, text=True, timeout=300, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def numbers(answer: dict) -> np.ndarray:
    """All logits and scores of an answer, in a fixed order."""
    scores = [scores[label] for _, scores in sorted(answer["scores"].items()) for label in LABELS]
    return np.array([*answer["logits"], *scores])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        answers = {
            problem: ask(sys.executable, save_reference_model(problem, Path(temporary) / problem), Path(temporary))
            for problem in MODELS
        }
    print(json.dumps(answers, indent=1))
