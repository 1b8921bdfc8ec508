"""The search space of tuning, and the sampler that proposes trials."""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kenya_birds.console import user_errors
from kenya_birds.errors import UserError
from kenya_birds.model.backbone_kenya_birds import build_backbone
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.training.arguments import NAMED_STARTS
from kenya_birds.training.settings import Settings, usual_settings

STRENGTH = "augmentation_strength"
# Settings whose default depends on others.
DEPENDENT = ("problem_type", "metric_for_best_model")
# The strength multiplies these: one number instead of four, because tens of trials cannot tune four. Windows of
# recordings lie anywhere and are not shifted.
STRENGTHENED = ("shift_probability", "pitch_probability", "speed_probability", "noise_probability")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn uniformly or log-uniformly."""

    low: float
    high: float
    log: bool = False


# By the names of flags, except the strength: 0 is no augmentation, 1 has the probabilities of the settings, and 2 has
# twice these probabilities (at most 1).
RANGES = {
    "learning_rate": Range(1e-4, 3e-3, log=True),
    "weight_decay": Range(1e-3, 0.3, log=True),
    "loss_weight_power": Range(0.0, 1.0),
    "sampler_weight_power": Range(0.0, 1.0),
    STRENGTH: Range(0.0, 2.0),
    "mixup_probability": Range(0.0, 1.0),
    "label_smoothing_factor": Range(0.0, 0.2),  # single-label targets only
    "drop_path_rate": Range(0.0, 0.3),  # if the backbone supports it
}


class SearchSpace:
    """The search space of a study.

    Args:
        settings: Settings that are not searched, and the probabilities that the strength multiplies.
        backbones: Names of timm models; by default that of the settings. A single backbone is not searched.
        given: Names of settings that the user has given: those among them that are usually searched keep their values.

    Attributes:
        backbones: The backbones.
        kept: Names of settings that are usually searched, and keep their values.

    Raises:
        UserError: If timm does not have a backbone, or a backbone is repeated.
    """

    def __init__(self, settings: Settings, backbones: Sequence[str] = (), given: Collection[str] = ()) -> None:
        self.settings = settings
        self.backbones = list(backbones) or [settings.model.backbone]
        if len(set(self.backbones)) < len(self.backbones):
            raise UserError(f"the backbones {', '.join(self.backbones)} are not all different: give each of them once")
        self._droppable = [name for name in self.backbones if _has_drop_path(name)]
        self.kept = [name for name in RANGES if name in given]
        unused = set(self.kept)
        if settings.model.problem_type == "multi_label_classification":
            unused.add("label_smoothing_factor")
        if not self._droppable:
            unused.add("drop_path_rate")
        self.ranges = {name: numbers for name, numbers in RANGES.items() if name not in unused}
        self._strengthened = STRENGTHENED if settings.data.train_on == "clips" else STRENGTHENED[1:]

    @property
    def metric(self) -> str:
        """Name of the metric that trials maximise."""
        return str(self.settings.training.metric_for_best_model)

    def describe(self) -> dict[str, Any]:
        """The space as JSON: ranges and choices by name."""
        described: dict[str, Any] = {name: asdict(numbers) for name, numbers in self.ranges.items()}
        if len(self.backbones) > 1:
            described["backbone"] = self.backbones
        if "drop_path_rate" in described and len(self._droppable) < len(self.backbones):
            described["drop_path_rate"]["backbones"] = self._droppable
        return described

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Draws a point of the space.

        Args:
            trial: An `optuna.Trial`.

        Returns:
            Flags of `train_hf.py` by name (see `flags`).
        """
        point: dict[str, Any] = {}
        if len(self.backbones) > 1:
            point["backbone"] = trial.suggest_categorical("backbone", self.backbones)
        for name, numbers in self.ranges.items():
            if name != "drop_path_rate" or point.get("backbone", self.backbones[0]) in self._droppable:
                point[name] = trial.suggest_float(name, numbers.low, numbers.high, log=numbers.log)
        return self.flags(point)

    def fixed(self) -> dict[str, Any]:
        """Flags of `train_hf.py` by name: settings that are not searched and do not have their default, with splits.

        Training without them would cut other clips, or test on recordings that tuning has used.
        """
        data, model, training = self.settings.data, self.settings.model, self.settings.training
        searched = self.flags(dict.fromkeys((*self.ranges, STRENGTH), 0.0))
        fixed = {
            **self.settings.deciding(),
            # The division of a step into batches, and files that are recorded without their path.
            "per_device_train_batch_size": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "init_from": model.init_from if model.init_from in NAMED_STARTS else _absolute(model.init_from),
            "splits_file": data.splits_file and _absolute(data.splits_file),
        }
        usual = usual_settings()
        return {
            name: value
            for name, value in fixed.items()
            # The last one follows from the metric.
            if name in usual and name not in (*searched, "greater_is_better")
            if value is not None and (value != usual[name] or name in DEPENDENT)
        }

    def flags(self, point: dict[str, Any]) -> dict[str, Any]:
        """Flags of `train_hf.py` by name: a point of the space, with the strength multiplied out."""
        flags = {"backbone": self.backbones[0], **point}
        if "drop_path_rate" not in self.kept:
            flags.setdefault("drop_path_rate", 0.0)
        strength = flags.pop(STRENGTH)
        for name in self._strengthened:
            flags[name] = min(1.0, strength * getattr(self.settings.augmentation, name))
        return flags


def _absolute(path: str) -> str:
    """Makes the path of an existing file absolute; other text is not changed."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _has_drop_path(backbone: str) -> bool:
    with user_errors(ValueError):
        build_backbone(KenyaBirdsConfig(backbone=backbone))
    try:
        build_backbone(KenyaBirdsConfig(backbone=backbone, drop_path_rate=0.1))
    except ValueError:
        return False
    return True


class SeededTPESampler(optuna.samplers.BaseSampler):
    """TPE whose random numbers depend on the seed and on the number of earlier points, not on the process.

    A normal `TPESampler` with a seed draws the same first points in every process of a study.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sampler = optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seeds the sampler for this trial by the number of earlier points, without repeated trials."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            before = [
                other.number
                for other in study.get_trials(deepcopy=False)
                if other.number < trial.number
                and optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(other) is None
            ]
        seed = int(np.random.SeedSequence([self._seed, len(before)]).generate_state(1)[0])
        self._sampler = optuna.samplers.TPESampler(seed=seed)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPE."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As TPE."""
        self._sampler.after_trial(study, trial, state, values)
