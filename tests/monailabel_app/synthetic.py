"""Small synthetic brains: a template of them, scans of them in any geometry, and the folders a model needs.

Everything is 2 mm and about a quarter of a human brain in width, so that the whole way from scan to finding takes
a fraction of a second. The brain is told front from back and top from bottom by its ventricles and a cerebellum, and
is brighter on the left, so that no flip goes unnoticed.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.methods import (
    atlas_zscore,
    cold_diffusion,
    conditioned_ddpm,
    ddpm,
    denoising_autoencoder,
    feature_autoencoder,
    intensity,
    latent_ddpm,
    latent_ddpm_3d,
    latent_transformer,
    patched_ddpm,
    stylegan2_inversion,
)
from monailabel_app.methods.diffusion import DiffusionConfig
from monailabel_app.methods.feature_autoencoder import AutoencoderConfig
from monailabel_app.networks.diffusion_unet import DenoiserConfig
from monailabel_app.networks.resnet_trunk import TrunkConfig
from monailabel_app.networks.restoration_unet import RestorationConfig
from monailabel_app.networks.slice_encoder import EncoderConfig
from monailabel_app.networks.stylegan2 import StyleGanConfig
from monailabel_app.networks.vq_vae import VqVaeConfig
from monailabel_app.preprocessing.normalize import normalize_intensity
from monailabel_app.preprocessing.pipeline import Preprocessor
from monailabel_app.preprocessing.template import Template
from monailabel_app.training.cache import TrainingCache, to_cache
from monailabel_app.training.healthy_loop import TrainSettings
from monailabel_app.types import BrainMask, Volume

SHAPE = (32, 40, 32)
AFFINE = np.array([[2.0, 0, 0, -31], [0, 2.0, 0, -39], [0, 0, 2.0, -31], [0, 0, 0, 1]])
RADII_MM = np.array([26.0, 33.0, 25.0])
RIGHT_FRONTAL, LEFT_FRONTAL = 81, 82  # as the template's table numbers frontal white matter

# One tiny configuration per registered method; a method without one fails the test that runs them all.
TINY = {
    "ddpm": ddpm.Config(
        denoiser=DenoiserConfig(channels=(8, 16), attention_levels=(False, False), head_channels=8, norm_groups=4),
        diffusion=DiffusionConfig(train_levels=(0.1, 0.97)),
        draws=2,
    ),
    "patched_ddpm": patched_ddpm.Config(
        denoiser=DenoiserConfig(channels=(8, 16), attention_levels=(False, False), head_channels=8, norm_groups=4),
        draws=2,
    ),
    "conditioned_ddpm": conditioned_ddpm.Config(
        denoiser=DenoiserConfig(channels=(8, 16), attention_levels=(False, False), head_channels=8, norm_groups=4),
        encoder=EncoderConfig(channels=(8, 8), blocks=(1, 1), features=8, norm_groups=4),
        levels=(0.9,),
        draws=2,
    ),
    "cold_diffusion": cold_diffusion.Config(
        network=RestorationConfig(channels=(8, 16), norm_groups=4, mirror=True, attention=True, outputs=3)
    ),
    "denoising_autoencoder": denoising_autoencoder.Config(network=RestorationConfig(channels=(8, 16), norm_groups=4)),
    "feature_autoencoder": feature_autoencoder.Config(
        trunk=TrunkConfig(width=8, kernel=3),
        autoencoder=AutoencoderConfig(widths=(8, 12)),
        pretext_share=0.5,
    ),
    "stylegan2_inversion": stylegan2_inversion.Config(
        network=StyleGanConfig(size=(32, 40), channels=(8, 8), latent=8, mapping_layers=1),
        projection=stylegan2_inversion.ProjectionConfig(steps=3),
    ),
    "intensity": intensity.Config(),
    "atlas_zscore": atlas_zscore.Config(),
    "latent_ddpm": latent_ddpm.Config(
        vq=VqVaeConfig(channels=(8, 16), code_dim=4, num_codes=16),
        denoiser=DenoiserConfig(
            channels=(8, 16), attention_levels=(False, False), head_channels=8, norm_groups=4, block_size=1
        ),
        kl_steps=3,
        heal_steps=3,
        healthy_slices=48,
        grid=(8, 10, 4),
    ),
    "latent_ddpm_3d": latent_ddpm_3d.TINY,
    "latent_transformer": latent_transformer.TINY,
}
TINY_TRAINING = TrainSettings(
    steps=8, batch_size=4, warmup=2, ema=0.5, amp=False, checkpoint_every=2, learning_rate=2e-3
)


@dataclass(frozen=True)
class Person:
    """What differs between brains. stretch: size along each axis. texture: seed of the tissue's smooth variation."""

    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ventricles: float = 1.0
    texture: int | None = None


