"""Types and allowed values of settings, declared once and checked in commands and in Python calls.

```python
@dataclass
class Settings:
    threshold: Share | None = None
    overlap_s: Seconds = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
```
"""

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import re
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kenya_birds.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Range:
    """Range of numbers from `low` to `high`.

    Attributes:
        low: Lower limit.
        high: Upper limit.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
        unit: Unit in the help; empty: a plain number.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        """Returns True if a finite number is in the range."""
        lowest = value > self.low if self.above else value >= self.low
        highest = value < self.high if self.below else value <= self.high
        return lowest and highest

    def __str__(self) -> str:
        """Returns the range in words, such as `0 to 1` or `more than 0 and at most 0.5`; empty: any number."""
        low, high = (f"{end:,}" if abs(end) > 1e5 else f"{end:g}" for end in (self.low, self.high))
        if self.low == -math.inf and self.high == math.inf:
            return ""
        if self.high == math.inf:
            return f"more than {low}" if self.above else f"{low} or more"
        if self.low == -math.inf:
            return f"less than {high}" if self.below else f"at most {high}"
        if self.above:
            return f"more than {low} and {'less than' if self.below else 'at most'} {high}"
        return f"{low} to {'less than ' if self.below else ''}{high}"

    @property
    def is_informative(self) -> bool:
        """Whether the help shows the range; obvious ranges of counts and lengths are not shown."""
        return self.high < 2**31 or self.low not in (-math.inf, 0, 1)


@dataclass(frozen=True)
class Odd:
    """Odd whole numbers."""

    def __contains__(self, value: int) -> bool:
        """Returns True if a whole number is odd."""
        return value % 2 == 1

    def __str__(self) -> str:
        """Returns the rule in words."""
        return "odd"


@dataclass(frozen=True)
class Form:
    """Texts that match a pattern.

    Attributes:
        pattern: Regular expression of the whole text.
        described: Description in words.
        unit: Placeholder of the value in the help.
    """

    pattern: str
    described: str
    unit: str = "TEXT"
    is_informative = False  # the option's own help has it

    def __contains__(self, value: str) -> bool:
        """Returns True if a text matches."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        """Returns the rule in words."""
        return self.described


@dataclass(frozen=True)
class Choices:
    """Texts with one or more names, separated by commas.

    Attributes:
        names: The allowed names.
    """

    names: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        """Returns True if a text has only allowed names."""
        return all(name.strip() in self.names for name in value.split(","))

    def __str__(self) -> str:
        """Returns the rule in words."""
        return f"one or more of {', '.join(self.names)}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Seconds = Annotated[float, Range(0, unit="SECONDS")]
SignedSeconds = Annotated[float, Range(unit="SECONDS")]
Duration = Annotated[float, Range(0, above=True, unit="SECONDS")]
SplitSize = Annotated[float, Range(0, 0.5, above=True, unit="SHARE")]
# One fold validates, one tests, and the others train.
Folds = Annotated[int, Range(3)]
# One fold is held out, and at least one remains.
HeldOutFolds = Annotated[int, Range(2)]
Device = Annotated[str, Form(r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:NUMBER", "DEVICE")]
Channel = Annotated[str, Form(r"[0-9]{1,2}|mix|best", "the number of a channel from 0, mix or best", "CHANNEL")]
# How much louder one sound is than another.
LevelAbove = Annotated[float, Range(0, 100, above=True, unit="DB")]
Latitude = Annotated[float, Range(-90, 90, unit="DEGREES")]
Longitude = Annotated[float, Range(-180, 180, unit="DEGREES")]
# Range of NumPy, scikit-learn and torch.
Seed = Annotated[int, Range(0, 2**32 - 1)]
SyntheticDuration = Annotated[float, Range(3, unit="SECONDS")]
PlotDuration = Annotated[float, Range(0, 600, above=True, unit="SECONDS")]
Port = Annotated[int, Range(1, 65535)]


@dataclass(frozen=True)
class Kind:
    """Type and rules of a value, from an annotation.

    Attributes:
        base: `int`, `float`, `bool`, `str` or `Path`; `object`: anything.
        rules: Rules such as a `Range`.
        choices: Allowed values; empty: any.
        optional: Whether None is allowed.
        repeated: Whether it is a list of such values.
    """

    base: type
    rules: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    optional: bool = False
    repeated: bool = False

    @classmethod
    def of(cls, annotation: Any) -> "Kind":
        """Reads an annotation, such as `Annotated[float, Range(0, 1)] | None`."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            kind = cls.of(arguments[0])
            return dataclasses.replace(kind, rules=(*kind.rules, *arguments[1:]))
        if origin is Literal:
            return cls(str, choices=arguments)
        if origin in (Union, types.UnionType):
            kinds = [cls.of(part) for part in arguments if part is not type(None)]
            kind = kinds[0] if len(kinds) == 1 or {each.base for each in kinds} == {str, Path} else cls(object)
            return dataclasses.replace(kind, optional=type(None) in arguments)
        if origin in (list, tuple):
            return dataclasses.replace(cls.of(arguments[0]), repeated=True)
        return cls(annotation if annotation in (int, float, bool, str, Path) else object)

    @property
    def expected(self) -> str:
        """Expected values in words, for messages and help."""
        if self.choices:
            return f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else str(self.choices[0])
        rules = ", ".join(filter(None, map(str, self.rules)))
        name = {int: "a whole number", float: "a number", bool: "true or false"}.get(self.base, "")
        return ", ".join(filter(None, (name, rules)))

    def check(self, name: str, value: Any) -> None:
        """Raises `UserError` if a value is not allowed.

        Args:
            name: Name of the setting, for the message.
            value: The value.
        """
        if (value is None and self.optional) or not self._is_restricted:
            return
        if self.repeated and isinstance(value, list | tuple):
            for part in value:
                dataclasses.replace(self, repeated=False).check(name, part)
            return
        if self.choices:
            fits = value in self.choices
        else:
            fits = self._has_type(value) and all(value in rule for rule in self.rules)
        if not fits:
            nearest = self._nearest(value) if isinstance(value, str) else None
            is_number = self._has_type(value) or (self.base is float and isinstance(value, float))  # such as NaN
            expected = ", ".join(map(str, self.rules)) if is_number and self.rules else self.expected
            raise UserError(
                f"{name} is {value!r}: expected {expected}" + (f"; did you mean {nearest}?" if nearest else "")
            )

    def parse(self, name: str, text: str) -> Any:
        """Parses a text of the command line.

        Args:
            name: Name of the setting, for the message.
            text: The text.

        Raises:
            UserError: If the text cannot be parsed, or the value is not allowed.
        """
        value: Any = text
        if self.base is bool:
            value = {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}.get(text.lower(), text)
        elif self.base in (int, float):
            try:
                value = self.base(text)
            except ValueError:
                value = text
        elif self.base is Path:
            value = Path(text)
        dataclasses.replace(self, repeated=False).check(name, value)
        return value

    def _nearest(self, text: str) -> str | None:
        if self.base is float and re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text):
            return text.replace(",", ".")
        return nearest_name(text, self.choices)

    @property
    def _is_restricted(self) -> bool:
        return self.base in (int, float, bool) or bool(self.rules or self.choices)

    def _has_type(self, value: Any) -> bool:
        is_bool = isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's
        if self.base is bool:
            return is_bool
        if self.base is int:
            return isinstance(value, numbers.Integral) and not is_bool
        if self.base is float:
            return isinstance(value, numbers.Real) and not is_bool and math.isfinite(value)
        return isinstance(value, str)


