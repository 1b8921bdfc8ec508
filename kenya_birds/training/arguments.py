"""What `train_hf.py` can be told, but for transformers' own arguments. Light: parsers import it before torch."""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from kenya_birds.defaults import (
    BACKBONE,
    CLIPS_PER_BATCH,
    EPOCHS,
    MIN_ANNOTATIONS,
    SPLIT_SEED,
    TEST_SIZE,
    VALIDATION_SIZE,
)
from kenya_birds.errors import UserError
from kenya_birds.values import (
    Count,
    Duration,
    Folds,
    Kind,
    NotNegative,
    Positive,
    Range,
    Seconds,
    Seed,
    Share,
    SignedSeconds,
    SplitSize,
    Whole,
    check_fields,
    kinds_of,
)

# Of a final fit without --folds.
DEFAULT_FOLDS = 5
Hertz = Annotated[float, Range(0, unit="HZ")]
Decibels = Annotated[float, Range(0, above=True, unit="DB")]
ProblemType = Literal["single_label_classification", "multi_label_classification"]
# Libraries that transformers can log to, and modules of which one has to be installed.
TRACKERS = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": ("kubeflow",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
LogLevel = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]
# Ranges of arguments whose defaults are transformers'.
TRANSFORMERS_RANGES: dict[str, Any] = {
    "adam_beta1": Annotated[float, Range(0, 1, below=True)],
    "adam_beta2": Annotated[float, Range(0, 1, below=True)],
    "adam_epsilon": Positive,
    "data_seed": Seed | None,
    "dataloader_num_workers": Whole,
    "eval_delay": NotNegative,
    "eval_steps": Positive | None,
    "gradient_accumulation_steps": Count,
    "label_smoothing_factor": Annotated[float, Range(0, 1, below=True)],
    "log_level": LogLevel,
    "log_level_replica": LogLevel,
    "max_grad_norm": NotNegative,
    "max_steps": Annotated[int, Range(-1)],
    "save_steps": Positive,
    "seed": Seed,
}


