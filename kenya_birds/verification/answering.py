"""Answers of people to the detections of a sample, one after the other; each is on disk before the next is shown."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import get_args

import pandas as pd

from kenya_birds.errors import UserError
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.locks import locked
from kenya_birds.verification.check_folder import (
    ANSWERS,
    OTHER,
    RIGHT,
    Answer,
    Sample,
    read_answers,
    read_rows,
    read_species_table,
    write_answers,
)
from kenya_birds.verification.clips import CLIPS_FOLDER, PICTURES_FOLDER, ClipFormat

# Of the files that a sample has.
SUFFIXES = {"clip": tuple(f".{form}" for form in get_args(ClipFormat)), "picture": (".png",)}
MAX_NOTE, MAX_NAME = 2000, 100
WAIT_S = 10.0


class UnknownDetectionError(UserError):
    """There is no detection with this id in the sample, or it has no such file."""


class InvalidAnswerError(UserError):
    """The answer is none that can be written."""


class ChangedAnswerError(UserError):
    """Somebody else has answered this detection meanwhile."""


@dataclass(frozen=True)
class Progress:
    """How many detections are answered.

    Attributes:
        place: Place of the detection in the sample, from 1.
        answered: Answered detections.
        total: Detections with a clip.
        species_answered: Answered detections of the species.
        species_total: Detections of the species with a clip.
    """

    place: int
    answered: int
    total: int
    species_answered: int
    species_total: int


@dataclass(frozen=True)
class Question:
    """One detection to listen to. Its score is not included, because it would influence the answer.

    Attributes:
        id: Name of the detection.
        species: eBird code of the detected species.
        common_name: Its English name.
        scientific_name: Its scientific name.
        recording: Name of the recording, without folders.
        local_time: Local time of the detection in ISO 8601; empty if unknown.
        site: Site; empty if unknown.
        has_picture: Whether there is a spectrogram.
        answer: The answer so far.
        other_name: Name of `answer.other_species`.
        progress: How many are answered.
        previous: Id of the detection before it; None at the first one.
        next: Id of the detection after it; None at the last one.
        upcoming: Id of the next detection without an answer; None if there is no other.
    """

    id: str
    species: str
    common_name: str
    scientific_name: str
    recording: str
    local_time: str
    site: str
    has_picture: bool
    answer: Answer
    other_name: str
    progress: Progress
    previous: str | None
    next: str | None
    upcoming: str | None


@dataclass(frozen=True)
class _Content:
    """Content of the folder at one moment; `rows` are those with a clip; without a file, `picture` is empty."""

    all_rows: pd.DataFrame
    rows: pd.DataFrame
    species: dict[str, SpeciesNames]
    answers: dict[str, Answer]

    def is_answered(self, name: str) -> bool:
        answer = self.answers.get(name)
        return answer is not None and bool(answer.answer)


class Answering:
    """Shows the detections of a sample in the order of its rows, and writes answers into `verify.csv`.

    The folder is read again before each answer is written. So the table may be edited in a spreadsheet, several people
    may answer at the same time, and `kenya-birds verify sample` may add clips.

    Args:
        folder: Folder of `kenya-birds verify sample`.
        now: Clock for `verified_at`.

    Raises:
        UserError: If the folder cannot be read, or has no clip.
    """

    def __init__(self, folder: str | Path, now: Callable[[], datetime] = datetime.now) -> None:
        folder = Path(folder)
        self.folder = folder
        self.sample = Sample.read(folder)
        self._now = now
        self._lock = threading.Lock()
        self._given: dict[str, Answer] = {}
        if self._read().rows.empty:
            clips = folder / CLIPS_FOLDER
            if clips.is_symlink():
                raise UserError(f"{clips} is a link to another folder: put the clips into {clips} itself")
            raise UserError(f"{folder} has no clips: run kenya-birds verify sample again to write them")

    def species(self) -> dict[str, SpeciesNames]:
        """Names of the species that `other_species` may name, by code, sorted by name."""
        species = read_species_table(self.folder)
        return dict(sorted(species.items(), key=lambda one: (one[1].common_name.casefold(), one[0])))

    def question(self, name: str | None = None) -> Question | None:
        """Returns a detection.

        Args:
            name: Id of the detection; None: the first one without an answer.

        Returns:
            The detection; None if all are answered.

        Raises:
            UnknownDetectionError: If there is no such detection.
            UserError: If the folder cannot be read.
        """
        with self._lock:
            content = self._read()
        if name is None:
            name = _upcoming(content, -1)
        return None if name is None else _question(content, name)

    def last(self) -> Question:
        """Returns the last detection of the sample."""
        with self._lock:
            content = self._read()
        return _question(content, str(content.rows.index[-1]))

    def record(self, name: str, new: Answer, seen: Answer) -> Question | None:
        """Writes an answer, and returns the detection to show next.

        Args:
            name: Id of the detection.
            new: The answer; `verified_at` is set here. Without `answer`, only the note is written.
            seen: The answer so far that the person saw.

        Returns:
            The next detection without an answer; None if all are answered. The same detection, if `new` has no answer.

        Raises:
            UnknownDetectionError: If there is no such detection.
            ChangedAnswerError: If the answer on disk is another one than `seen`. Nothing is written.
            InvalidAnswerError: If the answer is not valid. Nothing is written.
            UserError: If the folder cannot be read or written. Nothing is written.
        """
        if new.answer not in ("", *ANSWERS):
            raise InvalidAnswerError(f"the answer is '{new.answer}': expected {', '.join(ANSWERS)}")
        with self._lock, locked(self.folder, wait_s=WAIT_S):
            content = self._read()
            place = _place(content, name)
            old = content.answers.get(name, Answer())
            if old != seen:
                raise ChangedAnswerError(
                    f"This one was answered meanwhile{f' by {old.verified_by}' if old.verified_by else ''}. Look at "
                    "the answer; to replace it, answer again."
                )
            if new.answer == OTHER and new.other_species == content.rows.at[name, "species"]:
                raise InvalidAnswerError(
                    f"'{new.other_species}' is the detected species: answer right, or choose another"
                )
            self._write(content, name, _completed(new, old, content.species, self._now()))
            return _question(content, name) if not new.answer else self._next(content, place)

    def clip(self, name: str) -> Path:
        """Returns the path of a detection's clip; raises `UnknownDetectionError`."""
        return self._file(name, "clip", CLIPS_FOLDER)

    def picture(self, name: str) -> Path:
        """Returns the path of a detection's spectrogram; raises `UnknownDetectionError`."""
        return self._file(name, "picture", PICTURES_FOLDER)

    def _file(self, name: str, column: str, inside: str) -> Path:
        with self._lock:
            rows = read_rows(self.folder)
        path = PurePosixPath(str(rows.at[name, column])) if name in rows.index else PurePosixPath()
        is_name = path.parts[:1] == (inside,) and len(path.parts) == 2 and "\\" not in path.name
        # Folders may come from other people: only files that a sample has are opened, and no links that lead out.
        if not is_name or path.suffix not in SUFFIXES[column] or not _is_file_of(self.folder, self.folder / path):
            raise UnknownDetectionError(f"there is no {column} of {name} in {self.folder}")
        return self.folder / path

    def _next(self, content: _Content, place: int) -> Question | None:
        name = _upcoming(content, place)
        return None if name is None else _question(content, name)

    def _write(self, content: _Content, name: str, answer: Answer) -> None:
        answers = {**content.answers, name: answer}
        write_answers(self.folder, content.all_rows, answers)
        content.answers[name] = self._given[name] = answer

    def _read(self) -> _Content:
        rows, species = read_rows(self.folder), read_species_table(self.folder)
        answers = read_answers(self.folder, rows, species)
        # A spreadsheet that was open all the time may have saved an older table: answers from here are kept.
        answers |= {
            name: one
            for name, one in self._given.items()
            if name in rows.index and (name not in answers or _is_later(one, answers[name]))
        }
        found = {file for name in (CLIPS_FOLDER, PICTURES_FOLDER) for file in _files_in(self.folder, name)}
        # A sample may be stopped between a clip and its picture.
        shown = rows.assign(picture=[name if name in found else "" for name in rows["picture"]])
        return _Content(rows, shown[[name in found for name in rows["clip"]]], species, answers)


