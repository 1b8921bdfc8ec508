"""The trainer: augmentation and features on the device, weighted loss, weighted sampling."""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    TrainerState,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import TrainOutput

from kenya_birds.console import transformers_bars_hidden
from kenya_birds.errors import DivergedError, UserError
from kenya_birds.evaluation.metrics import average_precisions, class_targets, classification_metrics, probabilities
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import (
    MASKED,
    MULTI_LABEL,
    KenyaBirdsForAudioClassification,
)
from kenya_birds.training.arguments import AugmentationArguments
from kenya_birds.training.augmentation import DRAWS, Augmentation
from kenya_birds.training.batches import ClipSampler, FeatureClips, TrainingClips, power_weights
from kenya_birds.training.callbacks import (
    SHOWN,
    BestCheckpoint,
    RunTensorBoard,
    TrainingClock,
    find_best,
    has_ended,
)
from kenya_birds.training.embedded_data import EmbeddedRows, EmbeddedTraining, EmbeddedWindows, EmbeddedWindowSampler
from kenya_birds.training.epoch_average import EpochAverage, metric_name
from kenya_birds.training.frozen_training import FrozenEmbeddings
from kenya_birds.training.logged_trainer import LoggedTrainer, lay_out
from kenya_birds.training.preparation import clean_clips
from kenya_birds.training.pseudo_labels import PseudoLabelledWindows, PseudoLabels, PseudoLabelSampler
from kenya_birds.training.recording_windows import RecordingWindows
from kenya_birds.training.run_folder import STATE_FILE, copy_record, last_whole_checkpoint
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments, check_fits, training_team
from kenya_birds.training.training_data import (
    background_windows,
    embedded_data,
    feature_clips,
    labels_per_clip,
    training_clips,
)
from kenya_birds.training.training_loss import TrainingLoss
from kenya_birds.training.transformers_arguments import METRICS
from kenya_birds.training.window_mining import HardWindows
from kenya_birds.training.window_prevalence import DRAWN_WINDOWS, prior_shift
from kenya_birds.training.window_sampler import WindowSampler
from kenya_birds.training.window_training import (
    EvaluationWindows,
    WindowPlan,
)

logger = logging.getLogger(__name__)


