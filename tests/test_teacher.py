"""Training with a teacher: the backbone first learns what another model computes of the same sound."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from foreign import save_wav2vec2
from networks import wrapped
from running import flags, settings_of, start_ranks, train
from safetensors.torch import load_file

import train_hf
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.distillation import Stage, Student, StudentTrainer
from kenya_birds.training.flags import tuning_flags
from kenya_birds.training.run_folder import RECORD_FILES, STAGE_FILE
from kenya_birds.training.teacher import Teacher
from kenya_birds.training.training_recordings import TrainingRecordings
from kenya_birds.training.training_run import Run
from kenya_birds.training.unlabelled import Unlabelled, is_copy

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture(scope="module")
def network(place, small_archive):
    return wrapped(place / "network", small_archive)


@pytest.fixture(scope="module")
def elsewhere(place):
    """A folder with a recording in a subfolder, which is not in the archive."""
    folder = place / "elsewhere" / "site 1"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(7).normal(0, 0.05, 12 * 24_000)
    soundfile.write(folder / "night.wav", noise, 24_000)
    return folder.parent


@pytest.fixture(scope="module")
def taught(place, small_archive, network, elsewhere):
    settings = {"teacher": network, "teacher_epochs": 2, "unlabelled": elsewhere, "num_train_epochs": 1}
    return train(small_archive, place / "taught", place / "cache", **settings)


def names_of(archive):
    table = pd.read_csv(archive / "species.csv")
    codes = sorted(table["Species eBird Code"])
    names = table.set_index("Species eBird Code")
    columns = {"scientific_name": "Scientific Name", "common_name": "Common Name"}
    return codes, {code: {name: names.at[code, column] for name, column in columns.items()} for code in codes}


def teacher_of(name, archive, targets="both", device="cpu"):
    classes, species = names_of(archive)
    return Teacher(str(name), classes, species, targets=targets, clip_s=3.0, device=torch.device(device))


def test_the_summary_says_what_was_learned(taught, network):
    summary = json.loads((taught / "training_summary.json").read_text())
    stage = summary["first_stage"]
    assert (stage["teacher"], stage["known_species"], stage["epochs"]) == (network.name, 2, 2)
    assert (stage["unlabelled_recordings"], stage["is_cached"]) == (1, False)
    assert stage["unlabelled_hours"] == pytest.approx(12 / 3600, rel=0.01)
    splits = pd.read_csv(taught / "splits.csv")
    trained_s = 20 * (splits["split"] == "train").sum() + 12
    assert stage["hours"] == pytest.approx(trained_s / 3600, rel=0.01)
    card = (taught / "README.md").read_text(encoding="utf-8")
    assert f"first learned what `{network.name}` computes" in card


def test_the_record_names_no_folder(taught, network, elsewhere):
    text = (taught / "run_settings.json").read_text()
    settings = json.loads(text)["settings"]
    assert (settings["teacher"], settings["unlabelled"]) == (network.name, 1)
    assert str(elsewhere.parent) not in text


def test_unlabelled_recordings_count_as_trained_on(taught):
    table = TrainingRecordings.read(taught).table
    row = table[table["recording"] == "elsewhere/site 1/night.wav"]
    assert row["split"].tolist() == ["train"]
    assert row["sound"].iloc[0]
    # Nothing is known of the recordings of the published network.
    assert "" in set(table["recording"])


def test_a_second_run_takes_the_backbone_from_the_cache(taught, place, small_archive, network, elsewhere):
    settings = {"teacher": network, "teacher_epochs": 2, "unlabelled": elsewhere, "num_train_epochs": 1}
    again = train(small_archive, place / "again", place / "cache", **settings)
    assert json.loads((again / "training_summary.json").read_text())["first_stage"]["is_cached"]
    first, second = (load_file(folder / "model.safetensors") for folder in (taught, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_student_comes_closer_to_the_teacher(taught, place):
    (about,) = place.glob("cache/kenya_birds_teacher/*/about.json")
    losses = json.loads(about.read_text())["losses"]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_an_interrupted_stage_resumes(taught, place, small_archive, network, elsewhere, monkeypatch):
    settings = {"teacher": network, "teacher_epochs": 2, "unlabelled": elsewhere, "num_train_epochs": 1}
    words = flags(small_archive, place / "stopped", place / "other_cache", **settings)
    begin, steps = StudentTrainer.training_step, []

    def stop_in_second_epoch(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if self.state.epoch is not None and self.state.epoch > 1.2:
            raise KeyboardInterrupt
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(StudentTrainer, "training_step", stop_in_second_epoch)
    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        train_hf.main(words)
    before = len(steps)
    monkeypatch.setattr(
        StudentTrainer,
        "training_step",
        lambda self, *args, **kwargs: (steps.append(self.state.global_step), begin(self, *args, **kwargs))[1],
    )
    train_hf.main(words)
    assert min(steps[before:]) > 0  # not from the beginning
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (taught, place / "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list(place.glob("other_cache/kenya_birds_teacher/*/checkpoint-*"))


def _find_checkpoint(folder):
    """Writes which checkpoint a machine resumes from, whose cache is a folder of its own."""
    team = Team()
    stage = Stage(folder / str(team.rank), None, 0, None, None, 1)
    (folder / f"found-{team.rank}").write_text(str(stage.find_checkpoint(team)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("other", "is_found"),
    [(None, False), ({"global_step": 5}, False), ({"global_step": 3, "is_world_process_zero": False}, True)],
)
def test_a_stage_resumes_only_from_a_checkpoint_that_all_machines_have(tmp_path, other, is_found):
    own, others = (tmp_path / str(rank) / "checkpoint-3" for rank in range(2))
    for folder, state in ((own, {"global_step": 3, "is_world_process_zero": True}), (others, other)):
        folder.mkdir(parents=True)
        (folder / "rng_state_1.pth").touch()  # which transformers saves on every machine
        if state is not None:
            (folder / "trainer_state.json").write_text(json.dumps(state))
    children = start_ranks(2, _find_checkpoint, tmp_path)
    for child in children:
        child.join()
    found = [(tmp_path / f"found-{rank}").read_text() for rank in range(2)]
    assert found == ([str(own), str(others)] if is_found else ["None", "None"])


def test_a_run_without_a_teacher_says_nothing_of_the_stopped_one_before(taught, small_archive, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in RECORD_FILES:
        shutil.copyfile(taught / name, begun / name)
    with Run(settings_of(flags(small_archive, begun, tmp_path / "cache"))):
        assert {path.name for path in begun.iterdir()} >= set(RECORD_FILES) - {STAGE_FILE}
        assert not (begun / STAGE_FILE).exists()


def test_a_model_of_this_package_teaches_its_embeddings_and_probabilities(taught, small_archive):
    teacher = teacher_of(taught, small_archive)
    model, extractor = load_classifier(find_model(str(taught)))
    sound = np.random.default_rng(0).normal(0, 0.1, (2, extractor.clip_samples)).astype(np.float32)
    with torch.inference_mode():
        features = extractor.extract(torch.from_numpy(sound))
        embedding, logits = model.eval().embed(features), model(features).logits
    classes = [model.config.id2label[label] for label in range(model.config.num_labels)]
    archive_classes, _ = names_of(small_archive)
    expected = logits.softmax(dim=1)[:, [classes.index(archive_classes[label]) for label in teacher.known]]
    answers = teacher(sound, extractor.sampling_rate)
    assert answers.shape == (2, teacher.size)
    np.testing.assert_allclose(answers, torch.cat([embedding, expected], dim=1).numpy(), atol=1e-5)


def test_scores_go_to_the_species_of_the_same_name(network, small_archive):
    teacher = teacher_of(network, small_archive, "scores")
    classes, species = names_of(small_archive)
    table = pd.read_csv(small_archive / "species.csv")["Scientific Name"].tolist()
    assert {species[classes[label]]["scientific_name"] for label in teacher.known} == set(table[:2])
    assert teacher.embedding_size == 0
    both = teacher_of(network, small_archive)
    sound = np.random.default_rng(0).normal(0, 0.1, (3, teacher.clip_samples)).astype(np.float32)
    rate = teacher.sampling_rate
    np.testing.assert_allclose(both(sound, rate)[:, both.embedding_size :], teacher(sound, rate), atol=1e-6)


def test_a_teacher_hears_sound_at_its_own_rate(network, small_archive):
    teacher = teacher_of(network, small_archive, "embeddings")
    rate, length = teacher.sampling_rate, teacher.clip_samples
    own, other = (np.sin(2 * np.pi * 440 * np.arange(round(length * r / rate)) / r) for r in (rate, 2 * rate))
    heard = [teacher(wave[None].astype(np.float32), r) for wave, r in ((own, rate), (other, 2 * rate))]
    np.testing.assert_allclose(heard[0], heard[1], rtol=0.02, atol=0.02)


def tiny_student(answers, embedding_size):
    model = KenyaBirdsForAudioClassification(KenyaBirdsConfig(backbone="test_convnext", num_labels=2))
    return Student(model, answers, embedding_size, torch.Generator().manual_seed(0))


def test_a_teacher_of_transformers_computes_on_the_cpu_of_a_mac(small_archive, tmp_path):
    name = save_wav2vec2(tmp_path / "teacher")
    teacher = teacher_of(name, small_archive, targets="embeddings", device="mps")
    assert teacher.device.type == "cpu"
    assert teacher(np.ones((2, teacher.clip_samples), dtype=np.float32), teacher.sampling_rate).shape == (2, 16)


def test_the_loss_is_cosine_distance_and_cross_entropy():
    answers = np.array([[3.0, 1.0, 0.5], [1.0, 1.0, 0.5]], dtype=np.float32)  # a mean of (2, 1), and of 0.5
    student = tiny_student(answers, 2)
    assert student.projection.bias[2].item() == pytest.approx(0)
    with torch.no_grad():
        student.projection.weight.zero_()
        student.projection.bias.copy_(torch.tensor([1.0, 1.0, 0.0]))
    loss = student(torch.zeros(2, 32, 32), torch.from_numpy(answers))
    # The first is at (1, 0) from the mean, 45 degrees from (1, 1); the second at (-1, 0), 135 degrees.
    distance = (1 - math.cos(math.pi / 4) + 1 - math.cos(3 * math.pi / 4)) / 2
    assert loss.item() == pytest.approx(distance + math.log(2), abs=1e-5)


def test_scores_start_at_the_mean_of_the_teacher():
    answers = np.array([[0.1], [0.3]], dtype=np.float32)
    student = tiny_student(answers, 0)
    assert torch.sigmoid(student.projection.bias).item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unlabelled": "{sound}"}, "--unlabelled is for training with a teacher: add --teacher MODEL"),
        ({"teacher_epochs": 3}, "--teacher_epochs is for training with a teacher"),
        ({"teacher": "{empty}/nowhere/model"}, "there is no model"),
        ({"teacher": "birds.tflite"}, "Run kenya-birds wrap birds.tflite first"),
        ({"teacher": "{network}", "freeze_backbone": "true"}, "this one is frozen"),
        ({"teacher": "{network}", "unlabelled": "{empty}"}, "has no recording in it: expected a folder with sound"),
        ({"teacher": "{network}", "unlabelled": "{empty}/no"}, "expected an existing folder with recordings"),
        ({"teacher": "{network}", "teacher_epochs": 0}, "teacher_epochs"),
    ],
)
def test_mistakes_are_found_before_torch_is_imported(
    given, message, small_archive, network, elsewhere, tmp_path, capsys
):
    paths = {"sound": elsewhere, "empty": tmp_path, "network": network}
    given = {name: str(value).format(**paths) for name, value in given.items()}
    with pytest.raises((UserError, SystemExit)) as raised:
        settings_of(flags(small_archive, tmp_path / "out", tmp_path / "cache", **given))
    assert message in f"{raised.value}{capsys.readouterr().err}"


def test_a_test_recording_among_the_unlabelled_ones_is_refused(small_archive, network, taught, tmp_path):
    splits = pd.read_csv(taught / "splits.csv")
    (tmp_path / "more").mkdir()
    name = splits.loc[splits["split"] == "test", "recording"].iloc[0]
    sound = small_archive / "soundscape_data" / name
    copies = {"with another name": tmp_path / "more" / f"copy{sound.suffix}", "encoded again": None}
    shutil.copyfile(sound, copies["with another name"])
    settings = {"teacher": network, "unlabelled": tmp_path / "more"}
    words = flags(small_archive, tmp_path / "out", tmp_path / "cache", **settings)
    with pytest.raises(UserError, match=f"is the recording {name} of the validation or test split"):
        Run(settings_of(words))
    (tmp_path / "more" / f"copy{sound.suffix}").unlink()
    samples, rate = soundfile.read(sound)
    soundfile.write(tmp_path / "more" / f"{sound.stem}.ogg", samples, rate)
    with pytest.raises(UserError, match=f"is the recording {name} of the validation or test split"):
        Run(settings_of(words))
    assert not (tmp_path / "out").exists()


def test_recordings_of_another_site_may_have_the_same_names(small_archive, network, taught, tmp_path):
    splits = pd.read_csv(taught / "splits.csv")
    (tmp_path / "more").mkdir()
    for name in splits["recording"]:
        samples, rate = soundfile.read(small_archive / "soundscape_data" / name)
        hum = 0.3 * np.sin(2 * np.pi * 50 * np.arange(len(samples)) / rate)  # both sites have it
        noise = np.random.default_rng(1).normal(0, 0.01, len(samples))
        soundfile.write(tmp_path / "more" / name, hum + noise, rate)
    words = flags(small_archive, tmp_path / "out", tmp_path / "cache", teacher=network, unlabelled=tmp_path / "more")
    assert len(Run(settings_of(words)).unlabelled.paths) == len(splits)


def test_a_copy_is_recognised_by_its_sound(small_archive, tmp_path):
    first, second, *_ = sorted((small_archive / "soundscape_data").iterdir())
    samples, rate = soundfile.read(first)
    quiet = tmp_path / "quiet.ogg"
    soundfile.write(quiet, 0.1 * samples, rate)
    assert is_copy(first, quiet)
    assert not is_copy(first, second)
    soundfile.write(tmp_path / "short.wav", samples[: rate * 19], rate)
    assert not is_copy(first, tmp_path / "short.wav")
    soundfile.write(tmp_path / "silent.wav", 0 * samples, rate)
    assert not is_copy(first, tmp_path / "silent.wav")


def test_a_copy_is_compared_with_all_recordings_of_its_name(small_archive, tmp_path):
    first, second, *_ = sorted((small_archive / "soundscape_data").iterdir())
    samples, rate = soundfile.read(first)
    soundfile.write(tmp_path / "NIGHT.ogg", samples, rate)
    files = {"site 1/night.wav": first, "site 2/night.wav": second}
    archive = SimpleNamespace(
        headers=files, fingerprints=lambda names: dict.fromkeys(names), recording_path=lambda name: files[name]
    )
    with pytest.raises(
        UserError, match=r"NIGHT.ogg is the recording site 1/night.wav of the validation or test split"
    ):
        Unlabelled.find([str(tmp_path)]).without_archive(archive, ["site 1/night.wav"])


def test_training_recordings_among_the_unlabelled_ones_are_left_out(small_archive, network, taught, tmp_path):
    splits = pd.read_csv(taught / "splits.csv")
    name = splits.loc[splits["split"] == "train", "recording"].iloc[0]
    shutil.copyfile(small_archive / "soundscape_data" / name, tmp_path / name)
    settings = {"teacher": network, "unlabelled": tmp_path}
    words = flags(small_archive, tmp_path / "out", tmp_path / "cache", **settings)
    with pytest.raises(UserError, match="all recordings of --unlabelled are training recordings"):
        Run(settings_of(words))


def test_a_teacher_that_knows_no_species_is_refused(taught):
    species = {code: dict.fromkeys(("scientific_name", "common_name"), "Nobody") for code in ("x1", "y1")}
    with pytest.raises(UserError, match=r"knows none of the 2 species .* --teacher_targets embeddings"):
        Teacher(str(taught), list(species), species, targets="both", clip_s=3.0, device=torch.device("cpu"))


def test_a_teacher_that_was_trained_on_test_recordings_is_refused(small_archive, taught, tmp_path):
    words = flags(small_archive, tmp_path / "out", tmp_path / "cache", teacher=taught, fold=1)
    with pytest.raises(UserError, match=f"'{taught}' or 'scratch' was (trained on|chosen with)"):
        Run(settings_of(words))


def test_tuning_takes_no_teacher(small_archive, network, tmp_path):
    with pytest.raises(UserError, match="would repeat the stages of --teacher"):
        tuning_flags(small_archive, tmp_path / "out", ["--teacher", str(network)])
