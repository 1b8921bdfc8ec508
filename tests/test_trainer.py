import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from accelerate import PartialState
from running import flags, losses, metrics, start, start_ranks, train, wait_until
from safetensors.torch import load_file

import train_hf
from kenya_birds.data.audio import decode_wav
from kenya_birds.distributed import Team
from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import classification_metrics
from kenya_birds.experiments import results
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.training import training_run
from kenya_birds.training.augmentation import AugmentationArguments
from kenya_birds.training.run_folder import last_whole_checkpoint
from kenya_birds.training.trainer import KenyaBirdsTrainer
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments, check_fits
from kenya_birds.training.transformers_arguments import METRICS

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture
def make_trainer(clips, tmp_path):
    def make(problem_type="single_label_classification", augmentation=None, background=None, **settings):
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
            augmentation=augmentation,
            background=background,
        )

    return make


def training_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def test_the_trainers_own_state_reaches_no_batch(make_trainer):
    trainer = make_trainer()
    inputs = trainer._prepare_inputs(training_batch(trainer))
    assert set(inputs) == {"input_features", "labels"}
    assert inputs["input_features"].shape == (8, 128, 188)


def test_evaluation_is_never_augmented(make_trainer, clips):
    trainer = make_trainer(augmentation=AugmentationArguments(mask_probability=1.0, noise_probability=1.0))
    rows = clips["validation"][:4]["audio"]
    waveforms = [decode_wav(audio["bytes"]) for audio in rows]
    expected = trainer.processing_class(waveforms, sampling_rate=32_000, return_tensors="pt")["input_features"]
    for dataloader in (trainer.get_eval_dataloader(), trainer.get_test_dataloader(clips["validation"])):
        batch = next(iter(dataloader))
        torch.testing.assert_close(trainer._prepare_inputs(batch)["input_features"][:4], expected)


def test_clips_kept_on_the_device_are_the_same(make_trainer):
    everything = AugmentationArguments(mixup_probability=0.5)
    features = []
    for place in ("no", "yes"):
        trainer = make_trainer(augmentation=everything, clips_on_device=place)
        assert (trainer.train_dataset.resident is not None) == (place == "yes")
        features.append(trainer._prepare_inputs(training_batch(trainer))["input_features"])
    assert torch.equal(*features)


def test_background_without_windows_is_refused(make_trainer):
    with pytest.raises(UserError, match="no window of the training recordings is free of calls"):
        make_trainer(augmentation=AugmentationArguments(background_probability=0.5))


def test_background_is_added_to_training_clips(make_trainer, clips):
    certain = AugmentationArguments.none()
    certain.background_probability = 1.0
    features = [
        trainer._prepare_inputs(training_batch(trainer))["input_features"]
        for trainer in (make_trainer(), make_trainer(augmentation=certain, background=clips["test"]))
    ]
    assert (features[0] - features[1]).abs().mean() > 0.05


def test_the_loss_of_mixed_clips_is_mixed(make_trainer):
    trainer = make_trainer(augmentation=AugmentationArguments(mixup_probability=1.0), label_smoothing_factor=0.1)
    batch = training_batch(trainer)
    share = batch["amounts"]["mixup"]
    labels, others = batch["labels"], batch["partner_labels"]
    inputs = trainer._prepare_inputs(batch)
    model = trainer.model.train()
    loss = trainer.compute_loss(model, dict(inputs)).item()
    logits = model(inputs["input_features"]).logits
    target = 0.9 * torch.nn.functional.one_hot(torch.stack([labels, others]), model.config.num_labels) + 0.1 / 5
    by_clip = -(target * logits.log_softmax(dim=-1)).sum(dim=-1) * trainer.class_weights[torch.stack([labels, others])]
    assert loss == pytest.approx(((1 - share) * by_clip[0] + share * by_clip[1]).mean().item(), rel=1e-4)


def test_multi_label_targets_are_not_smoothed(make_trainer):
    with pytest.raises(UserError, match="label_smoothing_factor is for single-label"):
        make_trainer("multi_label_classification", label_smoothing_factor=0.2)


def test_the_loss_is_weighted_cross_entropy_over_the_number_of_clips(make_trainer):
    trainer = make_trainer(loss_weight_power=1.0)
    batch = training_batch(trainer)
    labels = batch["labels"].clone()
    inputs = trainer._prepare_inputs(batch)
    model = trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(inputs)).item()
        probability = model(inputs["input_features"]).logits.softmax(dim=-1)
    n = np.bincount(trainer.train_dataset.targets, minlength=model.config.num_labels)
    weight = (1 / n) * n.sum() / np.count_nonzero(n)
    by_hand = [-weight[label] * np.log(probability[clip, label].item()) for clip, label in enumerate(labels.tolist())]
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_the_sampler_is_weighted_only_when_asked(make_trainer):
    assert make_trainer()._get_train_sampler().weights is None
    trainer = make_trainer(sampler_weight_power=1.0, loss_weight_power=0.0)
    labels = trainer.train_dataset.targets
    # Inverse frequency: every class is as likely as any other.
    totals = np.bincount(labels, weights=trainer._get_train_sampler().weights)
    np.testing.assert_allclose(totals, totals[0])


