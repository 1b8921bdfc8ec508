"""`kenya-birds verify read`: tables, pictures and thresholds from the answers of one or several samples."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from kenya_birds.errors import UserError
from kenya_birds.evaluation.call_density import Share
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.files import write_json, write_table
from kenya_birds.folders import (
    check_can_make,
    check_new_folder,
    contents_of,
    has_to_stay,
    is_new_or_empty,
    users_folder,
)
from kenya_birds.formulas import safe_path, safe_text
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.saved_models import THRESHOLDS_FILE
from kenya_birds.verification.check_folder import (
    ANSWERS_FILE,
    DECIMALS,
    OTHER,
    ROW_COLUMNS,
    Answer,
    Sample,
    add_detected_species,
    check_at_random,
    check_same_strata,
    read_answers,
    read_rows,
    read_species_table,
)
from kenya_birds.verification.strata import Stratum
from kenya_birds.verification.verified_figures import PRECISION_STEM, PROBABILITY_FOLDER, save_pictures
from kenya_birds.verification.verified_species import (
    DISAGREED,
    RIGHT,
    UNANSWERED,
    UNSURE,
    VERDICTS,
    WRONG,
    VerifiedSpecies,
)

logger = logging.getLogger(__name__)

PRECISIONS = (0.9, 0.95, 0.99)
SUMMARY_FILE, PRECISION_FILE = "verified_species.csv", "precision.csv"
ANSWERS_TABLE, AGREEMENT_FILE = "answers.csv", "agreement.csv"
DIGITS = "%.6g"


@dataclass(frozen=True)
class VerificationResult:
    """Result of `read_checks`.

    Attributes:
        all: Results of all species, then of each species and site or night.
        names: Names of the species by code.
        thresholds: Thresholds for `detect`.
        agreement: One row for each pair of folders or tables: `first`, `second`, `both` (detections that both answered
            right, wrong or other), `agreement` (share on which they agree whether it is right), `kappa` (Cohen's);
            empty for a single one.
        width: Width of the interval for which the number of further clips is computed.
    """

    all: list[VerifiedSpecies]
    names: dict[str, SpeciesNames]
    thresholds: Thresholds
    agreement: pd.DataFrame
    width: float


def read_checks(
    checks: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    precision: float = 0.9,
    width: float = 0.1,
    pictures: bool = True,
    overwrite: bool = False,
) -> VerificationResult:
    """Computes precision, call density and thresholds from the answers of one or several samples of one table.

    Answers `unsure` are left out and counted. If two people answered the same detection differently, it is left out
    and counted too; if one of them is unsure, the other answer counts.

    Args:
        checks: Folders of `verify sample`, and tables of answers (`verify.csv`) of other people about these samples.
        output: A new or empty folder for tables, pictures and `thresholds.json`.
        precision: Precision that `thresholds.json` must reach.
        width: Width of the interval for which the number of further clips is computed.
        pictures: Whether pictures are drawn.
        overwrite: Replaces earlier results in the output folder, if it has nothing else.

    Raises:
        UserError: If a folder cannot be read or is given twice, an answer or species is unknown, the samples are of
            different tables or not drawn at random, or there is no answer.
    """
    output = Path(output)
    check_results_folder(output, overwrite)
    sources = [Path(check) for check in ([checks] if isinstance(checks, str | Path) else checks)]
    folders = [path for path in sources if not path.is_file()]
    if not folders:
        raise UserError(
            f"{sources[0]} is a file: give the folder of kenya-birds verify sample that it belongs to, too"
        )
    tables = [(path if path.is_file() else path / ANSWERS_FILE).resolve() for path in sources]
    if twice := [path for number, path in enumerate(tables) if path in tables[:number]]:
        raise UserError(f"{twice[0]} is given twice: give the answers of each person once")
    samples = [(folder, Sample.read(folder)) for folder in folders]
    for folder, one in samples:
        check_at_random(folder, one)
    check_same_strata(samples)
    sample = samples[0][1]
    names = {code: found for folder in folders for code, found in read_species_table(folder).items()}
    rows = pd.concat([read_rows(folder) for folder in folders])
    rows = rows[~rows.index.duplicated()]
    add_detected_species(names, rows)
    answers = [read_answers(path, rows, names) for path in sources]
    rows = rows.assign(verdict=[_verdict([own[name] for own in answers if name in own]) for name in rows.index])
    if not rows["verdict"].isin([RIGHT, WRONG]).any():
        raise UserError(
            f"{' and '.join(map(str, sources))}: no detection is answered right, wrong or other; write the answers "
            "into the column answer of verify.csv"
        )
    verified_species = _verified_species(sample, rows)
    thresholds = _thresholds(verified_species, precision, sample)
    found = VerificationResult(verified_species, names, thresholds, _agreement(sources, answers), width)
    with users_folder(output, f"the results in {output}", overwrite=overwrite) as partial:
        write_table(_summary(found, sample.settings["by"]), partial / SUMMARY_FILE, DIGITS)
        write_table(_precision_table(found, sample.settings["by"]), partial / PRECISION_FILE, DIGITS)
        write_table(_answer_table(sources, rows, answers), partial / ANSWERS_TABLE)
        if len(sources) > 1:
            write_table(found.agreement, partial / AGREEMENT_FILE, DIGITS)
        write_json(thresholds.to_json(), partial / THRESHOLDS_FILE, allow_nan=False)
        if pictures:
            save_pictures([verified for verified in verified_species if not verified.group], names, partial)
    return found


def check_results_folder(output: Path, overwrite: bool) -> None:
    """Raises `UserError` if results cannot be written into a folder.

    Args:
        output: The folder.
        overwrite: Allows a folder with earlier results, and nothing else.
    """
    if not overwrite or is_new_or_empty(output) or not output.is_dir():
        check_new_folder(output, can_overwrite=not overwrite and output.is_dir())
        return
    if has_to_stay(output):
        raise UserError(
            f"{output} cannot be replaced, because it is the working directory, a mounted folder or a link: give "
            "another --output"
        )
    known = {SUMMARY_FILE, PRECISION_FILE, ANSWERS_TABLE, AGREEMENT_FILE, THRESHOLDS_FILE, PROBABILITY_FOLDER}
    others = sorted(
        path.name
        for path in contents_of(output)
        if path.name not in known and not path.name.startswith(PRECISION_STEM)
    )
    if others:
        raise UserError(
            f"{output} has {others[0]}, which is no result of kenya-birds verify read: give another --output"
        )
    check_can_make(output)


def _verdict(answers: Sequence[Answer]) -> str:
    """One of `VERDICTS`, from the answers of all people about one detection."""
    words = {WRONG if one.answer == OTHER else one.answer for one in answers}
    if {RIGHT, WRONG} <= words:
        return DISAGREED
    return next((word for word in (RIGHT, WRONG, UNSURE) if word in words), UNANSWERED)


def _verified_species(sample: Sample, rows: pd.DataFrame) -> list[VerifiedSpecies]:
    """Results of all species, then of each species and site or night."""
    by_pair: dict[tuple[str, str], list[Stratum]] = {}
    for stratum in sample.strata:
        by_pair.setdefault((stratum.species, ""), []).append(stratum)
    if sample.settings["by"] is not None:
        for stratum in sample.strata:
            by_pair.setdefault((stratum.species, stratum.group or "unknown"), []).append(stratum)
    of_stratum = dict(tuple(rows.groupby("stratum", sort=False)))
    nothing = rows.iloc[:0]
    return [
        VerifiedSpecies(
            species, group, tuple(strata), pd.concat([of_stratum.get(one.name, nothing) for one in strata])
        )
        for (species, group), strata in by_pair.items()
    ]


def _thresholds(verified_species: Sequence[VerifiedSpecies], precision: float, sample: Sample) -> Thresholds:
    """Thresholds of all sampled species; none for those that do not reach the precision, with the reason."""
    whole = [verified for verified in verified_species if not verified.group]
    species = {verified.species: verified.score_of(precision) for verified in whole}
    reasons = {
        verified.species: verified.why_not(precision) for verified in whole if species[verified.species] is None
    }
    clips = sum(len(verified.heard) for verified in whole)
    checked_with = {"clips": clips, "model_sha256": sample.model_sha256, "model": sample.model}
    run = sample.run_settings
    return Thresholds(
        precision,
        None,
        species,
        never_reported=reasons,
        verification=checked_with,
        overlap_s=run.get("overlap_s"),
        merge=run.get("merge"),
    )


def _agreement(sources: Sequence[Path], answers: Sequence[Mapping[str, Answer]]) -> pd.DataFrame:
    """Agreement of each pair of people about what is right."""
    clear = [
        {name: one.answer == RIGHT for name, one in own.items() if one.answer in (RIGHT, WRONG, OTHER)}
        for own in answers
    ]
    rows = []
    for (first, own), (second, others) in combinations(zip(map(str, sources), clear, strict=True), 2):
        both = [(answer, others[name]) for name, answer in own.items() if name in others]
        equal = float(np.mean([one == other for one, other in both])) if both else np.nan
        # If both always give the same answer, chance explains all agreement, and kappa is not defined.
        has_two = len({answer for pair in both for answer in pair}) == 2
        kappa = float(cohen_kappa_score(*zip(*both, strict=True))) if has_two else np.nan
        rows.append((first, second, len(both), equal, kappa))
    return pd.DataFrame(rows, columns=["first", "second", "both", "agreement", "kappa"])


def _summary(found: VerificationResult, by: str | None) -> pd.DataFrame:
    """One row for each species, then for each species and site or night."""
    return pd.DataFrame([_summary_row(found, verified, by) for verified in found.all])


def _summary_row(found: VerificationResult, verified: VerifiedSpecies, by: str | None) -> dict[str, Any]:
    names, fit = found.names[verified.species], verified.fit
    row: dict[str, Any] = {
        "species": safe_text(verified.species),
        **{k: safe_text(v) for k, v in names._asdict().items()},
    }
    if by is not None:
        row[by] = safe_text(verified.group)
    row |= {"detections": verified.detections, **verified.counts, **_share(verified.share, "share_right")}
    row |= {"intercept": np.nan if fit is None else fit.intercept, "slope": np.nan if fit is None else fit.slope}
    for wanted in PRECISIONS:
        score = verified.score_of(wanted)
        row[f"score_for_precision_{wanted:g}"] = "not reached" if score is None else f"{score:.6g}"
    row[f"more_clips_for_width_{found.width:g}"] = _number(verified.clips_for(found.width))
    score = verified.score_of(PRECISIONS[0])
    more = None if score is None else verified.clips_for(found.width, score)
    row[f"more_clips_for_width_{found.width:g}_from_precision_{PRECISIONS[0]:g}"] = _number(more)
    return row


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _share(share: Share, name: str) -> dict[str, float]:
    return {name: share.estimate, f"{name}_low": share.low, f"{name}_high": share.high}


def _precision_table(found: VerificationResult, by: str | None) -> pd.DataFrame:
    """One row for each species (and site or night) and score."""
    rows = []
    for verified in found.all:
        scores = np.array([at.score for at in verified.curve])
        fit = verified.fit
        nothing = np.full(len(scores), np.nan)
        probability = nothing if fit is None else fit.probability(scores)
        low, high = (nothing, nothing) if fit is None else fit.band(scores)
        for place, at in enumerate(verified.curve):
            row: dict[str, Any] = {"species": safe_text(verified.species)}
            row |= {by: safe_text(verified.group)} if by else {}
            row |= {"score": at.score, "detections": at.detections, **_share(at.precision, "precision")}
            row |= {"fitted_precision": at.by_fit, "probability": probability[place]}
            rows.append({**row, "probability_low": low[place], "probability_high": high[place]})
    return pd.DataFrame(rows)


def _answer_table(
    sources: Sequence[Path], rows: pd.DataFrame, answers: Sequence[Mapping[str, Answer]]
) -> pd.DataFrame:
    """All answers of all people."""
    parts = []
    for source, own in zip(sources, answers, strict=True):
        its = rows.loc[rows.index.isin(list(own)), list(ROW_COLUMNS)]
        given = pd.DataFrame([asdict(own[name]) for name in its.index], index=its.index)
        parts.append(pd.concat([its, given], axis=1).assign(check=str(source)))
    table = pd.concat(parts)
    for name in table.select_dtypes(exclude="number"):
        guard = safe_path if name == "recording" else safe_text
        table[name] = [guard(str(text)) for text in table[name]]
    return table.round(DECIMALS)  # detections are found again by their times


def format_result(found: VerificationResult) -> str:
    """The results as text for the terminal."""
    whole = [verified for verified in found.all if not verified.group]
    counts = {word: sum(verified.counts[word] for verified in whole) for word in VERDICTS}
    lines = [", ".join(f"{count} {word}" for word, count in counts.items() if count or word in (RIGHT, WRONG))]
    wanted = found.thresholds.wanted_precision
    lines.append(f"Share of detections that are right (95% interval), and score for a precision of {wanted:g}:")
    width = max(len(verified.species) for verified in whole)
    for verified in whole:
        share, score = verified.share, found.thresholds.species[verified.species]
        values = f"{share.estimate:.3f} ({share.low:.3f} to {share.high:.3f})" if len(verified.heard) else "no answers"
        reached = f"{score:.3f}" if score is not None else "not reached"
        more = verified.clips_for(found.width)
        hint = f"; {more} more clips for a width of {found.width:g}" if more else ""
        lines.append(f"  {verified.species:{width}}  {values:26}  {reached}{hint}")
    for code, reason in found.thresholds.never_reported.items():
        lines.append(f"With thresholds.json, {code} is never reported: {reason}")
    for first, second, both, equal, kappa in found.agreement.itertuples(index=False):
        if both:
            shown = "not defined, all answers are equal" if np.isnan(kappa) else f"{kappa:.2f}"
            lines.append(f"{first} and {second}: {both} in both, agreement {equal:.2f}, Cohen's kappa {shown}")
    return "\n".join(lines)
