"""What the server's log says when others can reach a server that has no token yet."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from monailabel_app.errors import AnomalyAppError
from monailabel_app.pipelines.reach import MAKE_TOKEN, has_tokens, is_keycloak, is_loopback

logger = logging.getLogger(__name__)


def host_of(words: Sequence[str]) -> str | None:
    """Where ``monailabel start_server`` listens, by its arguments; None for another program."""
    if "start_server" not in words:
        return None
    for place, word in enumerate(words):
        if word in {"-i", "--host"} and place + 1 < len(words):
            return words[place + 1]
        if word.startswith("--host="):
            return word.partition("=")[2]
    return "0.0.0.0"  # the stock command's default


def warn_if_open_to_others(app_dir: str, conf: Mapping[str, str], words: Sequence[str] | None = None) -> bool:
    """One line in the log where others reach this server and nobody could sign in. Returns whether it was written."""
    host = host_of(sys.argv if words is None else words)
    if host is None or is_loopback(host) or str(conf.get("auth", "auto")).lower() == "open" or is_keycloak(os.environ):
        return False
    try:
        if has_tokens(Path(app_dir or "."), conf):
            return False
    except AnomalyAppError as error:
        logger.error("%s", error)
        return False
    logger.warning(
        "this server listens on %s, and there is no token: only requests of this machine itself are answered. To let "
        "others in: %s",
        host,
        MAKE_TOKEN,
    )
    return True
