"""Whether the Hugging Face hub answers: asked once, so that an offline run fails in seconds.

Left alone, the hub's client retries for about 25 seconds and then speaks of connection internals.
"""

from functools import cache

TIMEOUT_SECONDS = 5.0


@cache
def hub_reachable() -> bool:
    """Whether the hub answers one request; false at once where `HF_HUB_OFFLINE` is set."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except (
        Exception
    ):  # the client's transport is not part of its API; any failure means "no answer"
        return False
    return True
