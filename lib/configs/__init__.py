"""One short file per method: how its models present themselves. A new method adds one line here."""

from __future__ import annotations

from lib.configs import atlas_zscore, ddpm, intensity
from lib.configs.base import MethodConfig

_CONFIGS = (
    ddpm.CONFIG,
    intensity.CONFIG,
    atlas_zscore.CONFIG,
)
METHODS: dict[str, MethodConfig] = {config.method: config for config in _CONFIGS}

__all__ = ["METHODS", "MethodConfig"]
