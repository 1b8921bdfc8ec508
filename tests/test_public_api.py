"""What `import kenya_birds` gives, how fast, and what it changes in transformers."""

import json
import os
import shutil
import subprocess
import sys
import typing

import numpy as np
import pytest
import soundfile
from fresh_python import run_fresh
from running import ROOT

import kenya_birds
from kenya_birds.data.audio import RecordingReader, read_header
from kenya_birds.evaluation.novelty import NoveltyReference
from kenya_birds.inference.embedding_models import load_embedder
from kenya_birds.saved_models import find_model

IN_A_FRESH_PROCESS = """
import json, sys
{first}
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
{last}
import numpy as np
folder = sys.argv[1]
things = [auto.from_pretrained(folder) for auto in (AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification)]
answer = {{"classes": [f"{{type(thing).__module__}}.{{type(thing).__qualname__}}" for thing in things]}}
answer["base"] = type(AutoModel.from_pretrained(folder)).__qualname__
sound = np.random.default_rng(0).normal(0, 0.1, 96_000).astype(np.float32)
answer["scores"] = pipeline("audio-classification", model=folder)(sound)
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = kenya_birds.KenyaBirdsConfig(backbone="test_convnext", id2label={0: "combul2", 1: "hartur1"})
    kenya_birds.KenyaBirdsForAudioClassification(config).save_pretrained(folder)
    kenya_birds.KenyaBirdsFeatureExtractor().save_pretrained(folder)
    return folder


def python(code, *words):
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    loaded = python("import sys, kenya_birds; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert not {"torch", "transformers", "numpy", "pandas", "datasets", "scipy"} & set(loaded)


def test_every_public_name_is_there_documented_and_listed():
    assert set(kenya_birds.__all__) <= set(dir(kenya_birds))
    for name in set(kenya_birds.__all__) - {"__version__"}:
        thing = getattr(kenya_birds, name)
        assert thing.__name__ == name
        assert thing.__doc__
        assert thing.__module__.startswith("kenya_birds.")
        assert isinstance(thing, type) or "return" in typing.get_type_hints(thing)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'kenya_birds' has no attribute 'Whistle'"):
        _ = kenya_birds.Whistle


@pytest.mark.parametrize(
    ("first", "last"),
    [("import kenya_birds", ""), ("", "import kenya_birds")],
    ids=["imported before transformers", "imported after transformers"],
)
def test_auto_classes_and_pipeline_load_our_folders_without_trust_remote_code(folder, first, last):
    done = run_fresh("-c", IN_A_FRESH_PROCESS.format(first=first, last=last), folder, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["classes"] == [
        "kenya_birds.model.configuration_kenya_birds.KenyaBirdsConfig",
        "kenya_birds.model.feature_extraction_kenya_birds.KenyaBirdsFeatureExtractor",
        "kenya_birds.model.modeling_kenya_birds.KenyaBirdsForAudioClassification",
    ]
    assert answer["base"] == "KenyaBirdsForAudioClassification"
    model, extractor = kenya_birds.load_model(folder)
    sound = np.random.default_rng(0).normal(0, 0.1, 96_000).astype(np.float32)
    logits = model(**extractor(sound, sampling_rate=32_000, return_tensors="pt")).logits
    expected = dict(zip(model.config.id2label.values(), logits.softmax(-1)[0].tolist(), strict=True))
    assert {entry["label"]: entry["score"] for entry in answer["scores"]} == pytest.approx(expected, abs=1e-5)


def test_paths_may_be_texts_and_models_paths(folder, tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 96_000), 32_000)
    with RecordingReader(str(path)) as reader:
        (block,) = reader.blocks(96_000)
        assert (block.decoder, block.reason) == ("soundfile", "")
        assert reader.path == path
    assert read_header(str(path)).frames == 96_000
    assert load_embedder(folder).saved.name == find_model(folder).name == str(folder)
    with pytest.raises(kenya_birds.UserError, match="no model"):
        find_model(tmp_path / "none")
    assert len(list(kenya_birds.detect(folder, str(path), threshold=0.0))) == 2
    with pytest.raises(kenya_birds.UserError, match="threshold is 2: expected"):
        kenya_birds.detect(folder, str(path), threshold=2)
    written = str(tmp_path / "known.safetensors")
    vectors = np.eye(4, dtype=np.float32)
    NoveltyReference(vectors, np.zeros(4, dtype=np.float32), 1).write(written)
    assert (NoveltyReference.read(written).calls == vectors).all()


def test_a_model_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(kenya_birds.UserError, match="no model"):
        kenya_birds.load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":' * 20_000, r"config\.json cannot be read as JSON"),
        ('{"model_type": "kenya_birds", "backbone": ["x"]}', "cannot be loaded"),
    ],
)
def test_a_config_with_values_that_cannot_be_is_a_user_error(folder, tmp_path, text, reason):
    edited = shutil.copytree(folder, tmp_path / "edited")
    (edited / "config.json").write_text(text)
    with pytest.raises(kenya_birds.UserError, match=reason):
        kenya_birds.load_model(edited)
