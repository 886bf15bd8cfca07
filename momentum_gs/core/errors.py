"""How things go wrong: what a person can mend, a rank that is gone, and where it happened."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Bad input or a wrong setting.

    The message is one line of one form: ``where: what was found, what was expected; what to do``.
    The command line prints it without a traceback and exits with status 2.
    """


class LostRank(Exception):
    """Communication with another rank broke off. Mostly an effect: the cause is what that rank met."""


@contextlib.contextmanager
def blame(where: str) -> Iterator[None]:
    """Names the place in what is raised inside: before a ``UserError``'s message, as a note on any other exception.

    Args:
        where: e.g. ``block 3, image 0012.jpg``. Of several places around each other the outermost comes first.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        if sys.version_info >= (3, 11):  # Notes came with it.
            error.add_note(f"at {where}")
        raise


def complain(message: str) -> None:
    """One line to the person at the terminal about what went wrong."""
    print(f"momentum-gs: {message}", file=sys.stderr, flush=True)
