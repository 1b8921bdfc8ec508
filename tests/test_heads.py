"""Heads that are trained on embeddings of frozen backbones: published networks and models of this package."""

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from foreign import save_ast, save_clap, save_wav2vec2, save_whisper
from networks import LABELS, RATE, wrapped, write_labels, write_onnx, write_spectrogram_onnx, write_tflite
from running import flags, run_script, settings_of, train, without_features
from transformers import AutoModel

import push_model
import train_hf
from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.extras import requirements_of
from kenya_birds.inference.detect import hash_embedder
from kenya_birds.inference.embedding_models import load_embedder
from kenya_birds.model.audio_model_kenya_birds import AudioModel
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import EmbeddingHead, KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_model
from kenya_birds.publishing.model_folder import model_contents
from kenya_birds.saved_models import find_model
from kenya_birds.training.arguments import ModelArguments
from kenya_birds.training.embedded_data import EmbeddedTraining, EmbeddedWindowSampler
from kenya_birds.training.embedding_cache import BLOCK_WINDOWS, Block, EmbeddingCache, blocks_of, rows_of
from kenya_birds.training.flags import tuning_flags
from kenya_birds.training.frozen_backbones import find_backbone
from kenya_birds.training.frozen_training import FrozenEmbeddings
from kenya_birds.training.training_run import Run

pytestmark = pytest.mark.usefixtures("blank_figures")


def settings(backbone, **more):
    """Settings of a small run on a backbone."""
    return {"backbone": backbone, "init_from": "pretrained", "learning_rate": 0.03, **more}


def train_head(archive, output_dir, cache_dir, **given):
    train_hf.main(without_features(flags(archive, output_dir, cache_dir, **given)))
    return output_dir


def head_settings(archive, output_dir, cache_dir, **given):
    return settings_of(without_features(flags(archive, output_dir, cache_dir, **given)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def network(place, small_archive):
    return wrapped(place / "network", small_archive, "--license", "cc-by-nc-sa-4.0", "--source", "https://a.b/network")


@pytest.fixture(scope="module")
def trained(place, small_archive, network):
    return train_head(small_archive, place / "trained", place / "cache", **settings(network, num_train_epochs=3))


def test_a_model_on_a_published_network_is_a_model_folder(trained, network):
    config = json.loads((trained / "config.json").read_text())
    wrapped_config = json.loads((network / "config.json").read_text())
    assert config["graph"]["sha256"] == wrapped_config["graph"]["sha256"]
    assert config["head"] == {"hidden_size": None, "network_scores": True}
    front_end = json.loads((trained / "preprocessor_config.json").read_text())
    assert (front_end["feature_type"], front_end["sampling_rate"], front_end["clip_s"]) == ("waveform", RATE, 1.0)
    summary = json.loads((trained / "training_summary.json").read_text())
    assert summary["starting_point"] == "network"
    assert all(value == 0 for name, value in summary["augmentation"].items() if name.endswith("_probability"))
    assert (trained / "thresholds.json").is_file()
    assert not list(trained.glob("*.onnx"))
    recorded = json.loads((trained / "run_settings.json").read_text())["settings"]
    assert (recorded["backbone"], recorded["head"]) == ("wrapped", "linear")
    # Nobody knows on which recordings the network was trained.
    recordings = pd.read_csv(trained / "training_recordings.csv", keep_default_na=False)
    assert recordings.loc[recordings["recording"] == "", "model"].tolist() == ["birds"]


def test_the_network_gives_scores_of_the_species_that_it_knows(trained, network, small_archive):
    model, extractor = load_model(trained)
    own, _ = load_model(network)
    species = pd.read_csv(small_archive / "species.csv").set_index("Species eBird Code")["Scientific Name"]
    sound = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (4, RATE)).astype("f4"))
    inputs = model.head_input(extractor.extract(sound))
    scores = inputs[:, model.embedding_size :]
    known = own(sound).logits
    for label, code in model.config.id2label.items():
        if species[code] in own.config.label2id:
            assert torch.equal(scores[:, label], known[:, own.config.label2id[species[code]]])
        else:
            assert not scores[:, label].any()
    assert scores.any()
    with torch.no_grad():
        assert torch.equal(model(sound).logits, model(head_input=inputs).logits)
    assert torch.equal(model.embed(sound), own.embed(sound))


