"""Detection runs without a model, and people who answer: what the tests of `kenya-birds verify` share."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from scipy.special import expit

from kenya_birds.inference.detections import Detection, RecordingInfo
from kenya_birds.inference.output_tables import write_tables
from kenya_birds.inference.species import SpeciesNames

RATE, LENGTH_S = 8000, 100
NAMES = ("KEN_001_20211207_153852", "KEN_001_20211208_090000", "KEN_002_20211207_153852")
SPECIES = {"abcde1": SpeciesNames("Bird, common", "Avis prima"), "bcdef1": SpeciesNames("Rare bird", "Avis secunda")}
INTERCEPT = {"abcde1": 0.5, "bcdef1": -2.0}


def write_run(
    folder: Path, formats: tuple[str, ...] = ("csv", "parquet"), names: tuple[str, ...] = NAMES, model: str = "a" * 64
) -> Path:
    """Writes `recordings/` and `found/`: a row for each second and species, with all scores."""
    (folder / "recordings").mkdir(parents=True)
    generator = np.random.default_rng(0)
    infos, detections = [], []
    for name in names:
        path = folder / "recordings" / f"{name}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(RATE * LENGTH_S), RATE, subtype="PCM_16")
        infos.append(RecordingInfo(str(path), RATE * LENGTH_S, RATE))
        for second in range(LENGTH_S):
            for species in SPECIES:
                score = round(float(expit(generator.normal(-1, 2))), 6)  # as the model rounds them
                first = second * RATE
                detections.append(Detection(str(path), first, first + RATE, RATE, species, score))
    write_tables(
        folder / "found", formats, infos, detections, species_names=SPECIES, frequencies_hz=(100, 4000), metadata={}
    )
    run = {"model": "birds", "model_sha256": model, "settings": {"channel": None, "merge": False, "overlap_s": 0.0}}
    (folder / "found" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder / "found"


def read_table(check: Path) -> pd.DataFrame:
    return pd.read_csv(check / "verify.csv", dtype=str, keep_default_na=False).set_index("id", drop=False)


def write_table(table: pd.DataFrame, check: Path, **options) -> None:
    table.to_csv(check / "verify.csv", index=False, **options)


def answer(check: Path, give: Callable[[pd.Series], str]) -> pd.DataFrame:
    """Fills the column `answer`."""
    table = read_table(check)
    table["answer"] = [give(row) for _, row in table.iterrows()]
    write_table(table, check)
    return table


def is_right(row: pd.Series) -> bool:
    """The truth: more often right at high scores, and always the same for a detection."""
    chance = expit(INTERCEPT[row["species"]] + 2 * np.log(float(row["score"]) / (1 - float(row["score"]))))
    # Not of the id, which depends on the folder.
    key = f"{row['species']} {Path(row['recording']).name} {float(row['start_s']):.0f}"
    return np.random.default_rng(list(key.encode())).random() < chance


def truthful(row: pd.Series) -> str:
    return "right" if is_right(row) else "wrong"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
