"""The one exception for mistakes that a user can mend, and how a command line ends with it."""

import sys
from collections.abc import Sequence

import click


class UserError(Exception):
    """What is wrong, where, what was expected, what was found, what to do: one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        command: The click command.
        name: What it is called in its help.
        arguments: Instead of those of the process.

    Returns:
        0 done; 2 the user can fix it, one ``error:`` line on stderr; 1 interrupted. Other exceptions
        pass, so that Python shows them and ends with 1.
    """
    given = list(arguments) if arguments is not None else None
    try:
        command.main(given, prog_name=name, standalone_mode=False)
    except UserError as error:
        message, code = str(error), 2
    except click.ClickException as error:
        message, code = f"{' '.join(error.format_message().split()).rstrip('.')}; see --help", 2
    except click.Abort:
        message, code = "interrupted; the same command goes on from here", 1
    else:
        return 0
    print(f"error: {message}", file=sys.stderr)
    return code
