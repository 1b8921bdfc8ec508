"""What every command's parser shares."""

import argparse
from typing import Any


def new_command(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    """A subparser whose help shows defaults.

    Args:
        commands: What `ArgumentParser.add_subparsers` gave.
        name: What the user types.
        summary: One line for the list of commands.
        description: For the command's own help.
    """
    return commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def add_name_pattern(command: argparse.ArgumentParser) -> None:
    """Adds the flag for names of recordings that are not read without help (see `NamePattern`)."""
    command.add_argument(
        "--name_pattern",
        metavar="PATTERN",
        help="form of the recordings' names, such as %%site_%%Y%%m%%d_%%H%%M%%S, or a regular expression with named "
        "groups; by default the usual forms of recorders are read",
    )
