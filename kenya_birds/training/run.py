"""One training run: from settings to a trained model."""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from kenya_birds.console import user_errors
from kenya_birds.data.dataset import build_clips, clips_builder, load_no_call
from kenya_birds.data.planning import plan_no_call
from kenya_birds.data.splits import SPLITS, read_splits
from kenya_birds.json_files import write_json
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.output_files import write_table
from kenya_birds.training.arguments import find_checkpoint
from kenya_birds.training.settings import Settings
from kenya_birds.training.settings_record import SETTINGS_FILE
from kenya_birds.training.starting_points import initialize, kind_of_starting_point
from kenya_birds.training.summary import SPLITS_FILE, training_summary
from kenya_birds.training.trainer import KenyaBirdsTrainer
from kenya_birds.training.training_recordings import Overlap, TrainingRecordings, recordings_before

logger = logging.getLogger(__name__)


class Run:
    """A run that is checked and planned; nothing is written yet.

    Args:
        settings: The settings.
        splits: `recording` and `split`, instead of what the settings say.

    Attributes:
        settings: The settings.
        extractor: The front end.
        builder: Plans and cuts the clips.
        model: The classifier with its starting weights.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """

    def __init__(self, settings: Settings, splits: pd.DataFrame | None = None) -> None:
        self.settings = settings
        data, model = settings.data, settings.model
        set_seed(settings.training.seed)
        with user_errors(ValueError):
            self.extractor = KenyaBirdsFeatureExtractor(**dataclasses.asdict(settings.features))
        if splits is None and data.splits_file:
            splits = read_splits(data.splits_file, data.fold)
        self.builder = clips_builder(
            data.data_dir,
            splits=splits,
            cache_dir=data.cache_dir,
            sampling_rate=self.extractor.sampling_rate,
            clip_s=self.extractor.clip_s,
            context_s=data.context_s,
            edge_tolerance_s=data.edge_tolerance_s,
            min_annotations=data.min_annotations,
            test_size=data.test_size,
            validation_size=data.validation_size,
            fold=data.fold,
            split_seed=data.split_seed,
        )
        classes = self.builder.classes
        self._checkpoint = find_checkpoint(settings.training, classes)
        with user_errors(ValueError):
            self.model = KenyaBirdsForAudioClassification(
                KenyaBirdsConfig(
                    backbone=model.backbone,
                    drop_rate=model.drop_rate,
                    drop_path_rate=model.drop_path_rate,
                    problem_type=model.problem_type,
                    id2label=dict(enumerate(classes)),
                    label2id={code: index for index, code in enumerate(classes)},
                    species=self.builder.archive.species_names(classes),
                )
            )
        if self._checkpoint is None:
            self._starting_point = initialize(self.model, model.init_from, self.extractor)
        else:
            self._starting_point = kind_of_starting_point(model.init_from)
        self._before = recordings_before(model.init_from, self._checkpoint)
        splits = self.builder.splits
        self.check_starting_model(splits.loc[splits["split"] == "test", "recording"])
        heard = self._overlap(splits.loc[splits["split"] == "validation", "recording"]).names("train")
        if heard:
            logger.warning(
                "The starting model was trained on %d of the validation recordings, on which epoch, calibration and "
                "thresholds are chosen: they will suit recordings that were trained on",
                len(heard),
            )

    def check_starting_model(self, recordings: Iterable[str]) -> None:
        """Raises `UserError` if the starting model was trained on recordings, or chosen with them.

        Args:
            recordings: Those that will test this run.
        """
        advice = (
            f"The test would not say how well the new model works on other recordings: pass the starting model's own "
            f"{SPLITS_FILE} as --splits_file, or test on recordings that it was not trained on"
        )
        self._overlap(recordings).refuse(self.settings.model.init_from, ["train", "validation"], advice)

    def _overlap(self, recordings: Iterable[str]) -> Overlap:
        if self._before is None:
            return Overlap((), {}, [])
        return self._before.overlap(self.builder.archive.fingerprints(recordings))

    @property
    def common_names(self) -> dict[str, str]:
        """English names by eBird code."""
        return {code: names["common_name"] for code, names in self.model.config.species.items()}

    def validation_no_call(self) -> tuple[datasets.Dataset | None, np.ndarray]:
        """Cuts windows of the validation recordings in which nothing is annotated, as many as the settings say.

        Returns:
            The windows, None where there are none, and the weight of each: how many of its recording it stands for.

        Raises:
            UserError: If none of them can be read.
        """
        data, clip_s = self.settings.data, self.extractor.clip_s
        # From a centre so far away, a call as long as a clip does not reach into the window.
        margin_s = clip_s / 2
        recordings = self.builder.splits.loc[self.builder.splits["split"] == "validation", "recording"].to_list()
        planned = plan_no_call(self.builder.archive, recordings, self.extractor.sampling_rate, clip_s, margin_s)
        if planned.empty or not data.no_call_windows:
            return None, np.zeros(0)
        with self.settings.training.main_process_first(desc="cutting windows without a call"):
            windows = load_no_call(
                self.builder,
                data.num_proc,
                context_s=0.0,
                no_call_split="validation",
                no_call_per_recording=data.no_call_windows,
                no_call_margin_s=margin_s,
                no_call_order="uniform",
            )
        cut = pd.Series(windows["recording"][:])
        weights = cut.map(planned["recording"].value_counts() / cut.value_counts())
        return windows, weights.to_numpy(dtype=np.float64)

    def train(
        self, everything_for: float | None = None
    ) -> tuple[KenyaBirdsTrainer, datasets.DatasetDict, dict[str, Any]]:
        """Cuts the clips and trains.

        Args:
            everything_for: Train on the clips of all splits for so many epochs of the settings' schedule, without
                evaluation; by default on the train split, to the best epoch on validation.

        Returns:
            The trainer, the clips by split, and the run's summary. The best (or last) model is in the trainer, and not
            saved yet except in checkpoints; splits are saved.

        Raises:
            UserError: If the clips cannot be cut or trained on.
        """
        args, data, augmentation = self.settings.training, self.settings.data, self.settings.augmentation
        with args.main_process_first(desc="cutting clips"):
            clips = build_clips(self.builder, data.num_proc)
            background = None
            if augmentation.background_probability:
                background = load_no_call(self.builder, data.num_proc, context_s=0.0)
        splits, validation = self.builder.splits, clips["validation"]
        if everything_for is not None:
            clips = datasets.DatasetDict(train=datasets.concatenate_datasets([clips[split] for split in SPLITS]))
            splits, validation = splits.assign(split="train"), None
        for split in clips:
            recordings = (splits["split"] == split).sum()
            logger.info("%s: %d clips of %d recordings", split, len(clips[split]), recordings)
        trainer = KenyaBirdsTrainer(
            self.model, args, self.extractor, clips["train"], validation, augmentation, background
        )
        if everything_for is not None:
            trainer.add_callback(StopAt(everything_for))
            trainer.epoch_log.epochs = everything_for
        summary = training_summary(self.builder, splits, clips, args, augmentation, self._starting_point)
        if trainer.is_world_process_zero():
            output_dir = Path(args.output_dir)
            output_dir.mkdir(parents=True, exist_ok=True)
            write_table(splits, output_dir / SPLITS_FILE)
            fingerprints = self.builder.archive.fingerprints(splits["recording"])
            TrainingRecordings.of_splits(splits, fingerprints).and_those_of(self._before).write(output_dir)
            write_json({"settings": self.settings.record()}, output_dir / SETTINGS_FILE)
        trained = trainer.train(resume_from_checkpoint=self._checkpoint)
        state = trainer.state
        best = [entry["epoch"] for entry in state.log_history if entry["step"] == state.best_global_step]
        summary["result"] = {
            "epochs": round(state.epoch or 0, 2),
            **({"best_epoch": best[-1]} if best else {}),
            "train_runtime_s": round(trained.metrics["train_runtime"], 1),
        }
        return trainer, clips, summary


class StopAt(TrainerCallback):
    """Ends training after so many epochs, whatever number the learning rate's schedule is made for.

    Args:
        epochs: How many; parts of an epoch are rounded up to steps.
    """

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Asks for the end at the right step."""
        if (state.epoch or 0) >= self.epochs - 1e-6:
            control.should_training_stop = True
        return control
