"""Network that restores brains with synthetic lesions and marks what it would restore."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="cold_diffusion",
    title="Brain regions that a network trained to undo synthetic lesions would restore (cold diffusion)",
)
