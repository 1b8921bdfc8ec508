"""A check for secrets, local paths and local names in files before they are published."""

import contextlib
import getpass
import json
import os
import re
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Only the header of safetensors files is read, because only it contains text.
HEADER_LENGTH_BYTES = 8
TEXT_SUFFIXES = (".json", ".py", ".csv", ".md", "")

_SECRETS = {
    "a Hugging Face token": r"(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{35}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@",
}
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_SHORTEST_SECRET = 8
# Paths in these system folders exist on every machine and reveal nothing.
_SYSTEM_FOLDERS = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "usr"}
_USERS_FOLDERS = {"home", "Users", "Volumes", "root", "tmp", "var", "mnt", "media", "scratch", "srv", "opt"}
_REST_OF_PATH = r"""/[^\s"'`<>|,;)\]}]+"""
_NAME = r"""[^\s"'`<>|,;:\\/)\]}]+"""
# C:\\Users\\me, the same with slashes, and \\\\server\\share; JSON doubles each backslash.
_WINDOWS_PATHS = (
    rf"\b[A-Za-z]:(?:(?:\\{{1,2}}|/){_NAME}){{2,}}",
    rf"(?<![\w\\:])\\\\(?:\\\\)?{_NAME}(?:\\{{1,2}}{_NAME})+",
)
_NAMES_OF_MANY = {"root", "user", "users", "admin", "ubuntu", "debian", "runner", "jovyan", "vscode", "localhost"}
_SHORTEST_NAME = 4


def find_leaks(contents: Mapping[str, Path | bytes], *, public: Sequence[str] = ()) -> list[str]:
    """Finds secrets, local paths and local names.

    Secrets are tokens of Hugging Face and others, private keys, URLs with a password, the token of the Hub's login,
    and the values of environment variables with TOKEN, PASSWORD or similar in their names. Local paths are absolute
    paths of existing folders or of users' home folders. Local names are the names of the machine and of the user, as
    whole words with four letters or more. Compressed files (Parquet, PNG) are searched without decompression.

    Args:
        contents: Paths or bytes, by file name in the repository.
        public: Text that may be published although it resembles a local path or name. Secrets are always reported.

    Returns:
        One line per finding: file, line and what was found. The text of a secret is not included.
    """
    secrets, in_text, in_binary = _secrets(), _text_places(), _binary_places()
    leaks = []
    for name, content in contents.items():
        is_text = Path(name).suffix in TEXT_SUFFIXES or name.endswith(".safetensors")
        places = in_text if is_text else in_binary
        for number, line in enumerate(_text(name, content).splitlines(), 1):
            where = f"{name} line {number}" if is_text else name
            leaks += [f"{where}: {kind}" for kind, pattern in secrets if pattern.search(line)]
            found = (match[0] for pattern in places for match in pattern.finditer(line))
            leaks += [f"{where}: {place}" for place in found if not _is_public(place, public)]
    return list(dict.fromkeys(leaks))


def secret_variables() -> dict[str, str]:
    """Environment variables that may contain a secret, by their names."""
    return {
        name: value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET
    }


def _text(name: str, content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return content.decode(errors="replace")
    if not name.endswith(".safetensors"):
        return content.read_bytes().decode(errors="replace")
    with open(content, "rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        return file.read(min(length, content.stat().st_size)).decode(errors="replace")


def _secrets() -> list[tuple[str, re.Pattern[str]]]:
    # It takes long to import, and `push_model.py --help` does not need it.
    from huggingface_hub import get_token

    values = {f"the value of {name}": value for name, value in secret_variables().items()}
    if token := get_token():
        values["the token of the Hub's login"] = token
    patterns = _SECRETS | {kind: "|".join(map(re.escape, _spellings(value))) for kind, value in values.items()}
    return [(kind, re.compile(pattern)) for kind, pattern in patterns.items()]


def _spellings(value: str) -> list[str]:
    """A text as it is, and as JSON with and without escapes of letters."""
    escaped = (json.dumps(value, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False))
    return list(dict.fromkeys([value, *escaped]))


def _text_places() -> list[re.Pattern[str]]:
    folders = {*_USERS_FOLDERS, *(name for name in os.listdir("/") if os.path.isdir(f"/{name}"))} - _SYSTEM_FOLDERS
    known = "|".join(re.escape(folder) for folder in sorted(folders))
    # Neither the path of an address (https://a.b/home/c) nor the end of a relative one (../data/d).
    absolute = rf"(?:(?<![\w/.~:>-])|(?<=file://))/(?:{known}){_REST_OF_PATH}"
    names = [rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in _own_names()]
    return [
        re.compile(absolute),
        *map(re.compile, _WINDOWS_PATHS),
        *(re.compile(name, re.IGNORECASE) for name in names),
    ]


def _binary_places() -> list[re.Pattern[str]]:
    # Compressed bytes contain short texts by chance, so only long paths are reported.
    places = {Path.home(), Path.cwd(), Path(tempfile.gettempdir())}
    return [re.compile(re.escape(str(place))) for place in places if len(place.parts) > 2]


def _own_names() -> list[str]:
    names = {socket.gethostname().split(".")[0], Path.home().name}
    # In containers, the user may have no name.
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    return sorted(name for name in names if len(name) >= _SHORTEST_NAME and name.lower() not in _NAMES_OF_MANY)


def _is_public(found: str, public: Sequence[str]) -> bool:
    return any(found.lower() in text.lower() for text in public)