def test_a_head_starts_with_what_the_network_knows():
    head = EmbeddingHead(3, 2, 0.0, hidden_size=4, network_scores=True)
    inputs = torch.tensor([[1.0, 2.0, 3.0, -4.0, 5.0]])
    assert torch.equal(head(inputs), torch.tensor([[-4.0, 5.0]]))


@pytest.mark.parametrize("hidden_size", [None, 4])
def test_a_head_for_other_classes_starts_anew(hidden_size, tmp_path):
    head = {"hidden_size": hidden_size, "network_scores": False}
    config = KenyaBirdsConfig(backbone="test_convnext", num_labels=3, head=head)
    model = KenyaBirdsForAudioClassification(config)
    for values in model.classifier.state_dict().values():
        values.fill_(0.5)
    model.save_pretrained(tmp_path)
    loaded = KenyaBirdsForAudioClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    for name, values in loaded.classifier.state_dict().items():
        assert (values == (0 if name.startswith("output") else 0.5)).all(), name


def test_a_head_for_other_classes_does_not_use_the_networks_scores_of_the_old_ones(trained, network):
    model = KenyaBirdsForAudioClassification.from_pretrained(trained, num_labels=7, ignore_mismatched_sizes=True)
    sound = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (2, RATE)).astype("f4"))
    assert model(sound).logits.tolist() == [[0.0] * 7] * 2
    assert torch.equal(model.classifier.mean, load_model(trained)[0].classifier.mean)
    with pytest.raises(ValueError, match="published network, whose classes cannot be replaced"):
        KenyaBirdsForAudioClassification.from_pretrained(network, num_labels=7, ignore_mismatched_sizes=True)


def test_a_head_in_half_precision_takes_the_embeddings_of_a_network(trained):
    model, _ = load_model(trained)
    sound = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (2, RATE)).astype("f4"))
    with torch.no_grad():
        whole, half = model(sound).logits, model.bfloat16()(sound).logits
    assert half.dtype == torch.bfloat16
    assert torch.allclose(whole, half.float(), atol=0.1 * float(whole.abs().max()))