def test_an_epoch_is_the_same_however_many_batches_make_a_step(make_trainer):
    one, four = make_trainer(), make_trainer(gradient_accumulation_steps=4)
    four._train_batch_size = 2
    draws = [[draw.clip for draw in trainer._get_train_sampler()] for trainer in (one, four)]
    assert draws[0] == draws[1]


def test_a_batch_size_that_was_lowered_leaves_no_incomplete_step_either(make_trainer):
    trainer = make_trainer()
    trainer._train_batch_size = 7  # as auto_find_batch_size does after 8
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [7] * 9


def test_full_weights_in_both_loss_and_sampler_are_warned_about(make_trainer, caplog):
    make_trainer(sampler_weight_power=1.0, loss_weight_power=1.0)
    assert "more than their inverse frequency" in caplog.text


@pytest.mark.parametrize(
    ("processes", "settings", "is_warned"),
    [
        (8, {}, True),
        (8, {"per_device_train_batch_size": 8}, False),
        (8, {"learning_rate": 1e-3}, False),
        (1, {"gradient_accumulation_steps": 8}, False),
    ],
)
def test_steps_that_several_processes_make_large_are_warned_about(
    tmp_path, caplog, monkeypatch, processes, settings, is_warned
):
    monkeypatch.setattr(KenyaBirdsTrainingArguments, "world_size", processes)
    args = KenyaBirdsTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **settings)
    check_fits(args, True, False, has_softmax=False)
    assert ("Each step has 512 clips, from 8 processes" in caplog.text) == is_warned


