"""Command-line parsers: errors in one line with the nearest name, and help in groups with defaults and units."""

import argparse
import dataclasses
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from kenya_birds import __version__
from kenya_birds.errors import UsageError, UserError
from kenya_birds.values import Kind, kinds_of, nearest_name

METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT", bool: "BOOL"}
HELP_WIDTH = 110
LONGEST_CHOICES = 40
Settings = TypeVar("Settings")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help formatter that keeps the layout of examples, wraps texts, and shows defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(HELP_WIDTH, _terminal_columns()))

    def _get_help_string(self, action: Any) -> str | None:
        default = getattr(action, "shown_default", action.default)
        notes = list(getattr(action, "notes", ()))
        if default is True and isinstance(action, BooleanFlag):
            notes.append("default: on")
        elif (
            action.option_strings
            and default != ""
            and type(default) is not bool
            and isinstance(default, str | int | float | Path)
        ):
            notes.append(f"default: {default:g}" if isinstance(default, float) else f"default: {default}")
        shown = "; ".join(note for note in notes if note != f"default: {argparse.SUPPRESS}")
        text = f"{action.help} ({shown})" if action.help and shown else action.help
        return text and text.replace("%", "%%")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Formats each flag once, with the value after the last; values of a `BooleanFlag` are not shown."""
        shown = [flag for flag in action.option_strings if flag not in getattr(action, "hidden", ())]
        if not shown:
            return super()._format_action_invocation(action)
        value = "" if isinstance(action, BooleanFlag) or action.nargs == 0 else f" {action.metavar or action.dest}"
        return ", ".join(shown) + value


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` with the nearest flag, and accepts no abbreviated flags.

    Flags have underscores; hyphens are accepted too. Types raise `UserError`, with the flag in the message.

    Args:
        example: Shell commands, shown at the end of the help.
        **options: See `ArgumentParser`; a description is wrapped.
    """

    def __init__(self, *, example: str = "", **options: Any) -> None:
        description = options.pop("description", None)
        self.unknown_flags = ""  # what an error says of a flag that there is not
        self.usual_flags: dict[str, str] = {}  # what it says of those that other programs have
        self.unsuggested: set[str] = set()  # flags that it does not suggest
        super().__init__(
            **{"formatter_class": HelpFormatter, "allow_abbrev": False, "add_help": False, **options},
            description=description and textwrap.fill(description, min(HELP_WIDTH, _terminal_columns()) - 2),
            epilog=f"example:\n{textwrap.indent(example, '  ')}" if example else None,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Checks unknown flags first, so that a mistyped flag is not reported as a missing one."""
        words = [self._with_underscores(word) for word in (sys.argv[1:] if args is None else args)]
        words = _with_decimal_commas(words)
        try:
            own = self._own(words)
            for word in words[:own]:
                self._check_flag(word)
            self._check_command(words[own : own + 1])
            known, rest = super().parse_known_args(words, namespace)
        except UsageError:
            raise
        except UserError as error:
            self.error(str(error))
        if rest:
            self.error(f"unexpected argument '{rest[0]}': {self._usage()}")
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        first, _, rest = message.partition(": ")
        if first.startswith("argument ") and rest:  # argparse's own
            message = f"{first.removeprefix('argument ')}: {rest}"
        raise UsageError(f"{message} (see {self.prog} --help)", self.prog)

    def format_help(self) -> str:
        """Returns the help with a short usage line."""
        self.usage = self.usage or self._usage()
        return super().format_help()

    def _check_flag(self, word: str) -> None:
        flag = word.partition("=")[0]
        if not flag.startswith("--") or flag == "--" or " " in flag or flag in self._option_string_actions:
            return
        name = flag[2:].replace("-", "_")
        known = {known[2:] for known in self._option_string_actions if known.startswith("--")} - self.unsuggested
        near = None if name in self.usual_flags else nearest_name(flag[2:], sorted(known))
        hint = f"did you mean --{near}?" if near else self.usual_flags.get(name, self.unknown_flags)
        raise UserError(f"there is no {flag}" + (f": {hint}" if hint else ""))

    def _check_command(self, words: Sequence[str]) -> None:
        if words and self._commands and words[0] not in self._commands:
            near = nearest_name(words[0], self._commands)
            hint = f"did you mean {near}?" if near else f"expected one of {', '.join(self._commands)}"
            raise UserError(f"there is no command '{words[0]}': {hint}")

    @property
    def _commands(self) -> list[str]:
        actions = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return [name for action in actions for name in action.choices]

    def _own(self, words: Sequence[str]) -> int:
        """Returns the number of words of this parser: those before a command or a `--`."""
        if self._commands:
            return next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
        return words.index("--") if "--" in words else len(words)

    def _with_underscores(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        underscored = f"--{flag[2:].replace('-', '_')}"
        if flag.startswith("--") and flag not in self._option_string_actions:
            return underscored + equals + value if underscored in self._option_string_actions else word
        return word

    def _usage(self) -> str:
        """Returns the usage: required arguments, and `[options]`."""
        placed, flagged = [], []
        for action in self._actions:
            name = action.metavar or action.dest
            if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
                placed.append(f"{name} [{name} ...]" if action.nargs == "+" else str(name))
            elif action.required and action.option_strings:
                flagged.append(f"{action.option_strings[0]} {name}")
            elif not action.option_strings:
                placed.append(str(name))
        return " ".join([self.prog, *placed, *flagged, "[options]"]).replace("%", "%%")


class BooleanFlag(argparse.Action):
    """`--name` for true, `--no_name` for false, and with `nargs="?"` also `--name true` and `--name false`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        """Sets the value."""
        assert flag is not None
        if flag == f"--no_{self.dest}":
            if isinstance(values, str):
                raise UserError(f"{flag} takes no value, found '{values}'")
            value = False
        else:
            value = Kind(bool).parse(flag, values) if isinstance(values, str) else True
        setattr(namespace, self.dest, value)


def new_command(commands: Any, name: str, summary: str, description: str, example: str) -> Parser:
    """Adds a subparser.

    Args:
        commands: Result of `ArgumentParser.add_subparsers`.
        name: Name of the command.
        summary: One line for the list of commands.
        description: Description for the command's own help.
        example: Shell commands for the end of its help.
    """
    command: Parser = commands.add_parser(name, help=summary, description=description, example=example)
    return command


def add_general(parser: Parser) -> Any:
    """Adds a last group with `--help` and `--version`, and returns it."""
    group = parser.add_argument_group("General")
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    group.add_argument(
        "--version", action="version", version=f"kenya_birds {__version__}", help="show the version and exit"
    )
    return group


def add_option(
    group: Any,
    name: str,
    annotation: Any,
    default: Any = None,
    *,
    help: str,
    metavar: str | None = None,
    shown_default: Any = None,
    aliases: Sequence[str] = (),
    **more: Any,
) -> None:
    """Adds a flag, or a positional argument.

    Args:
        group: A parser or one of its groups.
        name: Name of the argument; with two hyphens for a flag.
        annotation: Type and rules (see `values`); `bool`: a flag without a value, also with the prefix `no_` if it is
            on by default or optional.
        default: Default value.
        help: Help text; default, choices and range are added.
        metavar: Placeholder of the value in the help.
        shown_default: Default in the help, if it differs from `default`.
        aliases: Other names, which are not in the help.
        **more: See `ArgumentParser.add_argument`.
    """
    kind = annotation if isinstance(annotation, Kind) else Kind.of(annotation)
    if name.startswith("--"):
        more = {"default": default, **more}
    names, notes = [name], [_informative_range(kind)]
    if kind.base is bool:
        more = {"action": BooleanFlag, "nargs": 0, **more}
        if default is True or shown_default is True or kind.optional:
            names.append(f"--no_{name[2:]}")
    else:
        more["type"] = _Type(name, kind)
        choices = "{" + ",".join(kind.choices) + "}" if kind.choices else ""
        if len(choices) > LONGEST_CHOICES:
            notes, choices = [f"one of {', '.join(kind.choices)}"], ""
        usual = METAVARS.get(kind.base) if name.startswith("--") else None
        more["metavar"] = metavar or choices or next(filter(None, (_unit(rule) for rule in kind.rules)), usual)
        if kind.repeated:
            more = {"nargs": "+", **more}
    action = group.add_argument(*names, *aliases, help=help, **more)
    action.hidden, action.notes = aliases, list(filter(None, notes))
    if shown_default is not None:
        action.shown_default = shown_default


def add_field(group: Any, owner: type, name: str, *, help: str | None = None, **more: Any) -> None:
    """Adds a flag for a field of a dataclass, with its type, rules and default.

    Args:
        group: A parser or one of its groups.
        owner: The dataclass.
        name: Name of the field.
        help: Help text; by default that of the field's metadata.
        **more: See `add_option`.
    """
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    default = None if field.default is dataclasses.MISSING else field.default
    text = help or field.metadata["help"]
    add_option(group, f"--{name}", kinds_of(owner)[name], default, help=text, **more)


def read_fields(options: argparse.Namespace, owner: type[Settings], **more: Any) -> Settings:
    """The dataclass whose fields were added with `add_field`.

    Args:
        options: The parsed options.
        owner: The dataclass.
        **more: Values of fields that are no options.

    Raises:
        UserError: If the dataclass refuses the values.
    """
    names = [field.name for field in dataclasses.fields(owner) if field.name not in more]  # type: ignore[arg-type]
    return owner(**{name: getattr(options, name) for name in names}, **more)


class _Type:
    """Type of an argument that turns text into a value."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.name, self.kind = name, kind

    def __call__(self, text: str) -> Any:
        return self.kind.parse(self.name, text)


def _with_decimal_commas(words: Sequence[str]) -> list[str]:
    """Joins flags and negative numbers with a decimal comma, which `argparse` takes for flags, with `=`."""
    joined: list[str] = []
    for word in words:
        if re.fullmatch(r"-[0-9]+,[0-9]+", word) and joined and re.fullmatch(r"--\w+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _unit(rule: Any) -> str:
    return getattr(rule, "unit", "")


def _informative_range(kind: Kind) -> str:
    """Returns the range of a value, unless it is obvious."""
    return ", ".join(str(rule) for rule in kind.rules if getattr(rule, "is_informative", True))


def _terminal_columns() -> int:
    try:
        return max(60, os.get_terminal_size().columns)
    except OSError:
        return HELP_WIDTH