def test_a_head_standardises_embeddings_and_leaves_constant_numbers_alone():
    head = EmbeddingHead(2, 2, 0.0, hidden_size=None, network_scores=False)
    head.standardize(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert head.mean.tolist() == [2.0, 7.0]
    assert head.scale.tolist() == [1.0, 1.0]
    with torch.no_grad():
        head.output.weight.copy_(torch.eye(2))
    assert head(torch.tensor([[5.0, 7.0]])).tolist() == [[3.0, 0.0]]


def test_evaluation_and_detection_take_the_model(trained, small_archive, tmp_path, capsys):
    evaluate = ["evaluate", str(trained), str(small_archive), "--output", str(tmp_path / "out")]
    assert main([*evaluate, "--cache_dir", str(tmp_path / "cache")]) in (None, 0)
    before, again = (
        json.loads((folder / "metrics.json").read_text())["test"] for folder in (trained, tmp_path / "out")
    )
    for name in ("macro_f1", "cmap"):
        assert again[name] == pytest.approx(before[name], abs=1e-6)
    whole = [each["whole_recordings"]["metrics"]["cmap"]["value"] for each in (before, again)]
    assert whole[0] == pytest.approx(whole[1], abs=1e-6)
    for words in (
        ["detect", trained, small_archive, "--output", tmp_path / "found", "--threshold", "0.05"],
        ["embed", trained, small_archive, "--output", tmp_path / "e.parquet"],
    ):
        with pytest.raises(SystemExit, match="0"):
            main([str(word) for word in words])
    assert len(pd.read_csv(tmp_path / "found" / "detections.csv"))
    assert len(pd.read_parquet(tmp_path / "e.parquet")["embedding"][0]) == 5
    main(["info", str(trained)])
    printed = capsys.readouterr().out
    assert "licence cc-by-nc-sa-4.0" in printed
    assert "Only its head was trained (linear, with the network's own scores as inputs)" in printed


def test_the_card_names_network_head_and_licence(trained):
    card = (trained / "README.md").read_text(encoding="utf-8")
    for text in (
        "license: cc-by-nc-sa-4.0",
        "a head on embeddings of the published network birds",
        "pip install onnxruntime",
        "Get it from https://a.b/network",
        "excludes commercial use",
        "must be shared under the same licence",
        "linear, with the network's own scores",
    ):
        assert text in card, text
    assert "timm `" not in card
    assert "{%" not in card


@pytest.mark.usefixtures("forked_check")
def test_a_dry_push_answers_in_another_process_without_the_network(trained, network, tmp_path):
    done = run_script("push_model.py", "--model_dir", trained, "--repo_id", "someone/birds", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "the model answers in a clean process" in done.stdout
    assert "birds.onnx" not in done.stdout
    moved = shutil.copytree(trained, tmp_path / "moved", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((moved / "config.json").read_text())
    config["graph"]["file"] = "birds.onnx"
    (moved / "config.json").write_text(json.dumps(config))
    done = run_script("push_model.py", "--model_dir", moved, "--repo_id", "someone/birds", "--dry_run")
    assert done.returncode != 0
    assert "get it from https://a.b/network" in done.stderr


def test_a_bundled_network_travels_with_the_model(small_archive, network, place, tmp_path):
    given = settings(network, num_train_epochs=1, bundle_backbone=True)
    folder = train_head(small_archive, tmp_path / "bundled", place / "cache", **given)
    assert json.loads((folder / "config.json").read_text())["graph"]["file"] == "birds.onnx"
    assert (folder / "birds.onnx").read_bytes() == (place / "network" / "birds.onnx").read_bytes()
    moved = folder.rename(tmp_path / "moved")
    load_model(moved)
    assert "birds.onnx" in model_contents(moved)


def test_a_space_needs_the_network_in_the_model_and_installs_its_runtime(trained, place, tmp_path, monkeypatch):
    monkeypatch.setattr("kenya_birds.publishing.model_folder.check_model", lambda *_, **__: None)
    model = shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    words = ["--model_dir", str(model), "--repo_id", "ann/birds", "--dry_run", "--with_space", str(tmp_path / "space")]
    with pytest.raises(UserError, match=r"birds\.onnx is not in .*: train with --bundle_backbone"):
        push_model.main(words)
    assert not (tmp_path / "space").exists()
    shutil.copy(place / "network" / "birds.onnx", model)
    push_model.main(words)
    lines = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    assert requirements_of("onnxruntime")[0] in lines
    assert not [line for line in lines if line.startswith("ai-edge-litert")]


def embedded(run):
    """The number of windows that training and evaluation of a run embed."""
    with run:
        run.train()
        run.window_logits("test")
    return run.frozen.cache.computed


def test_other_folds_and_seeds_find_their_embeddings_in_the_cache(small_archive, network, tmp_path):
    given = settings(network, num_train_epochs=1)
    run = Run(head_settings(small_archive, tmp_path / "a", tmp_path / "cache", **given))
    assert embedded(run) > 0
    again = {**given, "seed": 3, "head": "mlp", "head_hidden_size": 8, "learning_rate": 0.01}
    assert embedded(Run(head_settings(small_archive, tmp_path / "b", tmp_path / "cache", **again))) == 0
    other = {**given, "network_scores": False}
    assert embedded(Run(head_settings(small_archive, tmp_path / "c", tmp_path / "cache", **other))) > 0


def test_other_changes_of_the_same_clips_are_embedded_anew(small_archive, network, tmp_path, monkeypatch):
    def count(name):
        given = settings(network, num_train_epochs=1, embedded_versions=2)
        return embedded(Run(head_settings(small_archive, tmp_path / name, tmp_path / "cache", **given)))

    draw = FrozenEmbeddings._chance

    def chance_of_joined(self, recordings, version):
        return draw(self, [f"archive/{name}" for name in recordings], version)

    assert count("first") > 0
    assert count("again") == 0
    monkeypatch.setattr(FrozenEmbeddings, "_chance", chance_of_joined)
    assert count("joined") > 0


def test_a_head_whose_model_moves_to_a_device_to_embed_can_be_trained(small_archive, network, tmp_path, monkeypatch):
    def move(self, *_, **__):
        """Replaces the weights by copies, as a move to a GPU does."""
        return torch.nn.Module.to(torch.nn.Module.to(self, torch.float64), torch.float32)

    monkeypatch.setattr(KenyaBirdsForAudioClassification, "to", move)
    run = Run(
        head_settings(small_archive, tmp_path / "a", tmp_path / "cache", **settings(network, num_train_epochs=1))
    )
    assert embedded(run) > 0
    assert not any(values.is_inference() for values in run.model.state_dict(keep_vars=True).values())


def test_a_killed_embedding_continues_where_it_was(small_archive, network, tmp_path, monkeypatch):
    given = settings(network, num_train_epochs=1)

    def run(name, cache):
        return Run(head_settings(small_archive, tmp_path / name, tmp_path / cache, **given))

    whole = embedded(run("whole", "cache_of_whole"))
    write, done = EmbeddingCache._write, []

    def write_and_die(self, block, embeddings):
        write(self, block, embeddings)
        done.append(len(block.rows))
        if len(done) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingCache, "_write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            embedded(run("killed", "cache"))
    assert embedded(run("again", "cache")) == whole - sum(done)


def test_blocks_hold_windows_of_one_recording():
    names = ["b"] * (BLOCK_WINDOWS + 1) + ["a", "b"]
    blocks = blocks_of(names, lambda name, rows: (name, len(rows)))
    assert [block.made_from for block in blocks] == [("b", BLOCK_WINDOWS), ("b", 2), ("a", 1)]
    assert sorted(row for block in blocks for row in block.rows.tolist()) == list(range(len(names)))


def test_windows_of_many_recordings_are_grouped_quickly():
    names = [f"{number:05}" for number in range(20_000)] * 5
    begin_s = time.process_time()
    blocks = blocks_of(names, lambda name, rows: (name,))
    assert time.process_time() - begin_s < 5
    assert [block.made_from[0] for block in blocks] == names[:20_000]
    assert blocks[1].rows.tolist() == [1, 20_001, 40_001, 60_001, 80_001]
    assert rows_of([]) == {}


def test_the_cache_distinguishes_networks_and_sounds(tmp_path):
    def cached(made_from, sound, value):
        cache = EmbeddingCache(tmp_path, (made_from,), 1)
        block = Block(np.arange(2), (sound,))
        return cache.get([block], lambda _: np.full((2, 1), value, dtype=np.float32), "windows")[0, 0]

    assert [cached("net", "a", 1), cached("net", "b", 2), cached("other", "a", 3), cached("net", "a", 4)] == [
        1,
        2,
        3,
        1,
    ]


def test_sound_that_cannot_be_read_and_a_cache_that_cannot_be_written_are_told_apart(tmp_path, monkeypatch):
    cache, block = EmbeddingCache(tmp_path, (), 1), Block(np.arange(2), ())

    def fail(*_):
        raise OSError(5, "Input/output error")

    with pytest.raises(UserError, match=r"^the sound of windows cannot be read: .*Input/output error$"):
        cache.get([block], fail, "windows")
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingCache, "_write", fail)
        with pytest.raises(UserError, match=r"embeddings cannot be written: .*; free disk space there"):
            cache.get([block], lambda _: np.zeros((2, 1)), "windows")
    assert cache.get([block], lambda _: np.ones((2, 1)), "windows").tolist() == [[1], [1]]  # nothing is locked
    (stored,) = cache.folder.glob("*.npy")
    stored.write_bytes(b"")  # as a power cut leaves it
    assert cache.get([block], lambda _: np.ones((2, 1)), "windows").tolist() == [[1], [1]]
    stored.write_bytes(b"no array")
    with pytest.raises(UserError, match=r"npy cannot be read .*: delete it, and it is computed again"):
        cache.get([block], fail, "windows")


def test_a_run_that_was_stopped_ends_as_one_that_was_not(small_archive, network, place, tmp_path):
    def weights(name, **more):
        given = settings(network, num_train_epochs=2, embedded_versions=2, **more)
        with Run(head_settings(small_archive, tmp_path / name, place / "cache", **given)) as run:
            trainer, _, _ = run.train()
        return trainer.model.classifier.output.weight.detach().numpy()

    whole = weights("whole")
    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert np.array_equal(whole, weights("resumed", resume_from_checkpoint=first))


def test_training_on_recordings_with_augmented_versions_of_a_tflite_network(small_archive, place, tmp_path):
    network = wrapped(tmp_path / "network", small_archive, network=write_tflite)
    given = settings(
        network, train_on="recordings", windows_per_epoch=32, embedded_versions=2, head="mlp", head_hidden_size=8
    )
    folder = train_head(small_archive, tmp_path / "birds", place / "cache", **given)
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["head"] == {"hidden_size": 8, "network_scores": True}
    summary = json.loads((folder / "training_summary.json").read_text())
    assert summary["augmentation"]["noise_probability"] == 0.5
    assert summary["augmentation"]["pitch_probability"] == 0
    assert "whole_recordings" in json.loads((folder / "metrics.json").read_text())["test"]


def test_a_cross_validation_with_a_final_fit(small_archive, network, place, tmp_path):
    given = settings(network, folds=3, final_fit=True, bundle_backbone=True, num_train_epochs=1)
    folder = train_head(small_archive, tmp_path / "birds", place / "cache", **given)
    assert json.loads((folder / "cross_validation.json").read_text())["folds"] == 3
    assert (folder / "birds.onnx").is_file()
    load_model(folder)
    assert "published network birds" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_model_of_this_package_is_frozen_and_keeps_its_backbone(small_archive, place, tmp_path):
    donor = train(small_archive, tmp_path / "donor", place / "cache", num_train_epochs=1)
    splits = {"splits_file": donor / "splits.csv"}
    other = {"splits_file": _moved_splits(donor, tmp_path)}
    with pytest.raises(UserError, match="trained on"):
        train_head(small_archive, tmp_path / "refused", place / "cache", **settings(donor, **other))
    given = settings(donor, head="mlp", num_train_epochs=1, **splits)
    folder = train_head(small_archive, tmp_path / "birds", place / "cache", **given)
    model, extractor = load_model(folder)
    before, before_extractor = load_model(donor)
    assert extractor.to_dict() == before_extractor.to_dict()
    assert model.config.graph is None
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    assert "Its backbone is frozen" in (folder / "README.md").read_text(encoding="utf-8")


def _moved_splits(donor, tmp_path):
    """The splits of a model, with its training and test recordings exchanged."""
    table = pd.read_csv(donor / "splits.csv")
    table["split"] = table["split"].replace({"train": "test", "test": "train"})
    table.to_csv(tmp_path / "moved.csv", index=False)
    return tmp_path / "moved.csv"


def test_a_network_without_labels_is_a_backbone(small_archive, place, tmp_path):
    graph = write_onnx(tmp_path / "net.onnx")
    given = settings(graph, backbone_embedding="embedding", sampling_rate=RATE, num_train_epochs=1)
    folder = train_head(small_archive, tmp_path / "birds", place / "cache", **given)
    config = json.loads((folder / "config.json").read_text())
    assert config["head"] == {"hidden_size": None, "network_scores": False}
    assert (config["graph"]["name"], config["graph"]["embedding_size"]) == ("net", 5)
    assert "Its licence is not stated here" in (folder / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="has no tensor 'pool'"):
        head_settings(small_archive, tmp_path / "b", place / "cache", **{**given, "backbone_embedding": "pool"})


def test_an_audio_model_of_transformers_is_a_backbone(small_archive, place, tmp_path, capsys):
    foreign = save_wav2vec2(tmp_path / "foreign" / "wav")
    given = settings(foreign, clip_s=1, num_train_epochs=1, windows_per_epoch=64)
    folder = train_head(small_archive, tmp_path / "birds", place / "cache", **given, train_on="recordings")
    model, extractor = load_model(folder)
    assert model.config.no_call_class  # heads on recordings have a softmax
    assert (extractor.sampling_rate, extractor.clip_s, extractor.feature_type) == (16_000, 1.0, "waveform")
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 16_000)).astype("f4")
    with torch.no_grad():
        found = model.embed(extractor(list(sound), sampling_rate=16_000, return_tensors="pt")["input_features"])
    assert np.array_equal(found, load_embedder(str(foreign), clip_s=1.0, device="cpu")(sound))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "embeddings of the audio model wav of transformers" in card
    assert "Its licence is not stated here" in card
    recordings = pd.read_csv(folder / "training_recordings.csv", keep_default_na=False)
    assert recordings.loc[recordings["recording"] == "", "model"].tolist() == ["wav"]
    main(["info", str(folder)])
    assert ": wav, " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(folder), "--output", str(tmp_path / "graph")])
    assert "has a published network (wav), which was not trained here" in capsys.readouterr().err
    # A head on the backbone of this head.
    again = settings(folder, splits_file=folder / "splits.csv")
    with pytest.raises(UserError, match="--bundle_backbone is for a published network"):
        head_settings(small_archive, tmp_path / "again", place / "cache", **again, bundle_backbone=True)
    run = Run(head_settings(small_archive, tmp_path / "again", place / "cache", **again))
    with torch.no_grad():
        assert np.array_equal(run.model.eval().embed(torch.from_numpy(sound)), found)
    assert run.model.config.audio_model == model.config.audio_model


