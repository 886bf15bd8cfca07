"""The one exception for what a person can mend: bad input, a wrong setting, a missing file."""


class UserError(Exception):
    """Bad input or a wrong setting.

    The message is one line in the house style: ``where: what was found, what was expected; what to do``.
    The command line prints it without a traceback and exits with status 2.
    """
