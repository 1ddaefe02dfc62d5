"""Errors that the user can fix, as opposed to bugs of the program."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message says what was got, what was wanted, and what to do next.

    A command prints it as one line without traceback and exits with status 2.
    """