def test_a_feature_extractor_may_be_in_a_processors_file(tmp_path):
    foreign = save_wav2vec2(tmp_path / "wav")
    before = hash_embedder(find_model(foreign))
    part = json.loads((foreign / "preprocessor_config.json").read_text())
    (foreign / "processor_config.json").write_text(json.dumps({"feature_extractor": part}))
    (foreign / "preprocessor_config.json").unlink()
    assert hash_embedder(find_model(foreign)) != before
    backbone = find_backbone(ModelArguments(backbone=str(foreign)), {"clip_s": 1.0})
    assert backbone.features.sampling_rate == load_embedder(str(foreign), clip_s=1.0, device="cpu").sampling_rate


@pytest.mark.parametrize(
    ("save", "clip_s"), [(save_ast, 1.0), (save_wav2vec2, 1.0), (save_whisper, 3.0), (save_clap, 3.0)]
)
def test_audio_models_are_the_same_after_they_are_saved(save, clip_s, tmp_path):
    embedder = load_embedder(str(save(tmp_path / "foreign")), clip_s=clip_s, device="cpu")
    about = {
        "config": json.loads((tmp_path / "foreign" / "config.json").read_text()),
        "extractor": embedder.audio_model.extractor.to_dict(),
        "embedding_size": embedder.size,
        "name": "foreign",
    }
    head = {"hidden_size": None, "network_scores": False}
    model = KenyaBirdsForAudioClassification(KenyaBirdsConfig(audio_model=about, head=head))
    model.backbone.load_state_dict(embedder.audio_model.state_dict())
    model.save_pretrained(tmp_path / "birds")
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (2, embedder.clip_samples)).astype("f4")
    again = KenyaBirdsForAudioClassification.from_pretrained(tmp_path / "birds").eval()
    with torch.no_grad():
        assert np.array_equal(again.embed(torch.from_numpy(sound)), embedder(sound))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_audio_models_in_half_precision_compute_in_float32(dtype, tmp_path):
    foreign = save_clap(tmp_path / "foreign")
    AutoModel.from_pretrained(foreign).to(dtype).save_pretrained(foreign)
    config = json.loads((foreign / "config.json").read_text())
    assert config["dtype"] == str(dtype).partition(".")[2]
    embedder = load_embedder(str(foreign), clip_s=3.0, device="cpu")
    backbone = AudioModel.of_settings(config, embedder.audio_model.extractor.to_dict()).eval()
    assert {weights.dtype for weights in backbone.parameters()} == {torch.float32}
    backbone.load_state_dict(embedder.audio_model.state_dict())
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (2, embedder.clip_samples)).astype("f4")
    with torch.no_grad():
        assert np.array_equal(backbone(torch.from_numpy(sound)), embedder(sound))


