"""Errors whose words are for the user: a script prints them and exits with their code."""


def reason(error: Exception) -> str:
    """The first line of an error's words."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its words."""
    return f"{type(error).__name__}: {reason(error)}"


class UserError(ValueError):
    """Bad input, described in one sentence that says what to do."""

    code = 2


class Stopped(UserError):
    """A script ends early, as it was told to."""

    code = 3
