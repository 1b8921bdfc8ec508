"""The demo as a Hugging Face Space: a folder that holds all that it needs but the model, and its way to the Hub."""

import importlib.metadata
import json
import re
from pathlib import Path

from huggingface_hub import CommitInfo

import kenya_birds
from kenya_birds.errors import UserError
from kenya_birds.extras import install_line
from kenya_birds.publishing.hub import upload_files

PACKAGE = Path(kenya_birds.__file__).parent
SOURCES = (".py", ".jinja", ".typed")
PYTHON = "3.11"

APP = '''"""A page that hears recordings with {repo_id}."""

import os

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.serving.demo import serve

# What is tried on one's own machine may be a folder.
MODEL = os.environ.get("KENYA_BIRDS_MODEL", "{model}")

if __name__ == "__main__":
    show_log()
    with one_line_errors("app.py"):
        serve(
            MODEL,
            # A Space's visitors come from outside.
            host="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1",
            port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
            max_upload_mb=float(os.environ.get("MAX_UPLOAD_MB", "400")),
            max_hours=float(os.environ.get("MAX_HOURS", "2")),
        )
'''

TEXT = """
# Who sings here?

A page that hears recordings with [{repo_id}](https://huggingface.co/{repo_id}): drop one, see who sings when, download
tables for Raven, Audacity and spreadsheets. What is sent to it is removed when the page is closed.

`app.py` starts it; `kenya_birds/` is a copy of the package's code, under Apache-2.0. The model is fetched from its own
repository, at the revision that `app.py` names; if that is private, give the Space a secret `HF_TOKEN` that may read
it. The variables `MAX_UPLOAD_MB` (400) and `MAX_HOURS` (2) bound what is taken.

On your own machine: `pip install -r requirements.txt`, then `python app.py`, with another model:
`KENYA_BIRDS_MODEL=FOLDER python app.py`.
"""


def write_space(
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    license: str = "apache-2.0",
    code_license: Path | None = None,
) -> list[Path]:
    """Writes a Space's folder: `app.py`, `requirements.txt`, `README.md` and this package's code.

    The code is copied as the package is not on PyPI, and a Space is to run what it was tested with. Gradio's version
    is the one that is installed here.

    Args:
        folder: Where to write; new or empty.
        repo_id: `owner/name` of the model on the Hub.
        revision: The model's commit; None: its main branch, whatever is there when the Space starts.
        license: The licence of the Space's files, as the Hub spells it; by default that of this package.
        code_license: File with the code's licence.

    Returns:
        The files, sorted.

    Raises:
        UserError: If the folder is not empty or cannot be written to, or Gradio or this package is not installed.
    """
    check_space(folder)
    title = f"Who sings here? {repo_id.rpartition('/')[2]}"
    header = {
        "title": title,
        "emoji": "🐦",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": _gradio(),
        "python_version": PYTHON,
        "app_file": "app.py",
        "pinned": False,
        "license": license,
        "models": [repo_id],
    }
    model = f"{repo_id}@{revision}" if revision else repo_id
    # JSON's values are YAML's.
    lines = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in header.items())
    texts = {
        "app.py": APP.format(repo_id=repo_id, model=model),
        "requirements.txt": "".join(f"{line}\n" for line in requirements()),
        "README.md": f"---\n{lines}---\n" + TEXT.format(repo_id=repo_id),
    }
    sources = {f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}": path for path in package_files()}
    if code_license is not None:
        sources["LICENSE"] = code_license
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name, path in sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(path.read_bytes())
    except OSError as error:
        raise UserError(f"the Space's folder {folder} cannot be written: {error}") from None
    return [folder / name for name in sorted([*texts, *sources])]


def check_space(folder: Path) -> None:
    """Raises `UserError` if no Space can be written to this folder; to be known before a model is published."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a new folder for the Space")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give a new folder for the Space")
    requirements()


def publish_space(
    folder: Path, space_id: str, *, message: str, private: bool = False, token: str | None = None
) -> CommitInfo:
    """Uploads a Space's folder in one commit; the code that an earlier one left is replaced.

    Args:
        folder: What `write_space` wrote.
        space_id: `owner/name`, or `name` alone for the account that is logged in.
        message: The commit's title.
        private: Whether the Space is made private.
        token: Access token; by default the one of the Hub's login or of HF_TOKEN.

    Returns:
        The commit.

    Raises:
        UserError: See `upload_files`.
    """
    contents: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return upload_files(
        contents,
        space_id,
        message=message,
        repo_type="space",
        replaced=f"{PACKAGE.name}/*",
        private=private,
        token=token,
    )


def package_files() -> list[Path]:
    """The files of this package."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES and path.is_file())


def requirements() -> list[str]:
    """What this package needs, and the demo besides, as pip reads it.

    Raises:
        UserError: If that is not known, as nothing is installed.
    """
    try:
        needed = importlib.metadata.requires(PACKAGE.name) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("what the Space needs is not known: install this package first (pip install -e .)") from None
    return [*sorted(line for line in needed if not re.search(r";.*\bextra\b", line)), f"gradio=={_gradio()}"]


def _gradio() -> str:
    try:
        return importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"a Space needs Gradio, to be tried with: run {install_line('demo')}") from None
