"""What went wrong as one sentence for the user, whichever library raised it."""

import sys

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from svdexp.cells.unknown import below_null, unknown
from svdexp.runtime.disk import OUTSIDE
from svdexp.runtime.errors import UserError

KNOWN = (UserError, HydraException, OmegaConfBaseException)
# Choices that became something else, and what to say instead.
MOVED = {
    "storage/elastic": "storage=elastic is save=elastic storage=factors now: it says what a checkpoint keeps, not how "
    "factors are stored"
}


def as_mistake(error: Exception) -> Exception:
    """The error; one of the disk, or of memory that is not there, which has many types, as a sentence for the user.

    So is a choice that moved, and a group, choice or key that there is not, with one that was perhaps meant.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file in MOVED:
        return UserError(MOVED[error.missing_cfg_file])
    if isinstance(error, ConfigCompositionException) and (sentence := unknown(error)):
        return UserError(sentence)
    if isinstance(error, AssertionError) and (sentence := below_null(sys.argv[1:])):
        return UserError(sentence)
    if isinstance(error, OSError) and error.errno in OUTSIDE:
        return UserError(f"{error.filename or 'a file'}: {error.strerror}; all that was complete before is kept")
    words = " ".join(str(error).split())
    signs = (isinstance(error, MemoryError), "OutOfMemoryError" in type(error).__name__, "allocate memory" in words)
    if not any(signs):
        return error
    return UserError(
        f"out of memory{f' ({words})' if words else ''}: try less at a time (eval.batch_size, "
        "eval.efficiency.batch_size, calibration.seq_len, eval.seq_len); dry_run=true estimates what a run takes"
    )


def one_sentence(error: Exception) -> str:
    """The error's words on one line; Hydra's name the override, and what OmegaConf says of its value follows."""
    words = str(error) if isinstance(error, KNOWN) else f"{type(error).__name__}: {error}"
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        words += f": {str(error.__cause__).splitlines()[0]}"
    return " ".join(words.split())
