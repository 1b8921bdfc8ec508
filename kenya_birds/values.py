"""The values that a setting may have, declared once with its type, and checked in commands and in Python calls.

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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kenya_birds.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
        low: The lowest, or what a number has to be above.
        high: The highest, or what it has to be below.
        above: Whether `low` itself is left out.
        below: Whether `high` itself is left out.
        unit: What is measured, for help; empty: a number.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        """Whether a finite number is in the range."""
        lowest = value > self.low if self.above else value >= self.low
        highest = value < self.high if self.below else value <= self.high
        return lowest and highest

    def __str__(self) -> str:
        """Such as `0 to 1`, `1 or more`, `more than 0 and at most 0.5`; empty: any number."""
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
    def is_telling(self) -> bool:
        """Whether help should name the range: it is other than what everyone expects of a count or a length."""
        return self.high < 2**31 or self.low not in (-math.inf, 0, 1)


@dataclass(frozen=True)
class Odd:
    """Odd whole numbers."""

    def __contains__(self, value: int) -> bool:
        """Whether a whole number is odd."""
        return value % 2 == 1

    def __str__(self) -> str:
        """For messages."""
        return "odd"


@dataclass(frozen=True)
class Form:
    """Texts of one form.

    Attributes:
        pattern: Regular expression of the whole text.
        described: The form in words.
        unit: What stands for the value in help.
    """

    pattern: str
    described: str
    unit: str = "TEXT"
    is_telling = False  # the option's own help says it

    def __contains__(self, value: str) -> bool:
        """Whether a text has the form."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        """For messages."""
        return self.described


@dataclass(frozen=True)
class Choices:
    """Texts with one or more names, separated by commas.

    Attributes:
        names: The names that there are.
    """

    names: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        """Whether a text has such names only."""
        return all(name.strip() in self.names for name in value.split(","))

    def __str__(self) -> str:
        """For messages and help."""
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
Device = Annotated[str, Form(r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:NUMBER", "DEVICE")]
# Of NumPy, scikit-learn and torch.
Seed = Annotated[int, Range(0, 2**32 - 1)]


@dataclass(frozen=True)
class Kind:
    """What an annotation says of a value.

    Attributes:
        base: `int`, `float`, `bool`, `str` or `Path`; `object`: anything.
        rules: What it has to be in.
        choices: The only values that it may have; none: any.
        optional: Whether it may be None.
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
        """What is expected, for messages and help."""
        if self.choices:
            return f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else str(self.choices[0])
        rules = ", ".join(filter(None, map(str, self.rules)))
        name = {int: "a whole number", float: "a number", bool: "true or false"}.get(self.base, "")
        return ", ".join(filter(None, (name, rules)))

    def check(self, name: str, value: Any) -> None:
        """Raises `UserError` unless the value may be a setting's.

        Args:
            name: The setting's, for the message.
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
            nearest = nearest_name(value, self.choices) if isinstance(value, str) else None
            is_number = self._has_type(value) or (self.base is float and isinstance(value, float))  # such as NaN
            expected = ", ".join(map(str, self.rules)) if is_number and self.rules else self.expected
            raise UserError(
                f"{name} is {value!r}: expected {expected}" + (f"; did you mean {nearest}?" if nearest else "")
            )

    def parse(self, name: str, text: str) -> Any:
        """The value that a text on the command line stands for.

        Args:
            name: The setting's, for the message.
            text: The text.

        Raises:
            UserError: If it stands for none, or the value may not be the setting's.
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
        UserError: If a field has another type than it says, or is out of its range.
    """
    owner: Any = type(settings)
    kinds = kinds_of(owner)
    for field in dataclasses.fields(settings):
        kinds[field.name].check(field.name, getattr(settings, field.name))


def checked(function: F) -> F:
    """A function whose arguments are checked by their annotations; `UserError` if one does not fit."""
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
    """What the annotations of a dataclass or a function say, by name."""
    return {name: Kind.of(hint) for name, hint in get_type_hints(owner, include_extras=True).items()}


def nearest_name(word: str, names: Iterable[str]) -> str | None:
    """The name that a mistyped word was probably meant to be, if any."""
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if not close and len(word) > 2:
        close = [name for name in by_lower if name.startswith(word.lower())][:1]
    return by_lower[close[0]] if close else None
