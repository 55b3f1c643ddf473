"""Diffusion model that redraws the brain as a healthy one and marks what differs."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="ddpm",
    title="Brain regions that a diffusion model of healthy brains cannot explain (DDPM)",
)
