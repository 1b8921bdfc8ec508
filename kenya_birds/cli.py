"""The `kenya-birds` command: a thin door to the rooms of the package."""

import argparse
from pathlib import Path

from kenya_birds.console import one_line_errors, show_log


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.
    """
    options = _parser().parse_args(arguments)
    show_log()
    with one_line_errors(f"kenya-birds {options.command}"):
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kenya-birds", description="Bird classifiers from annotated soundscapes.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    synthesize = commands.add_parser(
        "synthesize",
        help="make an archive of invented birds in the Kenyan format",
        description="Makes an archive of invented birds in the Kenyan format: recordings, annotations, species.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    synthesize.add_argument("data_dir", type=Path, help="folder to make; new or empty")
    synthesize.add_argument("--recordings", type=int, default=12, help="number of recordings")
    synthesize.add_argument("--duration_s", type=float, default=60.0, help="length of a recording in seconds")
    synthesize.add_argument("--species", type=int, default=8, help="number of species")
    synthesize.add_argument("--annotations", type=int, help="number of calls; by default in keep with the length")
    synthesize.add_argument("--seed", type=int, default=0, help="same seed, same archive")
    synthesize.set_defaults(run=_synthesize)
    return parser


def _synthesize(options: argparse.Namespace) -> None:
    from kenya_birds.data.synthetic import synthesize_archive

    synthesize_archive(
        options.data_dir,
        recordings=options.recordings,
        duration_s=options.duration_s,
        species=options.species,
        annotations=options.annotations,
        seed=options.seed,
    )
    print(f"The archive is in {options.data_dir}")
