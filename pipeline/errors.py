"""The one exception for mistakes that a user can mend, and how a command line ends with it."""

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence

import click


class UserError(Exception):
    """What is wrong, where, what was expected, what was found, what to do: one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def run_command(
    command: click.Command, name: str, arguments: Sequence[str] | None = None, *, resumes: bool = True
) -> int:
    """Run a command line and return its exit code.

    Args:
        command: The click command.
        name: What it is called in its help.
        arguments: Instead of those of the process.
        resumes: Whether the command, given again, goes on from where it was.

    Returns:
        0 done; 2 the user can fix it (a disk that is full included), one ``error:`` line on stderr; 1
        interrupted. Other exceptions pass, so that Python shows them and ends with 1.
    """
    given = list(arguments) if arguments is not None else None
    try:
        command.main(given, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        message, code = f"{' '.join(error.format_message().split()).rstrip('.')}; see --help", 2
    except (click.Abort, KeyboardInterrupt):
        again = "goes on from here" if resumes else "begins anew"
        print(f"interrupted; the same command {again}", file=sys.stderr)
        return 1
    except Exception as error:
        found = _mendable(error)
        if found is None:
            raise
        message, code = found, 2
    else:
        return 0
    print(f"error: {message}", file=sys.stderr)
    return code


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())


def in_yaml(error: BaseException) -> str:
    """What a YAML parser says of a text, and at which line and column."""
    return one_line(error).replace('in "<unicode string>", ', "at ")


def is_trouble(error: BaseException) -> bool:
    """Whether a file system or an object store fails or cannot be reached, perhaps only now."""
    return isinstance(error, OSError) or _of_store(error)


def store_says(error: BaseException) -> str:
    """What an object store's error says, and what to do about it."""
    text = re.sub(r"//[^/\s]*@", "//…@", str(error))  # an endpoint may hold a password
    name = type(error).__name__
    for part, advice in _ADVICE.items():
        if part in name:
            return f"{text}; {advice}"
    return text


_ADVICE = {
    "Credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (on every node), or give the node a role",
    "Permission": "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do",
    "Endpoint": "check AWS_ENDPOINT_URL and the network",
    "Timeout": "check AWS_ENDPOINT_URL and the network",
}
"""By a part of the names of botocore's and s3fs's errors."""


def _of_store(error: BaseException) -> bool:
    return type(error).__module__.startswith(("botocore", "aiohttp"))


_FULL = (
    *(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    "Local disk is full",  # Ray, when it has no room for the rows of a dataset
)

_DEAD = ("ActorDiedError", "ActorUnavailableError", "OutOfMemoryError", "WorkerCrashedError")
"""Ray's errors when a process ends without a word, after it was started again some times."""


def _mendable(error: BaseException) -> str | None:
    """What a user can mend among the causes of an error, which Ray wraps when it comes from a worker."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, UserError):
            return str(cause)
    for cause in causes:
        for full in _FULL:
            if full in str(cause):
                where = getattr(cause, "filename", None)
                return (
                    f"{full}{f' while writing {where}' if where else ''}; nothing that was finished is lost: "
                    "make room, then the same command goes on from here"
                )
    if any(type(cause).__name__ in _DEAD for cause in causes):
        return (
            "a process of Ray died again and again, mostly a sign of too little memory; nothing that was "
            "finished is lost: the same command with fewer cluster.actors goes on from here; a smaller "
            "map.tile, features.batch or pretrain.batch needs --from the stage that reads it"
        )
    if any(_of_store(cause) for cause in causes):
        said = store_says([cause for cause in causes if is_trouble(cause)][-1])
        return f"object store: {said}; nothing that was finished is lost: the same command goes on from here"
    return None


def _causes(error: BaseException | None, seen: tuple[int, ...] = ()) -> Iterator[BaseException]:
    """An error, what it says it comes from, and what workers of Ray Train met; innermost first."""
    if error is None or id(error) in seen:
        return
    inner = [error.__cause__, error.__context__, getattr(error, "cause", None)]
    inner += list(getattr(error, "worker_failures", {}).values())
    for one in inner:
        if isinstance(one, BaseException):
            yield from _causes(one, (*seen, id(error)))
    yield error
