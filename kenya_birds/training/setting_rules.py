"""Which settings of training have an effect together; checked without torch."""

from collections.abc import Collection

from kenya_birds.errors import UserError
from kenya_birds.training.arguments import DataArguments, FeatureArguments, ModelArguments
from kenya_birds.training.teacher_arguments import TeacherArguments

# Flags, and the flag and value without which they have no effect; None: any value above 0.
USED_WITH: tuple[tuple[tuple[str, ...], str, str | None], ...] = (
    (
        ("context_s", "no_call_windows", "label_smoothing_factor", "shift_probability", "shift_max"),
        "train_on",
        "clips",
    ),
    (
        (
            *("call_windows", "empty_windows", "hard_windows", "edge_margin_s", "windows_per_epoch"),
            *("validation_windows", "embedding_hop_s"),
        ),
        "train_on",
        "recordings",
    ),
    (("rescore_epochs", "scored_windows"), "hard_windows", None),
    (("label_smoothing_factor",), "problem_type", "single_label_classification"),
    (("focal_gamma",), "problem_type", "multi_label_classification"),
    (("head_hidden_size",), "head", "mlp"),
)

# Flags that divide the recordings, and what else decides how they are divided.
DIVIDED_BY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("splits_file", ("test_size", "validation_size", "split_seed")),
    ("folds", ("test_size", "validation_size")),
    ("final_fit", ("test_size", "validation_size")),
)

# Schedules that transformers changes after each evaluation on validation.
EVALUATED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def check_used(names: Collection[str], data: DataArguments, model: ModelArguments) -> None:
    """Raises `UserError` if a setting has no effect with the others.

    Args:
        names: Names of the settings that were given, or do not have their default.
        data: The archive, and how it is cut and split.
        model: The backbone and its weights.
    """
    values = {**vars(data), **vars(model)}
    for unused, needed, value in USED_WITH:
        if values[needed] == value or (value is None and values[needed]):
            continue
        flag = f"--{needed}" if value is None else f"--{needed} {value}"
        for name in unused:
            if name in names:
                raise UserError(f"--{name} is for {flag}: leave it out, or use {flag}")


def check_division(names: Collection[str], data: DataArguments) -> None:
    """Raises `UserError` if a stated flag has no effect because another one divides the recordings.

    Args:
        names: Names of the flags that were given.
        data: The archive, and how it is cut and split.
    """
    for divides, unused in DIVIDED_BY:
        if not getattr(data, divides):
            continue
        for name in unused:
            if name in names:
                raise UserError(f"--{name} has no effect with --{divides}: leave one of the two out")


def check_schedule(schedule: str | None, data: DataArguments, teacher: TeacherArguments) -> None:
    """Raises `UserError` if the learning rate follows a metric that a part of training does not have.

    Args:
        schedule: `lr_scheduler_type`; None: the default.
        data: The archive, and how it is cut and split.
        teacher: The first stage of training.
    """
    if schedule not in EVALUATED_SCHEDULES:
        return
    for name, is_given in (("final_fit", data.final_fit), ("teacher", teacher.teacher is not None)):
        if is_given:
            raise UserError(
                f"--lr_scheduler_type {schedule} follows the metric on validation, and --{name} trains without "
                f"validation: leave out --{name}, or choose another schedule, such as cosine"
            )


def check_train_on(data: DataArguments, model: ModelArguments, features: FeatureArguments) -> None:
    """Raises `UserError` if training on recordings cannot be done with the other settings.

    Args:
        data: The archive, and how it is cut and split.
        model: The backbone and its weights.
        features: The feature extractor.
    """
    if not data.overlap_s < features.clip_s:
        raise UserError(f"overlap_s is {data.overlap_s:g}: expected less than clip_s, which is {features.clip_s:g}")
    if data.train_on == "clips":
        if model.window_loss != "bce":
            raise UserError(
                f"window_loss is {model.window_loss}, and each clip has a call, so that no call cannot be learned: "
                "leave it out, or use --train_on recordings"
            )
        return
    if model.problem_type != "multi_label_classification":
        raise UserError(
            "training on recordings is multi-label, as several birds may sing in a window: leave --problem_type out, "
            "or use --train_on clips"
        )
    if not 2 * data.edge_margin_s < features.clip_s:
        raise UserError(
            f"edge_margin_s is {data.edge_margin_s:g}: expected less than half of clip_s, which is {features.clip_s:g}"
        )