@dataclass
class DataArguments:
    """The archive, and how it is cut into clips and split."""

    data_dir: str = field(
        metadata={"help": "the archive: a folder with annotations.csv, species.csv, soundscape_data/"}
    )
    train_on: Literal["clips", "recordings"] = field(
        default="clips",
        metadata={
            "help": "clips: learn from one clip round each annotation; recordings: learn from windows that lie "
            "anywhere in the training recordings, with several calls or none (multi-label)"
        },
    )
    call_windows: Share = field(
        default=0.5, metadata={"help": "--train_on recordings: share of the windows that are drawn round a call"}
    )
    empty_windows: Share = field(
        default=0.25,
        metadata={
            "help": "--train_on recordings: share of the windows without a call; those that are left are drawn "
            "anywhere"
        },
    )
    hard_windows: Share = field(
        default=0.0,
        metadata={
            "help": "--train_on recordings: share of the empty windows that are hard: the model of some epochs ago "
            "gives them the highest scores"
        },
    )
    rescore_epochs: Count = field(
        default=3, metadata={"help": "--hard_windows: score empty windows again after so many epochs"}
    )
    scored_windows: Count = field(
        default=2000,
        metadata={"help": "--hard_windows: score so many empty windows at most, and at most four for each hard one"},
    )
    edge_margin_s: Seconds = field(
        default=0.25,
        metadata={
            "help": "--train_on recordings: a call whose centre is so near to a window's edge, inside or outside, is "
            "neither present nor absent"
        },
    )
    windows_per_epoch: Count | None = field(
        default=None,
        metadata={"help": "--train_on recordings: windows of an epoch; by default as many as there are calls"},
    )
    validation_windows: Count = field(
        default=5000,
        metadata={
            "help": "--train_on recordings: choose the epoch by so many windows of the validation recordings at most"
        },
    )
    overlap_s: Seconds = field(
        default=0.0,
        metadata={
            "help": "overlap of neighbouring windows for which decision thresholds are chosen and whole recordings "
            "are evaluated"
        },
    )
    min_annotations: Count = field(default=MIN_ANNOTATIONS, metadata={"help": "drop species with fewer annotations"})
    context_s: Seconds = field(
        default=0.0,
        metadata={
            "help": "sound kept on each side of a clip; training shifts its window by up to this much. With 0, what "
            "is shifted out at one end of the clip comes back at the other"
        },
    )
    edge_tolerance_s: SignedSeconds = field(
        default=0.0,
        metadata={
            "help": "how far outside a clip the centre of a call may be and still count as in the clip, where the "
            "window is not shifted; negative: how far inside it has to be"
        },
    )
    splits_file: str | None = field(
        default=None,
        metadata={
            "help": "use the splits of this CSV (recording,split: the splits.csv of a run) or its folds "
            "(recording,fold: from kenya-birds split --folds)"
        },
    )
    test_size: SplitSize = field(default=TEST_SIZE, metadata={"help": "share of the recordings for the test split"})
    validation_size: SplitSize = field(
        default=VALIDATION_SIZE, metadata={"help": "share of the recordings for the validation split"}
    )
    fold: Whole = field(
        default=0,
        metadata={"help": "which fold is the test split, of ceil(1 / test_size) folds or of those in --splits_file"},
    )
    folds: Folds | None = field(
        default=None,
        metadata={"help": "cross-validate with this many folds; with folds in --splits_file, as many as it has"},
    )
    final_fit: bool = field(
        default=False,
        metadata={
            "help": f"after the cross-validation ({DEFAULT_FOLDS} folds unless --folds is given) train on all "
            "recordings, for as many epochs as were best in the median fold"
        },
    )
    no_call_windows: Whole = field(
        default=100,
        metadata={
            "help": "choose decision thresholds also on this many windows without a call, from each validation "
            "recording; 0: on annotated clips only"
        },
    )
    split_seed: Seed = field(
        default=SPLIT_SEED, metadata={"help": "random seed of the split (another --fold changes it more)"}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "where clips are stored; by default the cache of the datasets library"}
    )
    num_proc: Count | None = field(default=None, metadata={"help": "processes that cut clips; by default 1"})

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range, or two contradict each other.
        """
        check_fields(self)
        if self.call_windows + self.empty_windows > 1:
            raise UserError(
                f"call_windows is {self.call_windows:g} and empty_windows {self.empty_windows:g}: expected a sum of 1 "
                "or less"
            )
        if self.fold and (self.folds is not None or self.final_fit):
            raise UserError(f"fold is {self.fold} and a cross-validation runs every fold: leave one of the two out")


@dataclass
class ModelArguments:
    """The backbone and where its weights come from."""

    backbone: str = field(default=BACKBONE, metadata={"help": "name of a convolutional timm model"})
    init_from: str = field(
        default="pretrained",
        metadata={
            "help": "starting weights: 'pretrained' (timm's, from the Hub), 'scratch' (random), a .safetensors file, "
            "or a model of this package or transformers' ConvNeXt (folder, or OWNER/NAME[@REVISION] on the Hub)"
        },
    )
    problem_type: ProblemType = field(
        default="single_label_classification",
        metadata={"help": "multi_label_classification learns every species in a clip, not only the annotated one"},
    )
    window_loss: Literal["bce", "softmax"] = field(
        default="bce",
        metadata={
            "help": "--train_on recordings: bce: binary cross-entropy of each species; softmax: cross-entropy of a "
            "softmax over all species and no call"
        },
    )
    drop_rate: Annotated[float, Range(0, 1, below=True)] = field(
        default=0.0, metadata={"help": "dropout before the classifier"}
    )
    drop_path_rate: Annotated[float, Range(0, 1, below=True)] = field(
        default=0.0, metadata={"help": "stochastic depth of the backbone"}
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        check_fields(self)


@dataclass
class FeatureArguments:
    """The feature extractor's arguments, under the same names (see `KenyaBirdsFeatureExtractor`)."""

    sampling_rate: Annotated[int, Range(1, unit="HZ")] = field(
        default=32_000, metadata={"help": "resample recordings to this rate"}
    )
    clip_s: Duration = field(default=3.0, metadata={"help": "length of a clip"})
    noise_reduction: Literal["stationary", "nonstationary", "none"] = field(
        default="stationary", metadata={"help": "spectral gating, as in noisereduce"}
    )
    prop_decrease: Share = field(default=0.9, metadata={"help": "how much of the noise is removed"})
    high_pass_hz: Hertz = field(default=150.0, metadata={"help": "cutoff of the high-pass filter; 0: no filter"})
    pre_emphasis: Share = field(default=0.0, metadata={"help": "coefficient of the pre-emphasis filter; 0: no filter"})
    do_peak_normalize: bool = field(default=True, metadata={"help": "scale each clip to a peak of 1"})
    feature_type: Literal["mel", "stft", "reassigned"] = field(default="mel", metadata={"help": "kind of spectrogram"})
    n_fft: Count = field(default=2048, metadata={"help": "samples in a frame of the spectrogram"})
    hop_length: Count = field(default=512, metadata={"help": "samples between frames"})
    n_mels: Count = field(default=128, metadata={"help": "mel bands"})
    f_min_hz: Hertz = field(default=150.0, metadata={"help": "lowest frequency of the features"})
    f_max_hz: Hertz = field(default=15_000.0, metadata={"help": "highest frequency of the features"})
    top_db: Decibels = field(default=80.0, metadata={"help": "dynamic range of the features"})
    do_standardize: bool = field(
        default=True, metadata={"help": "give each clip's features mean 0 and standard deviation 1"}
    )
    min_peak_dbfs: Annotated[float, Range(-600, 0)] = field(
        default=-200.0, metadata={"help": "clips with a lower peak count as silent and are not scaled to a peak of 1"}
    )
    pad_mode: Literal["symmetric", "constant"] = field(
        default="symmetric", metadata={"help": "what shorter clips are padded with: mirrored sound, or zeros"}
    )

    def __post_init__(self) -> None:
        """Checks the values, each for itself; the feature extractor checks them together.

        Raises:
            UserError: If a value is out of range.
        """
        check_fields(self)


