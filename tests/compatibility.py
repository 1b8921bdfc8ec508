"""Asks the reference models in two more environments: the oldest and the newest libraries that setup.cfg allows.

`python tests/compatibility.py` (or `make compatibility`) makes them out of a package index, in a folder that is
removed again; torch and all else that is not named in `VARIED` are those of the environment that runs it. It prints a
table, and ends with code 1 if an answer differs from the stored one by more than `TOLERANCE`.
"""

import configparser
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from reference_model import MODELS, ask, numbers, save_reference_model

ROOT = Path(__file__).parents[1]
STORED = Path(__file__).with_name("reference_answers.json")
# What loads a model and runs its code.
VARIED = ("transformers", "huggingface_hub", "timm")
TOLERANCE = 1e-4


def requirements() -> dict[str, Requirement]:
    """What setup.cfg asks for of the varied packages, by name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in asked if requirement.name in VARIED}


def oldest(requirement: Requirement) -> str:
    """The lowest version that a requirement allows, as a requirement."""
    (lowest,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    return f"{requirement.name}=={lowest}"


def make_environment(folder: Path, wanted: list[str]) -> str:
    """Makes a virtual environment that holds these packages, and for the rest sees the one that runs this.

    Returns:
        Its Python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", *wanted], check=True)
    return python


def main() -> int:
    """Runs the comparison.

    Returns:
        The exit code.
    """
    asked = requirements()
    sets = {"oldest": [oldest(asked[name]) for name in VARIED], "newest": [str(asked[name]) for name in VARIED]}
    stored = json.loads(STORED.read_text())
    largest = 0.0
    with tempfile.TemporaryDirectory(prefix="kenya_birds_") as temporary:
        home = Path(temporary)
        folders = {problem: save_reference_model(problem, home / problem) for problem in MODELS}
        pythons = {"this one": sys.executable}
        pythons |= {name: make_environment(home / name, wanted) for name, wanted in sets.items()}
        print(f"| environment | {' | '.join(VARIED)} | torch | model | largest difference |")
        print(f"| --- |{' --- |' * (len(VARIED) + 3)}")
        for name, python in pythons.items():
            for problem, folder in folders.items():
                answer = ask(python, folder, home)
                difference = float(np.abs(numbers(answer) - numbers(stored[problem])).max())
                largest = max(largest, difference)
                versions = [answer["versions"][package] for package in (*VARIED, "torch")]
                print(f"| {name} | {' | '.join(versions)} | {problem} | {difference:.1e} |")
    print(f"Largest difference {largest:.1e}, {TOLERANCE:.0e} allowed.")
    return 0 if largest <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
