"""The command line: `ce-fx audit | explain | calibrate | demo`.

Exit status: 0; 1 where a command could not do its work though the input was good; 2 for bad input, with one line that
says what to do; 130 after Ctrl-C. Nothing is imported that the command does not need: `ce-fx --help` needs no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from ce_fx.cli import audit, calibrate, demo, explain
from ce_fx.cli.mistake import Bug, Mistake, one_line
from ce_fx.errors import CeFxError

COMMANDS = (audit, explain, calibrate, demo)
"""The modules of the commands: each has `add`, which adds its parser, and `run`."""

_BAD_INPUT = (Mistake, CeFxError, ValueError, RuntimeError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None for those of the process.

    Returns:
        The exit status.

    Raises:
        Exception: what went wrong, as it is, with `--traceback`; without, it is told in one line.
    """
    given = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _in_one_line
            status: int = given.run(given)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("ce-fx: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read has enough, such as `head`; at exit Python would flush into the pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if given.traceback:
            raise
        bad_input = isinstance(error, _BAD_INPUT)
        said = str(error) if isinstance(error, (Mistake, Bug, CeFxError)) else one_line(error)
        cure = "" if bad_input else "; this is a bug of ce_fx, --traceback shows where"
        print(f"ce-fx: {' '.join(said.split())}{cure}", file=sys.stderr)
        return 2 if bad_input else 1


class _Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, as everything else here does; the parsers of commands are like it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = _Parser(
        prog="ce-fx", description="Find a better way to evaluate the multilinear stretches of PyTorch models."
    )
    commands = whole.add_subparsers(required=True, title="commands")
    for command in COMMANDS:
        one = command.add(commands)
        one.add_argument("--traceback", action="store_true", help="on an error show where it was raised")
        one.set_defaults(run=command.run)
    return whole


def _in_one_line(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    """A warning without the line of code that gave it."""
    text = " ".join(str(message).split())
    print(text if text.startswith("ce_fx: ") else f"{category.__name__}: {text}", file=sys.stderr)
