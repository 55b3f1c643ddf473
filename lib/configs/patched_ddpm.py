"""Diffusion model that redraws one box after the other in its clean surroundings."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="patched_ddpm",
    title="Brain regions that a diffusion model would redraw otherwise from their surroundings (patched DDPM)",
)
