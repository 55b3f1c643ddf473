"""Latent diffusion model that redraws what is unlikely in a healthy brain and marks what it changed."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="latent_ddpm",
    title="Brain regions that a diffusion model of healthy slices finds unlikely and redraws (latent DDPM)",
)