@dataclass
class AugmentationArguments:
    """Random changes of training clips: how often each happens, and how large it is at most."""

    shift_probability: Share = field(default=0.5, metadata={"help": "how often a clip's window is shifted in time"})
    # Up to there the annotated call stays in its clip.
    shift_max: Annotated[float, Range(0, 0.5)] = field(
        default=0.3, metadata={"help": "largest shift, as a share of the clip; no further than --context_s"}
    )
    pitch_probability: Share = field(default=0.3, metadata={"help": "how often all frequencies are shifted"})
    pitch_max_semitones: Annotated[float, Range(0, 100)] = field(
        default=4.0, metadata={"help": "largest pitch shift up or down (semitones)"}
    )
    speed_probability: Share = field(default=0.3, metadata={"help": "how often a clip is played faster or slower"})
    speed_max: Annotated[float, Range(1, 4)] = field(
        default=1.25, metadata={"help": "highest speed; the lowest is 1 / speed_max"}
    )
    gain_probability: Share = field(default=0.5, metadata={"help": "how often a clip is made louder or quieter"})
    gain_max_db: Annotated[float, Range(0, 100, unit="DB")] = field(
        default=12.0, metadata={"help": "largest gain up or down; standardised features do not show it"}
    )
    noise_probability: Share = field(default=0.5, metadata={"help": "how often pink or brown noise is added"})
    background_probability: Share = field(
        default=0.0, metadata={"help": "how often a window without a call, of a training recording, is added"}
    )
    snr_min_db: Annotated[float, Range(unit="DB")] = field(
        default=5.0, metadata={"help": "lowest signal-to-noise ratio when noise or background is added"}
    )
    snr_max_db: Annotated[float, Range(unit="DB")] = field(
        default=35.0, metadata={"help": "highest signal-to-noise ratio then"}
    )
    mask_probability: Share = field(
        default=1.0, metadata={"help": "how often some bands, and how often some frames, are masked"}
    )
    mask_max_bins: Annotated[int, Range(0, 100)] = field(
        default=10, metadata={"help": "largest number of masked bands, and of masked frames"}
    )
    mixup_probability: Share = field(default=0.0, metadata={"help": "how often a clip is mixed with another"})
    mixup_alpha: Annotated[float, Range(0.01, 100)] = field(
        default=0.4, metadata={"help": "the other clip's share is drawn from Beta(alpha, alpha)"}
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        check_fields(self)
        if not self.snr_min_db <= self.snr_max_db:
            raise UserError(f"snr_min_db {self.snr_min_db} is above snr_max_db {self.snr_max_db}: expected it below")

    @classmethod
    def none(cls) -> "AugmentationArguments":
        """Training clips as they are evaluated."""
        settings = cls()
        for setting in fields(cls):
            if setting.name.endswith("_probability"):
                setattr(settings, setting.name, 0.0)
        return settings


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass
class TrainerArguments:
    """This project's arguments of the trainer, and its defaults of transformers' `TrainingArguments`."""

    loss_weight_power: NotNegative = field(
        default=0.5,
        metadata={
            "help": "weight classes by n^-power in the loss, n being their clips; 1: inverse frequency, 0: alike"
        },
    )
    sampler_weight_power: NotNegative = field(
        default=0.0,
        metadata={"help": "draw clips in proportion to n^-power of their class; 0: each clip once an epoch"},
    )
    focal_gamma: NotNegative = field(
        default=0.0,
        metadata={
            "help": "multi-label training: weight the loss by (1 - p)^gamma, p being the probability of what is true; "
            "0: binary cross-entropy"
        },
    )
    clips_on_device: Literal["auto", "yes", "no"] = field(
        default="auto",
        metadata={"help": "keep all training clips on the GPU; auto: if they fit in a quarter of its free memory"},
    )
    early_stopping_patience: Whole = field(
        default=10,
        metadata={"help": "stop after this many evaluations on validation without a better one; 0: never stop early"},
    )
    auto_mixed_precision: bool = field(
        default=True, metadata={"help": "without --bf16 or --fp16, use bf16 if the GPU supports it, otherwise fp16"}
    )

    bf16: bool = field(default=False, metadata={"help": "bfloat16 mixed precision"})
    fp16: bool = field(default=False, metadata={"help": "float16 mixed precision"})
    per_device_train_batch_size: Count = field(
        default=CLIPS_PER_BATCH, metadata={"help": "training clips per device and step"}
    )
    per_device_eval_batch_size: Count = field(
        default=CLIPS_PER_BATCH, metadata={"help": "clips per device that are evaluated at once"}
    )
    num_train_epochs: Positive = field(default=EPOCHS, metadata={"help": "epochs to train for at most"})
    learning_rate: Positive = field(default=5e-4, metadata={"help": "AdamW's learning rate after warm-up"})
    weight_decay: NotNegative = field(default=0.05, metadata={"help": "AdamW's weight decay"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule after warm-up"})
    warmup_steps: NotNegative = field(
        default=0.1, metadata={"help": "warm-up: a number of steps, or below 1 a share of all steps"}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "when to evaluate on validation"})
    save_strategy: str = field(default="epoch", metadata={"help": "when to save a checkpoint"})
    save_total_limit: Count | None = field(
        default=2, metadata={"help": "how many checkpoints are kept, the best one included"}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "end with the best checkpoint"})
    metric_for_best_model: str | None = field(default="macro_f1", metadata={"help": "the metric that best refers to"})
    logging_steps: Positive = field(default=10, metadata={"help": "log the loss every so many steps"})
    # Looking at every loss waits for the GPU at every step; and a loss that is no number had better be seen.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "log an average instead of a loss that is NaN or infinite"}
    )
    report_to: str = field(
        default="tensorboard",
        metadata={"help": f"where metrics are logged: none, all, {', '.join(sorted(TRACKERS))}"},
    )
    # The collator reads the columns that the model's forward does not name.
    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay off"})
    # Trainer would leave out clips of the evaluation too.
    dataloader_drop_last: bool = field(
        default=False, metadata={"help": "must stay off: training leaves out incomplete steps in any case"}
    )
    dataloader_pin_memory: bool = field(
        default_factory=_has_gpu, metadata={"help": "pin batches in memory; by default if there is a GPU"}
    )
    # The next batch is moved while the device works on this one.
    accelerator_config: dict | str | None = field(
        default_factory=lambda: {"non_blocking": _has_gpu()},
        metadata={"help": "accelerate's configuration (JSON); by default non_blocking if there is a GPU"},
    )
    # Early stopping counts the evaluations without a better one.
    restore_callback_states_from_checkpoint: bool = field(default=True, metadata={"help": "must stay on"})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "look for unused parameters in each step; there are none"}
    )

    def check(self) -> None:
        """Checks the values that can be checked without torch.

        Raises:
            UserError: If a value is out of range or must stay as it is, or a tracker is not installed.
        """
        for name, kind in trainer_kinds().items():
            if hasattr(self, name):
                kind.check(name, getattr(self, name))
        if self.remove_unused_columns:
            raise UserError(
                "remove_unused_columns must stay off: clips reach the model through columns it does not name"
            )
        if self.dataloader_drop_last:
            raise UserError(
                "dataloader_drop_last must stay off: it would leave clips out of the evaluation, and training leaves "
                "incomplete steps out in any case"
            )
        check_trackers(self.report_to)


def trainer_kinds() -> dict[str, Kind]:
    """The types and ranges of the trainer's arguments that this package states, by name."""
    transformers = {name: Kind.of(hint) for name, hint in TRANSFORMERS_RANGES.items()}
    return {**transformers, **kinds_of(TrainerArguments)}


def check_trackers(report_to: str | list[str]) -> None:
    """Raises `UserError` unless the libraries to log to are known and installed.

    Args:
        report_to: One or several of `TRACKERS`, `none` or `all`.
    """
    for name in [report_to] if isinstance(report_to, str) else report_to:
        Kind(str, choices=("none", "all", *TRACKERS)).check("report_to", name)
        if name in TRACKERS and not any(find_spec(module) for module in TRACKERS[name]):
            raise UserError(
                f"report_to is {name!r}, which is not installed: run pip install {TRACKERS[name][0]}, or choose "
                "tensorboard or none"
            )
