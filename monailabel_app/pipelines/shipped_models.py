"""The models that the app ships: which method, learnt from which scans, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DATA_SETS = ("ixi_t1", "soop_flair", "ixi_any")


@dataclass(frozen=True)
class ShippedModel:
    """One folder of model_weights/.

    data: of DATA_SETS. overrides: test-time settings that differ from the preset. scores: those calibrated, default
    first; empty for all of the method. training: settings of the run that differ from the defaults. config: further
    keys of config.yaml, such as ``prior_scans`` of the calibration. members: of an ensemble, by name and score; they
    have to be there when it is made.
    """

    name: str
    method: str
    data: str
    preset: str = "compact"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[tuple[str, str], ...] = ()


# SSIM in three dimensions has no meaning for single slices.
_BOTH_SIGNS = ("signed", "l1", "mahalanobis")
_BRIGHT = ("brighter", "signed", "l1", "mahalanobis")
_TWO_LEVELS = {"levels": [0.93, 0.8], "draws": 3}

_FAST = {"learning_rate": 1.5e-3, "ema": 0.998}

_MODELS = (
    # Levels and draws chosen on lesions implanted into ten validation scans, of other shapes than `evaluate` uses.
    ShippedModel(
        "ddpm_t1",
        "ddpm",
        "ixi_t1",
        overrides={"levels": [0.97, 0.93], "draws": 3},
        scores=("signed", "l1", "ssim_ensemble", "mahalanobis"),
    ),
    ShippedModel("ddpm_flair", "ddpm", "soop_flair", preset="small", scores=_BRIGHT),
    # Clean surroundings or features of the slice keep the anatomy, so that the noise may be stronger than for ddpm.
    # A volume has ten times the levels of a slice model: fewer draws.
    ShippedModel("patched_ddpm_t1", "patched_ddpm", "ixi_t1", overrides=_TWO_LEVELS, scores=_BOTH_SIGNS),
    ShippedModel("patched_ddpm_flair", "patched_ddpm", "soop_flair", scores=_BRIGHT),
    ShippedModel("conditioned_ddpm_t1", "conditioned_ddpm", "ixi_t1", overrides=_TWO_LEVELS, scores=_BOTH_SIGNS),
    ShippedModel("conditioned_ddpm_flair", "conditioned_ddpm", "soop_flair", scores=_BRIGHT),
    # Few slices train a small network that starts from nothing: a higher rate, an average over a few hundred steps.
    ShippedModel(
        "cold_diffusion_t1",
        "cold_diffusion",
        "ixi_t1",
        scores=("evidence", "evidence_darker", "signed", "darker"),
        training=_FAST,
    ),
    ShippedModel(
        "cold_diffusion_flair",
        "cold_diffusion",
        "soop_flair",
        preset="slices",
        scores=("evidence_brighter", "evidence", "brighter", "signed"),
        training=_FAST,
        # Chosen among four values on val_lesion: healthy anatomy hardly shows in what this network marks.
        config={"prior_scans": 1000},
    ),
    ShippedModel(
        "cold_diffusion_any",
        "cold_diffusion",
        "ixi_any",
        preset="volumes",
        scores=("evidence_brighter", "evidence", "brighter"),
        training=_FAST,
        config={"prior_scans": 1000},
    ),
    ShippedModel("denoising_autoencoder_t1", "denoising_autoencoder", "ixi_t1", training=_FAST),
    ShippedModel(
        "denoising_autoencoder_flair",
        "denoising_autoencoder",
        "soop_flair",
        scores=("brighter", "signed", "l1"),
        training=_FAST,
    ),
    # Lesions are bright in FLAIR; in T1 most are dark, some bright.
    ShippedModel("intensity_t1", "intensity", "ixi_t1", scores=("intensity_z", "equalized")),
    ShippedModel("intensity_any", "intensity", "ixi_any", scores=("intensity_z_brighter", "equalized")),
    ShippedModel("intensity_flair", "intensity", "soop_flair", scores=("intensity_z_brighter", "equalized")),
    ShippedModel("atlas_zscore_t1", "atlas_zscore", "ixi_t1", scores=("atlas_z", "atlas_z_darker")),
    ShippedModel("atlas_zscore_flair", "atlas_zscore", "soop_flair", scores=("atlas_z_brighter", "atlas_z")),
    # Batches of slices for the autoencoder first, for the diffusion on its latents afterwards.
    ShippedModel("latent_ddpm_t1", "latent_ddpm", "ixi_t1", scores=("kl", "healed_signed", "healed")),
    ShippedModel("latent_ddpm_flair", "latent_ddpm", "soop_flair", scores=("kl", "healed_brighter", "healed")),
    # Whole brains: few, large samples; the average must forget what the autoencoder was before it came to rest.
    ShippedModel("latent_ddpm_3d_t1", "latent_ddpm_3d", "ixi_t1", training={"batch_size": 4, "ema": 0.99}),
    ShippedModel("latent_transformer_t1", "latent_transformer", "ixi_t1", training={"batch_size": 4, "ema": 0.99}),
    ShippedModel("feature_autoencoder_t1", "feature_autoencoder", "ixi_t1"),
    ShippedModel("feature_autoencoder_flair", "feature_autoencoder", "soop_flair", preset="compact_flair"),
    # Fewer projection steps than the preset: a volume has sixty slices.
    ShippedModel(
        "stylegan2_inversion_t1",
        "stylegan2_inversion",
        "ixi_t1",
        overrides={"projection": {"steps": 12}},
        scores=("signed", "wasserstein", "mse_patch"),
    ),
    ShippedModel(
        "stylegan2_inversion_flair",
        "stylegan2_inversion",
        "soop_flair",
        scores=("brighter", "wasserstein", "mse_patch", "signed"),
    ),
    # Last: an ensemble names its members by hash.
    ShippedModel(
        "ensemble_t1",
        "ensemble",
        "ixi_t1",
        members=(("cold_diffusion_t1", "evidence"), ("ddpm_t1", "mahalanobis"), ("atlas_zscore_t1", "atlas_z")),
    ),
    ShippedModel(
        "ensemble_flair",
        "ensemble",
        "soop_flair",
        members=(
            ("cold_diffusion_flair", "evidence_brighter"),
            ("denoising_autoencoder_flair", "brighter"),
            ("atlas_zscore_flair", "atlas_z_brighter"),
        ),
    ),
)
SHIPPED: Mapping[str, ShippedModel] = {model.name: model for model in _MODELS}
# What is offered first for a sequence: what won on the development sets by more than its interval, or the simplest.
DEFAULTS: Mapping[str, str] = {
    "t1": "cold_diffusion_t1",
    "flair": "cold_diffusion_any",
    "t2": "cold_diffusion_any",
    "flair slices": "cold_diffusion_flair",
}