def test_timms_backbone_is_frozen_on_request(small_archive, place, tmp_path):
    folder = train(small_archive, tmp_path / "birds", place / "cache", freeze_backbone=True, num_train_epochs=1)
    summary = json.loads((folder / "training_summary.json").read_text())
    assert summary["starting_point"] == "scratch"
    assert json.loads((folder / "config.json").read_text())["head"] == {"hidden_size": None, "network_scores": False}
    resumed = flags(small_archive, folder, place / "cache", freeze_backbone=True, num_train_epochs=1)
    train_hf.main([*resumed, "--resume_from_checkpoint", "true"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backbone": "nowhere.onnx"}, "sampling rate of nowhere.onnx is not known: give --backbone_preset"),
        ({"backbone": "nowhere.onnx", "backbone_preset": "perch-2"}, "nowhere.onnx"),
        ({"backbone": "./nowhere"}, "there is no model './nowhere'"),
        ({"head": "mlp"}, "--head is for a frozen backbone"),
        ({"embedded_versions": 2}, "--embedded_versions is for a frozen backbone"),
        ({"backbone_preset": "perch-2"}, "give --backbone FILE"),
        ({"backbone_embedding": "pool"}, "--backbone_embedding is for the file of a published network"),
        ({"bundle_backbone": True}, "--bundle_backbone is for a published network"),
        ({"freeze_backbone": True, "network_scores": True}, "--network_scores needs a published network"),
        ({"freeze_backbone": True, "mixup_probability": 0.5}, "--mixup_probability cannot be used with a frozen"),
        ({"freeze_backbone": True, "noise_probability": 0.5}, "--embedded_versions 2 or more"),
        ({"freeze_backbone": True, "drop_path_rate": 0.1}, "--drop_path_rate cannot be used with a frozen"),
        (
            {"backbone": "test_convnext", "freeze_backbone": True, "embedding_hop_s": 1},
            "--embedding_hop_s is for --train_on recordings",
        ),
        ({"freeze_backbone": True, "train_on": "recordings", "hard_windows": 0.5}, "--hard_windows cannot be used"),
        ({"freeze_backbone": True, "train_on": "recordings", "embedding_hop_s": 9}, "embedding_hop_s is 9"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(given, said, small_archive, tmp_path):
    with pytest.raises(UserError) as caught:
        settings_of(flags(small_archive, tmp_path / "out", tmp_path / "cache", **given))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"clip_s": 3}, "clip_s is 3.0, but the backbone"),
        ({"init_from": "scratch"}, "leave --init_from out"),
        ({"backbone_preset": "perch-2"}, "has its settings: leave it out"),
        ({"embedded_versions": 2, "pitch_probability": 0.5}, "the network takes the waveform"),
    ],
)
def test_settings_that_the_network_decides_are_refused(more, said, small_archive, network, tmp_path):
    with pytest.raises(UserError, match=said):
        head_settings(small_archive, tmp_path / "out", tmp_path / "cache", **settings(network, **more))


