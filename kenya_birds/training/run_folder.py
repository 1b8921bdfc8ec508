"""The output folder of training: the record of its run, its checkpoints, and the files that may be replaced."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kenya_birds.errors import UserError, WriteError
from kenya_birds.files import PARTIAL_SUFFIX, file_sha256, is_write_error, read_json, write_json
from kenya_birds.folders import contents_of, delete_system_files, is_new_or_empty
from kenya_birds.locks import LOCK_FILE

logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"
SPLITS_FILE = "splits.csv"
# The recordings of the run, and of the models that it was started from.
RECORDINGS_FILE = "training_recordings.csv"
STAGE_FILE = "first_stage.json"
# Files that a run writes at its start. Each checkpoint has a copy.
RECORD_FILES = (SETTINGS_FILE, SPLITS_FILE, RECORDINGS_FILE, STAGE_FILE)
# What a cross-validation writes at its start, after its settings. It is resumed by the last one.
FOLDS_FILE, CROSS_VALIDATION_FILE = "folds.csv", "cross_validation.json"
SUMMARY_FILE = "training_summary.json"
CARD_FILE = "README.md"
# Names of transformers. The state is written last: if it can be read, the checkpoint is complete.
CHECKPOINT_PREFIX, STATE_FILE = "checkpoint-", "trainer_state.json"
OPTIMIZER_FILE = "optimizer.pt"
# Weights of the best epochs, for their mean.
EPOCHS_FOLDER = "epoch_weights"
LOGS_FOLDER = "runs"
# Files that training writes at its end, besides the model's code. Files with these names that training has not written
# belong to the user and are not replaced.
RESULT_FILES = (
    *(CARD_FILE, "config.json", "preprocessor_config.json", "model.safetensors", SUMMARY_FILE),
    *("audio_model_kenya_birds.py", "backbone_kenya_birds.py", "configuration_kenya_birds.py"),
    "feature_extraction_kenya_birds.py",
    *("graph_kenya_birds.py", "modeling_kenya_birds.py", "network_input_kenya_birds.py"),
    *("noise_reduction_kenya_birds.py", "signal_kenya_birds.py"),
    *("metrics.json", "per_species.csv", "predictions.parquet", "thresholds.json", "novelty.safetensors"),
    *("recording_species.csv", "recording_counts.csv", "recording_detections.csv", "recording_calls.csv"),
    *("recording_windows.parquet", "recall_by_false_detections.png", "recording_reliability.png"),
    "recording_timeline.png",
    *("confusion_matrix.png", "f1_by_training_clips.png", "precision_recall.png", "reliability.png"),
)
# SHA-256 of the results of training, by name. Empty while they are written.
DIGESTS_FILE = ".results.json"


@dataclass(frozen=True)
class RunRecord:
    """The record of a run, written at its start.

    Attributes:
        settings: See `Settings.record`.
        starting_point: Origin of its initial weights (see `starting_points.initialize`).
        annotations: SHA-256 of the archive's annotations.csv.
        everything_for: Number of epochs of a training on all splits; None for a training on the train split.
    """

    settings: dict[str, Any]
    starting_point: str
    annotations: str
    everything_for: float | None = None

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Reads the record of a run or of one of its checkpoints.

        Raises:
            UserError: If it does not exist or is damaged.
        """
        path = folder / SETTINGS_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {SETTINGS_FILE} with the settings of the run: runs of older versions of this "
                "package cannot be resumed"
            )
        content = read_json(path)
        try:
            record = cls(**{field.name: content[field.name] for field in fields(cls)})
        except KeyError as error:
            raise UserError(f"{path} has no {error}: expected the file that training wrote") from None
        if not isinstance(record.settings, dict):
            raise UserError(f"{path} has no object 'settings': expected the file that training wrote")
        return record

    def write(self, folder: Path) -> None:
        """Writes the record into the folder of a run."""
        write_json(vars(self), folder / SETTINGS_FILE)


def find_start(output_dir: Path, resume: str | None) -> Path | None:
    """Finds the checkpoint from which a run resumes; nothing is written.

    Args:
        output_dir: The run's output folder.
        resume: `--resume_from_checkpoint`: a checkpoint's folder, or `true` for the last complete one in `output_dir`.

    Returns:
        The checkpoint to resume from; None for a new run.

    Raises:
        UserError: If the folder of a new run is not empty, if the checkpoint does not exist, is not complete or
            belongs to another run than the folder, or if the run would replace files that training has not written.
    """
    is_free = _is_free(output_dir)
    if not resume:
        if not is_free:
            raise UserError(
                f"--output_dir {output_dir} exists and is not an empty folder: choose another, or resume the run in "
                "it with --resume_from_checkpoint true"
            )
        return None
    if resume.lower() == "true":
        checkpoint = last_whole_checkpoint(output_dir)
        if checkpoint is None:
            raise UserError(
                f"no checkpoint to resume from in {output_dir}: omit --resume_from_checkpoint (to resume a "
                "cross-validation, add --folds or --final_fit)"
            )
        if (last := checkpoints(output_dir)[-1]) != checkpoint:
            logger.warning("%s is not complete: the run resumes from %s", last, checkpoint.name)
    else:
        checkpoint = Path(resume)
        _check_whole(checkpoint)
        if not (is_free or lies_in(checkpoint, output_dir)):
            raise UserError(
                f"--resume_from_checkpoint {checkpoint} is not in --output_dir {output_dir}, which is not "
                "empty: resume a run in its own folder, or in a new or empty one"
            )
    if not (checkpoint / OPTIMIZER_FILE).is_file():
        raise UserError(
            f"{checkpoint} has no {OPTIMIZER_FILE}, because of --save_only_model, so no run can resume from it: to "
            "start a new run with its weights, give it as --init_from"
        )
    check_results(output_dir)
    return checkpoint


