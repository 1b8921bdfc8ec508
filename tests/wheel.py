"""Builds the source distribution and from it the wheel, and uses it in an empty folder: `make wheel`.

The wheel is installed in a new environment, which takes its dependencies from the environment that runs this script.
The repository is in neither the environment's path nor the working folder.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINING = (
    *("--use_cpu", "--backbone", "test_convnext", "--init_from", "scratch", "--min_annotations", "5"),
    *("--n_mels", "32", "--hop_length", "1024", "--noise_reduction", "none"),
    *("--num_train_epochs", "1", "--windows_per_epoch", "64", "--per_device_train_batch_size", "16"),
)
# One process for all of them, as each would import torch and transformers again.
COMMANDS = """
import json, sys
from kenya_birds.cli import main

for words in json.loads(sys.argv[1]):
    print("$ kenya-birds", *words, flush=True)
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            raise
"""


def run(*words, cwd):
    """Runs a command without this repository in its paths."""
    print("$", *(word for word in words if "\n" not in str(word)), flush=True)
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["HF_HUB_OFFLINE"] = "1"
    subprocess.run([str(word) for word in words], cwd=cwd, env=environment, check=True)


def main():
    """Builds, installs, and goes through the journey; raises if a step fails."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        run(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT, cwd=place)
        (wheel,) = (place / "dist").glob("*.whl")
        venv.create(place / "environment", with_pip=False)
        layout = {"base": str(place / "environment"), "platbase": str(place / "environment")}
        scripts = Path(sysconfig.get_path("scripts", "venv", layout))
        packages = Path(sysconfig.get_path("purelib", "venv", layout))
        python = scripts / Path(sys.executable).name
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=place)
        # Plain paths: editable installations of that environment are not seen through them.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        ours = {file.relative_to(ROOT) for file in (ROOT / "kenya_birds").rglob("*") if file.is_file()}
        missing = [str(file) for file in ours if file.suffix != ".pyc" and not (packages / file).is_file()]
        assert not missing, missing
        work = place / "work"
        work.mkdir()
        code = "import kenya_birds, train_hf; print(kenya_birds.__file__); print(train_hf.__file__)"
        files = subprocess.run(
            [python, "-I", "-c", code], cwd=work, check=True, capture_output=True, text=True
        ).stdout.splitlines()
        assert all(packages.resolve() in Path(file).resolve().parents for file in files), files
        command = scripts / "kenya-birds"
        run(command, "synthesize", "archive", *["--recordings", "6", "--duration_s", "40", "--species", "3"], cwd=work)
        commands = (
            ("train", "--data_dir", "archive", "--output_dir", "birds", *TRAINING),
            ("detect", "birds", "archive", "--output", "found", "--threshold", "0.3"),
            ("push", "--model_dir", "birds", "--repo_id", "ann/birds", "--dry_run"),
        )
        run(python, "-I", "-c", COMMANDS, json.dumps(commands), cwd=work)
        assert (work / "found" / "detections.csv").is_file()
    print("The wheel works: it synthesises, trains, detects and checks a model for the Hub.")


if __name__ == "__main__":
    main()
