"""What is written down of a command and of Hydra's configuration holds no token.

Whoever gives a job environment variables by `hydra.job.env_set` or `env_copy`, or shell lines by SLURM's
`hydra.launcher.setup`, may mean a token by them. Records, cards and trackers are shown to others; so these values are
masked in everything that is kept, whatever they are called.
"""

import copy
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

MASK = "***"
ENVIRONMENT, SETUP = "hydra.job.env_set", "hydra.launcher.setup"

# An override of one of the two, of a key of the first, or of a table that they are in.
HIDING = re.compile(
    r"(\s*\+{0,2}hydra(?:\.job(?:\.env_set(?:\.[^=]*)?)?|\.launcher(?:\.setup(?:\.[^=]*)?)?)?\s*=).*", re.DOTALL
)


def as_given(words: Iterable[str]) -> list[str]:
    """Words, or Hydra's record of overrides, whose ${…} stand for nothing there: what they name is elsewhere."""
    found: Any = OmegaConf.to_container(words, resolve=False) if isinstance(words, ListConfig) else words
    return list(found)


def masked_words(words: Iterable[str]) -> list[str]:
    """A command line's words, or overrides, without values that may be tokens."""
    words = as_given(words)
    return [HIDING.sub(rf"\g<1>{MASK}", word) if HIDING.fullmatch(word) else word for word in words]


def masked_config(cfg: DictConfig) -> DictConfig:
    """A copy of a configuration, without such values in what it has of Hydra's part."""
    found: Any = copy.deepcopy(cfg)
    if "hydra" not in found:
        return found  # type: ignore[no-any-return]
    OmegaConf.set_readonly(found.hydra, False)
    for key in OmegaConf.select(found, ENVIRONMENT):
        OmegaConf.update(found, f"{ENVIRONMENT}.{key}", MASK)
    if OmegaConf.select(found, SETUP):
        OmegaConf.update(found, SETUP, [MASK])
    for kind, words in found.hydra.overrides.items():
        found.hydra.overrides[kind] = masked_words(words)
    return found  # type: ignore[no-any-return]
