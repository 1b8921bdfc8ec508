"""Patterns that users write for the names of their recordings: as for strptime, or regular expressions."""

import logging
import re
from collections.abc import Iterable

from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

GROUPS = ("site", "year", "month", "day", "hour", "minute", "second", "zone")
# Those of strptime that stand for digits, and %site.
_DIRECTIVES = {
    "site": r"(?P<site>.+?)",
    "Y": r"(?P<year>[0-9]{4})",
    "y": r"(?P<year>[0-9]{2})",
    "m": r"(?P<month>[0-9]{2})",
    "d": r"(?P<day>[0-9]{2})",
    "H": r"(?P<hour>[0-9]{2})",
    "M": r"(?P<minute>[0-9]{2})",
    "S": r"(?P<second>[0-9]{2})",
    "f": r"[0-9]{1,9}",
    "z": r"(?P<zone>Z|[+-][0-9]{2}:?(?:[0-9]{2})?)",
    "%": "%",
}
_TOKEN = re.compile(r"%(site|.?)|\*|[^%*]+", re.DOTALL)
_NEEDED = ("year", "month", "day", "hour")


class NamePattern:
    """Reads site, date and time out of file names.

    Args:
        text: As for `strptime`, with `%site`, `%Y`, `%y` (of this century), `%m`, `%d`, `%H`, `%M`, `%S`, `%f`, `%z`,
            and `*` for anything, such as `%site_%Y%m%d_%H%M%S*`; or a regular expression with groups that are named
            as in `(?P<site>...)`: site, year, month, day, hour, minute, second and zone (`+0300` or Z). Either stands
            for the whole name without its suffix.

    Raises:
        UserError: If it is no pattern, or tells neither a site nor date and hour.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._expression = re.compile(text if "(?P<" in text else _translated(text))
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"the name pattern '{text}' cannot be used ({error}): expected one such as %site_%Y%m%d_%H%M%S, or a "
                "regular expression with named groups"
            ) from None
        names = set(self._expression.groupindex)
        unknown = sorted(names - set(GROUPS))
        if unknown:
            raise UserError(f"the name pattern '{text}' has a group '{unknown[0]}': expected {', '.join(GROUPS)}")
        missing = [name for name in _NEEDED if name not in names]
        if missing and (len(missing) < len(_NEEDED) or "site" not in names):
            raise UserError(
                f"the name pattern '{text}' does not tell the {missing[0]}: expected a date with year, month, day and "
                "hour, or a site"
            )

    @classmethod
    def of(cls, text: str | None) -> "NamePattern | None":
        """The pattern of what a user wrote; None where nothing was written."""
        return None if text is None else cls(text)

    def match(self, name: str) -> dict[str, str | None] | None:
        """What the name tells, by group; None where the pattern does not match it.

        Args:
            name: File name of a recording.
        """
        match = self._expression.fullmatch(name.rpartition(".")[0] or name) or self._expression.fullmatch(name)
        if match is None:
            return None
        groups = match.groupdict()
        if len(groups.get("year") or "") == 2:
            groups["year"] = f"20{groups['year']}"
        return groups

    def check(self, names: Iterable[str]) -> None:
        """Logs how many file names the pattern matches.

        Raises:
            UserError: If it matches none of them.
        """
        names = list(dict.fromkeys(names))
        others = [name for name in names if self.match(name) is None]
        if others and len(others) == len(names):
            raise UserError(
                f"the name pattern '{self.text}' matches none of {len(names)} recordings, such as {others[0]}: mend "
                "the pattern"
            )
        if others:
            logger.warning(
                "The name pattern '%s' matches %d of %d recordings; the others, such as %s, are read without it",
                self.text,
                len(names) - len(others),
                len(names),
                others[0],
            )


def _translated(text: str) -> str:
    """The regular expression of a pattern as for strptime."""
    parts = []
    for token in _TOKEN.finditer(text):
        if token[0] == "*":
            parts.append(".*")
        elif token[1] is None:
            parts.append(re.escape(token[0]))
        elif token[1] in _DIRECTIVES:
            parts.append(_DIRECTIVES[token[1]])
        else:
            known = " ".join(f"%{name}" for name in _DIRECTIVES)
            raise re.error(f"there is no '{token[0]}', but {known}")
    return "".join(parts)
