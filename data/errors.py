class UserError(Exception):
    """A mistake of the user's: one line that names the file and the remedy; exit code 2."""


def reason(error: BaseException) -> str:
    """What a library's exception says, as part of one line: at most 100 characters, else the name of its type."""
    return " ".join(str(error).split())[:100] or type(error).__name__
