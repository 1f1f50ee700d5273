"""Errors whose words are for the user: a script prints them and exits with their code."""


def reason(error: Exception) -> str:
    """The first line of an error's words, without number and file if it is of the system."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its words, with the file if it is about one."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class UserError(ValueError):
    """Bad input, described in one sentence that says what to do."""

    code = 2


class Stopped(UserError):
    """A script ends early, as it was told to."""

    code = 3
