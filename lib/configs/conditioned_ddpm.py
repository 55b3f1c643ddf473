"""Diffusion model that is told by an encoder which slice it is to redraw."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="conditioned_ddpm",
    title="Brain regions that a diffusion model guided by the slice's own features cannot explain (conditioned DDPM)",
)
