"""The methods this app knows: a table without torch, instant to import, for CLI, server and cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType, ModuleType

from monailabel_app.errors import UnknownModel


@dataclass(frozen=True)
class MethodInfo:
    """id: its name everywhere. module: where ``Config``, ``build``, ``training_loss`` and ``analyse`` live.

    scores: what its maps can be made from, default first. private: whether it can be trained with differential
    privacy (one loss, no state beside the weights). composed: whether its models are made of others instead of being
    trained (``main.py models ensemble``).
    """

    id: str
    module: str
    title: str
    paper: str
    scores: tuple[str, ...]
    private: bool = False
    composed: bool = False


METHODS: Mapping[str, MethodInfo] = MappingProxyType(
    {
        "ddpm": MethodInfo(
            id="ddpm",
            module="monailabel_app.methods.ddpm",
            title="Denoising diffusion reconstruction of axial slices",
            paper="Wyatt et al., AnoDDPM, CVPRW 2022; Behrendt et al., ISBI 2024 (scores)",
            scores=("signed", "l1", "ssim_ensemble", "brighter", "darker", "mahalanobis"),
            private=True,
        ),
        "patched_ddpm": MethodInfo(
            id="patched_ddpm",
            module="monailabel_app.methods.patched_ddpm",
            title="Diffusion that redraws axial slices box by box in their clean surroundings",
            paper="Behrendt et al., Patched Diffusion Models, MIDL 2023; Mahalanobis map: MICCAI 2024",
            scores=("signed", "l1", "ssim_ensemble", "brighter", "darker", "mahalanobis"),
            private=True,
        ),
        "conditioned_ddpm": MethodInfo(
            id="conditioned_ddpm",
            module="monailabel_app.methods.conditioned_ddpm",
            title="Diffusion guided by an encoder's features of the clean slice",
            paper="Behrendt et al., Guided Reconstruction with Conditioned Diffusion Models, arXiv 2312.04215",
            scores=("signed", "l1", "ssim_ensemble", "brighter", "darker", "mahalanobis"),
            private=True,
        ),
        "feature_autoencoder": MethodInfo(
            id="feature_autoencoder",
            module="monailabel_app.methods.feature_autoencoder",
            title="Autoencoding of a frozen encoder's features, compared by structural similarity",
            paper="Meissen et al., Structural Feature-Autoencoders, BrainLes 2022",
            scores=("feature_ssim",),
        ),
        "stylegan2_inversion": MethodInfo(
            id="stylegan2_inversion",
            module="monailabel_app.methods.stylegan2_inversion",
            title="Projection onto a style-based generator of healthy slices",
            paper="Woodland et al., Bioengineering 12(10):1106, 2025",
            scores=("signed", "wasserstein", "mse_patch", "l1", "brighter", "darker"),
        ),
        "intensity": MethodInfo(
            id="intensity",
            module="monailabel_app.methods.intensity",
            title="Intensity within the scan itself",
            paper="Meissen et al., BrainLes 2021",
            scores=("intensity_z", "intensity_z_brighter", "equalized"),
        ),
        "atlas_zscore": MethodInfo(
            id="atlas_zscore",
            module="monailabel_app.methods.atlas_zscore",
            title="Deviation from the mean healthy brain, voxel by voxel",
            paper="the usual baseline, as in Baur et al., Medical Image Analysis 69, 2021",
            scores=("atlas_z", "atlas_z_brighter", "atlas_z_darker"),
        ),
        "latent_ddpm": MethodInfo(
            id="latent_ddpm",
            module="monailabel_app.methods.latent_ddpm",
            title="Latent diffusion of axial slices that redraws what is unlikely at its place",
            paper="Pinaya et al., MICCAI 2022",
            scores=("kl", "healed_signed", "healed", "healed_brighter", "signed", "brighter"),
        ),
        "latent_ddpm_3d": MethodInfo(
            id="latent_ddpm_3d",
            module="monailabel_app.methods.latent_ddpm_3d",
            title="Latent diffusion of whole brains, reconstructed from many noise levels",
            paper="Graham et al., MICCAI 2023",
            scores=("residual", "perceptual", "signed"),
        ),
        "latent_transformer": MethodInfo(
            id="latent_transformer",
            module="monailabel_app.methods.latent_transformer",
            title="Likelihood of a brain's codes under a transformer",
            paper="Graham et al., MIDL 2022",
            scores=("surprise",),
        ),
        "cold_diffusion": MethodInfo(
            id="cold_diffusion",
            module="monailabel_app.methods.cold_diffusion",
            title="Restoration of synthetic lesions by cold diffusion",
            paper="Naval Marimont et al., DISYRE, ISBI 2024; Bansal et al., Cold Diffusion, NeurIPS 2023",
            scores=("evidence", "evidence_brighter", "evidence_darker", "signed", "brighter", "darker", "l1"),
        ),
        "denoising_autoencoder": MethodInfo(
            id="denoising_autoencoder",
            module="monailabel_app.methods.denoising_autoencoder",
            title="Denoising autoencoder with coarse noise",
            paper="Kascenas, Pugeault and O'Neil, MIDL 2022",
            scores=("signed", "brighter", "darker", "l1"),
            private=True,
        ),
        "ensemble": MethodInfo(
            id="ensemble",
            module="monailabel_app.methods.ensemble",
            title="Several models as one, by how rare each finds a voxel among healthy ones",
            paper="Fisher, 1932; Wilson, PNAS 2019 (combination of p-values)",
            scores=("fisher", "harmonic", "strongest"),
            composed=True,
        ),
    }
)
# Those that learn from healthy scans.
TRAINABLE: Mapping[str, MethodInfo] = MappingProxyType({i: info for i, info in METHODS.items() if not info.composed})


def method_info(method_id: str) -> MethodInfo:
    """The entry of one method. Raises UnknownModel that lists the known ids."""
    try:
        return METHODS[method_id]
    except KeyError:
        known = ", ".join(METHODS)
        raise UnknownModel(f"expected a method out of {known}, got {method_id!r}") from None


def load_method(method_id: str) -> ModuleType:
    """Import the module of a method."""
    return import_module(method_info(method_id).module)
