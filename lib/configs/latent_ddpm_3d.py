"""Diffusion model of whole brains: how unlike healthy ones a scan is, and where."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="latent_ddpm_3d",
    title="Brain regions that a diffusion model of whole healthy brains cannot explain (3-D latent DDPM)",
)
