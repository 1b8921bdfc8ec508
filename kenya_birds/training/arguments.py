"""Arguments of `train_hf.py` for data, model, features and augmentation. They import nothing heavy."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from kenya_birds.defaults import (
    BACKBONE,
    MIN_ANNOTATIONS,
    SPLIT_SEED,
    TEST_SIZE,
    VALIDATION_SIZE,
)
from kenya_birds.errors import UserError
from kenya_birds.training.archive_weights import parse_weights
from kenya_birds.values import (
    Channel,
    Count,
    Duration,
    Folds,
    Range,
    Seconds,
    Seed,
    Share,
    SignedSeconds,
    SplitSize,
    Whole,
    check_fields,
)

# Of a final fit without --folds.
DEFAULT_FOLDS = 5
# Values of --init_from that are no file and no model.
NAMED_STARTS = ("pretrained", "scratch")
Hertz = Annotated[float, Range(0, unit="HZ")]
Decibels = Annotated[float, Range(0, above=True, unit="DB")]
ProblemType = Literal["single_label_classification", "multi_label_classification"]
WeakLabels = Literal["train", "every_split", "leave_out"]


@dataclass
class DataArguments:
    """The archive, its clips and its splits."""

    data_dir: str = field(
        metadata={
            "help": "the archive: a folder with annotations.csv, species.csv, and soundscape_data/ or recordings.csv; "
            "several archives are joined"
        }
    )
    train_on: Literal["clips", "recordings"] = field(
        default="recordings",
        metadata={
            "help": "recordings: learn from windows that lie anywhere in the training recordings, with several calls "
            "or none (multi-label); clips: learn from one clip around each annotation"
        },
    )
    call_windows: Share = field(
        default=0.5, metadata={"help": "--train_on recordings: share of the windows that are drawn around a call"}
    )
    empty_windows: Share = field(
        default=0.25,
        metadata={
            "help": "--train_on recordings: share of the windows without a call; the other windows are drawn anywhere"
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
        default=3, metadata={"help": "--hard_windows: score empty windows again after this many epochs"}
    )
    scored_windows: Count = field(
        default=2000,
        metadata={"help": "--hard_windows: largest number of empty windows to score, at most four for each hard one"},
    )
    edge_margin_s: Seconds = field(
        default=0.25,
        metadata={
            "help": "--train_on recordings: a call counts as neither present nor absent if its centre is closer than "
            "this to an edge of the window, inside or outside"
        },
    )
    windows_per_epoch: Count | None = field(
        default=None,
        metadata={
            "help": "--train_on recordings: number of windows per epoch; by default as many windows around calls as "
            "the training recordings have calls, and at least 1800 windows"
        },
    )
    validation_windows: Count = field(
        default=5000,
        metadata={
            "help": "--train_on recordings: largest number of validation windows on which the best epoch is chosen"
        },
    )
    overlap_s: Seconds = field(
        default=0.0,
        metadata={
            "help": "overlap of neighbouring windows for which decision thresholds are chosen and whole recordings "
            "are evaluated"
        },
    )
    archive_weights: list[str] | None = field(
        default=None,
        metadata={
            "help": "several archives: weight of each in the loss, such as kenya=2 colombia=1; the names are those of "
            "the archives' folders"
        },
    )
    weak_labels: WeakLabels = field(
        default="train",
        metadata={
            "help": "recordings of folders of species, whose species is known and not where it calls; train: learn "
            "from them, and never validate or test on them; every_split: divide them as other recordings"
        },
    )
    weak_weight: Annotated[float, Range(0, 10, above=True)] = field(
        default=0.5, metadata={"help": "weight of clips and windows with weak labels in the loss; of others it is 1"}
    )
    min_annotations: Count = field(default=MIN_ANNOTATIONS, metadata={"help": "drop species with fewer annotations"})
    channel: Channel | None = field(
        default=None,
        metadata={
            "help": "channel of recordings with several: its number from 0, mix (their mean), or best (the clearest "
            "one of each recording); by default their mean, or the loudest one if they cancel each other"
        },
    )
    context_s: Seconds = field(
        default=0.0,
        metadata={
            "help": "--train_on clips: sound kept on each side of a clip; training shifts its window by up to this "
            "much. With 0, sound that is shifted out at one end of the clip is inserted at the other"
        },
    )
    edge_tolerance_s: SignedSeconds = field(
        default=0.0,
        metadata={
            "help": "count a call as in a clip if its centre is up to this far outside the clip, before any shift; "
            "negative: only if it is at least this far inside"
        },
    )
    min_overlap_s: Seconds = field(
        default=0.0,
        metadata={
            "help": "count a call that is annotated with start and end as in a clip or window if they overlap by this "
            "much, or if the whole call is in it; 0: half of the shorter of the two"
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
        metadata={"help": "number of the test fold, of ceil(1 / test_size) folds or of those in --splits_file"},
    )
    folds: Folds | None = field(
        default=None,
        metadata={"help": "cross-validate with this many folds; with folds in --splits_file, as many as it has"},
    )
    final_fit: bool = field(
        default=False,
        metadata={
            "help": f"after the cross-validation ({DEFAULT_FOLDS} folds unless --folds is given) train on all "
            "recordings, for the median of the folds' best numbers of epochs"
        },
    )
    no_call_windows: Whole = field(
        default=100,
        metadata={
            "help": "--train_on clips: choose decision thresholds also on this many windows without a call from each "
            "validation recording; 0: on annotated clips only"
        },
    )
    split_seed: Seed = field(
        default=SPLIT_SEED, metadata={"help": "random seed of the split (another --fold changes it more)"}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "folder for cached clips; by default the cache of the datasets library"}
    )
    num_proc: Count | None = field(default=None, metadata={"help": "processes that cut clips; by default 1"})

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range, or two contradict each other.
        """
        check_fields(self)
        parse_weights(self.archive_weights or ())
        if self.call_windows + self.empty_windows > 1:
            raise UserError(
                f"call_windows is {self.call_windows:g} and empty_windows {self.empty_windows:g}: expected a sum of 1 "
                "or less"
            )
        if self.fold and (self.folds is not None or self.final_fit):
            raise UserError(f"fold is {self.fold} and a cross-validation runs every fold: omit one of the two")


