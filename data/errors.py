class UserError(Exception):
    """A mistake of the user's: one line that names the file and the remedy; exit code 2."""
