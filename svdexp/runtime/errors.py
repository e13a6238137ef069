"""The one exception that reaches the user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend. The message is one sentence that names the knob to turn."""


LARGEST_SEED = 2**32 - 1  # numpy's; and seeds are multiplied before torch gets them, which takes 64 bits


def require(condition: bool, sentence: str) -> None:
    """Raise UserError with `sentence` unless `condition` holds."""
    if not condition:
        raise UserError(sentence)


def require_positive(knob: str, value: float) -> None:
    """Raise UserError unless `value` is at least 1."""
    require(value >= 1, f"{knob} must be at least 1, not {value}")


def require_tokens(knob: str, length: int) -> None:
    """Raise UserError unless something of `length` tokens has a next token to predict."""
    require(length >= 2, f"{knob} must be at least 2, not {length}")


def require_ratio(ratio: float) -> None:
    """Raise UserError unless `ratio` is in (0, 1]."""
    require(0 < ratio <= 1, f"ratio is the kept fraction of the compressed layers, 0 < ratio <= 1, not {ratio:g}")


def require_seed(seed: int) -> None:
    """Raise UserError unless every generator takes `seed`."""
    require(0 <= seed <= LARGEST_SEED, f"seed must be from 0 to {LARGEST_SEED}, not {seed}")
