"""Transformer that reads a brain as codes and marks those it did not expect."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="latent_transformer",
    title="Brain regions that a transformer of healthy brains finds unlikely (latent transformer)",
)
