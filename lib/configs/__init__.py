"""One short file per method: how its models present themselves. A new method adds one line here."""

from __future__ import annotations

from lib.configs import ddpm
from lib.configs.base import MethodConfig

METHODS: dict[str, MethodConfig] = {config.method: config for config in (ddpm.CONFIG,)}

__all__ = ["METHODS", "MethodConfig"]
