"""What the server understands by ``--conf KEY VALUE``; a key that it does not know is no setting, but a mistake.

A misspelt ``auth`` or ``tokens`` that is passed over would leave a server open whose administrator believes it closed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches

from monailabel_app.errors import InvalidSettings

logger = logging.getLogger(__name__)

KEYS = frozenset({
    "models", "trainers", "healthy", "healthy_list", "keep_map", "max_loaded_models", "cache_mb", "disk_cache",
    "disk_cache_mb", "cache_days", "scans_mb", "bands", "keep_jobs", "auto_update_scoring", "audit",
    "audit_required", "auth", "tokens", "session_hours", "max_upload_mb", "cors_origins", "viewer_stores",
    "retention_days", "retention_cache_days",
})  # fmt: skip
# Of MONAI Label and its sample apps, in many start scripts: harmless, and without a meaning here.
_OF_OTHERS = frozenset({
    "server_mode", "preload", "auth_token", "zoo_repo", "zoo_source", "use_pretrained_model", "pretrained_path",
    "skip_trainers", "skip_scoring", "skip_strategies",
})  # fmt: skip


def check_keys(names: Iterable[str]) -> None:
    """Raises InvalidSettings for a key that there is not, with the one that was probably meant."""
    for name in names:
        if name in _OF_OTHERS:
            logger.warning("--conf %s has no meaning for this app", name)
        elif name not in KEYS:
            near = get_close_matches(str(name).lower(), KEYS, 1)
            meant = f" (meant: {near[0]}?)" if near else ""
            raise InvalidSettings(f"there is no --conf {str(name)[:40]!r}{meant}; there are: {', '.join(sorted(KEYS))}")
