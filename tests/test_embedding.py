"""Embeddings of windows: the vectors that the classifier sees, foreign models, files of them, faults."""

import csv
import io
import json
import os
import shutil
import signal
import threading
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from detecting import CLIP_S, RATE, chirps, save_model, write_recordings
from foreign import save_ast, save_clap, save_wav2vec2, save_whisper
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.inference import embeddings as embedding_module
from kenya_birds.inference import embeddings as search_module
from kenya_birds.inference.detect import hash_model
from kenya_birds.inference.embedding_models import Embedder, load_embedder
from kenya_birds.inference.embeddings import Hit, embed_recordings, read_about, search_embeddings
from kenya_birds.model.audio_model_kenya_birds import AudioModel
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model

LENGTHS_S = (7.3, 0.4, 3.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "birds")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("sound") / "recordings", LENGTHS_S)


@pytest.fixture(scope="module")
def embedder(model):
    return load_embedder(str(model), device="cpu")


def embed_command(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["embed", *map(str, words), "--device", "cpu"])
    return ended.value.code


def floats(seconds, **options) -> np.ndarray:
    return chirps(seconds, **options) / np.float32(32768)


def vectors(path) -> np.ndarray:
    return np.stack(pd.read_parquet(path)["embedding"])


# What an embedding is


