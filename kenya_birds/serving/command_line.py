"""Commands that pages show for copying."""

import re
import shlex
from collections.abc import Iterable


def command_line(words: Iterable[str]) -> str:
    """Returns the words of a command as one line for a shell."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """A word of a command line, in double quotes if these work in every shell, else as in POSIX shells."""
    if shlex.quote(word) == word:
        return word
    # Single backslashes are those of paths on Windows.
    is_same = word.isprintable() and not re.search(r'["$`!%]|\\\\|\\$', word)
    return f'"{word}"' if word and is_same else shlex.quote(word)
