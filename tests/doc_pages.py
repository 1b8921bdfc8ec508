"""Reads README.md and docs/*.md: their blocks of code, commands and flags."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from running import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("bash", "sh")
OPERATORS = set(";|&<>()")


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    code: str
    line: int


class Command(NamedTuple):
    """A call of a program whose flags can be known: ours, a script of ours, or a launcher."""

    program: str
    words: list[str]
    is_whole: bool  # it can be parsed: nothing is left out

    @property
    def flags(self) -> list[str]:
        """The flags that it is given."""
        return [word.partition("=")[0] for word in self.words if word.startswith("--")]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, opened = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.match(r"\s*```\s*(\S*)", line)
        if fence and opened is None:
            opened = (fence[1], number, [])
        elif fence and opened is not None:
            found.append(Block(opened[0], "\n".join(opened[2]), opened[1]))
            opened = None
        elif opened is not None:
            opened[2].append(line)
    assert opened is None, f"{page.name}: a block is not closed"
    return found


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks outside of blocks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> list[Command]:
    """Every call of a program that we know in the shell blocks and the inline code of a page."""
    found = [
        command
        for block in blocks(page)
        if block.language in SHELLS
        for words in simple_commands(block.code)
        for command in _calls(words, in_block=True)
    ]
    for code in inline_code(page):
        if re.search(r"kenya-birds |kenya_birds |\.py |^accelerate launch |^torchrun ", code):
            found += [command for words in simple_commands(code) for command in _calls(words, in_block=False)]
    return found


def simple_commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell program as words; pipes, `&&` and the like part them, remarks are left out."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="".join(OPERATORS))
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= OPERATORS:
                yield words
                words = []
            else:
                words.append(word)
        yield words


def _calls(words: list[str], *, in_block: bool) -> Iterator[Command]:
    place = next((n for n, word in enumerate(words) if _is_program(words, n)), None)
    launcher = " ".join(words[:2]) if words[:2] == ["accelerate", "launch"] else words[0] if words else ""
    if launcher in ("accelerate launch", "torchrun"):
        end = len(words) if place is None else place
        yield Command(launcher, words[launcher.count(" ") + 1 : end], False)
    if place is None:
        return
    program, rest = words[place], words[place + 1 :]
    if program.endswith(".py"):
        yield Command(program, rest, in_block and "..." not in rest)
        return
    # `kenya-birds verify` has steps with flags of their own.
    size = 2 if rest[:1] == ["verify"] and rest[1:] else 1
    name, rest = " ".join(rest[:size]), rest[size:]
    # Behind the -- of `kenya-birds tune` stand flags of train_hf.py.
    end = rest.index("--") if name == "tune" and "--" in rest else len(rest)
    yield Command(f"kenya-birds {name}", rest[:end], in_block and "..." not in rest)
    yield Command("train_hf.py", rest[end + 1 :], False)


def _is_program(words: list[str], place: int) -> bool:
    word = words[place]
    if word == "kenya-birds" or (word == "kenya_birds" and words[place - 1] == "-m"):
        return True
    return (
        word in ("train_hf.py", "push_model.py")
        or re.fullmatch(r"(benchmarks|examples|docs)/\w+\.py", word) is not None
    )