def test_a_loss_that_is_no_number_is_seen(make_trainer):
    trainer = make_trainer(
        max_steps=1, logging_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    )
    trainer.class_weights.fill_(float("nan"))
    with pytest.raises(UserError, match="training diverged: look at the losses"):
        trainer.train()
    assert np.isnan(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_an_epoch_whose_scores_are_no_numbers_is_never_the_best(make_trainer, problem_type):
    trainer = make_trainer(problem_type)
    trainer.model.classifier.bias.data[0] = float("nan")
    told = trainer.evaluate()
    assert all(np.isnan(told[f"eval_{name}"]) for name in METRICS)


def test_training_that_diverges_at_once_ends_with_advice(make_trainer):
    trainer = make_trainer(max_steps=1, eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1)
    trainer.class_weights.fill_(float("nan"))
    with pytest.raises(UserError, match=r"no evaluation gave a .* that is a number.* lower --learning_rate"):
        trainer.train()


def test_negative_powers_are_refused(make_trainer):
    with pytest.raises(UserError, match="loss_weight_power is -1"):
        make_trainer(loss_weight_power=-1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("remove_unused_columns", {"remove_unused_columns": True}),
        ("dataloader_drop_last", {"dataloader_drop_last": True}),
        ("dispatch_batches", {"accelerator_config": {"dispatch_batches": True}}),
    ],
)
def test_what_would_lose_clips_or_mix_up_batches_is_refused(tmp_path, name, settings):
    with pytest.raises(UserError, match=f"{name} must stay off"):
        KenyaBirdsTrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"push_to_hub": True}, "push_to_hub cannot be used, .* push_model.py"),
        ({"hub_model_id": "ann/birds"}, "hub_model_id cannot be used, .* push_model.py"),
        ({"hub_strategy": "checkpoint"}, "hub_strategy cannot be used, .* push_model.py"),
        ({"fp16_full_eval": True}, "half precision"),
        ({"train_sampling_strategy": "group_by_length"}, "--sampler_weight_power"),
        ({"auto_find_batch_size": True}, "--gradient_accumulation_steps"),
        ({"restore_callback_states_from_checkpoint": False}, "has to keep its default, True"),
        ({"ignore_data_skip": True}, "a resumed run would differ from an uninterrupted run"),
        ({"label_names": ["label"]}, "label_names has to keep its default"),
        ({"neftune_noise_alpha": 5.0}, "for language models"),
        ({"deepspeed": "nowhere.json"}, "these models fit on one device"),
        ({"metric_for_best_model": "f1"}, "expected one of macro_f1, weighted_f1, accuracy, cmap, loss"),
        ({"greater_is_better": False}, "the worst epoch would be kept as the best"),
        ({"metric_for_best_model": "loss", "greater_is_better": True}, "the worst epoch would be kept as the best"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches must stay off"),
        ({"eval_strategy": "no"}, "requires the save and eval strategy to match"),
    ],
)
def test_inherited_arguments_that_do_silent_damage_are_refused(tmp_path, settings, told):
    with pytest.raises(UserError, match=told):
        KenyaBirdsTrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_launcher_can_choose_the_cpu_where_there_is_a_gpu(tmp_path, monkeypatch, bfloat16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as `accelerate launch --cpu` does
    args = KenyaBirdsTrainingArguments(str(tmp_path / "run"), report_to="none")
    assert (args.use_cpu, args.bf16, args.fp16) == (True, False, False)


def test_arguments_can_be_changed_after_they_were_checked(tmp_path):
    """As cross-validation and tuning do: transformers has put other values in place of some."""
    args = KenyaBirdsTrainingArguments(str(tmp_path / "run"), use_cpu=True, metric_for_best_model="eval_loss")
    assert dataclasses.replace(args, seed=3).greater_is_better is False


def test_the_best_epoch_can_be_chosen_by_what_an_evaluation_gives():
    found = classification_metrics(np.eye(3), np.arange(3), multi_label=False)
    assert {*found, "loss", "cmap"} - {"classes"} == set(METRICS)


REFERENCE = {"sampler_weight_power": 0.3, "mixup_probability": 0.5}


@pytest.fixture(scope="module")
def reference_run(small_archive, cache, tmp_path_factory):
    """Two epochs in one process, eight clips a step."""
    return train(small_archive, tmp_path_factory.mktemp("reference") / "run", cache, **REFERENCE)


def assert_same_run(output_dir, reference, rtol):
    np.testing.assert_allclose(losses(output_dir), losses(reference), rtol=rtol)
    for split, values in metrics(reference).items():
        for name, value in values.items():
            assert metrics(output_dir)[split][name] == pytest.approx(value, rel=rtol), (split, name)


def test_the_same_seed_gives_the_same_weights(reference_run, small_archive, tmp_path):
    again = train(small_archive, tmp_path / "run", tmp_path / "cache", **REFERENCE)
    first, second = (load_file(folder / "model.safetensors") for folder in (reference_run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulated_batches_equal_one_large_batch(reference_run, small_archive, cache, tmp_path):
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    accumulated = train(small_archive, tmp_path / "run", cache, **REFERENCE, **batches)
    assert_same_run(accumulated, reference_run, rtol=1e-3)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(reference_run, small_archive, cache, tmp_path):
    first = min(reference_run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed = train(small_archive, tmp_path / "run", cache, **REFERENCE, resume_from_checkpoint=first)
    assert_same_run(resumed, reference_run, rtol=1e-5)


def test_a_run_that_is_killed_goes_on_where_it_was(reference_run, small_archive, cache, tmp_path):
    process = start(train_hf.main, flags(small_archive, tmp_path / "run", cache, **REFERENCE))
    wait_until(lambda: last_whole_checkpoint(tmp_path / "run") or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "killed before its end"
    assert not (tmp_path / "run" / "config.json").exists()
    # As if it had been killed while it wrote the next.
    (tmp_path / "run" / "checkpoint-16").mkdir(exist_ok=True)
    train(small_archive, tmp_path / "run", cache, **REFERENCE, resume_from_checkpoint="true")
    assert_same_run(tmp_path / "run", reference_run, rtol=1e-5)


def _train_slowly(words, signs):
    """Trains; the first process cuts clips and writes what it found only after the other one has begun to wait."""
    first = os.environ["RANK"] == "0"

    def slow(work):
        def later(*arguments, **settings):
            if first:
                wait_until((signs / "waiting").exists, timeout_s=60)
                (signs / f"{work.__name__} was late").touch()
            return work(*arguments, **settings)

        return later

    def told(operation):
        def waiting(*arguments):
            if first:
                return operation(*arguments)
            (signs / "waiting").touch()
            result = operation(*arguments)
            (signs / "waiting").unlink()
            return result

        return waiting

    for module, name in ((training_run, "build_clips"), (results, "write_test")):
        setattr(module, name, slow(getattr(module, name)))
    Team.gather, Team.broadcast = told(Team.gather), told(Team.broadcast)
    train_hf.main(words)
    PartialState().destroy_process_group()


def test_two_processes_equal_one_with_the_same_global_batch_and_wait_for_each_other(
    reference_run, small_archive, tmp_path
):
    """They wait as a team, which waits however long it takes: see test_processes.py."""
    words = flags(
        small_archive, tmp_path / "run", tmp_path / "cache", **{**REFERENCE, "per_device_train_batch_size": 4}
    )
    children = start_ranks(2, _train_slowly, words, tmp_path)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert {path.name for path in tmp_path.glob("* was late")} == {"build_clips was late", "write_test was late"}
    assert_same_run(tmp_path / "run", reference_run, rtol=2e-3)


def test_multi_label_training_scores_every_species_in_a_clip(small_archive, cache, tmp_path):
    output_dir = train(small_archive, tmp_path / "run", cache, problem_type="multi_label_classification")
    assert 0 <= metrics(output_dir)["test"]["macro_f1"] <= 1
    model = KenyaBirdsForAudioClassification.from_pretrained(output_dir)
    assert model.config.problem_type == "multi_label_classification"
