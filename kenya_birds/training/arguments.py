"""What `train_hf.py` can be told, in groups that `HfArgumentParser` turns into flags."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kenya_birds.data.builders import DEFAULT_MIN_ANNOTATIONS
from kenya_birds.errors import UserError
from kenya_birds.output_files import is_new_or_empty

# Of a final fit without --folds.
DEFAULT_FOLDS = 5


@dataclass
class DataArguments:
    """The archive, and how it is cut and split."""

    data_dir: str = field(metadata={"help": "Folder with annotations.csv, species.csv and soundscape_data/."})
    min_annotations: int = field(
        default=DEFAULT_MIN_ANNOTATIONS, metadata={"help": "Species with fewer annotations are dropped."}
    )
    context_s: float = field(
        default=0.0,
        metadata={
            "help": "Sound kept on each side of a clip (s): training shifts its window by up to so much; with 0, what "
            "leaves the clip at one end returns at the other."
        },
    )
    edge_tolerance_s: float = field(
        default=0.0,
        metadata={
            "help": "How far outside a clip a species' centre may lie and count as in it (s), where its window is not "
            "shifted."
        },
    )
    splits_file: str | None = field(
        default=None,
        metadata={
            "help": "CSV to use instead of a new split: recording,split, as a run leaves it in splits.csv, or "
            "recording,fold, as kenya-birds split --folds writes it."
        },
    )
    test_size: float = field(default=0.2, metadata={"help": "Share of the test split."})
    validation_size: float = field(default=0.2, metadata={"help": "Share of the validation split."})
    fold: int = field(
        default=0,
        metadata={"help": "Which fold is the test split, of ceil(1 / test_size) or of those in --splits_file."},
    )
    folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-validate: so many runs, each tested on another fold of the recordings; 3 or more. With a "
            "table of folds in --splits_file, as many as it has."
        },
    )
    final_fit: bool = field(
        default=False,
        metadata={
            "help": f"After the cross-validation (of {DEFAULT_FOLDS} folds, if --folds does not say) train on all "
            "recordings for as many epochs as were best in its median fold."
        },
    )
    no_call_windows: int = field(
        default=100,
        metadata={
            "help": "Thresholds are chosen on so many windows without an annotation of each validation recording too, "
            "spread evenly and standing for all there are; 0: on annotated clips alone."
        },
    )
    split_seed: int = field(default=42, metadata={"help": "Seed of the split (--fold varies it more)."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where cut clips are kept (datasets' cache)."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that cut clips."})


@dataclass
class ModelArguments:
    """The backbone and where its weights come from."""

    backbone: str = field(default="convnext_tiny.in12k_ft_in1k", metadata={"help": "Name of a timm image model."})
    init_from: str = field(
        default="pretrained",
        metadata={
            "help": "'pretrained' (timm's weights, from the Hub), 'scratch', a safetensors file, or a model of this "
            "package or transformers' ConvNeXt: a folder, or OWNER/NAME[@REVISION] on the Hub."
        },
    )
    problem_type: str = field(
        default="single_label_classification",
        metadata={
            "help": "'multi_label_classification' trains on every species in a clip instead of the annotated one.",
            "choices": ["single_label_classification", "multi_label_classification"],
        },
    )
    drop_rate: float = field(default=0.0, metadata={"help": "Dropout in front of the classifier."})
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the backbone."})


@dataclass
class FeatureArguments:
    """The feature extractor's arguments, under the same names (see `KenyaBirdsFeatureExtractor`)."""

    sampling_rate: int = field(default=32_000, metadata={"help": "Recordings are resampled to this rate (Hz)."})
    clip_s: float = field(default=3.0, metadata={"help": "Length of a clip (s)."})
    noise_reduction: str = field(
        default="stationary", metadata={"help": "noisereduce.", "choices": ["stationary", "nonstationary", "none"]}
    )
    prop_decrease: float = field(default=0.9, metadata={"help": "How much of the noise is taken away, 0 to 1."})
    high_pass_hz: float = field(default=150.0, metadata={"help": "Cutoff of the high-pass; 0 is off."})
    pre_emphasis: float = field(default=0.0, metadata={"help": "Coefficient of the pre-emphasis; 0 is off."})
    do_peak_normalize: bool = field(default=True, metadata={"help": "Scale each clip to a peak of 1."})
    feature_type: str = field(
        default="mel", metadata={"help": "Kind of spectrogram.", "choices": ["mel", "stft", "reassigned"]}
    )
    n_fft: int = field(default=2048, metadata={"help": "Samples of a frame."})
    hop_length: int = field(default=512, metadata={"help": "Samples between frames."})
    n_mels: int = field(default=128, metadata={"help": "Mel bands."})
    f_min_hz: float = field(default=150.0, metadata={"help": "Lowest frequency of the features."})
    f_max_hz: float = field(default=15_000.0, metadata={"help": "Highest frequency of the features."})
    top_db: float = field(default=80.0, metadata={"help": "Range of the features (dB)."})
    do_standardize: bool = field(default=True, metadata={"help": "Give each clip mean 0 and standard deviation 1."})


