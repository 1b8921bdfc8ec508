"""Reads a detection run for detection histories, and writes them for unmarked, spOccupancy and other programs."""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.archive import UNKNOWN_SPECIES
from kenya_birds.data.csv_table import read_csv
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.files import SPECIES_FILE, is_portable_name, read_json, users_file, write_json, write_table
from kenya_birds.folders import check_new_folder, users_folder
from kenya_birds.formulas import safe_text
from kenya_birds.inference.activity import USUAL_CLOCK, ActivityClock
from kenya_birds.inference.detections import name_in
from kenya_birds.inference.species import SpeciesNames, read_found_species
from kenya_birds.inference.table_formats import RUN_FILE
from kenya_birds.saved_models import THRESHOLDS_FILE
from kenya_birds.values import NotNegative, Share, check_fields, counted
from kenya_birds.verification.check_folder import OTHER, RIGHT, WRONG
from kenya_birds.verification.histories import Histories, Recorded, make_histories
from kenya_birds.verification.occasions import Unit
from kenya_birds.verification.reading import ANSWERS_TABLE
from kenya_birds.verification.survey import Survey
from kenya_birds.verification.survey_sites import PATTERN, SITE, Sites

logger = logging.getLogger(__name__)

MATRICES, R_FILE = "matrices", "read_histories.R"
SPECIES_NAMES = ("code", "common_name", "scientific_name")
LONG_COLUMNS = (
    *(*SPECIES_NAMES, SITE, "occasion", "detected", "detections", "confirmed"),
    *("max_score", "effort_h"),
)
MISSING = "NA"  # as R reads it
SITE_EFFORT = ("occasions", "hours")  # columns of sites.csv after those of the user's table


@dataclass(frozen=True)
class HistorySettings:
    """Settings of detection histories.

    Attributes:
        unit: Length of the occasions (see `clock_occasions` and `twilight_occasions`).
        min_effort_h: See `Histories.detected`.
        threshold: Least score of a detection; None: all detections of the table count.
        verified: Output folder of `kenya-birds verify read`, whose thresholds and answers are used.
        species: List of the wanted species (see `read_species`); None: all.

    Raises:
        UserError: If a value is out of range, or both threshold and verified are given.
    """

    unit: Unit = "day"
    min_effort_h: NotNegative = 0.0
    threshold: Share | None = None
    verified: Path | None = None
    species: Path | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        check_fields(self)
        if self.threshold is not None and self.verified is not None:
            raise UserError(
                "threshold and verified are both given: the output of kenya-birds verify read has thresholds; give "
                "one of them"
            )

    def accept(self, survey: Survey) -> tuple[pd.DataFrame, frozenset[str]]:
        """Returns the detections that count, with their answers (see `apply_answers`), and undecided species.

        Raises:
            UserError: If a file in `verified` is missing or cannot be read, is of detections of another model, or has
                no answer about a detection of the run.
        """
        detections = survey.detections.assign(confirmed=False)
        if self.verified is None:
            return apply_thresholds(detections, self.threshold or 0.0), frozenset()
        path = self.verified / ANSWERS_TABLE
        if not path.is_file():
            raise UserError(
                f"{self.verified} has no {ANSWERS_TABLE}: expected the output folder of kenya-birds verify read"
            )
        thresholds = Thresholds.read(self.verified / THRESHOLDS_FILE)
        checked, run = thresholds.verification, read_json(survey.folder / RUN_FILE)
        if checked is not None and checked.get("model_sha256") != run.get("model_sha256"):
            raise UserError(
                f"{self.verified} is of checked detections of another model, {checked.get('model')}, whose scores "
                f"mean something else: check a sample of {survey.folder}"
            )
        accepted = apply_answers(detections, read_csv(path))
        silent = {code for code in {*detections["code"], *accepted["code"]} if thresholds.species.get(code) is None}
        # A person heard the confirmed ones, whatever their score.
        counted = [accepted[accepted["confirmed"]], apply_thresholds(accepted[~accepted["confirmed"]], thresholds)]
        return pd.concat(counted), frozenset(silent)


