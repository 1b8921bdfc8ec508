"""`kenya-birds verify sample`: draws detections, and writes clips, pictures and a table for the answers."""

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kenya_birds.errors import UserError
from kenya_birds.files import file_sha256, is_portable_name, users_file
from kenya_birds.folders import check_can_make, is_new_or_empty
from kenya_birds.inference.detections import SCORE_DIGITS
from kenya_birds.inference.recordings_reader import read_recordings
from kenya_birds.inference.species import read_found_species
from kenya_birds.locks import locked
from kenya_birds.values import Count, Seconds, Seed, check_fields
from kenya_birds.verification.check_folder import (
    ANSWERS_FILE,
    AT_RANDOM,
    ROW_COLUMNS,
    ROWS_FILE,
    SAMPLE_FILE,
    Answer,
    Sample,
    detection_id,
    read_answers,
    read_ids,
    read_rows,
    read_species_table,
    write_answers,
    write_species,
)
from kenya_birds.verification.clips import (
    CLIPS_FOLDER,
    PICTURES_FOLDER,
    ClipFormat,
    ClipSettings,
    clip_span,
    write_clips,
)
from kenya_birds.verification.found_tables import By, FoundTable, Scores
from kenya_birds.verification.informative import INFORMATIVE, draw_informative
from kenya_birds.verification.moved_recordings import find_recordings
from kenya_birds.verification.strata import Drawn, draw_clips, make_strata

logger = logging.getLogger(__name__)

LOW_SCORE = 0.05


@dataclass(frozen=True)
class SampleSettings:
    """Settings of a sample.

    Attributes:
        per_species: Clips of each species; with `by`, of each species at each site or in each night.
        by: Sites or nights, to which the sample is divided; None: not divided.
        choose: `score`: clips are drawn in equal numbers from score bins; `random`: from all detections of a species.
            Not at random, for training alone: `uncertain`, `diverse` (see `draw_informative`).
        seed: Random seed.
        context_s: Sound before and after a detection, in seconds.
        clip_format: Format of the clips.
        pictures: Whether spectrograms are drawn.
    """

    per_species: Count = 60
    by: By | None = None
    choose: Literal["score", "random", "uncertain", "diverse"] = "score"
    seed: Seed = 0
    context_s: Seconds = 2.0
    clip_format: ClipFormat = "flac"
    pictures: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        check_fields(self)


@dataclass(frozen=True)
class Drawing:
    """Result of `draw_sample`.

    Attributes:
        sample: The sample.
        clips: Number of clips.
        new: Number of clips that were drawn by this call.
        answered: Number of answers that were there already.
        lost: Number of detections whose sound cannot be decoded.
    """

    sample: Sample
    clips: int
    new: int
    answered: int
    lost: int


def draw_sample(
    found: str | Path,
    output: str | Path,
    settings: SampleSettings | None = None,
    *,
    species: str | Path | None = None,
    recordings: str | Path | None = None,
    embeddings: str | Path | None = None,
) -> Drawing:
    """Draws a stratified random sample of detections for a person to check.

    The output folder gets `clips/`, `pictures/`, `verify.csv` (a row for each detection, with empty columns for the
    answers), `species.csv`, `sample.json` (settings, sizes of the strata, fingerprint of the model) and
    `sample.parquet` (the drawn detections, which are never changed).

    Interrupted runs resume. With a larger `per_species`, clips are added. Existing answers are kept.

    Args:
        found: Output folder of `kenya-birds detect`, with a table in CSV or Parquet.
        output: A new or empty folder, or the folder of an earlier sample of the same table.
        settings: Settings of the sample.
        species: List of species to sample (see `read_species`); None: all.
        recordings: Folder with recordings that were moved.
        embeddings: Table of `kenya-birds embed` for `uncertain` and `diverse`; None: the model of the run embeds.

    Raises:
        UserError: If a file cannot be used, or the folder has a sample of another table or with other settings.
    """
    settings = settings or SampleSettings()
    output = Path(output)
    table = FoundTable(found)
    folder = None if recordings is None else Path(recordings)
    old = _earlier(output, table, settings)
    check_can_make(output)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        before = read_rows(output) if old is not None and (output / ROWS_FILE).is_file() else None
        answers: dict[str, Answer] = {}
        if before is not None and (output / ANSWERS_FILE).is_file():
            answers = read_answers(output, before, read_species_table(output))
        candidates = _Candidates(table, output, folder, None if embeddings is None else Path(embeddings))
        drawn = _draw(table, settings, species, old, candidates)
        rows = _rows(table, drawn, settings)
        if before is not None and not before.index.isin(rows.index).all():
            raise UserError(f"{output} has clips that this command does not draw: give the same --species, or another "
                            "--output")  # fmt: skip
        if old is not None and before is None and (output / ANSWERS_FILE).is_file():
            # The record of the rows is lost, but not the answers: these rows are drawn again.
            write_species(output, table.names())
            answers = read_answers(output, rows, read_species_table(output))
        run = read_recordings(table.path, rows["recording"].unique())
        lengths_s = {} if run is None else run.duration_s
        where = find_recordings(rows["recording"], folder, lengths_s)
        sample = _sample(table, settings, drawn)
        sample.write(output)
        candidates.write()
        with users_file(output / ROWS_FILE) as partial:
            rows.to_parquet(partial, index=False)
        write_species(output, table.names())
        how = ClipSettings(
            settings.context_s, settings.clip_format, sample.run_settings.get("channel"), settings.pictures
        )
        lost = write_clips(output, rows, where, lengths_s, how)
        answers = _add_rows(output, rows, answers)
    new = len(rows) if before is None else len(rows) - len(before)
    return Drawing(sample, len(rows), new, sum(bool(one.answer) for one in answers.values()), len(lost))


