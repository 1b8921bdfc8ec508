"""Trains a bird classifier: `accelerate launch train_hf.py --data_dir ARCHIVE --output_dir OUT`."""

import dataclasses
import logging
import sys
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser, set_seed

from kenya_birds.console import one_line_errors, show_log, user_errors
from kenya_birds.data.dataset import build_clips, clips_builder, load_no_call
from kenya_birds.data.splits import read_splits
from kenya_birds.evaluation.figures import save_confusion_matrix
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.publishing.model_card import CONFUSION_MATRIX_FILE, render_model_card
from kenya_birds.training.arguments import (
    DataArguments,
    FeatureArguments,
    KenyaBirdsTrainingArguments,
    ModelArguments,
    find_checkpoint,
)
from kenya_birds.training.augmentation import AugmentationArguments
from kenya_birds.training.starting_points import initialize, kind_of_starting_point
from kenya_birds.training.summary import METRICS_FILE, SPLITS_FILE, SUMMARY_FILE, training_summary, write_json
from kenya_birds.training.trainer import KenyaBirdsTrainer

logger = logging.getLogger("kenya_birds.train")

TEMPLATE = Path(__file__).parent / "model_card.md"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    parser = HfArgumentParser(
        (DataArguments, ModelArguments, FeatureArguments, AugmentationArguments, KenyaBirdsTrainingArguments)
    )
    data_args, model_args, feature_args, augmentation_args, args = parser.parse_args_into_dataclasses(arguments)
    show_log(logging.INFO if args.should_log else logging.ERROR)
    set_seed(args.seed)

    # Everything that the user may have got wrong comes to light before anything is written.
    output_dir = Path(args.output_dir)
    with user_errors(ValueError):
        extractor = KenyaBirdsFeatureExtractor(**dataclasses.asdict(feature_args))
    builder = clips_builder(
        data_args.data_dir,
        splits=read_splits(data_args.splits_file, data_args.fold) if data_args.splits_file else None,
        cache_dir=data_args.cache_dir,
        sampling_rate=extractor.sampling_rate,
        clip_s=extractor.clip_s,
        context_s=data_args.context_s,
        edge_tolerance_s=data_args.edge_tolerance_s,
        min_annotations=data_args.min_annotations,
        test_size=data_args.test_size,
        validation_size=data_args.validation_size,
        fold=data_args.fold,
        split_seed=data_args.split_seed,
    )
    checkpoint = find_checkpoint(args, builder.classes)
    with user_errors(ValueError):
        model = KenyaBirdsForAudioClassification(
            KenyaBirdsConfig(
                backbone=model_args.backbone,
                drop_rate=model_args.drop_rate,
                drop_path_rate=model_args.drop_path_rate,
                problem_type=model_args.problem_type,
                id2label=dict(enumerate(builder.classes)),
                label2id={code: index for index, code in enumerate(builder.classes)},
                species=builder.archive.species_names(builder.classes),
            )
        )
    if checkpoint is None:
        starting_point = initialize(model, model_args.init_from, extractor)
    else:
        starting_point = kind_of_starting_point(model_args.init_from)
    with args.main_process_first(desc="cutting clips"):
        clips = build_clips(builder, data_args.num_proc)
        background = None
        if augmentation_args.background_probability:
            background = load_no_call(builder, data_args.num_proc, context_s=0.0)
    for split in clips:
        recordings = (builder.splits["split"] == split).sum()
        logger.info("%s: %d clips of %d recordings", split, len(clips[split]), recordings)

    trainer = KenyaBirdsTrainer(
        model, args, extractor, clips["train"], clips["validation"], augmentation_args, background
    )
    summary = training_summary(builder, clips, args, augmentation_args, starting_point)
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        builder.splits.to_csv(output_dir / SPLITS_FILE, index=False)
    trained = trainer.train(resume_from_checkpoint=checkpoint)

    predicted = {split: trainer.predict(clips[split], metric_key_prefix=split) for split in ("validation", "test")}
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(output_dir)
        extractor.save_pretrained(output_dir)
        summary["result"] = {
            "epochs": round(trainer.state.epoch or 0, 2),
            "best_step": trainer.state.best_global_step,
            "train_runtime_s": round(trained.metrics["train_runtime"], 1),
            "train_clips_per_s": round(trained.metrics["train_samples_per_second"], 1),
        }
        write_json(summary, output_dir / SUMMARY_FILE)
        metrics = {
            split: {name.removeprefix(f"{split}_"): value for name, value in prediction.metrics.items()}
            for split, prediction in predicted.items()
        }
        write_json(metrics, output_dir / METRICS_FILE)
        save_confusion_matrix(
            np.asarray(clips["test"]["label"]),
            predicted["test"].predictions.argmax(axis=-1),
            builder.classes,
            output_dir / CONFUSION_MATRIX_FILE,
        )
        card = render_model_card(output_dir, str(output_dir), TEMPLATE)
        (output_dir / "README.md").write_text(card, encoding="utf-8")
        for split, values in metrics.items():
            logger.info("%s: macro F1 %.4f, accuracy %.4f", split, values["macro_f1"], values["accuracy"])
        logger.info("Model, card (README.md), metrics and splits are in %s", output_dir)


if __name__ == "__main__":
    with one_line_errors(Path(sys.argv[0]).name):
        main()
