"""One short file per method: how its models present themselves. A new method adds one line here."""

from __future__ import annotations

from lib.configs import (
    atlas_zscore,
    cold_diffusion,
    conditioned_ddpm,
    ddpm,
    denoising_autoencoder,
    ensemble,
    feature_autoencoder,
    intensity,
    latent_ddpm,
    latent_ddpm_3d,
    latent_transformer,
    patched_ddpm,
    stylegan2_inversion,
)
from lib.configs.base import MethodConfig

_CONFIGS = (
    cold_diffusion.CONFIG,
    denoising_autoencoder.CONFIG,
    ddpm.CONFIG,
    patched_ddpm.CONFIG,
    conditioned_ddpm.CONFIG,
    feature_autoencoder.CONFIG,
    stylegan2_inversion.CONFIG,
    intensity.CONFIG,
    atlas_zscore.CONFIG,
    latent_ddpm.CONFIG,
    latent_ddpm_3d.CONFIG,
    latent_transformer.CONFIG,
    ensemble.CONFIG,
)
METHODS: dict[str, MethodConfig] = {config.method: config for config in _CONFIGS}

__all__ = ["METHODS", "MethodConfig"]