def _add_rows(output: Path, rows: pd.DataFrame, answers: dict[str, Answer]) -> dict[str, Answer]:
    """Writes the rows that `verify.csv` lacks; returns all answers.

    Writing clips takes long, and people may answer in a spreadsheet meanwhile: the answers are read again.

    Args:
        output: Folder of the sample.
        rows: All rows of the sample.
        answers: Answers before the clips were written, in case that there is no table now.
    """
    if (output / ANSWERS_FILE).is_file():
        try:
            answers = read_answers(output, rows, read_species_table(output))
        except UserError as error:
            raise UserError(
                f"{error} (written while clips were cut: {ANSWERS_FILE} is not changed, and lacks the new rows); "
                "correct it, and run the command again"
            ) from None
    if not read_ids(output) >= set(rows.index):
        write_answers(output, rows, answers)
    return answers


def _earlier(output: Path, table: FoundTable, settings: SampleSettings) -> Sample | None:
    """The earlier sample in a folder; None if the folder is new. Checks that it can be continued."""
    if is_new_or_empty(output):
        return None
    if not (output / SAMPLE_FILE).is_file():
        raise UserError(f"{output} exists and is not a folder of kenya-birds verify sample: give another --output")
    old = Sample.read(output)
    if old.model_sha256 != table.run["model_sha256"]:
        raise UserError(f"{output} is a sample of detections of another model ({old.model}): give another --output")
    if old.table_sha256 != file_sha256(table.path):
        raise UserError(
            f"{output} is a sample of {old.table}, which differs from {table.path}: give another --output; the "
            "answers stay where they are"
        )
    now = asdict(settings)
    changed = [name for name in now if name != "per_species" and old.settings[name] != now[name]]
    if changed:
        raise UserError(
            f"{output} was drawn with {changed[0]} {old.settings[changed[0]]}, and now it is {now[changed[0]]}: use "
            "the same, or give another --output"
        )
    if settings.per_species < old.settings["per_species"]:
        raise UserError(
            f"{output} was drawn with --per_species {old.settings['per_species']}: expected at least as many, found "
            f"{settings.per_species}"
        )
    return old


