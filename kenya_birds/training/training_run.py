"""One training run: from settings to a trained model."""

import contextlib
import dataclasses
import logging
import shutil
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from transformers import set_seed

from kenya_birds.console import user_errors
from kenya_birds.data.archive import ANNOTATIONS_FILE, check_several
from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.dataset import build_clips, clips_builder, load_no_call
from kenya_birds.data.splits import SPLITS, read_splits, recordings_in
from kenya_birds.errors import UserError
from kenya_birds.evaluation.predictions import score_clips
from kenya_birds.files import read_json, write_json, write_table
from kenya_birds.locks import check_not_locked, locked
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.batches import WEIGHT
from kenya_birds.training.callbacks import StopAt
from kenya_birds.training.earlier_training import EarlierTraining
from kenya_birds.training.embedded_data import EmbeddedRows
from kenya_birds.training.first_stage import FirstStage
from kenya_birds.training.frozen_backbones import find_backbone, is_frozen
from kenya_birds.training.frozen_training import FrozenEmbeddings, load_backbone
from kenya_birds.training.no_call_windows import cut_no_call
from kenya_birds.training.run_checks import (
    archive_of_run,
    check_classes,
    check_settings,
    hash_annotations,
    splits_of_run,
)
from kenya_birds.training.run_folder import (
    EPOCHS_FOLDER,
    SPLITS_FILE,
    STAGE_FILE,
    RunRecord,
    adopt,
    copy_record,
    find_start,
    forget_start,
    lies_in,
)
from kenya_birds.training.run_model import make_model, restore_backbone, save_model
from kenya_birds.training.self_training import self_train
from kenya_birds.training.setting_rules import check_train_on, check_used
from kenya_birds.training.settings import Settings, training_summary
from kenya_birds.training.split_windows import SplitWindows, check_no_call
from kenya_birds.training.starting_points import initialize
from kenya_birds.training.trainer import KenyaBirdsTrainer
from kenya_birds.training.training_arguments import training_team
from kenya_birds.training.training_recordings import TrainingRecordings
from kenya_birds.training.unlabelled import Unlabelled
from kenya_birds.training.window_training import EvaluationWindows, WindowPlan, choose_windows, start_at_prior

logger = logging.getLogger(__name__)


