"""An exported graph gives the model's probabilities, to a program that has neither torch nor this package."""

import csv
import json
import subprocess
import sys
import wave

import numpy as np
import pytest
import torch

from kenya_birds.cli import main
from kenya_birds.data.audio import decode_wav
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.publishing.export_readme import PROGRAM

LABELS = ["combul2", "gnbcam2", "hartur1"]
SPECIES = {"combul2": {"scientific_name": "Pycnonotus barbatus", "common_name": "Common Bulbul"}}

# Goes in front of a program that has onnxruntime and numpy alone.
STRANGER = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("kenya_birds", "torch", "transformers", "timm", "onnx", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""
IN_BATCHES = """
import json
import numpy as np
import onnxruntime

answers = {}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
for source, path in (("clips", sys.argv[1]), ("odd", sys.argv[2])):
    waveform = np.load(path)
    for batch in (1, 7):
        parts = [waveform[first : first + batch] for first in range(0, len(waveform), batch)]
        answers[f"{source}_{batch}"] = np.concatenate([session.run(None, {"waveform": part})[0] for part in parts])
np.savez("answers.npz", **answers)
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""


def save_model(folder, problem_type="single_label_classification", **fields):
    """A model with random weights whose answers differ from clip to clip, calibrated."""
    torch.manual_seed(0)
    config = KenyaBirdsConfig(
        backbone="test_convnext",
        problem_type=problem_type,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        species=SPECIES,
        logit_scale=0.5,
    )
    if problem_type == "multi_label_classification":
        config.logit_scale, config.logit_offset = [0.5, 1.0, 2.0], [1.0, 0.0, -1.0]
    model = KenyaBirdsForAudioClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    extractor = KenyaBirdsFeatureExtractor(**fields)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor


def expected(model, extractor, waveform):
    with torch.no_grad():
        logits = model(**extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")).logits
    multi_label = model.config.problem_type == "multi_label_classification"
    return (logits.sigmoid() if multi_label else logits.softmax(dim=-1)).numpy()


def run_stranger(program, folder, *words):
    result = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER + program, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def waveforms(clips, tmp_path_factory):
    """Every clip of the small archive, and odd ones; saved for the other process."""
    folder = tmp_path_factory.mktemp("waveforms")
    ours = np.stack([decode_wav(clip["bytes"]) for split in clips.values() for clip in split["audio"]]) / 32768
    odd = np.zeros((8, ours.shape[1]))
    odd[1, 40_000] = 1.0
    odd[2] = np.sin(np.arange(ours.shape[1]) * 0.5)
    odd[3, :30_000] = ours[0, :30_000]
    odd[4] = 1e-4 * ours[1]
    odd[5] = 0.5
    odd[6] = np.clip(20 * ours[2], -1, 1)
    odd[7] = np.random.default_rng(0).uniform(-1, 1, ours.shape[1])
    saved = {"clips": ours.astype(np.float32), "odd": odd.astype(np.float32)}
    for name, waveform in saved.items():
        np.save(folder / f"{name}.npy", waveform)
    return folder, saved


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports a model with these settings."""

    def run(problem_type, **fields):
        folder = tmp_path_factory.mktemp("export")
        model, extractor = save_model(folder / "model", problem_type, **fields)
        thresholds = {"wanted_precision": None, "every_species": 0.4, "species": {"combul2": 0.3, "hartur1": None}}
        (folder / "model" / "thresholds.json").write_text(json.dumps(thresholds))
        main(["export", str(folder / "model"), "--output", str(folder / "graph")])
        return model, extractor, folder / "graph"

    return run


@pytest.fixture(scope="module")
def single(export):
    return export("single_label_classification")


@pytest.fixture(scope="module")
def multi(export):
    return export("multi_label_classification", noise_reduction="none")


def check_parity(exported, waveforms):
    model, extractor, graph = exported
    folder, waveform = waveforms
    metadata = json.loads(run_stranger(IN_BATCHES, graph, folder / "clips.npy", folder / "odd.npy"))
    with np.load(graph / "answers.npz") as answers:
        for source in ("clips", "odd"):
            wanted = expected(model, extractor, waveform[source])
            # It would be easy to agree on answers that are all alike.
            assert wanted.std(axis=0).max() > 0.02
            for batch in (1, 7):
                found = answers[f"{source}_{batch}"]
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
                assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    return metadata


def test_a_single_label_model_with_noise_reduction_answers_the_same(single, waveforms):
    check_parity(single, waveforms)


def test_a_multi_label_model_without_noise_reduction_answers_the_same(multi, waveforms):
    check_parity(multi, waveforms)


@pytest.mark.parametrize(
    ("problem_type", "fields"),
    [
        ("multi_label_classification", {}),
        ("single_label_classification", {"noise_reduction": "none"}),
        ("single_label_classification", {"noise_reduction": "nonstationary", "pre_emphasis": 0.97, "top_db": 60.0}),
        ("single_label_classification", {"feature_type": "stft", "n_fft": 1000, "hop_length": 441, "f_max_hz": 8000}),
    ],
    ids=["multi", "single", "nonstationary", "stft"],
)
def test_other_problems_and_front_ends_answer_the_same(export, waveforms, problem_type, fields):
    check_parity(export(problem_type, **fields), waveforms)