def test_a_graph_that_takes_no_waveform_and_one_without_a_known_embedding_are_refused(small_archive, tmp_path):
    def refusal(**given):
        with pytest.raises(UserError) as caught:
            head_settings(small_archive, tmp_path / "out", tmp_path / "cache", **settings(**given))
        return str(caught.value)

    spectrogram = write_spectrogram_onnx(tmp_path / "spectrogram.onnx")
    assert "takes no waveform" in refusal(backbone=spectrogram, backbone_preset="perch-2")
    small = write_onnx(tmp_path / "small.onnx")
    assert "the preset's window needs 160,000" in refusal(backbone=small, backbone_preset="perch-2")
    folder = tmp_path / "wrapped"
    words = ["wrap", small, "--labels", write_labels(tmp_path / "labels.txt"), "--output", folder]
    main([str(word) for word in (*words, "--sampling_rate", RATE, "--activation", "sigmoid")])
    assert "again with --embedding TENSOR (a wrong name, such as x, lists the tensors)" in refusal(backbone=folder)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"network_scores": True}, "--network_scores is for a published network"),
        ({"bundle_backbone": True}, "--bundle_backbone is for a published network"),
        ({"clip_s": 3}, "crops windows of 3 s: give a smaller --clip_s"),
        ({"clip_s": 1, "sampling_rate": 32_000}, "sampling_rate is 32000, but the backbone"),
    ],
)
def test_settings_that_a_model_of_transformers_cannot_have_are_refused(more, said, small_archive, place, tmp_path):
    given = settings(save_ast(tmp_path / "foreign"), **more)
    with pytest.raises(UserError, match=said):
        Run(head_settings(small_archive, tmp_path / "out", place / "cache", **given))


