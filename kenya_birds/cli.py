"""The `kenya-birds` command: a thin door to the rooms of the package."""

import argparse
import sys

from kenya_birds.commands import data, inference, publishing, serving, training
from kenya_birds.console import one_line_errors, show_log
from kenya_birds.process import cleaned_up_at_signals, print_anything, use_utf8


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.
    """
    use_utf8()
    print_anything()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # What stands behind `tune ... --` are flags of train_hf.py.
    end = words.index("--") if words[:1] == ["tune"] and "--" in words else len(words)
    options = _parser().parse_args(words[:end])
    options.train_flags = words[end + 1 :]
    show_log()
    program = f"kenya-birds {options.command}"
    with one_line_errors(program), cleaned_up_at_signals(program):
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kenya-birds", description="Bird classifiers from annotated soundscapes.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (data, training, inference, publishing, serving):
        room.add_commands(commands)
    return parser
