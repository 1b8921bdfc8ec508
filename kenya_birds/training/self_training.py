"""Self-training: a model is trained further on its certain predictions in recordings without annotations.

After Q. Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020: the model that
labels gets the sound as it is, the one that learns gets it with augmentation.
"""

import copy
import dataclasses
import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from scipy.special import expit

from kenya_birds.data.decoded_recordings import decode_recordings
from kenya_birds.evaluation.window_scoring import RecordingWindowGrid
from kenya_birds.files import read_json, whole_file, write_json
from kenya_birds.training.pseudo_labels import PseudoLabels, count_sure
from kenya_birds.training.run_folder import delete_checkpoints, last_whole_checkpoint, writing_run
from kenya_birds.training.trainer import KenyaBirdsTrainer

if TYPE_CHECKING:
    from kenya_birds.training.training_run import Run

logger = logging.getLogger(__name__)

START_FILE, ROUND_FILE, WEIGHTS = "start.json", "round.json", "model.safetensors"


def self_train(run: "Run", trainer: KenyaBirdsTrainer, rounds: int) -> list[dict[str, Any]]:
    """Trains the model further, in rounds; a round is kept only if the metric on validation is better after it.

    The first round that is not kept is the last one. Each has a folder in the run's output folder, `self-training-1`
    and so on, from which an interrupted round resumes.

    Args:
        run: The run; it has unlabelled recordings.
        trainer: Its trainer after training. Its model gets the weights of the last round that is kept.
        rounds: Largest number of rounds.

    Returns:
        For each round: `windows` and `hours` that were labelled, `sure_windows`, `empty_windows`, windows
        `by_species`, the metric `before` and `after`, whether it `is_kept`, and `train_runtime_s`.

    Raises:
        UserError: If the recordings cannot be decoded.
    """
    data, extractor = run.settings.data, run.extractor
    with run.team.one_first():
        decoded = decode_recordings(
            run.unlabelled.by_name,
            run.builder.cache_root,
            extractor.sampling_rate,
            threads=data.num_proc or 1,
            channel=run.builder.config.channel,
        )
    grid = RecordingWindowGrid.of(decoded, extractor.clip_samples)
    best, results = trainer.best_metric, []
    for number in range(1, rounds + 1):
        folder = Path(run.settings.training.output_dir) / f"self-training-{number}"
        if not run.team.first_does(partial(_begin_round, folder, best)):
            _run_round(run, trainer, grid, folder, best)
        result = read_json(folder / ROUND_FILE)
        results.append(result)
        logger.info(
            "Self-training, round %d: %s on validation was %.4f before and is %.4f after: %s",
            number,
            run.settings.training.metric_for_best_model,
            result["before"],
            result["after"],
            "kept" if result["is_kept"] else "not kept",
        )
        if not result["is_kept"]:
            break
        trainer.model.load_state_dict(load_file(folder / WEIGHTS))
        best = result["after"]
    return results


def _begin_round(folder: Path, before: float) -> bool:
    """Prepares the folder of a round, and returns True if the round was finished by an earlier run.

    A round is the same if its model had the same metric on validation; another device may round it otherwise. Files of
    another round are deleted.
    """
    start = folder / START_FILE
    if not start.is_file() or not math.isclose(read_json(start)["before"], before, rel_tol=1e-6):
        delete_checkpoints(folder)
        for name in (ROUND_FILE, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json({"before": before}, start)
    return (folder / ROUND_FILE).is_file()


def _run_round(run: "Run", trainer: KenyaBirdsTrainer, grid: RecordingWindowGrid, folder: Path, before: float) -> None:
    """Labels, trains, and writes the result of a round into its folder."""
    model, classes = trainer.model, run.builder.classes
    logger.info("Self-training: scoring %d windows of the unlabelled recordings ...", len(grid.start))
    # One process scores, in float32: small differences between devices, and between a run and the one that resumes it,
    # would give different labels.
    unwrapped = partial(trainer.accelerator.unwrap_model, keep_fp32_wrapper=False)
    logits = run.team.first_does(lambda: grid.logits(unwrapped(copy.deepcopy(model)), run.extractor))
    pseudo = PseudoLabels.of(grid, expit(logits))
    result: dict[str, Any] = {
        "windows": len(grid.start),
        "hours": sum(grid.decoded.lengths.values()) / grid.decoded.sampling_rate / 3600,
        "sure_windows": len(pseudo.calls),
        "empty_windows": len(pseudo.empty),
        "by_species": count_sure(pseudo, classes),
        "before": before,
        "after": before,
        "is_kept": False,
        "train_runtime_s": 0.0,
    }
    logger.info(
        "The predictions are certain: a species in %d windows (%d species), no call in %d windows",
        len(pseudo.calls),
        len(result["by_species"]),
        len(pseudo.empty),
    )
    if not len(pseudo.calls):
        logger.warning("No prediction in the unlabelled recordings is certain: they are not used for training")
    else:
        student = _student(run, trainer, pseudo, folder)
        checkpoint = run.team.first_does(partial(last_whole_checkpoint, folder))
        student.train(None if checkpoint is None else str(checkpoint))
        result["after"] = student.best_metric
        result["train_runtime_s"] = round(student.trained_s, 1)
        is_higher = result["after"] > before
        result["is_kept"] = is_higher if student.args.greater_is_better else result["after"] < before

    def write() -> None:
        if result["is_kept"]:
            state = {name: value.cpu().contiguous() for name, value in student.model.state_dict().items()}
            with writing_run(folder), whole_file(folder / WEIGHTS) as partial:
                save_file(state, partial)
        write_json(result, folder / ROUND_FILE)
        delete_checkpoints(folder)

    run.team.wait()  # until every process has loaded the best checkpoint
    run.team.first_does(write)


def _student(run: "Run", trainer: KenyaBirdsTrainer, pseudo: PseudoLabels, folder: Path) -> KenyaBirdsTrainer:
    """The trainer of a round: it trains a copy of the model, with the data of the training before."""
    changes: dict[str, Any] = {
        "output_dir": str(folder),
        "resume_from_checkpoint": None,
        "save_total_limit": 1,
        "report_to": "none",
    }
    return KenyaBirdsTrainer(
        copy.deepcopy(trainer.model),
        dataclasses.replace(run.settings.training, **changes),
        run.extractor,
        trainer.plan,
        trainer.eval_dataset,
        run.settings.augmentation,
        run.background(),
        pseudo=pseudo,
    )