class KenyaBirdsTrainer(LoggedTrainer):
    """Trains a bird classifier on clips of `load_clips`.

    The waveform stage of the feature extractor is applied once to the training clips; its result is kept in the cache
    of `datasets`, and so are the features of the evaluation clips. Training batches are int16 waveforms until they are
    on the device, where they are augmented and turned into features. Evaluation clips are never augmented.

    The loss weights classes by `args.loss_weight_power`. It is divided by the number of clips (multi-label: of known
    labels) of the whole step, over all processes and accumulated batches, so that it does not depend on how the clips
    of a step are divided.

    Args:
        model: The classifier.
        args: The arguments.
        feature_extractor: The feature extractor; it is saved with every checkpoint.
        train_dataset: Training clips, or the plan of training on windows of whole recordings.
        eval_dataset: Validation clips or windows; None if `args` have no evaluation.
        augmentation: Random changes of training clips; by default none.
        background: Windows without a call, as long as a clip; required if `augmentation.background_probability` is
            above 0.
        frozen: Embeds all data, if the backbone is frozen: then only the classifier is trained.
        pseudo: Windows with pseudo-labels, for training on windows of whole recordings.

    Attributes:
        averaged_epochs: The epochs whose mean weights the trained model has; empty if it has those of one epoch.

    Raises:
        UserError: If one process has several GPUs, background is required and missing, or label smoothing is combined
            with multi-label targets, or focal weights with a softmax.
    """

    def __init__(
        self,
        model: KenyaBirdsForAudioClassification,
        args: KenyaBirdsTrainingArguments,
        feature_extractor: KenyaBirdsFeatureExtractor,
        train_dataset: Dataset | WindowPlan,
        eval_dataset: Dataset | EvaluationWindows | EmbeddedRows | None,
        augmentation: AugmentationArguments | None = None,
        background: Dataset | None = None,
        frozen: FrozenEmbeddings | None = None,
        pseudo: PseudoLabels | None = None,
    ) -> None:
        self.frozen, self.pseudo = frozen, pseudo
        self.multi_label = model.config.problem_type == MULTI_LABEL
        self.plan = train_dataset if isinstance(train_dataset, WindowPlan) else None
        check_fits(args, self.multi_label, self.plan is not None, has_softmax=model.config.no_call_class)
        self.labels_per_clip = labels_per_clip(train_dataset, self.multi_label)
        self.class_counts = np.bincount(np.concatenate(self.labels_per_clip), minlength=model.config.num_labels)
        self.class_weights = torch.tensor(
            power_weights(self.class_counts, args.loss_weight_power), dtype=torch.float32, device=args.device
        )
        patience = args.early_stopping_patience
        # Early stopping needs evaluations and a metric.
        can_stop = patience and args.eval_strategy != "no" and args.metric_for_best_model is not None
        stopping = [EarlyStoppingCallback(patience)] if can_stop else []
        self._feature_clips = partial(
            feature_clips, extractor=feature_extractor, args=args, multi_label=self.multi_label, frozen=frozen
        )
        augmentation = augmentation or AugmentationArguments.none()
        self._team = training_team(args)
        with self._team.one_first():
            is_cleaned = self.plan is None and (frozen is None or frozen.versions > 1)
            clean = clean_clips(train_dataset, feature_extractor, args.device) if is_cleaned else None
            windows = background_windows(augmentation, background, feature_extractor, args.device)
        self.augmentation = Augmentation(
            augmentation, feature_extractor, torch.Generator().manual_seed(args.seed), windows, args.device
        )
        shift: torch.Tensor | float = 0.0
        training_data: TrainingClips | RecordingWindows | EmbeddedTraining
        if frozen is not None:
            with self._team.one_first():
                training_data = embedded_data(frozen, train_dataset, clean, self.augmentation, self.multi_label)
        elif self.plan is None:
            assert clean is not None
            training_data = training_clips(clean, self.augmentation, self.multi_label, args)
        else:
            training_data = RecordingWindows(
                self.plan.decoded, self.plan.targets, self.augmentation, self.plan.length, self.plan.weights
            )
        if self.plan is not None:
            assert isinstance(training_data, RecordingWindows | EmbeddedWindows)
            sampler = self._window_sampler(args, drawn_windows=DRAWN_WINDOWS)
            weights = self.class_weights.cpu().numpy() if model.config.no_call_class else None
            found = prior_shift(training_data, sampler, softmax_weights=weights)
            shift = torch.tensor(found, dtype=torch.float32, device=args.device)
            if pseudo is not None:
                training_data = PseudoLabelledWindows(self.plan, pseudo, self.augmentation)
        self._loss = TrainingLoss(model.config, self.class_weights, args.focal_gamma, shift)
        super().__init__(
            model=lay_out(model, args.device),
            args=args,
            train_dataset=training_data,
            eval_dataset=None if eval_dataset is None else self._feature_clips(eval_dataset),
            processing_class=feature_extractor,
            compute_metrics=self._metrics,
            callbacks=[BestCheckpoint(), *stopping],
        )
        self.averaged_epochs: list[float] = []
        self._metric_of_average: float | None = None
        self._average = EpochAverage(args.average_epochs) if args.average_epochs > 1 else None
        if self._average is not None:
            self.add_callback(self._average)
        if self.plan is not None and self.plan.hard_share:
            self.add_callback(HardWindows(self.plan.rescore_epochs, self.plan.scored_windows))
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(RunTensorBoard())
        # Trainer then counts the items of the whole step, for `compute_loss`, and does not scale the loss again.
        self.model_accepts_loss_kwargs = True

    def _window_sampler(
        self, args: KenyaBirdsTrainingArguments, *, drawn_windows: int | None = None
    ) -> WindowSampler | EmbeddedWindowSampler:
        """The sampler of training, or one that draws another number of windows, of which none is hard."""
        assert self.plan is not None
        drawn: dict[str, Any] = {
            "length": drawn_windows or self.plan.length,
            "windows_per_step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "species_power": args.sampler_weight_power,
        }
        if self.frozen is not None:
            return self.frozen.window_sampler(self.plan, **drawn)
        return WindowSampler(
            self.plan.decoded,
            self.plan.targets,
            call_share=self.plan.call_share,
            empty_share=self.plan.empty_share,
            hard_share=0.0 if drawn_windows else self.plan.hard_share,
            hard_windows=self._hard_windows,
            numbers=len(DRAWS),
            **drawn,
        )

    def _hard_windows(self, sampler: WindowSampler) -> np.ndarray:
        # A resumed run has another callback object than the one that was added to it.
        hard = next(one for one in self.callback_handler.callbacks if isinstance(one, HardWindows))
        return hard.find(sampler, self.train_dataset, self.model, self.accelerator)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **settings: Any) -> TrainOutput:
        """Trains (see `Trainer.train`); with `load_best_model_at_end`, the model ends with the best epoch's weights.

        If training had ended with the checkpoint to resume from, its model is loaded and nothing is trained.

        Raises:
            UserError: If there is no checkpoint to resume from, the best checkpoint is missing, no evaluation gave a
                number, or the weights are not numbers.
        """
        checkpoint: Path | None = None
        if resume_from_checkpoint is True:
            checkpoint = last_whole_checkpoint(Path(self.args.output_dir))
            if checkpoint is None:
                raise UserError(f"no checkpoint to resume from in {self.args.output_dir}")
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
        if checkpoint is not None:
            self.args.eval_on_start = False  # it has been done, and early stopping would count it twice
            state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
            if has_ended(self.callback_handler.callbacks, state):
                return self._load_ended(checkpoint, state)
        output = super().train(None if checkpoint is None else str(checkpoint), *arguments, **settings)
        self._check_best()
        self._take_average()
        self._check_weights()
        return output

    def _check_best(self) -> None:
        if self.args.load_best_model_at_end and self.state.best_global_step is None:
            raise DivergedError(
                f"no evaluation gave a {self.args.metric_for_best_model} that is a number, so there is no best epoch: "
                "look at the losses in the log, and lower --learning_rate"
            )
        find_best(self.args, self.state)

    def _take_average(self) -> None:
        """Gives the model the mean of the weights of its best epochs, and evaluates it."""
        if self._average is None:
            return
        steps = self._team.first_does(partial(self._average.steps, self.args, self.state))
        if not steps:
            return
        self._average.average(Path(self.args.output_dir), steps, self.model)
        assert self.state.epoch is not None
        self.averaged_epochs = [round(step * self.state.epoch / self.state.global_step, 2) for step in steps]
        epochs = ", ".join(f"{epoch:g}" for epoch in self.averaged_epochs)
        told = f"The model has the mean of the weights of epochs {epochs}"
        if not self.args.load_best_model_at_end:
            logger.info("%s", told)
            return
        name = metric_name(self.args)
        self._metric_of_average = self.predict(self.eval_dataset, metric_key_prefix="eval").metrics[name]
        logger.info(
            "%s: %s %.4f on validation, and %.4f after the best epoch",
            told,
            SHOWN.get(name.removeprefix("eval_"), name.removeprefix("eval_").replace("_", " ")),
            self._metric_of_average,
            self.state.best_metric,
        )

    @property
    def best_metric(self) -> float:
        """The metric of the trained model on validation, by which its best epoch was chosen."""
        found = self.state.best_metric if self._metric_of_average is None else self._metric_of_average
        assert found is not None
        return float(found)

    def _check_weights(self) -> None:
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise DivergedError(
                "the weights of the model are not numbers, because training diverged: look at the losses in the log, "
                "and start a new run with a lower --learning_rate"
            )

    def _load_ended(self, checkpoint: Path, state: TrainerState) -> TrainOutput:
        """Loads the model of a training that has ended: of its best epoch if there is one, else of its last."""
        self.state = state
        state.is_local_process_zero, state.is_world_process_zero = (
            self.is_local_process_zero(),
            self.is_world_process_zero(),
        )
        self._check_best()
        model_class = type(self.model)
        loaded = model_class.from_pretrained(state.best_model_checkpoint or checkpoint, dtype=torch.float32)
        self.model.load_state_dict(loaded.state_dict())
        self._take_average()
        self._check_weights()
        clock = next(one for one in self.callback_handler.callbacks if isinstance(one, TrainingClock))
        stored = state.stateful_callbacks.get(TrainingClock.__name__, {})
        clock.before_s = stored.get("attributes", {}).get("before_s", 0.0)
        return TrainOutput(state.global_step, 0.0, {"train_runtime": 0.0})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves model and feature extractor, and in a checkpoint also the settings and splits of the run."""
        with transformers_bars_hidden():
            super().save_model(output_dir, _internal_call=_internal_call)
        if output_dir is not None and self.args.should_save and Path(output_dir) != Path(self.args.output_dir):
            copy_record(Path(self.args.output_dir), Path(output_dir))

    def get_eval_dataloader(
        self, eval_dataset: Dataset | FeatureClips | EvaluationWindows | EmbeddedRows | None = None
    ) -> DataLoader:
        """Loader of clips of `load_clips`, by default of the validation clips."""
        return super().get_eval_dataloader(None if eval_dataset is None else self._feature_clips(eval_dataset))

    def get_test_dataloader(
        self, test_dataset: Dataset | FeatureClips | EvaluationWindows | EmbeddedRows
    ) -> DataLoader:
        """Loader of clips of `load_clips`."""
        return super().get_test_dataloader(self._feature_clips(test_dataset))

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Augments training clips and computes their features; clips to evaluate have theirs already."""
        if "sound" not in inputs:
            return inputs
        amounts = inputs["amounts"]
        with torch.no_grad():
            features = self.augmentation(self.train_dataset.waveform(inputs), amounts)
        prepared = {"input_features": features, "labels": inputs["labels"]}
        if "partner_labels" in inputs:
            prepared["mixed_in"] = (inputs["partner_labels"], amounts["mixup"])
        if "weight" in inputs:
            prepared["weight"] = inputs["weight"]
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Weighted loss, summed over this batch and divided by the items of the whole step."""
        labels = inputs.pop("labels")
        mixed_in, weight = inputs.pop("mixed_in", None), inputs.pop("weight", None)
        outputs = model(**inputs)
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        losses = self._loss(outputs.logits, labels, smoothing, model.training)
        if mixed_in is not None:
            others, share = mixed_in
            mixed = self._loss(outputs.logits, others, smoothing, model.training)
            losses = torch.lerp(losses, mixed, share)
        if weight is not None:
            losses = losses * (weight if losses.ndim == 1 else weight[:, None])
        loss = losses.sum()
        if num_items_in_batch is None:
            loss = loss / (labels != MASKED).sum()
        else:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                # The items were counted over all processes, and gradients are averaged over them.
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[None, Any, Any]:
        """Logits and labels of a batch; the loss is computed from all batches together (see `_metrics`).

        Several processes repeat clips to fill their last batches; a mean over batches would count those clips twice.
        """
        _, logits, labels = super().prediction_step(*args, **kwargs)
        return None, logits, labels

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = prediction
        if not np.isfinite(logits).all():
            # An epoch after which the model gives no numbers is never the best one.
            return dict.fromkeys(METRICS, math.nan)
        losses = self._loss(torch.as_tensor(logits), torch.as_tensor(labels))
        loss = (losses.sum() / (labels != MASKED).sum()).item()
        metrics = classification_metrics(logits, labels, multi_label=self.multi_label)
        # Ranks are the same for logits and probabilities.
        scores = logits if self.multi_label else probabilities(logits, multi_label=False)
        precisions = average_precisions(scores, class_targets(labels, scores.shape[1]))
        return {"loss": loss, **metrics, "cmap": float(np.nanmean(precisions))}

    def train_sampler(self) -> ClipSampler | WindowSampler | EmbeddedWindowSampler | PseudoLabelSampler:
        """The sampler of training clips, or of windows of the training recordings."""
        if self.plan is not None:
            windows = self._window_sampler(self.args)
            if self.pseudo is None:
                return windows
            assert isinstance(windows, WindowSampler)
            return PseudoLabelSampler(
                windows,
                self.pseudo,
                len(self.plan.decoded.recordings),
                call_share=self.plan.call_share,
                windows_per_step=self.clips_per_step,
                species_power=self.args.sampler_weight_power,
            )
        weights = None
        if self.args.sampler_weight_power:
            class_weights = power_weights(self.class_counts, self.args.sampler_weight_power)
            # A clip with several species has the weight of the rarest.
            weights = [max((class_weights[label] for label in labels), default=0.0) for labels in self.labels_per_clip]
        return ClipSampler(
            len(self.labels_per_clip),
            self.clips_per_step,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            weights=weights,
            numbers=len(DRAWS),
        )
