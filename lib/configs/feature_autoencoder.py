"""Autoencoder of a frozen encoder's features: marks tissue whose structure it cannot copy."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="feature_autoencoder",
    title="Brain regions whose local structure is unlike that of healthy brains (feature autoencoder)",
)