def check_folds_start(output_dir: Path, resume: str | None) -> None:
    """Checks whether a cross-validation can start or resume in a folder; nothing is written.

    Args:
        output_dir: Its output folder.
        resume: `--resume_from_checkpoint`: `true` to resume the cross-validation in the folder.

    Raises:
        UserError: If the folder of a new one is not empty, if there is none to resume, or if it would replace files
            that training has not written.
    """
    if resume and resume.lower() != "true":
        raise UserError(
            f"resume_from_checkpoint is {resume}: resume a cross-validation with --resume_from_checkpoint true, "
            "as each fold has checkpoints of its own"
        )
    if resume and not (output_dir / CROSS_VALIDATION_FILE).is_file():
        raise UserError(f"no cross-validation to resume in {output_dir}: leave --resume_from_checkpoint out")
    if not resume and not _is_free(output_dir, folds=True):
        raise UserError(
            f"--output_dir {output_dir} exists and is not an empty folder: choose another, or resume the "
            "cross-validation in it with --resume_from_checkpoint true"
        )
    check_results(output_dir)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their steps; some may be incomplete."""
    return sorted(
        (path for path in folder.glob(f"{CHECKPOINT_PREFIX}*") if checkpoint_step(path) >= 0), key=checkpoint_step
    )


def delete_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints in a folder, and the weights of epochs."""
    for left in (*checkpoints(folder), folder / EPOCHS_FOLDER):
        if left.exists():
            shutil.rmtree(left)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: a run may have been killed, or the disk full, while it was written.

    Raises:
        UserError: If its state exists and cannot be read.
    """
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        raise UserError(f"{checkpoint / STATE_FILE} cannot be read ({error}): make it readable") from None
    return True


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps in a folder; None if there is none."""
    return next(filter(is_whole, reversed(checkpoints(folder))), None)


