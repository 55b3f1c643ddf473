"""Generator of healthy slices that each scan is projected onto."""

from lib.configs.base import MethodConfig

CONFIG = MethodConfig(
    method="stylegan2_inversion",
    title="Brain regions that a generator of healthy slices cannot make (StyleGAN2 inversion)",
)