def test_ours_is_what_the_classifier_sees(model, embedder):
    classifier, own = load_classifier(find_model(str(model)))
    sound = floats(2 * CLIP_S).reshape(2, -1)
    found = embedder(sound)
    assert found.shape == (2, embedder.size)
    assert found.dtype == np.float32
    with torch.no_grad():
        features = own(sound, sampling_rate=RATE, return_tensors="pt")["input_features"]
        logits = classifier.classifier(torch.from_numpy(found)) * classifier.config.logit_scale
        torch.testing.assert_close(logits, classifier.eval()(features).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("save", "clip_s", "how"),
    [
        (save_ast, 1.0, "pooled output"),
        (save_wav2vec2, 1.0, "mean over time of the last hidden state"),
        (save_whisper, 3.0, "mean over time of the last hidden state"),
        (save_clap, 3.0, "pooled output"),
    ],
)
def test_models_of_transformers_give_one_vector_a_window(tmp_path, save, clip_s, how):
    embedder = load_embedder(str(save(tmp_path / "model")), clip_s=clip_s, device="cpu")
    sound = floats(3 * clip_s, rate=embedder.sampling_rate)[: 3 * embedder.clip_samples].reshape(3, -1)
    found = embedder(sound)
    assert found.shape == (3, embedder.size)
    assert embedder.how == how
    np.testing.assert_allclose(found[1:2], embedder(sound[1:2]), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-5


def test_the_mean_over_time_is_of_the_last_hidden_state(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    embedder = load_embedder(str(folder), clip_s=1.0, device="cpu")
    sound = floats(1.0)
    wave = torch.from_numpy(sound).float()
    wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(wave[None]).last_hidden_state
    np.testing.assert_allclose(embedder(sound[None])[0], hidden.mean(dim=1)[0], atol=1e-5)


def test_the_silence_that_whisper_adds_is_not_in_the_mean(tmp_path):
    folder = save_whisper(tmp_path / "model")
    embedder = load_embedder(str(folder), clip_s=3.0, device="cpu")
    sound = floats(3.0)
    features = embedder.audio_model.extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).get_encoder().eval()(features).last_hidden_state
    assert hidden.shape[1] == 1500  # of 30 s
    np.testing.assert_allclose(embedder(sound[None])[0], hidden[0, :150].mean(dim=0), atol=1e-5)


# What cannot embed


@pytest.mark.parametrize("save", [save_ast, save_clap])
def test_a_model_that_would_not_hear_all_of_a_window_is_refused(tmp_path, save):
    folder = save(tmp_path / "model")
    with pytest.raises(UserError, match=r"crops windows of 12 s.*smaller --clip_s"):
        load_embedder(str(folder), clip_s=12.0, device="cpu")


@pytest.mark.parametrize(("save", "longest_s", "cropped_s"), [(save_ast, 1.3, 1.36), (save_whisper, 30.0, 30.5)])
def test_a_model_that_would_not_hear_the_end_of_a_window_is_refused(tmp_path, save, longest_s, cropped_s):
    folder = save(tmp_path / "model")
    assert load_embedder(str(folder), clip_s=longest_s, device="cpu").clip_s == longest_s
    with pytest.raises(UserError, match=f"crops windows of {cropped_s:g} s"):
        load_embedder(str(folder), clip_s=cropped_s, device="cpu")


def test_windows_that_are_too_short_for_a_model_are_refused(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    with pytest.raises(UserError, match=r"cannot embed windows of 0.01 s .*give another --clip_s"):
        load_embedder(str(folder), clip_s=0.01, device="cpu")
    with pytest.raises(UserError, match="expected more than 0 s"):
        load_embedder(str(folder), clip_s=0.0, device="cpu")


def test_ours_keep_their_window(model):
    with pytest.raises(UserError, match="has windows of 1 s: remove --clip_s"):
        load_embedder(str(model), clip_s=3.0, device="cpu")
    assert load_embedder(str(model), clip_s=CLIP_S, device="cpu").clip_samples == RATE


@pytest.mark.parametrize("model_type", ["remote", "wav2vec2"])
def test_no_code_of_a_models_own_is_run(model_type, tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = model_type
    config["auto_map"] = {"AutoConfig": "remote.Config", "AutoModel": "remote.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "remote.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    if model_type == "wav2vec2":
        assert load_embedder(str(folder), device="cpu").size == 16
    else:
        with pytest.raises(UserError, match="model_type remote: expected one of audio-spectrogram-transformer, clap"):
            load_embedder(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_an_audio_model_in_a_model_folder_names_no_code(tmp_path, monkeypatch):
    folder = save_wav2vec2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil/repo--modeling.Evil"}, "_name_or_path": "evil/repo"}
    # As for a type that this version of transformers knows, but has no model of.
    monkeypatch.setattr("transformers.AutoModel._model_mapping", {})
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(f"the user was asked: {text}"))
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AudioModel.of_settings(config, {"feature_extractor_type": "Wav2Vec2FeatureExtractor"})


def test_a_model_type_that_loads_further_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda *names, **options: pytest.fail("timm was asked for a model"))
    wrapper = {
        "model_type": "timm_wrapper",
        "architecture": "test_convnext",
        "model_args": {"checkpoint_path": "a.pt"},
    }
    folder = save_wav2vec2(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(wrapper))
    with pytest.raises(
        UserError, match=r"'.*model' is no audio model that can be used: it has the model_type timm_wrap"
    ):
        load_embedder(str(folder), device="cpu")
    with pytest.raises(ValueError, match="it has the model_type timm_wrapper: expected one of"):
        AudioModel.of_settings(wrapper, {"feature_extractor_type": "ASTFeatureExtractor"})


def test_pickled_or_missing_weights_are_refused(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled weights"):
        load_embedder(str(pickled), device="cpu")
    weights = load_file(folder / "model.safetensors")
    weights.pop("feature_projection.projection.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 are missing, the first is feature_projection"):
        load_embedder(str(folder), device="cpu")


def test_a_fine_tuned_model_without_the_vector_for_masks_is_loaded(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    sound = floats(1.0)[None]
    expected = load_embedder(str(folder), clip_s=1.0, device="cpu")(sound)
    weights = load_file(folder / "model.safetensors")
    weights.pop("masked_spec_embed")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    embedder = load_embedder(str(folder), clip_s=1.0, device="cpu")
    assert np.array_equal(embedder(sound), expected)
    assert not embedder.audio_model.model.masked_spec_embed.any()  # the same in each run


def test_a_model_without_a_front_end_for_sound_is_refused(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config"):
        load_embedder(str(folder), device="cpu")


def test_damaged_weights_do_not_go_unnoticed(tmp_path, recordings):
    from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification

    folder = save_model(tmp_path / "birds")
    broken = KenyaBirdsForAudioClassification.from_pretrained(folder)
    with torch.no_grad():
        next(broken.backbone.parameters()).fill_(float("nan"))
    broken.save_pretrained(folder)
    with pytest.raises(UserError, match="embeddings that are not finite"):
        embed_recordings(load_embedder(str(folder), device="cpu"), [recordings], tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


class DividesByTheLoudest(Embedder):
    """Embeddings of digital silence are not numbers."""

    size = 2
    how = "scaled"

    def _embed(self, sound):
        return torch.from_numpy((sound / np.abs(sound).max(axis=1, keepdims=True))[:, : self.size])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_silence_that_fills_the_last_batch_may_have_no_embedding(model, recordings, tmp_path):
    embedder = DividesByTheLoudest(find_model(str(model)), RATE, RATE, torch.device("cpu"))
    embed_recordings(embedder, [recordings], tmp_path / "out.parquet", batch_size=5)
    assert np.isfinite(vectors(tmp_path / "out.parquet")).all()


# Files of embeddings


def test_there_is_a_row_for_every_window_of_the_grid(model, recordings, tmp_path, embedder):
    out = tmp_path / "embeddings.parquet"
    assert embed_command(model, recordings, "--output", out, "--overlap_s", "0.5") == 0
    table = pd.read_parquet(out)
    paths = sorted(recordings.iterdir())
    for path, length_s in zip(paths, LENGTHS_S, strict=True):
        rows = table[table["recording"] == str(path)]
        last_s = max(0, length_s - CLIP_S)
        assert rows["start_s"].tolist() == pytest.approx(np.minimum(np.arange(len(rows)) * 0.5, last_s), abs=1e-4)
        assert len(rows) == 1 + max(0, int(np.ceil((length_s - CLIP_S) / 0.5)))
        assert rows["end_s"].iloc[-1] == pytest.approx(length_s)
    assert table["recording"].tolist() == sorted(table["recording"])
    sound, _ = soundfile.read(paths[0], dtype="float32")
    third = sound[RATE : RATE + embedder.clip_samples]
    np.testing.assert_allclose(vectors(out)[2], embedder(third[None])[0], atol=1e-4)


def test_the_file_says_how_it_was_made(model, recordings, tmp_path, embedder):
    out = tmp_path / "embeddings.parquet"
    assert embed_command(model, recordings, "--output", out) == 0
    about = read_about(out)
    sizes = (about["embedding_size"], about["sampling_rate"], about["clip_s"], about["overlap_s"])
    assert sizes == (embedder.size, RATE, CLIP_S, 0.0)
    assert about["model"] == str(model)
    assert len(about["model_sha256"]) == 64
    assert pq.read_schema(out).field("embedding").type.list_size == embedder.size
    with pytest.raises(UserError, match="cannot be read as embeddings"):
        read_about(model / "config.json")


def test_a_bad_recording_is_left_out_and_told_and_the_others_go_on(model, recordings, tmp_path):
    (tmp_path / "KEN_000_bad.flac").write_bytes(b"no sound")
    soundfile.write(tmp_path / "KEN_001_silent.flac", np.zeros(3 * RATE, dtype=np.int16), RATE)
    out = tmp_path / "embeddings.parquet"
    bad, silent = tmp_path / "KEN_000_bad.flac", tmp_path / "KEN_001_silent.flac"
    assert embed_command(model, bad, silent, recordings, "--output", out) == 3
    assert set(pd.read_parquet(out)["recording"]) == {str(path) for path in recordings.iterdir()}
    with (tmp_path / "embeddings_failed.csv").open() as file:
        rows = {row["recording"]: row for row in csv.DictReader(file)}
    assert set(rows) == {str(bad), str(silent)}
    assert rows[str(bad)]["status"] == "failed"
    assert "silence" in rows[str(silent)]["reason"]


def test_of_a_recording_that_changes_while_it_is_read_nothing_is_kept(
    model, recordings, tmp_path, monkeypatch, embedder
):
    from kenya_birds.inference.audio_stream import Reading

    def cut_short(source, *rest, read=embedding_module.read_source):
        for item in read(source, *rest):
            fails = isinstance(item, Reading) and "KEN_000" in source.recording
            yield Reading.failed("the file changed while it was read") if fails else item

    monkeypatch.setattr(embedding_module, "read_source", cut_short)
    report = embed_recordings(embedder, [recordings], tmp_path / "out.parquet")
    assert report.exit_code == 3
    assert not pd.read_parquet(tmp_path / "out.parquet")["recording"].str.contains("KEN_000").any()


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_asked_to_end_leaves_nothing(model, recordings, tmp_path, monkeypatch, capsys, name):
    read, once = embedding_module.read_source, threading.Lock()

    def ended(source, *rest):
        for number, item in enumerate(read(source, *rest)):
            # Several recordings are read at a time, and a second signal would end Python at once.
            if number == 1 and once.acquire(blocking=False):
                os.kill(os.getpid(), getattr(signal, name))
            yield item

    monkeypatch.setattr(embedding_module, "read_source", ended)
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # it is ignored in tests that nohup started
    assert embed_command(model, recordings, "--output", tmp_path / "out.parquet") == 128 + number
    assert signal.signal(number, before) is signal.SIG_DFL
    assert list(tmp_path.iterdir()) == []
    assert f"kenya-birds embed: stopped by {name}" in capsys.readouterr().err


def test_recordings_that_miss_a_part_of_the_spectrum_are_counted(recordings, tmp_path, embedder, caplog):
    soundfile.write(tmp_path / "low.wav", chirps(2.0, 1, 8_000), 8_000)
    embed_recordings(embedder, [recordings, tmp_path / "low.wav"], tmp_path / "out.parquet")
    assert f"1 of {len(LENGTHS_S) + 1} recordings have a sampling rate below 15000 Hz" in caplog.text


def test_readers_do_not_change_the_file(recordings, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(embedding_module, "ROWS_PER_GROUP", 3)
    for readers in (1, 3):
        embed_recordings(
            embedder, [recordings], tmp_path / f"{readers}.parquet", overlap_s=0.5, batch_size=4, num_workers=readers
        )
    one, three = (pd.read_parquet(tmp_path / f"{readers}.parquet") for readers in (1, 3))
    pd.testing.assert_frame_equal(one.drop(columns="embedding"), three.drop(columns="embedding"))
    np.testing.assert_allclose(np.stack(one["embedding"]), np.stack(three["embedding"]), atol=1e-5)
    groups = pq.ParquetFile(tmp_path / "1.parquet").metadata
    assert groups.num_row_groups > 3
    assert groups.num_rows == len(one)


def test_when_it_is_stopped_nothing_is_left(recordings, tmp_path, embedder, monkeypatch):
    def stop(self, index, reading):
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding_module._Writer, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        embed_recordings(embedder, [recordings], tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_before_the_work(recordings, tmp_path, embedder):
    (tmp_path / "there.parquet").write_bytes(b"mine")
    for output, match in {
        tmp_path / "out.csv": r"ends in .parquet",
        tmp_path / "there.parquet": "exists already",
        tmp_path / "nowhere" / "out.parquet": "not a writable folder",
    }.items():
        with pytest.raises(UserError, match=match):
            embed_recordings(embedder, [recordings], output)
    with pytest.raises(UserError, match="batch_size is 0"):
        embed_recordings(embedder, [recordings], tmp_path / "out.parquet", batch_size=0)
    with pytest.raises(UserError, match="the overlap is 1"):
        embed_recordings(embedder, [recordings], tmp_path / "out.parquet", overlap_s=1.0)
    with pytest.raises(UserError, match="no file, folder or pattern"):
        embed_recordings(embedder, [tmp_path / "none"], tmp_path / "out.parquet")
    assert (tmp_path / "there.parquet").read_bytes() == b"mine"
    embed_recordings(embedder, [recordings], tmp_path / "there.parquet", overwrite=True)
    assert len(pd.read_parquet(tmp_path / "there.parquet"))


class ManyNumbers(Embedder):
    """Gives large embeddings at no cost."""

    size = 2048
    how = "zeros"

    def _embed(self, sound):
        return torch.zeros(len(sound), self.size)


def test_memory_does_not_grow_with_a_recordings_length(model, tmp_path):
    embedder = ManyNumbers(find_model(str(model)), RATE, RATE, torch.device("cpu"))
    peaks = []
    for length_s in (60, 360):
        soundfile.write(tmp_path / f"{length_s}.flac", chirps(length_s), RATE)
        tracemalloc.start()
        embed_recordings(
            embedder, [tmp_path / f"{length_s}.flac"], tmp_path / f"{length_s}.parquet", overlap_s=0.9, batch_size=16
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        file = pq.ParquetFile(tmp_path / f"{length_s}.parquet")
        assert file.metadata.num_rows == 10 * length_s - 9
    # The longer one's embeddings are 29 MB.
    assert peaks[1] < peaks[0] + 2e7


# Search


@pytest.fixture(scope="module")
def embedded(model, recordings, tmp_path_factory, embedder):
    path = tmp_path_factory.mktemp("embedded") / "embeddings.parquet"
    embed_recordings(embedder, [recordings], path, overlap_s=0.5)
    return path


def test_an_example_finds_itself_and_then_what_is_most_alike(recordings, embedded, tmp_path):
    sound, _ = soundfile.read(recordings / "KEN_000_20211207_153852.flac", dtype="int16")
    soundfile.write(tmp_path / "call.wav", sound[2 * RATE : 3 * RATE], RATE)
    hits = search_embeddings(embedded, [tmp_path / "call.wav"], top_k=5, device="cpu")
    assert (hits[0].recording, hits[0].start_s) == (str(recordings / "KEN_000_20211207_153852.flac"), 2.0)
    assert hits[0].similarity == pytest.approx(1, abs=1e-5)
    table = pd.read_parquet(embedded)
    units = np.stack(table["embedding"]) / np.linalg.norm(np.stack(table["embedding"]), axis=1, keepdims=True)
    cosines = units @ units[(table["recording"] == hits[0].recording) & (table["start_s"] == 2.0)][0]
    expected = table.iloc[np.argsort(-cosines, kind="stable")[:5]]
    assert [hit.start_s for hit in hits] == expected["start_s"].tolist()
    assert [hit.similarity for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:5], abs=1e-5)


def test_files_of_embeddings_do_not_depend_on_thresholds(model, recordings, tmp_path, embedder):
    own = shutil.copytree(model, tmp_path / "birds")
    example = recordings / "KEN_000_20211207_153852.flac"

    def write_thresholds(threshold):
        (own / "thresholds.json").write_text(json.dumps({"every_species": threshold}))

    def found(path):
        return len(search_embeddings(path, [example], model=own, top_k=1, device="cpu"))

    write_thresholds(0.4)
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    embed_recordings(load_embedder(str(own), device="cpu"), [example], new)
    table = pq.read_table(new)
    about = {**read_about(new), "model_sha256": hash_model(find_model(own))}  # as older versions wrote it
    pq.write_table(table.replace_schema_metadata({search_module.ABOUT_KEY: json.dumps(about)}), old)
    assert (found(new), found(old)) == (1, 1)
    write_thresholds(0.5)
    assert found(new) == 1
    with pytest.raises(UserError, match="is not the model that made"):
        found(old)


def test_an_example_with_several_channels_is_searched_by_one_of_them(recordings, embedded, tmp_path):
    sound, _ = soundfile.read(recordings / "KEN_000_20211207_153852.flac", dtype="int16")
    call, other = sound[2 * RATE : 3 * RATE], sound[5 * RATE : 6 * RATE]
    soundfile.write(tmp_path / "call.wav", np.stack([other, call], axis=1), RATE)
    found = {
        channel: search_embeddings(embedded, [tmp_path / "call.wav"], top_k=1, device="cpu", channel=channel)[0]
        for channel in ("0", "1")
    }
    assert [hit.start_s for hit in found.values()] == [5.0, 2.0]


def test_hits_are_printed_as_csv(recordings, embedded, capsys):
    main(
        ["search", str(embedded), str(recordings / "KEN_002_20211207_153852.flac"), "--top_k", "3", "--device", "cpu"]
    )
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["similarity"] for row in rows] == ["1.0000"] * 3
    assert {row["recording"] for row in rows} == {str(recordings / "KEN_002_20211207_153852.flac")}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_hits_in_a_file_are_utf8_and_no_formula(recordings, embedded, monkeypatch, is_terminal):
    hit = Hit("+môt\u4e2d.wav", 1.0, 2.0, 0.5)
    monkeypatch.setattr(search_module, "search_embeddings", lambda *_, **__: [hit])
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\r\n")
    stdout.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stdout", stdout)
    main(["search", str(embedded), str(recordings / "KEN_002_20211207_153852.flac"), "--device", "cpu"])
    stdout.flush()
    told = stdout.buffer.getvalue()
    if is_terminal:
        assert "./+môt?.wav,1.000".encode("cp1252") in told
    else:
        assert told.decode("utf-8") == "recording,start_s,end_s,similarity\n./+môt\u4e2d.wav,1.000,2.000,0.5000\n"


def test_a_search_with_another_model_or_a_silent_example_is_refused(
    recordings, embedded, tmp_path, model, monkeypatch, caplog
):
    example = recordings / "KEN_000_20211207_153852.flac"
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="is not the model that made"):
        search_embeddings(embedded, [example], model=str(other), device="cpu")
    assert "other versions" not in caplog.text
    monkeypatch.setattr(search_module, "embedding_versions", lambda saved: {"torch": "9.9"})
    moved = shutil.copytree(model, tmp_path / "moved")
    assert len(search_embeddings(embedded, [example], model=str(moved), device="cpu", top_k=1000)) == len(
        pd.read_parquet(embedded)
    )
    assert "was made with other versions of torch" in caplog.text
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE, dtype=np.int16), RATE)
    with pytest.raises(UserError, match="digital silence"):
        search_embeddings(embedded, [tmp_path / "silent.wav"], device="cpu")
    with pytest.raises(UserError, match="top_k is 0"):
        search_embeddings(embedded, [example], top_k=0)
