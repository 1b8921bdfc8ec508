"""Arguments of `train_hf.py` for a teacher; they are checked without torch."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kenya_birds.data.sound_files import find_sound
from kenya_birds.errors import UserError
from kenya_birds.saved_models import check_model
from kenya_birds.training.arguments import DataArguments, ModelArguments
from kenya_birds.values import Count, Duration, Whole, check_fields


@dataclass
class TeacherArguments:
    """A first stage of training, in which the backbone learns what another model computes of the same sound."""

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "before training, the backbone learns what this model computes of all sound of the training "
            "recordings: a model of kenya-birds wrap or training, or an audio model of transformers (folder, or "
            "OWNER/NAME[@REVISION] on the Hub)"
        },
    )
    unlabelled: list[str] | None = field(
        default=None,
        metadata={
            "help": "--teacher, --self_training: learn also from all recordings in these folders, without annotations"
        },
    )
    teacher_targets: Literal["both", "embeddings", "scores"] = field(
        default="both",
        metadata={"help": "--teacher: what is learned: its embeddings, its scores of the archive's species, or both"},
    )
    teacher_epochs: Count = field(
        default=6, metadata={"help": "--teacher: how often the first stage learns all windows"}
    )
    teacher_hop_s: Duration | None = field(
        default=None, metadata={"help": "--teacher: distance of the windows in seconds; by default half a window"}
    )

    self_training: Whole = field(
        default=0,
        metadata={
            "help": "after training, label the --unlabelled recordings with the model and train it further on the "
            "windows with certain predictions, at most this many times; a round is kept only if validation is better"
        },
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range, or has no effect without another.
        """
        check_fields(self)
        if self.self_training and not self.unlabelled:
            raise UserError("--self_training labels recordings without annotations: add --unlabelled FOLDER")
        if self.unlabelled and not (self.teacher or self.self_training):
            raise UserError("--unlabelled is for training with a teacher: add --teacher MODEL, or --self_training N")
        if self.teacher is None:
            for name in ("teacher_targets", "teacher_epochs", "teacher_hop_s"):
                if getattr(self, name) != getattr(type(self), name):
                    raise UserError(f"--{name} is for training with a teacher: add --teacher MODEL")

    def record(self) -> dict[str, Any]:
        """The values for the record of a run, without local paths."""
        values = {given.name: getattr(self, given.name) for given in fields(self)}
        if self.teacher is not None and Path(self.teacher).exists():
            values["teacher"] = Path(self.teacher).resolve().name
        values["unlabelled"] = None if self.unlabelled is None else len(self.unlabelled)
        return values


def check_teacher(arguments: TeacherArguments, model: ModelArguments, data: DataArguments) -> None:
    """Checks the teacher and the unlabelled recordings, as far as this is possible without torch.

    Args:
        arguments: The teacher.
        model: The backbone.
        data: The archive, and how it is cut and split.

    Raises:
        UserError: If the backbone is frozen, the teacher does not exist, a folder has no recording, or self-training
            is not possible.
    """
    # They need numpy, which --help does not.
    from kenya_birds.model.graph_kenya_birds import RUNTIMES
    from kenya_birds.training.frozen_backbones import is_frozen

    for folder in arguments.unlabelled or ():
        unlabelled_recordings([folder])
    if arguments.self_training:
        if is_frozen(model):
            raise UserError("--self_training trains the backbone, and this one is frozen: leave it out")
        _check_self_training(data)
    if arguments.teacher is None:
        return
    if is_frozen(model):
        raise UserError(
            "--teacher trains the backbone, and this one is frozen: leave --teacher out, or give the name of a timm "
            "model as --backbone"
        )
    if Path(arguments.teacher).suffix in RUNTIMES:
        raise UserError(
            f"--teacher is the file {arguments.teacher}: expected a model's folder. Run kenya-birds wrap "
            f"{arguments.teacher} first, and give the folder that it writes"
        )
    check_model(arguments.teacher)


def _check_self_training(data: DataArguments) -> None:
    if data.train_on == "clips":
        raise UserError("--self_training learns windows of recordings: use --train_on recordings")
    if data.final_fit:
        raise UserError(
            "--self_training keeps a round only if validation is better, and a final fit has no validation: leave out "
            "one of the two"
        )


def unlabelled_recordings(folders: list[str]) -> list[Path]:
    """The recordings in folders and their subfolders, each once, sorted by path within each folder.

    Args:
        folders: The folders.

    Raises:
        UserError: If one of them does not exist, or has no recording.
    """
    found: dict[Any, Path] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--unlabelled is {folder}: expected an existing folder with recordings")
        files = find_sound(folder).found
        if not files:
            raise UserError(f"--unlabelled {folder} has no recording in it: expected a folder with sound files")
        for file in files:
            found.setdefault(file.identity, Path(file.path))
    return list(found.values())
