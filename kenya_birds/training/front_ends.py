"""Front ends that starting weights were trained with: feature settings, and the backbone that belongs to them."""

from dataclasses import dataclass, field, fields
from math import log, log10
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.saved_models import check_ours, find_model
from kenya_birds.training.arguments import FeatureArguments


@dataclass(frozen=True)
class FrontEnd:
    """What a network was trained on, and the network.

    Attributes:
        features: Arguments of the feature extractor.
        backbone: Name of the timm model.
        variant: See `KenyaBirdsConfig.backbone_variant`.
    """

    features: dict[str, Any] = field(default_factory=dict)
    backbone: str = ""
    variant: str = "timm"


_CLEAN = {"sampling_rate": 32_000, "clip_s": 5.0, "noise_reduction": "none", "high_pass_hz": 0.0, "pre_emphasis": 0.0}
# Mean and standard deviation of AudioSet, as in configs/datamodule/transforms/preprocessing of
# https://github.com/DBD-research-group/BirdSet.
_BIRDSET = {
    **_CLEAN,
    **{"do_peak_normalize": False, "f_min_hz": 0.0, "f_max_hz": 16_000.0, "top_db": 80.0},
    **{"mel_scale": "htk", "do_standardize": True, "fixed_mean_db": -4.268, "fixed_std_db": 4.569},
}
# Perch 2 takes 0.1 * ln(max(m, 1e-5)) of sums m of magnitudes, of windows with a peak of 0.25. Its magnitudes are
# divided by the sum of the window, which is half of its length (B. van Merriënboer et al., "Perch 2.0: The Bittern
# Lesson for Bioacoustics", arXiv:2508.04665, appendix A.2). Ours are of windows with a peak of 1 and are not divided,
# so that m is 20 * log10(_PERCH_SCALE) dB lower than our level.
_PERCH_WINDOW = 640
_PERCH_SCALE = _PERCH_WINDOW / 2 / 0.25
PRESETS = {
    "birdset-efficientnet": FrontEnd(
        {**_BIRDSET, "n_fft": 2048, "hop_length": 256, "n_mels": 256}, "tf_efficientnet_b1", "transformers"
    ),
    "birdset-convnext": FrontEnd(
        {**_BIRDSET, "n_fft": 1024, "hop_length": 320, "n_mels": 128}, "convnext_base", "transformers"
    ),
    "perch-2": FrontEnd(
        {
            **_CLEAN,
            **{"do_peak_normalize": True, "n_fft": 1024, "win_length": _PERCH_WINDOW, "hop_length": 320},
            **{"n_mels": 128, "f_min_hz": 60.0, "f_max_hz": 16_000.0, "mel_scale": "htk", "mel_spectrum": "magnitude"},
            # The floor is above this: a clip's loudest band has no influence.
            "top_db": 300.0,
            "min_level_db": round(20 * log10(1e-5 * _PERCH_SCALE), 3),
            "do_standardize": True,
            "fixed_mean_db": round(20 * log10(_PERCH_SCALE), 3),
            "fixed_std_db": round(20 / (0.1 * log(10)), 3),
        },
        "tf_efficientnet_b3",
        "perch-2",
    ),
}
# Models on the Hub that do not state their front end.
_OF_MODELS = {
    "DBD-research-group/EfficientNet-B1-BirdSet-XCL": "birdset-efficientnet",
    "DBD-research-group/ConvNeXT-Base-BirdSet-XCL": "birdset-convnext",
}


def find_front_end(name: str) -> FrontEnd:
    """The front end of a network.

    Args:
        name: A preset, the name of a model on the Hub that has a preset, or a model of this package: a folder, or
            `owner/name` or `owner/name@revision` on the Hub.

    Raises:
        UserError: If the front end is not known, or the model takes the waveform.
    """
    preset = _OF_MODELS.get(name.partition("@")[0], name)
    if preset in PRESETS:
        return PRESETS[preset]
    known = f"expected {', '.join(PRESETS)}, or a model of this package"
    try:
        saved = find_model(name)
        check_ours(saved)
    except UserError as error:
        raise UserError(f"the front end of '{name}' is not known ({error}): {known}") from None
    stated = read_json(saved.folder / "preprocessor_config.json")
    if stated.get("feature_type") == "waveform":
        raise UserError(f"'{name}' takes the waveform and has no features: {known}")
    return FrontEnd(
        {setting.name: stated[setting.name] for setting in fields(FeatureArguments) if setting.name in stated},
        str(saved.config["backbone"]),
        str(saved.config.get("backbone_variant", "timm")),
    )
