import sys

import numpy as np
import pytest
import torch
from running import flags, losses, metrics, run, train
from safetensors.torch import load_file

from kenya_birds.data.audio import decode_wav
from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification, classification_loss
from kenya_birds.training.arguments import KenyaBirdsTrainingArguments
from kenya_birds.training.trainer import ClipCollator, KenyaBirdsTrainer


@pytest.fixture
def make_trainer(clips, tmp_path):
    def make(problem_type="single_label_classification", **settings):
        torch.manual_seed(0)
        names = clips["train"].features["label"].names
        config = KenyaBirdsConfig(backbone="test_convnext", num_labels=len(names), problem_type=problem_type)
        args = KenyaBirdsTrainingArguments(
            str(tmp_path / "run"), use_cpu=True, per_device_train_batch_size=8, report_to="none", **settings
        )
        return KenyaBirdsTrainer(
            KenyaBirdsForAudioClassification(config),
            args,
            KenyaBirdsFeatureExtractor(noise_reduction="none"),
            clips["train"],
            clips["validation"],
        )

    return make


def test_a_batch_is_int16_and_holds_the_clips_samples(clips):
    rows = [clips["train"][index] for index in (0, 3)]
    batch = ClipCollator(num_labels=9, multi_label=False)(rows)
    assert batch["waveform"].dtype == torch.int16
    assert batch["labels"].tolist() == [row["label"] for row in rows]
    for waveform, row in zip(batch["waveform"], rows, strict=True):
        np.testing.assert_array_equal(waveform, decode_wav(row["audio"]["bytes"]))


def test_a_multi_label_batch_has_a_one_for_every_species_in_the_clip(clips):
    rows = [clips["train"][index] for index in range(5)]
    labels = ClipCollator(num_labels=9, multi_label=True)(rows)["labels"]
    assert labels.shape == (5, 9)
    for target, row in zip(labels, rows, strict=True):
        assert target.nonzero().flatten().tolist() == row["labels"]


def test_an_unknown_bird_masks_what_it_could_be(clips):
    row = {**clips["train"][0], "labels": [1], "unknown": True}
    labels = ClipCollator(num_labels=3, multi_label=True)([row])["labels"]
    assert labels.tolist() == [[-100, 1, -100]]
    logits = torch.tensor([[5.0, 0.0, -5.0]])
    losses = classification_loss(logits, labels, "multi_label_classification")
    assert losses.tolist() == [[0, pytest.approx(np.log(2)), 0]]


def test_training_shifts_its_window_within_the_context_and_evaluation_does_not(make_trainer, small_archive, tmp_path):
    from kenya_birds.data.dataset import load_clips

    wide = load_clips(small_archive, cache_dir=tmp_path, min_annotations=8, context_s=0.5)
    trainer = make_trainer()
    rows = [{**wide["train"][index], "clip": index} for index in range(8)]
    plain = [trainer.train_dataset[index] for index in range(8)]
    trainer.model.eval()
    expected = trainer._prepare_inputs(trainer.data_collator(plain))["input_features"]
    torch.testing.assert_close(trainer._prepare_inputs(trainer.data_collator(rows))["input_features"], expected)
    trainer.model.train()
    shifted = trainer._prepare_inputs(trainer.data_collator(rows))["input_features"]
    assert shifted.shape == expected.shape
    assert not torch.allclose(shifted, expected)
    again = trainer._prepare_inputs(trainer.data_collator(rows[4:]))["input_features"]
    torch.testing.assert_close(shifted[4:], again)