@dataclass
class KenyaBirdsTrainingArguments(TrainingArguments):
    """`TrainingArguments` with this project's defaults, and the weights of its loss and sampler."""

    loss_weight_power: float = field(
        default=0.5, metadata={"help": "Class weights n^-power in the loss: 1 inverse frequency, 0 none."}
    )
    sampler_weight_power: float = field(
        default=0.0, metadata={"help": "Clips are drawn in proportion to n^-power of their class; 0 draws each once."}
    )
    clips_on_device: str = field(
        default="auto",
        metadata={
            "help": "Keep all training clips on the device: 'auto' does on a GPU if a quarter of it is enough.",
            "choices": ["auto", "yes", "no"],
        },
    )
    early_stopping_patience: int = field(
        default=10, metadata={"help": "Stop after this many epochs without a better macro F1; 0 never stops early."}
    )
    auto_mixed_precision: bool = field(
        default=True, metadata={"help": "Without --bf16 or --fp16, use the one that the GPU has."}
    )

    bf16: bool = field(default=False, metadata={"help": "bfloat16 mixed precision."})
    fp16: bool = field(default=False, metadata={"help": "float16 mixed precision."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Training clips per device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluated clips per device and step."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Passes over the training clips."})
    learning_rate: float = field(default=5e-4, metadata={"help": "AdamW's learning rate after warm-up."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate after warm-up."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept, the best included."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str | None = field(default="macro_f1", metadata={"help": "What best means."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged losses."})
    # Looking at every loss waits for the GPU at every step; and a loss that is no number had better be seen.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log an average instead of a loss that is NaN or infinite."}
    )
    report_to: str = field(default="tensorboard", metadata={"help": "Where metrics are logged."})
    # The collator reads the columns that the model's forward does not name.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off."})
    # Trainer would leave out clips of the evaluation too.
    dataloader_drop_last: bool = field(
        default=False, metadata={"help": "Must stay off: training leaves incomplete steps out in any case."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory; by default with a GPU."}
    )
    # The next batch is moved while the device works on this one.
    accelerator_config: dict | str | None = field(
        default_factory=lambda: {"non_blocking": torch.cuda.is_available()},
        metadata={"help": "accelerate's configuration (JSON)."},
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})

    def __post_init__(self) -> None:
        """Chooses mixed precision and checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        for name in ("loss_weight_power", "sampler_weight_power", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: expected 0 or more")
        if self.remove_unused_columns:
            raise UserError(
                "remove_unused_columns must stay off: clips reach the model through columns it does not name"
            )
        if self.dataloader_drop_last:
            raise UserError(
                "dataloader_drop_last must stay off: it would leave clips out of the evaluation, and training leaves "
                "incomplete steps out in any case"
            )
        # `accelerate launch` says "no" where its user said nothing.
        chosen = self.bf16 or self.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
        if self.auto_mixed_precision and not chosen and not self.use_cpu and torch.cuda.is_available():
            self.bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
            self.fp16 = not self.bf16
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(str(error)) from None
        if getattr(self.accelerator_config, "dispatch_batches", None):
            # accelerate would join and cut batches along their first dimension, which is not the same for all that is
            # in them.
            raise UserError("dispatch_batches must stay off: every process loads batches of its own")


def find_checkpoint(args: KenyaBirdsTrainingArguments, classes: list[str]) -> str | None:
    """The checkpoint to go on from, if any; nothing is written.

    Args:
        args: `resume_from_checkpoint` is a checkpoint's folder, or `true` for the last whole one in `output_dir`.
        classes: Classes of the run, by class id.

    Raises:
        UserError: If `output_dir` holds something and no checkpoint is asked for, or the checkpoint is missing or was
            trained on other classes.
    """
    output_dir = Path(args.output_dir)
    if not args.resume_from_checkpoint:
        if not is_new_or_empty(output_dir):
            raise UserError(
                f"--output_dir {output_dir} exists and is not an empty folder: choose another, or go on with the run "
                "in it with --resume_from_checkpoint true"
            )
        return None
    if args.resume_from_checkpoint.lower() == "true":
        checkpoint = last_whole_checkpoint(output_dir)
        if checkpoint is None:
            raise UserError(f"no checkpoint to go on from in {output_dir}: leave --resume_from_checkpoint out")
    else:
        checkpoint = args.resume_from_checkpoint
    try:
        config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
        trained = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{checkpoint} is not a checkpoint of this package: it has no config.json with classes"
        ) from None
    if trained != classes:
        raise UserError(
            f"{checkpoint} was trained on other classes: {len(trained)} there and {len(classes)} here, "
            f"{len(set(trained) ^ set(classes))} of them in one only: use the same archive and --min_annotations, or "
            "another --output_dir"
        )
    return checkpoint


def last_whole_checkpoint(output_dir: Path) -> str | None:
    """The last checkpoint in a folder that is whole: its trainer_state.json is written last. None if none is."""
    written = [path.parent for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    whole = [path for path in written if path.name.rpartition("-")[2].isdigit()]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None
