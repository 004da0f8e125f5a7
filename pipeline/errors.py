"""The one exception that stands for a mistake its user can mend."""


class UserError(Exception):
    """What is wrong, where, what was expected, what was found, what to do: one line, exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