def _files_in(folder: Path, name: str) -> Iterator[str]:
    """Yields the files of a subfolder that may be sent (see `Answering.clip`)."""
    if not (folder / name).is_dir() or not (folder / name).resolve().is_relative_to(folder.resolve()):
        return
    with os.scandir(folder / name) as entries:
        for entry in entries:
            if not entry.is_symlink() or _is_file_of(folder, Path(entry.path)):
                yield f"{name}/{entry.name}"


def _is_file_of(folder: Path, path: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _is_later(one: Answer, other: Answer) -> bool:
    """Whether both answers have a time, and the first one is later."""
    try:
        return datetime.fromisoformat(one.verified_at) > datetime.fromisoformat(other.verified_at)
    except (ValueError, TypeError):
        # No time, another way to write it, or one without a time zone.
        return False


def _completed(new: Answer, old: Answer, species: Mapping[str, SpeciesNames], now: datetime) -> Answer:
    """The answer as it is written, with the time."""
    if new.other_species and (new.answer != OTHER or new.other_species not in species):
        raise InvalidAnswerError(
            f"'{new.other_species}' is no species of species.csv: add it there, or choose another one"
        )
    # A note of a spreadsheet may have several lines, and be longer.
    note = old.note if new.note == old.note else _line(new.note, MAX_NOTE)
    by = _line(new.verified_by, MAX_NAME)
    if not new.answer:
        return replace(old, note=note)
    # `right` with another species, which was written in a spreadsheet, is kept.
    other = old.other_species if new.answer == old.answer == RIGHT else new.other_species
    return Answer(new.answer, other, note, by, now.astimezone().isoformat(timespec="seconds"))


def _line(text: str, most: int) -> str:
    """The text as one line of printable characters."""
    words = " ".join(text.split())
    if len(words) > most:
        raise InvalidAnswerError(f"the text has {len(words)} characters: expected at most {most}")
    return "".join(letter for letter in words if letter.isprintable())


def _place(content: _Content, name: str) -> int:
    """Place of a detection among those with a clip, from 0; raises `UnknownDetectionError`."""
    if name not in content.rows.index:
        raise UnknownDetectionError(f"there is no detection {name} with a clip in the sample")
    return list(content.rows.index).index(name)


def _upcoming(content: _Content, place: int) -> str | None:
    """Id of the next detection without an answer after a place; after the last one, the first one again."""
    names = content.rows.index.to_list()
    return next((one for one in (*names[place + 1 :], *names[: max(0, place)]) if not content.is_answered(one)), None)


def _question(content: _Content, name: str) -> Question:
    place, rows = _place(content, name), content.rows
    row = rows.iloc[place]
    of_species = rows.index[rows["species"] == row["species"]]
    answer = content.answers.get(name, Answer())
    other = answer.other_species
    return Question(
        id=name,
        species=row["species"],
        common_name=row["common_name"],
        scientific_name=row["scientific_name"],
        recording=str(row["recording"]).replace("\\", "/").rpartition("/")[2],
        local_time=row["local_time"],
        site=row["site"],
        has_picture=bool(row["picture"]),
        answer=answer,
        other_name=other and (content.species[other].common_name or other),
        progress=Progress(
            place + 1,
            sum(map(content.is_answered, rows.index)),
            len(rows),
            sum(map(content.is_answered, of_species)),
            len(of_species),
        ),
        previous=str(rows.index[place - 1]) if place else None,
        next=str(rows.index[place + 1]) if place + 1 < len(rows) else None,
        upcoming=_upcoming(content, place),
    )