def lies_in(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is directly in a folder; both paths may have any form."""
    return checkpoint.resolve().parent == folder.resolve()


def best_checkpoint(folder: Path, step: int) -> Path:
    """The best checkpoint of a run, found by its step: the path in a trainer's state may be from another machine.

    Args:
        folder: The run's folder.
        step: `best_global_step` of a trainer's state.

    Raises:
        UserError: If it does not exist or is not complete.
    """
    checkpoint = folder / f"{CHECKPOINT_PREFIX}{step}"
    if not is_whole(checkpoint):
        raise UserError(
            f"{checkpoint.name}, the best epoch of the run, is not in {folder}: restore it, or start a new run"
        )
    return checkpoint


def adopt(checkpoint: Path, folder: Path) -> Path:
    """Copies a checkpoint of another folder into a new folder, with what its run needs to resume from it.

    These are the run's best checkpoint, the weights of its best epochs, its record and its splits.

    Args:
        checkpoint: A complete checkpoint.
        folder: The folder to copy to.

    Returns:
        The copy of the checkpoint.

    Raises:
        UserError: If the best checkpoint of its run is not in the same folder.
    """
    state = read_json(checkpoint / STATE_FILE)
    sources = {int(state["global_step"]): checkpoint}
    if state.get("best_global_step") not in (None, *sources):
        sources[state["best_global_step"]] = best_checkpoint(checkpoint.parent, state["best_global_step"])
    copy_record(checkpoint, folder)
    targets = {step: folder / f"{CHECKPOINT_PREFIX}{step}" for step in sources}
    for step, source in sources.items():
        shutil.copytree(source, targets[step], ignore=shutil.ignore_patterns(STATE_FILE), dirs_exist_ok=True)
    for step, source in epoch_weights(checkpoint.parent).items():
        if step <= int(state["global_step"]):
            target = epoch_weights_path(folder, step)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    # The states are copied last. Before that, no checkpoint is complete, and the folder counts as that of a new run.
    for step in sorted(sources):
        shutil.copyfile(sources[step] / STATE_FILE, targets[step] / STATE_FILE)
    return targets[int(state["global_step"])]


def epoch_weights_path(folder: Path, step: int) -> Path:
    """The file in a run's folder with the weights after a step."""
    return folder / EPOCHS_FOLDER / f"step-{step}.safetensors"


def epoch_weights(folder: Path) -> dict[int, Path]:
    """The files with weights of epochs in a run's folder, by step."""
    names = {path.stem.removeprefix("step-"): path for path in (folder / EPOCHS_FOLDER).glob("step-*.safetensors")}
    return {int(name): path for name, path in names.items() if name.isdecimal()}


def copy_record(source: Path, target: Path) -> None:
    """Copies the record, splits and recordings of a run from one folder to another, unless they exist there."""
    for name in RECORD_FILES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


@contextmanager
def writing_run(folder: Path) -> Iterator[None]:
    """Context that saves checkpoints or results in a folder.

    Raises:
        WriteError: If the folder cannot be written to.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_of_writing(error, folder):
            raise
        is_cut = "unexpected pos" in str(error)  # torch.save does not say why
        reason = "the disk may be full" if is_cut else getattr(error, "strerror", None) or error
        raise WriteError(
            f"{folder} cannot be written to ({reason}): free disk space there, or make it writable"
        ) from None


def _is_of_writing(error: Exception, folder: Path) -> bool:
    """Whether an exception says that a file in the folder cannot be written."""
    if isinstance(error, OSError):
        return is_write_error(error, folder)
    if isinstance(error, SafetensorError):
        return "Error while serializing" in str(error)
    # Of torch.save, which has no exception of its own.
    return any(words in str(error) for words in ("unexpected pos", "PytorchStreamWriter", "Parent directory"))


@contextmanager
def writing_results(folder: Path) -> Iterator[None]:
    """Context that writes `RESULT_FILES` into a folder; it records their digests to recognise them later.

    Raises:
        UserError: See `check_results`.
        WriteError: If the folder cannot be written to.
    """
    check_results(folder)
    with writing_run(folder):
        write_json({}, folder / DIGESTS_FILE)
        yield
        digests = {name: file_sha256(folder / name) for name in RESULT_FILES if (folder / name).is_file()}
        write_json(digests, folder / DIGESTS_FILE)


def check_results(folder: Path) -> None:
    """Raises `UserError` if training would replace a file that it has not written or that has changed since then."""
    is_known = (folder / DIGESTS_FILE).is_file()
    digests = read_json(folder / DIGESTS_FILE) if is_known else {}
    if is_known and not digests:
        return  # training was killed while writing them
    for name in RESULT_FILES:
        path = folder / name
        if path.exists() and not (path.is_file() and file_sha256(path) == digests.get(name)):
            how = "was changed since training wrote it" if name in digests else "was not written by training"
            raise UserError(f"{path} {how}, and this run would replace it: move it, or give another --output_dir")


def clear_results(folder: Path) -> None:
    """Deletes the results of a run that has to run again, but no files of the user.

    The record is kept, so that the run may start again in the folder.

    Raises:
        UserError: See `check_results`.
    """
    check_results(folder)
    for name in (*RESULT_FILES, DIGESTS_FILE):
        (folder / name).unlink(missing_ok=True)


def forget_start(folder: Path, *more: str) -> None:
    """Deletes the files that a run has written at its start, and the folder, if there are no other files.

    Args:
        folder: The output folder.
        *more: Further files that are written at the start.
    """
    names = (*RECORD_FILES, *more, LOCK_FILE)
    if {path.name for path in contents_of(folder)} <= set(names):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        delete_system_files(folder)
        folder.rmdir()


def _is_free(folder: Path, *, folds: bool = False) -> bool:
    """Whether a new run may use a folder.

    It is new or empty, or only has files of a run that was killed before its first checkpoint; with `folds`, of a
    cross-validation that was killed before `CROSS_VALIDATION_FILE`.
    """
    if is_new_or_empty(folder):
        return True
    written = (SETTINGS_FILE, FOLDS_FILE, CROSS_VALIDATION_FILE) if folds else RECORD_FILES
    known = {LOCK_FILE, *written, *(name + PARTIAL_SUFFIX for name in written)}
    if folds:
        known.remove(CROSS_VALIDATION_FILE)
    else:
        known |= {LOGS_FOLDER, EPOCHS_FOLDER}
        known |= {path.name for path in checkpoints(folder) if not is_whole(path)}
    found = {path.name for path in contents_of(folder)} if folder.is_dir() else set()
    return not found.isdisjoint({SETTINGS_FILE, SETTINGS_FILE + PARTIAL_SUFFIX}) and found <= known


def _check_whole(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise UserError(f"--resume_from_checkpoint {checkpoint}: expected true, or the folder of a checkpoint")
    if not is_whole(checkpoint):
        raise UserError(
            f"--resume_from_checkpoint {checkpoint} is not a complete checkpoint: its {STATE_FILE} cannot be read; "
            "give the folder of a complete one, or true for the last one in --output_dir"
        )


def checkpoint_step(checkpoint: Path) -> int:
    """The step of a checkpoint from its folder's name; -1 if the folder is not a checkpoint."""
    number = checkpoint.name.removeprefix(CHECKPOINT_PREFIX)
    return int(number) if checkpoint.name != number and number.isdecimal() and checkpoint.is_dir() else -1
