"""Exceptions: errors that users can fix, lost ranks, and the place where an error occurred."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Bad input or a wrong setting.

    The message is one line of one form: ``where: what was found, what was expected; what to do``.
    The command line prints it without a traceback and exits with status 2.
    """


class LostRank(Exception):
    """Communication with another rank broke off. Usually only a consequence of an error on that rank."""


@contextlib.contextmanager
def blame(where: str) -> Iterator[None]:
    """Adds a place to exceptions raised inside: before a ``UserError``'s message, as a note to any other exception.

    Args:
        where: E.g. ``block 3, image 0012.jpg``. Of nested places, the outermost comes first.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        if sys.version_info >= (3, 11):  # add_note is new in 3.11.
            error.add_note(f"at {where}")
        raise


def complain(message: str) -> None:
    """Prints an error message to stderr."""
    print(f"momentum-gs: {message}", file=sys.stderr, flush=True)