def survey_histories(
    found: str | Path,
    output: str | Path,
    settings: HistorySettings,
    *,
    sites: str | Path | None = None,
    clock: ActivityClock = USUAL_CLOCK,
) -> Histories:
    """Makes the detection histories of a run and writes them.

    Args:
        found: Output folder of `kenya-birds detect`.
        output: A new or empty folder.
        settings: Occasions and accepted detections.
        sites: Table of the sites (see `Sites`).
        clock: How the times of recordings are found.

    Raises:
        UserError: If a file is missing or cannot be read, no recording can be used, or the output cannot be written.
    """
    check_new_folder(output)
    table = None if sites is None else Sites.read(sites)
    own = [] if table is None else [name for name in SITE_EFFORT if name in table.table]
    if own:
        raise UserError(f"{sites} has the column {own[0]}, which the output has too: rename or remove it in {sites}")
    survey = Survey.read(found)
    accepted, undecided = settings.accept(survey)
    species = pd.concat([accepted, survey.detections])[list(SPECIES_NAMES)].drop_duplicates("code")
    found_names = read_json(survey.folder / RUN_FILE).get("undetected", {})
    undetected = {code: SpeciesNames(*names) for code, names in found_names.items()}
    if settings.species is not None and (len(species) or undetected):
        wanted = _wanted(settings.species, species, undetected, survey.folder)
        accepted, species = (each[each["code"].isin(wanted)] for each in (accepted, species))
        undetected = {code: names for code, names in undetected.items() if code in wanted}
    if silent := sorted(undecided & set(species["code"])):
        logger.warning(
            "%d of %d species have no threshold in %s: occasions with a confirmed detection are 1, all others NA "
            "(%s%s)",
            len(silent),
            len(species),
            settings.verified,
            ", ".join(silent[:10]),
            " ..." if len(silent) > 10 else "",
        )
    histories = make_histories(
        recordings_of(survey, clock=clock, sites=table),
        accepted,
        settings.unit,
        sites=None if table is None else table.names,
        species=species.itertuples(index=False, name=None),
    )
    known = set(histories.species["code"])
    silent_species = [code for code in undetected if code not in known]
    histories = replace(histories, undecided=undecided, undetected=silent_species)
    about = {"found": str(found), **{name: _plain(value) for name, value in vars(settings).items()}}
    write_histories(histories, output, min_effort_h=settings.min_effort_h, about=about, sites=table)
    return histories


def _wanted(path: Path, detected: pd.DataFrame, undetected: Mapping[str, SpeciesNames], found: Path) -> set[str]:
    """Returns the codes of the species in a list, of those that the model can detect."""
    known = {code: SpeciesNames(*names) for code, *names in detected.itertuples(index=False)}
    return set(read_found_species(path, {**known, **undetected}, found))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def recordings_of(
    survey: Survey, *, clock: ActivityClock = USUAL_CLOCK, sites: Sites | None = None
) -> dict[str, Recorded]:
    """Finds site, time and place of the recordings of a run.

    Args:
        survey: The run.
        clock: How the times of recordings are found.
        sites: Table of the sites; by default sites are those of `recordings.csv`.

    Returns:
        All recordings by path, with the stretches that were not analysed.

    Raises:
        UserError: If no recording has a site of the table, or one matches the patterns of two sites.
    """
    if clock.name_pattern is not None:
        clock.name_pattern.check(map(name_in, survey.run.duration_s))
    found = {}
    for path, duration_s in survey.run.duration_s.items():
        place = clock.find_place(path, survey.run)
        site = place.site if sites is None else sites.site_of(path, place.site)
        if sites is not None and site is not None and (place.latitude is None or place.longitude is None):
            latitude, longitude = sites.place(site)
            place = replace(place, latitude=latitude, longitude=longitude)
        found[path] = Recorded(site, place, duration_s, survey.run.gaps.get(path, ()))
    if sites is not None and all(recorded.site is None for recorded in found.values()):
        raise _no_site(sites, found)
    return found


def _no_site(sites: Sites, recordings: Mapping[str, Recorded]) -> UserError:
    """The error of a table of sites that has no recording of a run."""
    own = sorted({each.place.site for each in recordings.values() if each.place.site is not None})
    names = f"their own sites: {', '.join(own[:3]) or 'none'}"
    if any(sites.patterns):
        return UserError(
            f"{sites.path}: no recording matches one of its patterns or sites, such as "
            f"{next(filter(None, sites.patterns))!r}: expected patterns of paths such as {next(iter(recordings))} "
            f"({names})"
        )
    return UserError(
        f"{sites.path} has no site of the recordings ({names}): found {', '.join(sites.names[:3])}; correct the "
        f"column {SITE}, or add a column {PATTERN} with patterns of their paths"
    )


