"""Whether the Hugging Face hub answers: asked once, so that an offline run fails in seconds.

Without this the hub's client would retry for about 25 seconds and then report internals of the
connection.
"""

from functools import cache

TIMEOUT_SECONDS = 5.0


@cache
def hub_reachable() -> bool:
    """Whether the hub answers a request; False at once where `HF_HUB_OFFLINE` is set."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # Which errors its transport raises is no part of the client's API.
        return False
    return True
