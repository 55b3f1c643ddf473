"""Network that takes coarse noise off healthy brains and marks what it takes off."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="denoising_autoencoder",
    title="Brain regions that a denoiser of healthy brains takes for coarse noise (denoising autoencoder)",
)
