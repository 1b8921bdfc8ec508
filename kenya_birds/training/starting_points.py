"""Where the backbone's weights come from: timm's own, a file, or nowhere."""

from pathlib import Path
from typing import Any, cast

from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from kenya_birds.errors import UserError
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification, build_backbone

WEIGHTS_FILE = "model.safetensors"
# The transport's own base error: httpx.HTTPError with huggingface_hub 1.x, httpx2.HTTPError with 2.x.
TransportError = cast(type[Exception], HfHubHTTPError.__mro__[1])


def initialize_backbone(model: KenyaBirdsForAudioClassification, init_from: str) -> None:
    """Loads starting weights into the model's backbone; the first layer's three colours are summed into one channel.

    Args:
        model: A model whose backbone has random weights.
        init_from: `"pretrained"` (timm's weights for this backbone, from the Hub), `"scratch"` (leave it random), or a
            safetensors file with the weights of this backbone in timm's naming.

    Raises:
        UserError: If the weights cannot be fetched, or the file is not one, or not for this backbone.
    """
    if init_from == "scratch":
        return
    donor = _pretrained(model) if init_from == "pretrained" else _from_file(model, Path(init_from))
    model.backbone.load_state_dict(donor.state_dict())


def _pretrained(model: KenyaBirdsForAudioClassification) -> Any:
    name = model.config.backbone
    repo_id = model.backbone.pretrained_cfg.get("hf_hub_id")
    if not repo_id:
        raise UserError(
            f"the Hub has no timm weights of '{name}': pass --init_from FILE (safetensors) or --init_from scratch"
        )
    try:
        if not isinstance(try_to_load_from_cache(repo_id, WEIGHTS_FILE), str):
            # One request that fails at once where there is no network: the download would retry for a minute.
            files = [file.rfilename for file in model_info(repo_id).siblings or []]
            if WEIGHTS_FILE not in files:
                raise UserError(f"{repo_id} has no {WEIGHTS_FILE}, and pickled weights are not loaded")
        return build_backbone(model.config, pretrained=True)
    except (OSError, HfHubHTTPError, TransportError) as error:
        raise UserError(
            f"the pretrained weights of '{name}' cannot be fetched from the Hub ({type(error).__name__}): connect to "
            "it, or pass --init_from FILE (safetensors with timm's names) or --init_from scratch"
        ) from None


def _from_file(model: KenyaBirdsForAudioClassification, path: Path) -> Any:
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"--init_from is '{path}': expected 'pretrained', 'scratch', or an existing .safetensors file with the "
            f"weights of {model.config.backbone}"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            found = set(file.keys())
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from None
    expected = set(model.backbone.state_dict())
    classifier = model.backbone.pretrained_cfg.get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    missing = sorted(expected - found)
    surplus = sorted(name for name in found - expected if name.rpartition(".")[0] not in classifiers)
    if missing or surplus:
        example = f"lacks {missing[0]}" if missing else f"has {surplus[0]}"
        raise UserError(
            f"{path} does not hold the weights of {model.config.backbone} in timm's naming: {len(missing)} of "
            f"{len(expected)} are missing and {len(surplus)} are not known (it {example})"
        )
    try:
        return build_backbone(model.config, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit {model.config.backbone}: {str(error).splitlines()[-1].strip()}"
        ) from None
