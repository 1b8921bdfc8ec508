"""The mean of the weights of the best epochs: worked by hand, in training, and in runs that are resumed."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import flags, settings_of, train
from safetensors.torch import load_file
from torch import nn

from kenya_birds.errors import UserError
from kenya_birds.training.epoch_average import EpochAverage
from kenya_birds.training.run_folder import EPOCHS_FOLDER, SUMMARY_FILE, epoch_weights

pytestmark = pytest.mark.usefixtures("blank_figures")

# With a third of the epochs, two are averaged.
SETTINGS = {
    "average_epochs": 5,
    "num_train_epochs": 6,
    "early_stopping_patience": 0,
    "learning_rate": 6e-3,
    "seed": 1,
    "drop_rate": 0.2,
    "save_total_limit": 10,
}


class Network(nn.Module):
    """One trained weight, one frozen weight, and a buffer of each kind."""

    def __init__(self):
        super().__init__()
        self.trained = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("batches", torch.zeros(1, dtype=torch.long))

    def take(self, value):
        for tensor in self.state_dict().values():
            tensor.fill_(value)

    def values(self):
        return [tensor.item() for tensor in (self.trained, self.frozen, self.mean, self.batches)]


class Training:
    """Calls the callback as Trainer does. After epoch n and step 10 n, all numbers of the network are n."""

    def __init__(self, folder, largest, *, best=True, metric="cmap"):
        self.average, self.network = EpochAverage(largest), Network()
        self.args = SimpleNamespace(
            output_dir=str(folder),
            load_best_model_at_end=best,
            metric_for_best_model=metric,
            greater_is_better=metric != "loss",
            should_save=True,
        )
        self.state = SimpleNamespace(epoch=None, global_step=0, log_history=[], num_train_epochs=9)
        self.average.on_train_begin(self.args, self.state, None)

    def epochs(self, *metrics):
        for metric in metrics:
            self.state.epoch = 1 + (self.state.epoch or 0)
            self.state.global_step = 10 * self.state.epoch
            self.network.take(self.state.epoch)
            self.average.on_step_end(self.args, self.state, None, model=self.network)
            name = f"eval_{self.args.metric_for_best_model}"
            self.state.log_history.append({"epoch": self.state.epoch, "step": self.state.global_step, name: metric})
            self.average.on_evaluate(self.args, self.state, None, model=self.network)
        return self

    def end(self):
        self.network.take(100)  # as if the best model had been loaded
        steps = self.average.steps(self.args, self.state)
        if steps:
            self.average.average(Path(self.args.output_dir), steps, self.network)
        return [step // 10 for step in steps]

    def kept(self):
        return sorted(step // 10 for step in epoch_weights(Path(self.args.output_dir)))


def test_the_best_third_of_the_epochs_at_most_is_averaged(tmp_path):
    training = Training(tmp_path, 5).epochs(0.1, 0.5, 0.2, 0.6, 0.3, 0.4, 0.1, 0.2, 0.1)
    assert training.kept() == [2, 3, 4, 5, 6]
    assert training.end() == [2, 4, 6]
    assert training.network.values() == [4, 100, 4, 100]


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("cmap", (0.1, 0.5, math.nan, 0.5, 0.5, 0.4, 0.1), [2, 4]),  # of equals, the earlier; without NaN, six epochs
        ("loss", (0.1, 0.5, math.nan, 0.5, 0.2, 0.5, 0.5), [1, 5]),
    ],
)
def test_ties_numbers_that_are_none_and_metrics_where_lower_is_better(tmp_path, metric, values, expected):
    training = Training(tmp_path, 2, metric=metric).epochs(*values)
    assert training.kept() == expected
    assert training.end() == expected


def test_without_a_best_epoch_the_last_ones_are_averaged(tmp_path):
    training = Training(tmp_path, 5, best=False).epochs(*[0.1] * 7)  # of nine
    assert training.kept() == [3, 4, 5, 6, 7]
    assert training.end() == [5, 6, 7]
    assert training.network.values() == [6, 100, 6, 100]


def test_only_whole_epochs_are_among_the_last_ones(tmp_path):
    training = Training(tmp_path, 3, best=False).epochs(0.1, 0.1)
    training.state.epoch, training.state.global_step = 2.5, 25
    training.average.on_step_end(training.args, training.state, None, model=training.network)
    assert training.end() == [1, 2]


def test_of_one_epoch_nothing_is_averaged(tmp_path):
    assert Training(tmp_path, 3, best=False).epochs(0.1).end() == []  # a final fit that stops at once


def test_of_fewer_than_six_epochs_none_are_averaged(tmp_path):
    training = Training(tmp_path, 5).epochs(0.1, 0.2, 0.3, 0.4, 0.5)
    assert training.end() == []
    assert training.network.values() == [100] * 4


def test_what_a_checkpoint_needs_is_kept_as_long_as_the_checkpoint(tmp_path):
    training = Training(tmp_path, 2).epochs(0.3, 0.4)
    (tmp_path / "checkpoint-20").mkdir()
    training.epochs(0.5, 0.6)
    assert training.kept() == [1, 2, 3, 4]
    (tmp_path / "checkpoint-20").rmdir()
    training.epochs(0.7)
    assert training.kept() == [4, 5]


def test_weights_of_later_checkpoints_are_kept_when_training_resumes_from_an_earlier_one(tmp_path):
    training = Training(tmp_path, 2).epochs(0.3, 0.4)
    state = {**vars(training.state), "log_history": training.state.log_history[:]}
    (tmp_path / "checkpoint-20").mkdir()
    training.epochs(0.5, 0.6)
    (tmp_path / "checkpoint-40").mkdir()
    training.state = SimpleNamespace(**state)
    assert training.epochs(0.5).kept() == [1, 2, 3, 4]


def test_other_files_are_left_alone(tmp_path):
    training = Training(tmp_path, 2).epochs(0.3)
    other = tmp_path / EPOCHS_FOLDER / "step-10 (1).safetensors"
    other.touch()
    assert training.epochs(0.4, 0.5).kept() == [2, 3]
    assert other.exists()


@pytest.mark.parametrize("best", [True, False])
def test_training_is_not_resumed_without_its_weights(tmp_path, best):
    training = Training(tmp_path, 2, best=best).epochs(0.1, 0.2, 0.3)
    training.average.on_train_begin(training.args, training.state, None)
    training.epochs(0.4, 0.5, 0.6)
    training.average.on_train_begin(training.args, training.state, None)
    epoch_weights(tmp_path)[60].unlink()
    message = f"{EPOCHS_FOLDER} lacks the weights of 1 of the 2 {'best' if best else 'last'} epochs"
    with pytest.raises(UserError, match=message):
        training.average.on_train_begin(training.args, training.state, None)
    with pytest.raises(UserError, match=message):
        training.end()


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_weights_are_refused(tmp_path, damage):
    training = Training(tmp_path, 2).epochs(*[0.1] * 6)
    path = epoch_weights(tmp_path)[10]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        training.network.more = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match=f"{path.name}.* (cannot be read|has other weights)"):
        training.end()


@pytest.fixture(scope="module")
def trained(small_archive, cache, tmp_path_factory):
    return train(small_archive, tmp_path_factory.mktemp("average") / "birds", cache, **SETTINGS)


def assert_same_model(folder, expected):
    found, before = (load_file(one / "model.safetensors") for one in (folder, expected))
    assert all(torch.equal(found[name], before[name]) for name in before)
    for name in ("metrics.json", "thresholds.json"):
        assert (folder / name).read_text() == (expected / name).read_text()


def test_the_trained_model_is_the_mean_of_its_best_epochs(trained):
    result = json.loads((trained / SUMMARY_FILE).read_text())["result"]
    last = max(trained.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    scores = {entry["epoch"]: entry["eval_macro_f1"] for entry in history if "eval_macro_f1" in entry}
    best = sorted(sorted(scores, key=lambda epoch: -scores[epoch])[:2])
    assert result["averaged_epochs"] == best
    steps = {entry["epoch"]: entry["step"] for entry in history}
    first, second = (load_file(epoch_weights(trained)[steps[epoch]]) for epoch in best)
    model = load_file(trained / "model.safetensors")
    for name in first:
        if name in model:
            torch.testing.assert_close(model[name], (first[name] + second[name]) / 2)
    card = (trained / "README.md").read_text()
    assert "The best epochs were chosen by macro F1" in card
    assert (
        f"Training ended with the mean of the weights of epochs {best[0]:g}, {best[1]:g} (at most a third of all"
        in card
    )
    assert "| average_epochs | 5 |" in card


def test_a_run_that_resumes_in_another_folder_ends_with_the_same_model(trained, small_archive, cache, tmp_path):
    checkpoint = trained / "checkpoint-24"  # after half of the epochs
    train(small_archive, tmp_path / "birds", cache, **SETTINGS, resume_from_checkpoint=checkpoint)
    assert_same_model(tmp_path / "birds", trained)


def test_a_finished_run_is_resumed(trained, small_archive, cache, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    train(small_archive, copy, cache, **SETTINGS, resume_from_checkpoint="true")
    assert_same_model(copy, trained)


def test_another_number_of_epochs_is_another_run(trained, small_archive, cache):
    with pytest.raises(UserError, match="average_epochs was 5 and is 2 now"):
        train(small_archive, trained, cache, **{**SETTINGS, "average_epochs": 2}, resume_from_checkpoint="true")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train_on": "recordings"}, 5),
        ({"train_on": "recordings", "average_epochs": 1}, 1),
        ({"train_on": "clips"}, 1),
        ({"train_on": "recordings", "freeze_backbone": True}, 1),
    ],
)
def test_training_on_recordings_averages_five_epochs_unless_told_otherwise(
    small_archive, tmp_path, cache, given, expected
):
    words = flags(small_archive, tmp_path / "birds", cache, **given)
    assert settings_of(words).training.average_epochs == expected
