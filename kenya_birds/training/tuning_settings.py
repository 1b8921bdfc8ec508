"""Settings of a tuning study. They import nothing heavy, so that the command line is checked at once."""

from dataclasses import dataclass

from kenya_birds.values import Count, Duration, HeldOutFolds, check_fields


@dataclass(frozen=True)
class TuningSettings:
    """Settings of a study of Optuna.

    Attributes:
        trials: Number of trials of the whole study, including pruned ones.
        timeout_s: Start no new trial after this many seconds.
        folds: Number of folds.
        storage: Database of the study, as a URL of SQLAlchemy.
        study_name: Name of the study in the database.
        backbones: Names of timm models to choose from; by default that of the training flags.
    """

    trials: Count
    timeout_s: Duration | None = None
    folds: HeldOutFolds = 3
    storage: str = "sqlite:///study.db"
    study_name: str = "kenya_birds"
    backbones: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        check_fields(self)