class _Candidates:
    """Embeddings of the candidates of a sample.

    Args:
        table: The detections.
        output: Folder of the sample.
        folder: Folder with recordings that were moved.
        embeddings: Table of `kenya-birds embed`; None: the model of the run embeds.
    """

    def __init__(self, table: FoundTable, output: Path, folder: Path | None, embeddings: Path | None) -> None:
        self._table, self._output, self._folder, self._embeddings = table, output, folder, embeddings
        self._new: tuple[np.ndarray, np.ndarray, str] | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of rows of the table, shape `(rows, size)`; those of an earlier run are used again."""
        # These need torch; other samples are drawn without it.
        from kenya_birds.inference.embeddings import read_about
        from kenya_birds.verification import window_embeddings

        source = None
        if self._embeddings is not None:
            read_about(self._embeddings)  # refuses what is not a table of embeddings
            source = file_sha256(self._embeddings)
        known = window_embeddings.read_candidates(self._output, rows, source)
        if known is not None:
            return known
        found = self._table.rows(rows)
        if self._embeddings is not None:
            vectors = window_embeddings.look_up(self._embeddings, found)
        else:
            run = self._table.run
            embedder = window_embeddings.model_of_run(str(run.get("model", "")), run["model_sha256"])
            lengths = read_recordings(self._table.path, found["recording"].unique())
            where = find_recordings(found["recording"], self._folder, {} if lengths is None else lengths.duration_s)
            channel = run.get("settings", {}).get("channel")
            vectors = window_embeddings.embed_detections(embedder, found, where, channel)
        self._new = rows, vectors, source or self._table.run["model_sha256"]
        return vectors

    def write(self) -> None:
        """Writes new embeddings, so that the sample can be resumed and enlarged."""
        if self._new is not None:
            from kenya_birds.verification.window_embeddings import write_candidates

            write_candidates(self._output, *self._new)


def _draw(
    table: FoundTable,
    settings: SampleSettings,
    species: str | Path | None,
    old: Sample | None,
    embed: Callable[[np.ndarray], np.ndarray],
) -> list[Drawn]:
    """Draws the clips of all species."""
    scores = table.scores(settings.by)
    _log_scores(table, scores)
    chosen = set(scores.species.texts)
    if species is not None:
        chosen = set(read_found_species(species, table.names(), table.path))
    unknown = settings.by is not None and not any(scores.group.texts)
    if unknown:
        raise UserError(
            f"no recording in {table.path} has a known {settings.by}: name the recordings as in docs/tables.md, or "
            "run kenya-birds detect with --name_pattern"
        )
    keys = sorted((code, group) for code in chosen for group in scores.group.texts)
    number = {key: place for place, key in enumerate(keys)}
    of_pair = pd.array(
        [number.get((code, group), -1) for code in scores.species.texts for group in scores.group.texts]
    )
    pairs = scores.species.of_row * len(scores.group.texts) + scores.group.of_row
    key_of_row = of_pair.to_numpy(dtype="int32")[pairs]
    strata = list(
        make_strata(
            keys,
            key_of_row,
            scores.score,
            settings.per_species,
            by_score=settings.choose == "score",
            known=() if old is None else old.strata,
        )
    )
    if settings.choose in INFORMATIVE:
        return draw_informative(strata, scores.score, settings.per_species, settings.seed, settings.choose, embed)
    by_key: dict[tuple[str, str], list[Any]] = {}
    for stratum, rows in strata:
        by_key.setdefault((stratum.species, stratum.group), []).append((stratum, rows))
    return [one for its in by_key.values() for one in draw_clips(its, settings.per_species, settings.seed)]


def _log_scores(table: FoundTable, scores: Scores) -> None:
    """Logs what the table lacks."""
    lowest = float(scores.score.min())
    if lowest > LOW_SCORE:
        logger.warning(
            "The lowest score in the table is %.2f: calls with lower scores are in no row, and the sample cannot "
            "count them. For all windows, run kenya-birds detect with --threshold 0 (or 0.01) in another folder",
            lowest,
        )


def _rows(table: FoundTable, drawn: list[Drawn], settings: SampleSettings) -> pd.DataFrame:
    """The drawn detections with the columns of `sample.parquet`.

    The rows of a species are in the order of the draw, one of each stratum in turn, so that whoever stops early has
    heard all strata.
    """
    places = pd.DataFrame(
        [
            (int(row), turn, one.stratum.species, one.stratum.name, one.stratum.detections, len(one.rows))
            for one in drawn
            for turn, row in enumerate(one.rows)
        ],
        columns=["row", "turn", "species", "stratum", "stratum_detections", "clips"],
    ).set_index("row")
    found = table.rows(places.index.sort_values().to_numpy()).join(places.drop(columns="species"))
    found = found.rename(columns={"code": "species"})
    found["score"] = found["score"].astype("float64").round(SCORE_DIGITS)
    at_random = settings.choose in AT_RANDOM
    found["weight"] = found["stratum_detections"] / found["clips"] if at_random else 0.0  # stands for no others
    spans = zip(found["recording"], found["start_s"], found["end_s"], found["species"], strict=True)
    found["id"] = [detection_id(*span) for span in spans]
    if found["id"].duplicated().any():
        twice = found[found["id"].duplicated()].iloc[0]
        raise UserError(
            f"{table.path} has {twice['species']} at {twice['start_s']:.3f} s of {twice['recording']} twice: run "
            "kenya-birds detect again"
        )
    stems = [_stem(code, name) for code, name in zip(found["species"], found["id"], strict=True)]
    found["clip"] = [f"{CLIPS_FOLDER}/{stem}.{settings.clip_format}" for stem in stems]
    found["picture"] = [f"{PICTURES_FOLDER}/{stem}.png" if settings.pictures else "" for stem in stems]
    found["clip_start_s"] = [
        clip_span(start_s, end_s, settings.context_s)[0]
        for start_s, end_s in zip(found["start_s"], found["end_s"], strict=True)
    ]
    local = found["local_time"]
    found["local_time"] = local.dt.strftime("%Y-%m-%dT%H:%M:%S").where(local.notna(), "").astype(object)
    found = found.sort_values(["species", "turn", "id"])
    return found[list(ROW_COLUMNS)].set_index("id", drop=False)


def _stem(code: str, name: str) -> str:
    """File name of a clip: the code, if it is valid in file names, and the id."""
    return f"{code}_{name}" if is_portable_name(code) and re.fullmatch(r"[\w-]{1,40}", code) else name


def _sample(table: FoundTable, settings: SampleSettings, drawn: list[Drawn]) -> Sample:
    return Sample(
        table=str(table.path),
        table_sha256=file_sha256(table.path),
        model=str(table.run.get("model", "")),
        model_sha256=table.run["model_sha256"],
        run_settings=dict(table.run.get("settings", {})),
        settings=asdict(settings),
        strata=tuple(one.stratum for one in drawn),
    )
