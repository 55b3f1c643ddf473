"""Several models as one: a region counts as far as it is rare among healthy ones for each of them."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="ensemble",
    title="Brain regions that several models of healthy brains together find rare (ensemble)",
)