def person(seed: int) -> Person:
    """A random healthy person."""
    generator = np.random.default_rng(seed)
    return Person(tuple(generator.uniform(0.95, 1.05, 3)), float(generator.uniform(0.85, 1.15)), seed)


def tissue(points_mm: np.ndarray, who: Person) -> tuple[np.ndarray, np.ndarray]:
    """Intensity and brain mask at RAS mm points (..., 3)."""
    at = points_mm / np.array(who.stretch)

    def ellipsoid(centre, radii):
        return np.sqrt((((at - np.array(centre)) / np.array(radii)) ** 2).sum(-1))

    radius = ellipsoid((0, 0, 0), RADII_MM)
    brain = (radius < 1) | (ellipsoid((0, -16, -17), (16, 12, 9)) < 1)
    value = np.where(radius < 0.75, 700.0, 480.0)
    value = np.where(ellipsoid((0, -16, -17), (16, 12, 9)) < 1, 560.0, value)
    x, y, z = np.moveaxis(at, -1, 0)
    value = value * (1 - 0.002 * x + 0.001 * y)
    # Folds that everybody shares: without them only the outline tells the size of so small a brain.
    value = value + 120 * np.sin(x / 5 + 1) * np.sin(y / 6) + 80 * np.sin(z / 5 + y / 9)
    for side in (-1, 1):
        size = np.array([3.5, 12.0, 5.0]) * who.ventricles
        value = np.where(ellipsoid((6 * side, 3, 4), size) < 1, 180.0, value)
    return value, brain


def grid_points(shape, affine) -> np.ndarray:
    """RAS mm of every voxel centre, (x, y, z, 3)."""
    return voxel_to_mm(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))


def scan(
    who: Person = Person(),
    *,
    shape=(36, 44, 36),
    affine: np.ndarray | None = None,
    lesion_mm=None,
    lesion_radius_mm: float = 6.0,
    contrast: float = 0.5,
    noise: float = 12.0,
) -> tuple[Volume, BrainMask, np.ndarray]:
    """A scan with bright tissue around the brain, its brain mask, and the lesion (x, y, z) bool in it."""
    if affine is None:
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = -(np.array(shape) - 1.0)
    points = grid_points(shape, affine)
    value, brain = tissue(points, who)
    generator = np.random.default_rng(who.texture if who.texture is not None else 1000)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 2.0)
    value = value * (1 + 0.02 * smooth / smooth.std()) + noise * generator.normal(size=shape)
    lesion = np.zeros(shape, bool)
    if lesion_mm is not None:
        lesion = brain & (np.linalg.norm(points - np.array(lesion_mm), axis=-1) < lesion_radius_mm)
        value = np.where(lesion, value * (1 + contrast), value)
    value = np.where(brain, value, 300.0 + 5 * generator.normal(size=shape))
    return Volume(value.astype(np.float32)[None], affine, "synthetic"), BrainMask(brain, "given"), lesion


def template() -> Template:
    """The mean person's brain, with two frontal regions left and right of the midline."""
    points = grid_points(SHAPE, AFFINE)
    value, brain = tissue(points, Person())
    mean, _ = normalize_intensity(ndimage.gaussian_filter(np.where(brain, value, 0), 0.5).astype(np.float32), brain)
    sides = np.where(points[..., 0] < 0, LEFT_FRONTAL, RIGHT_FRONTAL)
    regions = np.where(brain & (points[..., 1] > 0), sides, 0).astype(np.uint8)
    return Template(mean, brain.astype(np.float32), regions, AFFINE.copy())


def save_template(folder: Path) -> Path:
    """``folder``/template, where a model folder beside it looks for it."""
    (folder / "template").mkdir(parents=True, exist_ok=True)
    template().save(folder / "template")
    return folder / "template"


def training_cache(seeds) -> TrainingCache:
    """Healthy people in template space."""
    preprocessor = Preprocessor(template())
    prepared = []
    for seed in seeds:
        volume, brain, _ = scan(person(seed))
        prepared.append(preprocessor.prepare(volume, brain=brain))
    return to_cache([p.image for p in prepared], [p.brain_mask for p in prepared], [f"s{i}" for i in seeds], "t1")


def random_cache(count: int = 2, seed: int = 0) -> TrainingCache:
    """Brains without any alignment, for tests that only train."""
    images, masks = [], []
    for index in range(count):
        volume, brain, _ = scan(person(seed + index), shape=SHAPE, affine=AFFINE)
        image, _ = normalize_intensity(volume.data[0], brain.mask)
        images.append(image[None])
        masks.append(brain.mask)
    return to_cache(images, masks, [f"r{i}" for i in range(count)], "t1")


def tiny(method_id: str, **changes):
    """The tiny configuration of a method, with changes."""
    return replace(TINY[method_id], **changes)