class Run:
    """A run that is checked and planned.

    A run is a context manager: `with Run(settings) as run: ...`. Nothing is written before. In the block, the output
    folder has the record and the splits of the run, and is locked for other runs. Methods that write into the folder
    enter the run themselves if necessary.

    Args:
        settings: The settings. A resumed run keeps the splits with which it was started.
        splits: `recording` and `split`, instead of the splits of the settings.
        everything_for: Train on the clips of all splits for this many epochs of the settings' schedule, without
            evaluation; by default on the train split, until the best epoch on validation.

    Attributes:
        settings: The settings.
        team: The processes that share the run.
        extractor: The feature extractor.
        builder: Builder of the clips.
        splits: `recording` and `split` of the run.
        windows: The windows of the recordings.
        model: The classifier with its initial weights.
        earlier: What its starting model and teacher were trained on.

    Raises:
        UserError: If an argument or the archive cannot be used, or differ from those of the run to resume.
    """

    def __init__(
        self, settings: Settings, splits: pd.DataFrame | None = None, *, everything_for: float | None = None
    ) -> None:
        self.settings = settings
        # A frozen backbone sets this probability to 0, whatever the way of training.
        check_used(set(settings.not_usual()) - {"shift_probability"}, settings.data, settings.model)
        check_train_on(settings.data, settings.model, settings.features)
        self.backbone = find_backbone(settings.model, vars(settings.features))
        if settings.teacher.self_training and not settings.training.load_best_model_at_end:
            raise UserError(
                "--self_training keeps a round only if validation is better: leave out --load_best_model_at_end False"
            )
        self.team = training_team(settings.training)
        self._output_dir, self._stack, self._entered = Path(settings.training.output_dir), contextlib.ExitStack(), 0
        self._everything_for = everything_for
        self._no_call: tuple[datasets.Dataset | None, np.ndarray] | None = None
        self.team.first_does(partial(check_not_locked, self._output_dir))
        self._checkpoint = self.team.first_does(self._find_start)
        set_seed(settings.training.seed)
        with user_errors(ValueError):
            self.extractor = KenyaBirdsFeatureExtractor(**dataclasses.asdict(settings.features))
        if splits is None and settings.data.splits_file:
            splits = read_splits(settings.data.splits_file, settings.data.fold)
        record = None
        if self._checkpoint is not None:
            record = RunRecord.read(self._checkpoint)
            check_settings(record, settings, everything_for, self._checkpoint)
            splits = splits_of_run(self._checkpoint, splits, everything_for)
        with archive_of_run(self._checkpoint):
            self.builder = self._plan_clips(splits)
        if settings.data.folds is None and not settings.data.final_fit:  # a cross-validation checks its folds
            check_no_call(settings, self.builder.archive, self.builder.splits, self.extractor)
        self.splits = self.builder.splits if everything_for is None else self.builder.splits.assign(split="train")
        self.windows = SplitWindows(settings.data, self.builder, self.splits, self.extractor)
        classes = self.builder.classes
        if settings.data.train_on == "clips":
            check_several(classes, settings.data.min_annotations)
        names = self.builder.archive.species_names(classes)
        self.model = make_model(settings.model, self.backbone, classes, names)
        self.record = self._start_model() if record is None else self._check_archive(record)
        self.unlabelled = self._find_unlabelled()
        self._first_stage = self._plan_first_stage()
        self.earlier = EarlierTraining.find(
            settings.model, self.backbone, settings.teacher.teacher, self.builder.archive, self._checkpoint
        )
        self.earlier.check(recordings_in(self.builder.splits, "test"))
        self.earlier.warn_of_validation(recordings_in(self.builder.splits, "validation"))

    def _plan_clips(self, splits: pd.DataFrame | None) -> KenyaBirds:
        data = self.settings.data
        return clips_builder(
            data.data_dir,
            splits=splits,
            cache_dir=data.cache_dir,
            sampling_rate=self.extractor.sampling_rate,
            clip_s=self.extractor.clip_s,
            context_s=data.context_s,
            edge_tolerance_s=data.edge_tolerance_s,
            min_overlap_s=data.min_overlap_s,
            min_annotations=data.min_annotations,
            channel=data.channel,
            weak_labels=data.weak_labels,
            test_size=data.test_size,
            validation_size=data.validation_size,
            fold=data.fold,
            split_seed=data.split_seed,
        )

    def _find_unlabelled(self) -> Unlabelled:
        if not self.settings.teacher.unlabelled:
            return Unlabelled([], [], [])
        tested = self.splits.loc[self.splits["split"] != "train", "recording"].to_list()
        found = Unlabelled.find(self.settings.teacher.unlabelled).without_archive(self.builder.archive, tested)
        if self._checkpoint is not None and self.settings.teacher.self_training:
            found.check_recorded(TrainingRecordings.read(self._checkpoint))
        return found

    def _plan_first_stage(self) -> FirstStage | None:
        """The stage with the teacher; None if there is none, or the run resumes after it."""
        if self.settings.teacher.teacher is None or self._checkpoint is not None:
            return None
        return FirstStage(self.settings, self.builder, self.windows.recordings("train"), self.unlabelled)

    def _start_model(self) -> RunRecord:
        """Loads the starting weights of a new run; returns its record."""
        data = self.settings.data
        annotations = hash_annotations(data.data_dir)
        starting_point = load_backbone(self.model, self.backbone)
        if starting_point is None:
            starting_point = initialize(self.model, self.settings.model.init_from, self.extractor)
        if data.train_on == "recordings":
            start_at_prior(self.model)
        return RunRecord(self.settings.record(), starting_point, annotations, self._everything_for)

    def _check_archive(self, record: RunRecord) -> RunRecord:
        """Refuses other classes than those of the resumed run, and warns of other annotations; returns its record."""
        check_classes(self._checkpoint, self.builder.classes)
        restore_backbone(self.model, self.settings.model, self.backbone, self._checkpoint)
        data_dir = self.settings.data.data_dir
        if hash_annotations(data_dir) != record.annotations:
            logger.warning(
                "%s has changed since this run was started: it keeps its splits, and trains on the annotations as "
                "they are now",
                Path(data_dir) / ANNOTATIONS_FILE,
            )
        return record

    def __enter__(self) -> "Run":
        """Locks the output folder, and writes the record and the splits of a new run.

        Raises:
            UserError: If another process uses the folder, or has used it since the run was planned.
        """
        if not self._entered:
            self._checkpoint = self.team.first_does(self._take_folder)
        self._entered += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Unlocks the output folder; if a new run failed before training, its files are removed."""
        self._entered -= 1
        if self._entered:
            return
        if kind is not None and self.team.is_first and self._checkpoint is None:
            with contextlib.suppress(OSError):
                forget_start(self._output_dir)
        self._stack.close()

    def _validation_windows(self) -> EvaluationWindows | EmbeddedRows:
        data, args = self.settings.data, self.settings.training
        grid, annotated = self.windows.of("validation")
        targets = grid.targets(annotated)
        rows = choose_windows(targets, data.validation_windows, args.seed)
        if self.frozen is not None:
            with self.team.one_first():
                inputs = self.frozen.windows(grid, "windows of the validation recordings")
            return EmbeddedRows(inputs[rows], torch.from_numpy(targets[rows]).float())
        return EvaluationWindows(grid, rows, targets, self.extractor, args.device)

    @cached_property
    def frozen(self) -> FrozenEmbeddings | None:
        """The embeddings of the frozen backbone; None if the backbone is trained."""
        if not is_frozen(self.settings.model):
            return None
        args = self.settings.training
        return FrozenEmbeddings(
            self.model,
            self.extractor,
            self.builder,
            args.device,
            self.settings.model,
            args.seed,
        )

    def window_logits(self, split: str) -> np.ndarray:
        """Logits of all windows of the recordings of a split, before calibration.

        Args:
            split: Of `splits`.
        """
        grid, _ = self.windows.of(split)
        if self.frozen is not None:
            return self.frozen.window_logits(grid, f"windows of the {split} recordings")
        return grid.logits(self.model, self.extractor)

    def clip_logits(self, clips: datasets.Dataset) -> np.ndarray:
        """Logits of clips, before calibration."""
        if self.frozen is not None:
            return self.frozen.clip_logits(clips, "windows without a call")
        return score_clips(self.model, self.extractor, clips)

    def save_model(self, folder: str | Path) -> None:
        """Saves the model and its feature extractor; with `--bundle_backbone` also the published network.

        Args:
            folder: The model's folder.

        Raises:
            UserError: If another file has the name of the network.
        """
        save_model(self.model, self.extractor, Path(folder), with_network=self.settings.model.bundle_backbone)

    @property
    def common_names(self) -> dict[str, str]:
        """English names by eBird code."""
        return {code: names["common_name"] for code, names in self.model.config.species.items()}

    def validation_no_call(self) -> tuple[datasets.Dataset | None, np.ndarray]:
        """Windows without annotations from the validation recordings; their number is in the settings.

        They are cut at the first call. With training on recordings there are none, because thresholds are then chosen
        on all windows.

        Returns:
            The windows, or None if there are none; and the weight of each: the number of such windows in its recording
            that it represents.

        Raises:
            UserError: If none of them can be read.
        """
        if self._no_call is not None:
            return self._no_call
        data = self.settings.data
        self._no_call = cut_no_call(
            self.builder,
            self.team,
            per_recording=0 if data.train_on == "recordings" else data.no_call_windows,
            sampling_rate=self.extractor.sampling_rate,
            clip_s=self.extractor.clip_s,
            num_proc=data.num_proc,
        )
        return self._no_call

    def train(self) -> tuple[KenyaBirdsTrainer, datasets.DatasetDict, dict[str, Any]]:
        """Cuts the clips and trains: `cut_clips`, `make_trainer` and `fit`.

        Returns:
            The trainer, the clips by split, and the run's summary. The trainer has the best (or last) model, which is
            saved only in checkpoints.

        Raises:
            UserError: If the clips cannot be cut or trained on, or the best checkpoint is missing.
        """
        with self:
            clips = self.cut_clips()
            trainer = self.make_trainer(clips)
            return trainer, clips, self.fit(trainer, clips)

    def cut_clips(self) -> datasets.DatasetDict:
        """Cuts the clips, or finds them in the cache.

        Returns:
            `train`, `validation` and `test`; only `train`, with all clips, in a fit on everything.

        Raises:
            UserError: If a split has no clip that can be read.
        """
        with self.team.one_first():
            clips = build_clips(self.builder, self.settings.data.num_proc)
        if self._everything_for is not None:
            clips = datasets.DatasetDict(train=datasets.concatenate_datasets([clips[split] for split in SPLITS]))
        for split in clips:
            recordings = len(recordings_in(self.splits, split))
            weak = sum(clips[split]["weak"])
            about = f", {weak} of them with weak labels" if weak else ""
            logger.info("%s: %d clips of %d recordings%s", split, len(clips[split]), recordings, about)
        return clips

    def make_trainer(self, clips: datasets.DatasetDict) -> KenyaBirdsTrainer:
        """The trainer of the model: on the training clips, or on windows of the training recordings.

        Args:
            clips: Result of `cut_clips`.

        Raises:
            UserError: If these clips cannot be trained on.
        """
        args, data, augmentation = self.settings.training, self.settings.data, self.settings.augmentation
        if self._first_stage is not None:
            self._learn_from_teacher(self._first_stage)
        background = self.background()
        learned: datasets.Dataset | WindowPlan = clips["train"]
        weights = self.windows.weights(clips["train"]["recording"][:])
        if weights is not None:
            learned = clips["train"].add_column(WEIGHT, weights)
        evaluated: datasets.Dataset | EvaluationWindows | EmbeddedRows | None = clips.get("validation")
        if data.train_on == "recordings":
            learned = self.windows.plan()
            evaluated = None if evaluated is None else self._validation_windows()
        trainer = KenyaBirdsTrainer(
            self.model, args, self.extractor, learned, evaluated, augmentation, background, self.frozen
        )
        if self._everything_for is not None:
            trainer.add_callback(StopAt(self._everything_for))
            trainer.epoch_log.epochs = self._everything_for
        return trainer

    def background(self) -> datasets.Dataset | None:
        """Windows without a call for the augmentation; None if it uses none."""
        if not self.settings.augmentation.background_probability:
            return None
        with self.team.one_first():
            try:
                return load_no_call(self.builder, self.settings.data.num_proc, context_s=0.0)
            except UserError as error:  # there are such windows, and none can be read
                raise UserError(f"--background_probability needs windows without a call, but {error}") from None

    def _learn_from_teacher(self, stage: FirstStage) -> None:
        """Runs the first stage, and writes what it was into the output folder."""
        with self:
            about = stage.run(self.model, self.team)
            self.team.first_does(lambda: write_json(about, self._output_dir / STAGE_FILE))

    def fit(self, trainer: KenyaBirdsTrainer, clips: datasets.DatasetDict) -> dict[str, Any]:
        """Trains or resumes; the trainer then has the best (or last) model.

        Args:
            trainer: Result of `make_trainer`.
            clips: Result of `cut_clips`.

        Returns:
            The run's summary, for `training_summary.json`.

        Raises:
            UserError: If the best checkpoint is missing.
        """
        data, args = self.settings.data, self.settings.training
        summary = training_summary(
            self.builder,
            self.splits,
            clips,
            args,
            self.settings.augmentation,
            self.record.starting_point,
            data.train_on,
        )
        if (self._output_dir / STAGE_FILE).is_file():
            summary["first_stage"] = read_json(self._output_dir / STAGE_FILE)
        if trainer.plan is not None:
            logger.info("Each epoch has %d windows drawn from the training recordings", trainer.plan.length)
        self.team.wait()  # here, so that the waiting time is not measured as training
        trainer.train(None if self._checkpoint is None else str(self._checkpoint))
        state = trainer.state
        summary["result"] = {"epochs": round(state.epoch or 0, 2)}
        if args.load_best_model_at_end:
            best = [entry["epoch"] for entry in state.log_history if entry["step"] == state.best_global_step]
            summary["result"] |= {"best_epoch": best[-1], "chosen_by": args.metric_for_best_model}
        if trainer.averaged_epochs:
            summary["result"]["averaged_epochs"] = trainer.averaged_epochs
        summary["result"]["train_runtime_s"] = round(trainer.trained_s, 1)
        if self.settings.teacher.self_training:
            summary["self_training"] = self_train(self, trainer, self.settings.teacher.self_training)
        return summary

    def _find_start(self) -> Path | None:
        return find_start(self._output_dir, self.settings.training.resume_from_checkpoint)

    def _take_folder(self) -> Path | None:
        """Locks and prepares the output folder; returns the checkpoint in it to resume from."""
        folder, checkpoint = self._output_dir, self._checkpoint
        with contextlib.ExitStack() as stack, user_errors(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
            # Another run may have used the folder since this one was planned.
            if self._find_start() != checkpoint:
                raise UserError(f"another run has used {folder} in the meantime: run the same command again")
            if checkpoint is None:
                # Of a run with other settings that was killed before its first checkpoint.
                shutil.rmtree(folder / EPOCHS_FOLDER, ignore_errors=True)
                self.record.write(folder)
                if self._first_stage is None:
                    (folder / STAGE_FILE).unlink(missing_ok=True)  # of a run that was stopped before a checkpoint
                write_table(self.splits, folder / SPLITS_FILE)
                fingerprints = self.builder.archive.fingerprints(self.splits["recording"])
                own = TrainingRecordings.of_splits(self.splits, fingerprints)
                if self.unlabelled.paths:
                    own = own.and_those_of(self.unlabelled.as_training())
                own.and_those_of(self.earlier.recordings).write(folder)
            elif lies_in(checkpoint, folder):
                copy_record(checkpoint, folder)
            else:
                checkpoint = adopt(checkpoint, folder)
            self._stack = stack.pop_all()
        return checkpoint