def test_the_loss_is_weighted_cross_entropy_over_the_number_of_clips(make_trainer):
    trainer = make_trainer(loss_weight_power=1.0)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    labels = batch["labels"].clone()
    inputs = trainer._prepare_inputs(batch)
    model = trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(inputs)).item()
        probability = model(inputs["input_features"]).logits.softmax(dim=-1)
    n = np.bincount(trainer.train_dataset["label"], minlength=model.config.num_labels)
    weight = (1 / n) * n.sum() / np.count_nonzero(n)
    by_hand = [-weight[label] * np.log(probability[clip, label].item()) for clip, label in enumerate(labels.tolist())]
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_features_are_those_of_the_extractor_that_is_saved(make_trainer):
    trainer = make_trainer()
    rows = [trainer.eval_dataset[index] for index in range(3)]
    features = trainer._prepare_inputs(trainer.data_collator(rows))["input_features"]
    waveforms = [decode_wav(row["audio"]["bytes"]).astype(np.float32) / 32768 for row in rows]
    expected = trainer.processing_class(waveforms, sampling_rate=32_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(features, expected)


def test_the_sampler_is_weighted_only_when_asked(make_trainer):
    assert make_trainer()._get_train_sampler().weights is None
    trainer = make_trainer(sampler_weight_power=1.0, loss_weight_power=0.0)
    labels = np.asarray(trainer.train_dataset["label"])
    # Inverse frequency: every class is as likely as any other.
    totals = np.bincount(labels, weights=trainer._get_train_sampler().weights.numpy())
    np.testing.assert_allclose(totals, totals[0])


def test_an_epoch_is_the_same_however_many_batches_make_a_step(make_trainer):
    one, four = make_trainer(), make_trainer(gradient_accumulation_steps=4)
    four.args.per_device_train_batch_size = 2
    assert list(one._get_train_sampler()) == list(four._get_train_sampler())


def test_full_weights_in_both_loss_and_sampler_are_warned_about(make_trainer, caplog):
    make_trainer(sampler_weight_power=1.0, loss_weight_power=1.0)
    assert "more than their inverse frequency" in caplog.text


def test_negative_powers_are_refused(make_trainer):
    with pytest.raises(UserError, match="loss_weight_power is -1"):
        make_trainer(loss_weight_power=-1)


REFERENCE = {"sampler_weight_power": 0.3}


@pytest.fixture(scope="module")
def reference_run(small_archive, tmp_path_factory):
    """Two epochs in one process, eight clips a step."""
    folder = tmp_path_factory.mktemp("reference")
    return train(small_archive, folder / "run", folder / "cache", **REFERENCE)


def assert_same_run(output_dir, reference, rtol):
    np.testing.assert_allclose(losses(output_dir), losses(reference), rtol=rtol)
    for split, values in metrics(reference).items():
        for name, value in values.items():
            assert metrics(output_dir)[split][name] == pytest.approx(value, rel=rtol), (split, name)


def test_the_same_seed_gives_the_same_weights(reference_run, small_archive, tmp_path):
    again = train(small_archive, tmp_path / "run", tmp_path / "cache", **REFERENCE)
    first, second = (load_file(folder / "model.safetensors") for folder in (reference_run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulated_batches_equal_one_large_batch(reference_run, small_archive, tmp_path):
    accumulated = train(
        small_archive,
        tmp_path / "run",
        tmp_path / "cache",
        **REFERENCE,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    assert_same_run(accumulated, reference_run, rtol=1e-3)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(reference_run, small_archive, tmp_path):
    first = min(reference_run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed = train(small_archive, tmp_path / "run", tmp_path / "cache", **REFERENCE, resume_from_checkpoint=first)
    assert_same_run(resumed, reference_run, rtol=1e-5)


def test_two_processes_equal_one_with_the_same_global_batch(reference_run, small_archive, tmp_path):
    words = flags(small_archive, tmp_path / "run", tmp_path / "cache", **REFERENCE, per_device_train_batch_size=4)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = run(*torchrun, "train_hf.py", *words, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same_run(tmp_path / "run", reference_run, rtol=2e-3)


def test_multi_label_training_scores_every_species_in_a_clip(small_archive, tmp_path):
    output_dir = train(small_archive, tmp_path / "run", tmp_path / "cache", problem_type="multi_label_classification")
    assert 0 <= metrics(output_dir)["test"]["macro_f1"] <= 1
    model = KenyaBirdsForAudioClassification.from_pretrained(output_dir)
    assert model.config.problem_type == "multi_label_classification"
