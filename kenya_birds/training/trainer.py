"""The trainer: features on the device, weighted loss, weighted sampling."""

import logging
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer

from kenya_birds.data.audio import decode_wav
from kenya_birds.errors import UserError
from kenya_birds.evaluation.metrics import classification_metrics
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import (
    MASKED,
    KenyaBirdsForAudioClassification,
    classification_loss,
)
from kenya_birds.training.arguments import KenyaBirdsTrainingArguments
from kenya_birds.training.augmentation import crop, uniform_per_clip
from kenya_birds.training.weighting import ClipSampler, power_weights

logger = logging.getLogger(__name__)


class ClipCollator:
    """Stacks rows of `load_clips` into a batch.

    Args:
        num_labels: Number of classes.
        multi_label: Whether the target is every species in the clip, rather than the annotated one.
    """

    def __init__(self, num_labels: int, multi_label: bool) -> None:
        self.num_labels = num_labels
        self.multi_label = multi_label

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collates.

        Returns:
            `waveform`: int16 of shape `(batch, samples)`. `labels`: class ids of shape `(batch,)`, or zeros and ones
            of shape `(batch, num_labels)`, with -100 instead of zero where an unknown bird may be that class. `clip`:
            index of each clip in its split, where the rows have one.
        """
        batch = {"waveform": torch.from_numpy(np.stack([decode_wav(row["audio"]["bytes"]) for row in rows]))}
        if "clip" in rows[0]:
            batch["clip"] = torch.tensor([row["clip"] for row in rows])
        if self.multi_label:
            batch["labels"] = torch.zeros(len(rows), self.num_labels)
            for target, row in zip(batch["labels"], rows, strict=True):
                if row["unknown"]:
                    target[:] = MASKED
                target[row["labels"]] = 1.0
        else:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch


class KenyaBirdsTrainer(Trainer):
    """Trains a bird classifier on clips of `load_clips`.

    Waveforms reach the device as int16 and become features there, by the same feature extractor that is saved with the
    model. Where clips are stored with context, training cuts its window at random and evaluation in the middle.

    The loss weighs classes by `args.loss_weight_power` and is divided by the number of clips (known elements, where
    multi-label) of the whole step, over all processes and accumulated batches: how a batch is spread does not matter.

    Args:
        model: The classifier.
        args: The arguments.
        feature_extractor: The front end, saved with every checkpoint.
        train_dataset: Training clips.
        eval_dataset: Validation clips.

    Raises:
        UserError: If one process would drive several GPUs.
    """

    def __init__(
        self,
        model: KenyaBirdsForAudioClassification,
        args: KenyaBirdsTrainingArguments,
        feature_extractor: KenyaBirdsFeatureExtractor,
        train_dataset: Dataset,
        eval_dataset: Dataset,
    ) -> None:
        if args.n_gpu > 1:
            raise UserError(
                f"{args.n_gpu} GPUs but one process: start with `accelerate launch --multi_gpu train_hf.py ...`, or "
                "show one GPU only (CUDA_VISIBLE_DEVICES=0)"
            )
        self.multi_label = model.config.problem_type == "multi_label_classification"
        num_labels = model.config.num_labels
        self.labels_per_clip = [labels if self.multi_label else [label] for labels, label in _targets(train_dataset)]
        self.class_counts = np.bincount(np.concatenate(self.labels_per_clip), minlength=num_labels)
        self.class_weights = torch.tensor(
            power_weights(self.class_counts, args.loss_weight_power), dtype=torch.float32
        )
        if args.loss_weight_power + args.sampler_weight_power > 1:
            logger.warning(
                "loss_weight_power %.2g and sampler_weight_power %.2g together weigh rare classes by more than their "
                "inverse frequency",
                args.loss_weight_power,
                args.sampler_weight_power,
            )
        patience = args.early_stopping_patience
        super().__init__(
            model=model,
            args=args,
            data_collator=ClipCollator(num_labels, self.multi_label),
            train_dataset=train_dataset.add_column("clip", np.arange(len(train_dataset))),
            eval_dataset=eval_dataset,
            processing_class=feature_extractor,
            compute_metrics=self._metrics,
            callbacks=[EarlyStoppingCallback(patience)] if patience and args.load_best_model_at_end else None,
        )
        # The loss below divides by the number of items in the whole step: let Trainer count them, and not scale again.
        self.model_accepts_loss_kwargs = True

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(super()._prepare_inputs(inputs))
        waveform, clip = inputs.pop("waveform"), inputs.pop("clip", None)
        if self.model.training and waveform.shape[1] > self.processing_class.clip_samples:
            position = uniform_per_clip(self.args.seed, self.state.global_step, clip.tolist())[:, 0]
            waveform = crop(waveform, self.processing_class.clip_samples, position)
        features = self.processing_class(
            waveform, sampling_rate=self.processing_class.sampling_rate, return_tensors="pt", device=waveform.device
        )
        return {**inputs, **features}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Weighted loss, summed over this batch and divided by the items of the whole step."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self._weighted_losses(outputs.logits, labels).sum()
        if num_items_in_batch is None:
            loss = loss / (labels != MASKED).sum()
        else:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                # The items were counted over all processes, and gradients are averaged over them.
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[None, Any, Any]:
        """Logits and labels of a batch; the loss is computed from all of them together (see `_metrics`).

        A mean of the batches' losses would count the clips twice with which several processes fill up the last batch.
        """
        _, logits, labels = super().prediction_step(*args, **kwargs)
        return None, logits, labels

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = prediction
        losses = self._weighted_losses(torch.as_tensor(logits), torch.as_tensor(labels))
        loss = (losses.sum() / (labels != MASKED).sum()).item()
        return {"loss": loss, **classification_metrics(logits, labels, multi_label=self.multi_label)}

    def _weighted_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = classification_loss(logits, labels, self.model.config.problem_type)
        weights = self.class_weights.to(losses.device)
        return losses * (weights if self.multi_label else weights[labels])

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> ClipSampler:
        weights = None
        if self.args.sampler_weight_power:
            class_weights = power_weights(self.class_counts, self.args.sampler_weight_power)
            # A clip with several species is drawn as often as its rarest one asks for.
            weights = [max((class_weights[label] for label in labels), default=0.0) for labels in self.labels_per_clip]
        return ClipSampler(
            len(self.labels_per_clip),
            self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            weights=weights,
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Zero: Trainer's estimate is for text models and would be wrong here."""
        return 0


def _targets(dataset: Dataset) -> list[tuple[list[int], int]]:
    columns = dataset.select_columns(["labels", "label"])
    return list(zip(columns["labels"], columns["label"], strict=True))
