"""Whether the hub can be had: its own library tries for half a minute before it says that it cannot."""

from huggingface_hub import constants, get_session, try_to_load_from_cache

PATIENCE = 3  # seconds that the hub has to answer


def hub_answers() -> bool:
    """Whether there is a way to the hub."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # of whichever client it has
        return False
    return True


def out_of_reach(repository: str, revision: str | None) -> bool:
    """Whether a model is neither kept here from earlier nor to be asked for, by somebody who did not choose that."""
    if constants.HF_HUB_OFFLINE:  # its library says so at once
        return False
    kept = try_to_load_from_cache(repository, "config.json", revision=revision)
    return not isinstance(kept, str) and not hub_answers()
