"""The `kenya-birds` command."""

import sys

from kenya_birds.commands import (
    data,
    evaluation,
    importing,
    inference,
    publishing,
    serving,
    surveys,
    training,
    verification,
    wrapping,
)
from kenya_birds.console import enough_memory, one_line_errors, show_log
from kenya_birds.parsing import Parser, add_general
from kenya_birds.process import check_alone, cleaned_up_at_signals, keep_freed_memory, print_anything, use_utf8

TRAIN = "kenya-birds train"
# Beside training, the command that several processes of a launcher share.
SHARED = "detect"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default that of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:
        import train_hf

        train_hf.command(words[1:], TRAIN)
        return
    use_utf8()
    print_anything()
    keep_freed_memory()
    # Arguments after `tune ... --` are options of train_hf.py.
    end = words.index("--") if words[:1] == ["tune"] and "--" in words else len(words)
    with one_line_errors("kenya-birds"):
        options = _parser().parse_args(words[:end])
    options.train_flags = words[end + 1 :]
    show_log()
    program = " ".join(["kenya-birds", options.command, *filter(None, [getattr(options, "step", "")])])
    smaller = "give a smaller --batch_size, or " if hasattr(options, "batch_size") else ""
    memory = enough_memory(f"{smaller}end other programs that use it")
    with one_line_errors(program, options.after_stop), cleaned_up_at_signals(program), memory:
        if options.command != SHARED:
            check_alone(program)
        options.run(options)


def _parser() -> Parser:
    parser = Parser(
        prog="kenya-birds",
        description="Bird-call classifiers: train them on annotated soundscapes, run them on hours of sound, publish "
        "them.",
        example="kenya-birds detect birds recordings --output found\nkenya-birds detect --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="Commands")
    # The script has a parser of its own, which reads transformers' arguments: it is only listed here.
    commands.add_parser("train", help="train a classifier on an annotated archive, and evaluate it", add_help=False)
    rooms = (inference, verification, surveys, wrapping, importing, data, training, evaluation, publishing, serving)
    for room in rooms:
        room.add_commands(commands)
    add_general(parser)
    parser.set_defaults(after_stop="")
    return parser
