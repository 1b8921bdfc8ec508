"""TPE for studies that are stopped, resumed and shared."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class SeededTPESampler(optuna.samplers.BaseSampler):
    """TPE whose random numbers depend on the seed and on how many points were drawn before, and not on the process.

    A `TPESampler` that is seeded once draws the same first points in every process that works on a study.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sampler = optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seeds the sampler for this trial by how many new points were drawn before: second tries do not count."""
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