def test_another_file_than_the_hash_says_and_a_missing_runtime_are_refused(
    small_archive, network, tmp_path, monkeypatch
):
    copy = shutil.copytree(network, tmp_path / "copy")
    write_onnx(copy / "birds.onnx", gain=2.0)
    with pytest.raises(UserError, match="another file than the model was made with"):
        head_settings(small_archive, tmp_path / "out", tmp_path / "cache", **settings(copy))
    from kenya_birds import extras

    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(UserError, match="needs onnxruntime, which is not installed: run pip install"):
        head_settings(small_archive, tmp_path / "out", tmp_path / "cache", **settings(network))


def test_tuning_refuses_a_frozen_backbone(small_archive, tmp_path):
    with pytest.raises(UserError, match="compare heads with"):
        tuning_flags(small_archive, tmp_path / "out", ["--freeze_backbone", "true"])


def test_a_model_with_a_published_network_is_no_start_and_is_not_exported(trained, small_archive, tmp_path, capsys):
    with pytest.raises(UserError, match="has a published network"):
        settings_of(flags(small_archive, tmp_path / "out", tmp_path / "cache", init_from=trained))
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(trained), "--output", str(tmp_path / "graph")])
    assert "has a published network" in capsys.readouterr().err


def test_embedded_windows_are_drawn_by_their_shares():
    targets = np.zeros((100, 2), dtype=np.int64)
    targets[:10, 0], targets[10, 1] = 1, 1
    is_empty = np.arange(100) >= 50
    sampler = EmbeddedWindowSampler(
        targets,
        np.arange(100) // 5,
        is_empty,
        np.zeros(100, dtype=bool),
        np.array([10, 1]),
        length=4001,
        windows_per_step=8,
        seed=1,
        call_share=0.5,
        empty_share=0.25,
        species_power=1.0,
    )
    rows = np.array([draw.clip for draw in sampler])
    assert len(rows) == len(sampler) == 4000
    shares = [(rows == 10).mean(), (rows < 10).mean(), (rows >= 50).mean()]
    # A quarter for each species; a quarter empty; and a quarter anywhere, of which half is empty.
    assert shares == pytest.approx([0.25 + 0.0025, 0.25 + 0.025, 0.25 + 0.125], abs=0.02)
    assert np.array_equal(rows, [draw.clip for draw in sampler])
    sampler.set_epoch(1)
    assert not np.array_equal(rows, [draw.clip for draw in sampler])
    with pytest.raises(UserError, match="no window of the training recordings"):
        EmbeddedWindowSampler(
            0 * targets,
            np.arange(100),
            is_empty,
            np.zeros(100, dtype=bool),
            np.zeros(2),
            length=8,
            windows_per_step=1,
            seed=1,
            call_share=0.5,
            empty_share=0.25,
            species_power=0.0,
        )


