"""What ends a command in one line instead of a traceback."""


class BadInput(ValueError):
    """Something the user asked for cannot be done. The message is one line; the scripts print it and exit."""


def first_line(error: Exception) -> str:
    """An exception as part of a one-line message."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
