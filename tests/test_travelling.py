"""A saved model answers on a machine that has never heard of this package."""

import json
import os

import numpy as np
import pytest
import torch
import transformers
from fresh_python import run_fresh
from packaging.version import Version

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

RATE = 32_000
LABELS = ["combul2", "gnbcam2", "hartur1"]

# Runs in a process of its own: prints one JSON object.
STRANGER = """
import importlib.util, json, logging, sys

class NoKenyaBirds:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "kenya_birds":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoKenyaBirds())

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
from transformers.utils import logging as transformers_logging

torch.set_num_threads(1)
records = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: records.append([record.levelname, record.getMessage()])
transformers_logging.add_handler(handler)

folder, clips = sys.argv[1], np.load(sys.argv[2])
answer = {}
independent = {"function_to_apply": "sigmoid"}
for problem, told in (("single", {}), ("multi", independent), ("softmax", independent)):
    classify = pipeline("audio-classification", model=f"{folder}/{problem}", trust_remote_code=True)
    answer[problem] = {name: classify(clips[name], **told) for name in ("short", "three", "ten")}
    if importlib.util.find_spec("torchaudio"):
        answer[problem]["cd"] = classify({"array": clips["cd"], "sampling_rate": 44_100}, **told)
    answer[problem]["batch"] = classify([clips["three"], clips["ten"]], batch_size=2, **told)
    answer[problem]["untold"] = classify(clips["three"])

config = AutoConfig.from_pretrained(f"{folder}/single", trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(f"{folder}/single", trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(f"{folder}/single", trust_remote_code=True)
with torch.no_grad():
    features = extractor(clips["three"], sampling_rate=32_000, return_tensors="pt")
    answer["logits"] = model(**features).logits[0].tolist()
answer["species"] = config.species
answer["modules"] = sorted({type(thing).__module__.split(".")[0] for thing in (config, extractor, model)})

# What came from the Hub can be changed and saved again.
model.save_pretrained(f"{folder}/again")
extractor.save_pretrained(f"{folder}/again")
again = AutoModelForAudioClassification.from_pretrained(f"{folder}/again", trust_remote_code=True)
with torch.no_grad():
    answer["logits_again"] = again(**features).logits[0].tolist()

for name in ("single", "again"):
    plain = AutoModel.from_pretrained(f"{folder}/{name}", trust_remote_code=True).eval()
    with torch.no_grad():
        answer[f"logits_plain_{name}"] = plain(**features).logits[0].tolist()
plain.save_pretrained(f"{folder}/plain")
answer["auto_map"] = json.load(open(f"{folder}/plain/config.json"))["auto_map"]

new = AutoModelForAudioClassification.from_pretrained(
    f"{folder}/multi", num_labels=5, ignore_mismatched_sizes=True, trust_remote_code=True
)
config = new.config
answer["new"] = [config.logit_scale, config.logit_offset, config.species, list(config.id2label.values())]

answer["records"] = records
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def clips():
    generator = np.random.default_rng(3)

    def song(samples, rate):
        time_s = np.arange(samples) / rate
        call = np.sin(2 * np.pi * (2000 + 500 * time_s) * time_s) * (np.sin(2 * np.pi * 1.5 * time_s) > 0)
        return (0.3 * call + 0.02 * generator.standard_normal(samples)).astype(np.float32)

    return {
        "short": song(RATE, RATE),
        "three": song(3 * RATE, RATE),
        "ten": song(10 * RATE, RATE),
        "cd": song(3 * 44_100, 44_100),
    }


@pytest.fixture(scope="module")
def models():
    built = {}
    for name in ("single", "multi", "softmax"):
        problem_type = f"{'single' if name == 'single' else 'multi'}_label_classification"
        torch.manual_seed(0)
        config = KenyaBirdsConfig(
            backbone="test_convnext",
            problem_type=problem_type,
            no_call_class=name == "softmax",
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
            species={"combul2": {"scientific_name": "Pycnonotus barbatus", "common_name": "Common Bulbul"}},
        )
        if name != "single":
            config.logit_scale, config.logit_offset = [0.5, 1.0, 2.0], [1.0, 0.0, -1.0]
        else:
            config.logit_scale = 0.5
        built[name] = KenyaBirdsForAudioClassification(config).eval()
        # A fresh classifier scores all clips nearly alike.
        torch.nn.init.normal_(built[name].classifier.weight, std=0.2)
    return built


@pytest.fixture(scope="module")
def answer(clips, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("travelling")
    extractor = KenyaBirdsFeatureExtractor()
    for name, model in models.items():
        model.save_pretrained(folder / name)
        extractor.save_pretrained(folder / name)
    np.savez(folder / "clips.npz", **clips)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
    }
    result = run_fresh("-c", STRANGER, folder, folder / "clips.npz", cwd=elsewhere, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def expected_scores(model, waveform):
    features = KenyaBirdsFeatureExtractor()(waveform, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        # The softmax and the calibration by hand.
        logits = model.classifier(model.embed(**features))[0]
        if model.config.no_call_class:
            shares = logits.exp() / (1 + logits.exp().sum())
            logits = (shares / (1 - shares)).log()
    logits = logits * torch.tensor(model.config.logit_scale)
    if model.config.logit_offset:
        logits = logits + torch.tensor(model.config.logit_offset)
    multi_label = model.config.problem_type == "multi_label_classification"
    return dict(zip(LABELS, (logits.sigmoid() if multi_label else logits.softmax(-1)).tolist(), strict=True))


@pytest.mark.parametrize("problem", ["single", "multi", "softmax"])
@pytest.mark.parametrize("clip", ["short", "three", "ten"])
def test_pipeline_gives_the_scores_of_the_package(answer, models, clips, problem, clip):
    found = {row["label"]: row["score"] for row in answer[problem][clip]}
    assert found == pytest.approx(expected_scores(models[problem], clips[clip]), abs=1e-3)
    scores = [row["score"] for row in answer[problem][clip]]
    assert scores == sorted(scores, reverse=True)


def test_scores_sum_to_1_for_one_label_only(answer):
    assert sum(row["score"] for row in answer["single"]["three"]) == pytest.approx(1)
    assert sum(row["score"] for row in answer["multi"]["three"]) != pytest.approx(1, abs=0.01)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="before 5.23 the pipeline has to be told of sigmoid"
)
def test_pipeline_reads_from_the_config_that_labels_are_independent(answer):
    assert answer["multi"]["untold"] == answer["multi"]["three"]


def test_pipeline_resamples_other_rates(answer, models, clips):
    resample = pytest.importorskip("torchaudio.functional").resample
    found = {row["label"]: row["score"] for row in answer["single"]["cd"]}
    resampled = resample(torch.from_numpy(clips["cd"]), 44_100, RATE)
    assert found == pytest.approx(expected_scores(models["single"], resampled), abs=1e-3)


def test_pipeline_takes_batches(answer):
    for rows, clip in zip(answer["single"]["batch"], ("three", "ten"), strict=True):
        alone = {row["label"]: row["score"] for row in answer["single"][clip]}
        assert {row["label"]: row["score"] for row in rows} == pytest.approx(alone, abs=1e-3)


def test_clips_are_told_apart(answer):
    three, ten = ({row["label"]: row["score"] for row in answer["single"][clip]} for clip in ("three", "ten"))
    assert three != pytest.approx(ten, abs=0.01)
    assert max(three.values()) < 0.99


def test_auto_classes_load_the_travelled_code(answer, models, clips):
    assert answer["modules"] == ["transformers_modules"]
    assert answer["species"]["combul2"]["common_name"] == "Common Bulbul"
    features = KenyaBirdsFeatureExtractor()(clips["three"], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = models["single"](**features).logits[0]
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected, rtol=0, atol=5e-3)


def test_a_loaded_model_can_be_saved_and_loaded_again(answer):
    assert answer["logits_again"] == pytest.approx(answer["logits"], abs=1e-5)


def test_auto_model_loads_it_too_and_what_it_saves(answer):
    assert answer["logits_plain_single"] == answer["logits_plain_again"] == answer["logits"]
    assert answer["auto_map"]["AutoModel"] == answer["auto_map"]["AutoModelForAudioClassification"]


def test_a_new_classifier_of_the_travelled_code_has_no_old_calibration_and_names(answer):
    assert answer["new"] == [None, None, None, [f"LABEL_{index}" for index in range(5)]]


def test_transformers_logs_no_error(answer):
    assert [message for level, message in answer["records"] if level in ("ERROR", "CRITICAL")] == []
    assert not any("not supported" in message for _, message in answer["records"])