def apply_thresholds(detections: pd.DataFrame, thresholds: Thresholds | float) -> pd.DataFrame:
    """Returns the detections that reach the threshold of their species.

    Args:
        detections: `code`, `score`.
        thresholds: The thresholds of the species, or one threshold for all. Species without a threshold are left out.
    """
    if isinstance(thresholds, Thresholds):
        codes = detections["code"].unique().tolist()
        limit = detections["code"].map(dict(zip(codes, thresholds.values(codes), strict=True))).astype(float)
        return detections[detections["score"] >= limit]
    return detections[detections["score"] >= thresholds]


def apply_answers(detections: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Marks confirmed detections, removes wrong ones, and adds those of other species that people have named.

    `right` with another species confirms both. If the model has detected the named species there too, that detection
    is confirmed. Answers about detections that are not there are logged.

    Args:
        detections: See `read_detections`, and `confirmed`.
        answers: `recording`, `start_s`, `end_s`, `species`, `answer` and `other_species` of checked detections (see
            `verify.csv`). If people disagree about a detection or are unsure, nothing changes.

    Raises:
        UserError: If recordings were checked that the run has, and none of the checked detections is in it.
    """
    given: dict[_Key, list[tuple[str, str]]] = {}
    words = zip(answers["answer"], answers["other_species"], strict=True)
    for key, pair in zip(_keys(answers, "species"), words, strict=True):
        if pair[0] in (RIGHT, WRONG, OTHER):
            given.setdefault(key, []).append(pair)
    keys = list(_keys(detections, "code"))
    absent = given.keys() - set(keys)
    if absent:
        recording, start_us, _, species = next(key for key in given if key in absent)
        if len(absent) == len(given) and {key[0] for key in keys} & {key[0] for key in given}:
            raise UserError(
                f"none of the {len(given)} checked detections is in this run (first: {species} at {start_us / 1e6:g} "
                f"s of {recording}): give the output folder of kenya-birds detect from which the sample was drawn"
            )
        logger.warning(
            "%d of %d checked detections are not in this run, so their answers change nothing (first: %s at %g s of "
            "%s): give the run of kenya-birds detect that was checked",
            len(absent),
            len(given),
            species,
            start_us / 1e6,
            recording,
        )
    verdicts = [_verdict(given.get(key, [])) for key in keys]
    word, other = (np.array([one[at] for one in verdicts], dtype=object) for at in (0, 1))
    named = [(*key[:3], code) if code else None for key, code in zip(keys, other, strict=True)]
    is_named = _mask(map(set(named).__contains__, keys))
    kept = detections.assign(confirmed=(word == RIGHT) | is_named).loc[word != WRONG]
    # A named species that the model has not detected there gets a copy of the row. If it has, and the answer to that
    # detection is wrong, this answer holds.
    there = set(keys)
    is_copied = _mask(key is not None and key not in there for key in named)
    names = detections.drop_duplicates("code").set_index("code")
    of_code = {column: [names[column].get(code, "") for code in other[is_copied]] for column in SPECIES_NAMES[1:]}
    copies = detections[is_copied].assign(code=other[is_copied], confirmed=True, **of_code)
    copies = copies.drop_duplicates(["recording", "start_s", "end_s", "code"])
    return pd.concat([kept, copies]).sort_index(kind="stable") if len(copies) else kept


def _mask(values: Iterable[bool]) -> np.ndarray:
    return np.fromiter(values, dtype=bool)


_Key = tuple[str, int, int, str]


def _keys(table: pd.DataFrame, species: str) -> Iterator[_Key]:
    """Yields absolute path of the recording, start and end in microseconds, and species of each row."""
    times_us = (1e6 * table[["start_s", "end_s"]].astype(float)).round().astype(np.int64)
    recordings = table["recording"].map({path: os.path.abspath(path) for path in table["recording"].unique()})
    return zip(recordings, times_us["start_s"], times_us["end_s"], table[species], strict=True)


def _verdict(words: list[tuple[str, str]]) -> tuple[str, str]:
    """Returns `right`, `wrong` or an empty text, and the code of another species that is there, if all name one."""
    answers, others = ({word[at] for word in words} for at in (0, 1))
    is_named = answers in ({RIGHT}, {OTHER}) and len(others) == 1 and not others & {"", UNKNOWN_SPECIES}
    word = RIGHT if answers == {RIGHT} else WRONG if answers and RIGHT not in answers else ""
    return word, others.pop() if is_named else ""


def write_histories(
    histories: Histories,
    output: str | Path,
    *,
    min_effort_h: float = 0.0,
    about: Mapping[str, Any],
    sites: Sites | None,
) -> None:
    """Writes detection histories.

    Args:
        histories: The histories.
        output: A new or empty folder.
        min_effort_h: See `Histories.detected`.
        about: Settings, for `histories.json`.
        sites: Table of the sites, whose columns are kept.

    Raises:
        UserError: If the folder cannot be written.
    """
    logger.info(
        "Writing histories.csv of %s: %d species, %s, %s",
        counted(histories.detections.size, "row", ","),
        len(histories.species),
        counted(len(histories.sites), "site"),
        counted(len(histories.occasions), "occasion"),
    )
    names = histories.occasions["occasion"].tolist()
    with users_folder(Path(output), f"the histories {output}") as folder:
        (folder / MATRICES).mkdir()
        species = histories.species.assign(matrix=_matrix_files(histories.species["code"]))
        for at, name in enumerate(species["matrix"]):
            detected = histories.detected(min_effort_h, slice(at, at + 1))
            _write_matrix(detected[0], histories.sites, names, folder / name, "%d")
        _write_matrix(histories.effort_h, histories.sites, names, folder / "effort_h.csv", "%.6g")
        write_table(histories.occasions, folder / "occasions.csv")
        write_table(_site_rows(histories, sites), folder / "sites.csv")
        is_decided = ~histories.species["code"].isin(histories.undecided)
        write_table(species.map(safe_text).assign(has_threshold=is_decided.astype(int)), folder / SPECIES_FILE)
        _write_long(histories, min_effort_h, folder / "histories.csv")
        content = {
            **about,
            "clock": histories.clock,
            "skipped": dict(histories.skipped),
            "other_sites": list(histories.other_sites),
            "undetected": list(histories.undetected),
        }
        write_json(content, folder / "histories.json")
        shutil.copyfile(Path(__file__).with_name(R_FILE), folder / R_FILE)


def _matrix_files(codes: pd.Series) -> list[str]:
    """Returns a file for each species, named by its code where every system can have such a file."""
    names = [code if is_portable_name(f"{code}.csv") else f"species_{at}" for at, code in enumerate(codes)]
    return [f"{MATRICES}/{name}.csv" for name in names]


def _write_matrix(values: np.ndarray, sites: list[str], occasions: list[str], path: Path, form: str) -> None:
    cells = np.where(np.isnan(values), MISSING, np.char.mod(form, np.nan_to_num(values)))
    table = pd.DataFrame(cells, columns=occasions)
    table.insert(0, SITE, [safe_text(site) for site in sites])
    write_table(table, path)


def _site_rows(histories: Histories, sites: Sites | None) -> pd.DataFrame:
    table = pd.DataFrame({SITE: histories.sites}) if sites is None else sites.table.reset_index(drop=True)
    effort = ((histories.effort_h > 0).sum(axis=1), histories.effort_h.sum(axis=1).round(6))
    return table.assign(**dict(zip(SITE_EFFORT, effort, strict=True)))


def _write_long(histories: Histories, min_effort_h: float, path: Path) -> None:
    """Writes one row for each species, site and occasion."""
    names, sites = histories.occasions["occasion"].to_numpy(), np.array(histories.sites, dtype=object)
    site_at, occasion_at = (index.ravel() for index in np.indices(histories.effort_h.shape))
    with users_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(LONG_COLUMNS) + "\n")
        for at, names_of in enumerate(histories.species[list(SPECIES_NAMES)].to_numpy()):
            table = pd.DataFrame(
                {
                    **{name: safe_text(str(text)) for name, text in zip(SPECIES_NAMES, names_of, strict=True)},
                    SITE: sites[site_at],
                    "occasion": names[occasion_at],
                    "detected": histories.detected(min_effort_h, slice(at, at + 1)).ravel(),
                    "detections": histories.detections[at].ravel(),
                    "confirmed": histories.confirmed[at].ravel(),
                    "max_score": histories.max_score[at].ravel().round(6),
                    "effort_h": histories.effort_h.ravel().round(6),
                }
            )
            table["detected"] = table["detected"].astype("Int8")
            counts = ["detections", "confirmed"]
            table[counts] = table[counts].astype("Int64").where(table["detected"].notna())
            table.to_csv(file, index=False, header=False, lineterminator="\n", na_rep=MISSING)
