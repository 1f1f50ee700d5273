"""Errors whose words are for the user: a script prints them and exits with their code."""


class UserError(ValueError):
    """Bad input, described in one sentence that says what to do."""

    code = 2


class Stopped(UserError):
    """A script ends early, as it was told to."""

    code = 3