def check_fields(settings: Any) -> None:
    """Checks the fields of a dataclass by their annotations.

    Args:
        settings: The dataclass.

    Raises:
        UserError: If a field has the wrong type, or is out of range.
    """
    owner: Any = type(settings)
    kinds = kinds_of(owner)
    for field in dataclasses.fields(settings):
        kinds[field.name].check(field.name, getattr(settings, field.name))


def checked(function: F) -> F:
    """Decorator that checks the arguments of a function by their annotations; raises `UserError`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        kinds = kinds_of(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in kinds and signature.parameters[name].kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                kinds[name].check(name, value)
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


@functools.cache
def kinds_of(owner: Any) -> dict[str, Kind]:
    """Returns type and rules by name, from the annotations of a dataclass or a function."""
    return {name: Kind.of(hint) for name, hint in get_type_hints(owner, include_extras=True).items()}


def counted(number: int, noun: str, form: str = "") -> str:
    """Returns a number and a noun, in the plural unless the number is 1.

    Args:
        number: The number.
        noun: In the singular, such as `recording`.
        form: Format of the number, such as `,` to divide thousands.
    """
    return f"{number:{form}} {noun}{'' if number == 1 else 's'}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Returns the first of some names, with `...` after them if there are more.

    Args:
        names: The names.
        most: How many of them.
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest_name(word: str, names: Iterable[str]) -> str | None:
    """Returns the most similar name to a mistyped word, or None.

    Args:
        word: The mistyped word.
        names: Existing names.
    """
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if not close and len(word) > 2:
        close = [name for name in by_lower if name.startswith(word.lower())][:1]
    return by_lower[close[0]] if close else None
