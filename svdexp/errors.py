"""The one exception that reaches the user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend. The message is one sentence that names the knob to turn."""
