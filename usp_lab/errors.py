"""The one exception of this package whose text is meant for the person at the keyboard."""


class UspError(Exception):
    """Bad input or a missing piece: one sentence saying what, the value seen, and what to do.

    The command line prints it as it is and exits with code 2.
    """