@dataclass
class ModelArguments:
    """The backbone and its initial weights."""

    backbone: str = field(
        default=BACKBONE,
        metadata={
            "help": "name of a convolutional timm model; or a frozen backbone, on which only a head is trained: a "
            "published network (.onnx, .tflite), a model (of kenya-birds wrap or training) or an audio model of "
            "transformers (folder, or OWNER/NAME[@REVISION] on the Hub)"
        },
    )
    backbone_preset: Literal["birdnet-2.4", "birdnet-v3", "birdnet-stm32", "perch-2"] | None = field(
        default=None, metadata={"help": "--backbone FILE: take the settings of this network, as in kenya-birds wrap"}
    )
    backbone_embedding: str | None = field(
        default=None,
        metadata={
            "help": "--backbone FILE: name of the tensor that is the embedding; without --backbone_preset, "
            "--sampling_rate is the rate of its waveforms, and --clip_s its window if it takes any length"
        },
    )
    freeze_backbone: bool = field(
        default=False,
        metadata={
            "help": "train only a head, on embeddings that are computed once; always so for a --backbone folder"
        },
    )
    head: Literal["linear", "mlp"] = field(
        default="linear", metadata={"help": "head on a frozen backbone; mlp: with one hidden layer"}
    )
    head_hidden_size: Count = field(default=512, metadata={"help": "--head mlp: size of the hidden layer"})
    network_scores: bool | None = field(
        default=None,
        metadata={
            "help": "frozen published network: its scores of the archive's species are an input of the head; by "
            "default if it is a folder of kenya-birds wrap and knows any of them"
        },
    )
    embedded_versions: Count = field(
        default=1,
        metadata={
            "help": "frozen backbone: number of embeddings of each training window: one of its sound as it is, the "
            "others of augmented sound"
        },
    )
    embedding_hop_s: Duration | None = field(
        default=None,
        metadata={
            "help": "frozen backbone and --train_on recordings: distance of the windows that are embedded; by default "
            "half a window"
        },
    )
    bundle_backbone: bool = field(
        default=False,
        metadata={
            "help": "copy the file of a published network into the model folder; otherwise the folder refers to it by "
            "path and SHA-256"
        },
    )
    front_end_from: str | None = field(
        default=None,
        metadata={
            "help": "birdset-efficientnet, birdset-convnext, perch-2, or a model of this package: take its feature "
            "settings, backbone and backbone_variant, where no flag is given"
        },
    )
    backbone_variant: Literal["timm", "transformers", "perch-2"] = field(
        default="timm",
        metadata={
            "help": "transformers, perch-2: the network pads like the one whose weights --init_from gives; timm: "
            "features are padded to multiples of 32"
        },
    )
    init_from: str = field(
        default="pretrained",
        metadata={
            "help": "starting weights: 'pretrained' (timm's, from the Hub), 'scratch' (random), a .safetensors file, "
            "or a model of this package or transformers' ConvNeXt or EfficientNet (folder, or OWNER/NAME[@REVISION] "
            "on the Hub)"
        },
    )
    problem_type: ProblemType = field(
        default="multi_label_classification",
        metadata={
            "help": "multi_label_classification: learn every species in a clip or window; "
            "single_label_classification: learn only the annotated one, the default with --train_on clips"
        },
    )
    window_loss: Literal["bce", "softmax"] = field(
        default="softmax",
        metadata={
            "help": "--train_on recordings: softmax: cross-entropy of a softmax over all species and no call; bce: "
            "binary cross-entropy of each species, the default with --focal_gamma"
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
    noise_reduction: Literal["stationary", "nonstationary", "spectrogram", "none"] = field(
        default="stationary",
        metadata={
            "help": "spectral gating: as in noisereduce, or on the spectrogram of the features, which is faster"
        },
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
    mel_scale: Literal["slaney", "htk"] = field(
        default="slaney", metadata={"help": "mel scale: Slaney's as in librosa, or HTK's as in torchaudio"}
    )
    mel_spectrum: Literal["power", "magnitude"] = field(default="power", metadata={"help": "what mel bands sum"})
    win_length: Count | None = field(
        default=None, metadata={"help": "samples of the window, in the middle of the frame; by default n_fft"}
    )
    min_level_db: Annotated[float, Range(-300, 100)] = field(
        default=-100.0, metadata={"help": "lowest level of the features in dB"}
    )
    fixed_mean_db: float | None = field(
        default=None, metadata={"help": "level that becomes 0 in the features, instead of each clip's mean"}
    )
    fixed_std_db: Decibels | None = field(
        default=None,
        metadata={"help": "difference of levels that becomes 1, instead of each clip's standard deviation"},
    )

    def __post_init__(self) -> None:
        """Checks the values, each for itself; the feature extractor checks them together.

        Raises:
            UserError: If a value is out of range.
        """
        check_fields(self)


@dataclass
class WaveformArguments(FeatureArguments):
    """The feature extractor's arguments for a published network, which takes the waveform."""

    feature_type: Literal["waveform"] = field(default="waveform")  # type: ignore[assignment]


@dataclass
class AugmentationArguments:
    """Random changes of training clips: the probability of each, and its largest size."""

    shift_probability: Share = field(
        default=0.5, metadata={"help": "--train_on clips: how often a clip's window is shifted in time"}
    )
    # With a larger shift, the annotated call would leave its clip.
    shift_max: Annotated[float, Range(0, 0.5)] = field(
        default=0.3,
        metadata={"help": "--train_on clips: largest shift, as a share of the clip; no further than --context_s"},
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
        default=12.0, metadata={"help": "largest gain up or down; it has no effect on standardised features"}
    )
    noise_probability: Share = field(default=0.5, metadata={"help": "how often pink or brown noise is added"})
    background_probability: Share = field(
        default=0.0, metadata={"help": "how often a window without a call, of a training recording, is added"}
    )
    snr_min_db: Annotated[float, Range(unit="DB")] = field(
        default=5.0, metadata={"help": "lowest signal-to-noise ratio when noise or background is added"}
    )
    snr_max_db: Annotated[float, Range(unit="DB")] = field(
        default=35.0, metadata={"help": "highest signal-to-noise ratio when noise or background is added"}
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
        """Settings without any random change."""
        settings = cls()
        for setting in fields(cls):
            if setting.name.endswith("_probability"):
                setattr(settings, setting.name, 0.0)
        return settings