def test_embedded_windows_anywhere_need_a_recording_with_all_its_calls_annotated():
    def sampler(call_share):
        return EmbeddedWindowSampler(
            np.array([[1, 0], [-100, -100], [0, 1]]),
            np.array([0, 0, 1]),
            np.zeros(3, dtype=bool),
            np.ones(3, dtype=bool),
            np.array([1, 1]),
            length=8,
            windows_per_step=1,
            seed=1,
            call_share=call_share,
            empty_share=0.0,
            species_power=0.0,
        )

    assert {draw.clip for draw in sampler(1.0)} == {0, 2}
    with pytest.raises(UserError, match="no training recording with all its calls annotated"):
        sampler(0.5)


def test_a_drawn_version_has_its_own_embedding_and_target():
    from kenya_birds.training.batches import ClipDraw

    data = EmbeddedTraining(
        [np.array([[0.0], [1.0]], dtype="f4"), np.array([[10.0], [11.0]], dtype="f4")],
        [torch.tensor([0, 1]), torch.tensor([0, 2])],
    )
    draws = [ClipDraw(1, 0, np.array([chance])) for chance in (0.0, 0.49, 0.5, 0.99)]
    batch = data.__getitems__(draws)
    assert batch["head_input"].flatten().tolist() == [1.0, 1.0, 11.0, 11.0]
    assert batch["labels"].tolist() == [1, 1, 2, 2]
    assert len(LABELS) == 3


def test_embedded_windows_of_wrong_detections_are_drawn_as_often_as_those_with_a_call():
    targets = np.zeros((100, 2), dtype=np.int64)
    targets[:10, 0] = 1
    targets[80:] = -100  # a recording with checked detections
    targets[80:85, 1] = 0
    partial = np.arange(100) >= 80
    empty = (np.arange(100) >= 50) & ~partial
    sampler = EmbeddedWindowSampler(
        targets,
        np.arange(100) // 20,
        empty,
        partial,
        np.array([10, 0]),
        length=1000,
        windows_per_step=1,
        seed=1,
        call_share=0.4,
        empty_share=0.3,
        species_power=0.0,
    )
    rows = np.array([draw.clip for draw in sampler])
    assert ((rows >= 80) & (rows < 85)).sum() == 400 * 5 // 10
    assert not (rows >= 85).any()
