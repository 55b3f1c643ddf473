"""Autoencoding of features instead of intensities, with structural similarity as loss and as score.

Meissen et al., Unsupervised anomaly localization with structural feature-autoencoders (BrainLes 2022). An autoencoder
learns to copy the feature maps of healthy slices; where it fails, the structure is not healthy. The features come from
a frozen encoder. The published one is a ResNet-18 trained on ImageNet, which a site may bring
(`python main.py encoder FILE`, then train from the model that makes); otherwise the encoder is trained here, on the
same healthy slices and a task made from them, in the first part of the run, and frozen for the rest.

The frozen encoder consists of buffers only and has no layer that behaves differently in training mode. In the published
code its batch norms went on following the training batches, so that features differed between training and use.

Differences from the paper: the encoder and its training; a smaller network, feature maps at half of the slice's
resolution, group norms; histogram equalisation slice by slice; the loss counts positions in the brain only and, in the
compact size, a random quarter of the channels per step; the map is calibrated voxel by voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from monailabel_app.errors import InvalidSettings, TrainingFailed
from monailabel_app.networks.resnet_trunk import RESNET18, ResNetTrunk, TrunkConfig, frozen

from .feature_pretext import build_head, pretext_loss
from .feature_ssim import equalized, feature_ssim
from .output import MethodOutput, Progress, fast_autocast, over_slices

# The default rate of the loop is made for diffusion networks; SSIM of features bears a higher one.
OPTIMIZER = {"lr": 2.5}
_TOP_SHARE = 0.1
_PRETEXT_STAGE, _AUTOENCODER_STAGE = 0, 1


@dataclass(frozen=True)
class AutoencoderConfig:
    """widths: channels after each halving. kernel: of its convolutions. dropout: of whole channels, in training."""

    widths: tuple[int, ...] = (64, 96, 128, 120)
    kernel: int = 3
    dropout: float = 0.1


@dataclass(frozen=True)
class Config:
    """encoder: trained here or a ResNet-18 of torchvision, whose trunk ``trunk`` is then not looked at.

    pretext: the task that the encoder is trained on for ``pretext_share`` of the run. equalize: histogram equalisation
    of each slice inside the brain, before the features. planes: slices are taken along these, and the maps averaged.
    loss_channels: features that a training step compares, drawn anew each time; 0: all, which takes most of its time.
    """

    encoder: Literal["self_supervised", "torchvision_resnet18"] = "self_supervised"
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    pretext: Literal["contrast", "restore", "corruption"] = "corruption"
    pretext_share: float = 0.4
    equalize: bool = True
    loss_channels: int = 32
    planes: tuple[str, ...] = ("axial",)

    @property
    def features(self) -> TrunkConfig:
        """The trunk that the features come from."""
        return RESNET18 if self.encoder == "torchvision_resnet18" else self.trunk


_PUBLISHED = AutoencoderConfig(widths=(100, 150, 200, 300), kernel=5)
PRETRAINED = Config(encoder="torchvision_resnet18", autoencoder=_PUBLISHED, pretext_share=0.0, loss_channels=0)
PRESETS = {
    "compact": Config(),
    # Where lesions are bright, equalisation takes from them what tells them apart.
    "compact_flair": Config(equalize=False),
    "large": Config(trunk=TrunkConfig(width=64, kernel=7), autoencoder=_PUBLISHED, loss_channels=0),
    # Needs a start from a model that holds the site's own ResNet-18.
    "imagenet": PRETRAINED,
    "tiny": Config(trunk=TrunkConfig(width=8), autoencoder=AutoencoderConfig(widths=(16, 24))),
}


class _Halving(nn.Sequential):
    """A convolution with stride 2, norm and activation."""

    def __init__(self, before: int, width: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(before, width, kernel, 2, padding=kernel // 2), _norm(width), nn.LeakyReLU(inplace=True)
        )


class _Doubling(nn.Sequential):
    """A transposed convolution that doubles the size exactly, norm and activation."""

    def __init__(self, before: int, width: int, kernel: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(before, width, kernel + 1, 2, padding=kernel // 2),
            _norm(width),
            nn.LeakyReLU(inplace=True),
        )


class Autoencoder(nn.Module):
    """(n, c, h, w) -> the same: a bottleneck of h / 2^k x w / 2^k positions after k halvings.

    Sides that are no multiple of 2^k are padded with their edge. Group norms, where the paper has batch norms.
    """

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        widths, kernel = config.widths, config.kernel
        self.down = nn.ModuleList(_Halving(a, b, kernel) for a, b in zip((channels, *widths[:-1]), widths, strict=True))
        self.middle = nn.Conv2d(widths[-1], widths[-1], kernel, padding=kernel // 2)
        back = widths[::-1]
        self.up = nn.ModuleList(_Doubling(a, b, kernel) for a, b in zip(back, (*back[1:], widths[0]), strict=True))
        self.out = nn.Conv2d(widths[0], channels, 1)

    def forward(self, features: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """With a generator, channels are dropped as in training."""
        height, width = features.shape[-2:]
        multiple = 2 ** len(self.down)
        x = functional.pad(features, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        for layer in self.down:
            x = self._dropped(layer(x), generator)
        x = self.middle(x)
        for layer in self.up:
            x = self._dropped(layer(x), generator)
        return self.out(x)[..., :height, :width]

    def _dropped(self, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if generator is None or self.dropout == 0:
            return x
        kept = torch.rand(*x.shape[:2], 1, 1, generator=generator) >= self.dropout
        return x * (kept / (1 - self.dropout)).to(x)


class FeatureAutoencoder(nn.Module):
    """trunk, head: the encoder while it is trained, and its task. extractor: the frozen encoder. stage: which is next.

    The stage is 0 until there is an encoder to take features from, and 1 from then on.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.equalize = config.equalize
        self.trunk = self.head = None
        if config.encoder == "self_supervised":
            self.trunk = ResNetTrunk(config.trunk)
            self.head = build_head(config.pretext, config.trunk.channels)
        self.extractor = frozen(ResNetTrunk(config.features))
        self.autoencoder = Autoencoder(config.features.channels, config.autoencoder)
        self.register_buffer("stage", torch.tensor(_PRETEXT_STAGE))

    def features(self, slices: torch.Tensor) -> torch.Tensor:
        """(n, 1, X, Y) in [0, 1] -> (n, c, h, w) of the frozen encoder, without gradients."""
        with torch.no_grad():
            return self.extractor(self._seen(slices))

    def trained_features(self, slices: torch.Tensor) -> torch.Tensor:
        """The same of the encoder that is still being trained."""
        return self.trunk(self._seen(slices))

    @torch.no_grad()
    def freeze_encoder(self) -> None:
        """Take the trained encoder over as the frozen one; rounded as model folders keep it, so that it stays as is."""
        self.take_encoder({name: value.float() for name, value in self.trunk.state_dict().items()})

    @torch.no_grad()
    def take_encoder(self, weights: dict[str, torch.Tensor]) -> None:
        """Make these the frozen encoder's weights. Raises TrainingFailed when they do not fit."""
        rounded = {
            name: value.bfloat16().float() if value.is_floating_point() else value for name, value in weights.items()
        }
        try:
            self.extractor.load_state_dict(rounded)
        except RuntimeError as error:
            raise TrainingFailed(
                f"expected weights of {type(self.extractor).__name__} {self.extractor.config}, got others "
                f"({' '.join(str(error).split())[:200]}); bring a ResNet-18 of torchvision"
            ) from error
        self.stage.fill_(_AUTOENCODER_STAGE)

    def _seen(self, slices: torch.Tensor) -> torch.Tensor:
        return (equalized(slices) if self.equalize else slices) * 2 - 1


def build(config: Config) -> nn.Module:
    """A network with fresh weights. Raises InvalidSettings for an encoder or a share that cannot be."""
    if config.encoder not in ("self_supervised", "torchvision_resnet18"):
        raise InvalidSettings(
            f"expected the encoder self_supervised or torchvision_resnet18, got {str(config.encoder)[:40]!r}"
        )
    if not 0 <= config.pretext_share < 1:
        raise InvalidSettings(f"expected pretext_share from 0 to below 1, got {config.pretext_share}")
    return FeatureAutoencoder(config)


def begin_step(model: FeatureAutoencoder, config: Config, share: float) -> None:
    """Freeze the encoder when its share of the run is over.

    Raises TrainingFailed where an encoder was to be brought and none came: features of random weights find little.
    """
    if int(model.stage) == _AUTOENCODER_STAGE:
        return
    if model.trunk is None:
        raise TrainingFailed(
            "expected a ResNet-18 to take features from, got none; make a model to start from with "
            "`python main.py encoder FILE`, or train with another preset"
        )
    if share >= config.pretext_share:
        model.freeze_encoder()


def training_loss(
    model: FeatureAutoencoder, config: Config, batch: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The encoder's task first, then 1 - SSIM of the features in the brain. batch: (n, 1, X, Y) healthy, in [0, 1]."""
    if int(model.stage) == _PRETEXT_STAGE:
        if model.trunk is None:
            begin_step(model, config, 0.0)
        return pretext_loss(config.pretext, model.trained_features, model.head, batch, generator)
    features = model.features(batch)
    copies = model.autoencoder(features, generator if model.training else None)
    if model.training and 0 < config.loss_channels < features.shape[1]:
        chosen = torch.randperm(features.shape[1], generator=generator)[: config.loss_channels].to(batch.device)
        features, copies = features[:, chosen], copies[:, chosen]
    difference = 1 - feature_ssim(features, copies).mean(dim=1)
    brain = functional.adaptive_avg_pool2d((batch > 0).float(), difference.shape[-2:])[:, 0]
    return (difference * brain).sum() / brain.sum().clamp(min=1)


@torch.inference_mode()
def analyse(
    model: FeatureAutoencoder,
    config: Config,
    image: torch.Tensor,
    brain_mask: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """The map 1 - SSIM, mean over the features' channels, of (X, Y, Z) in [0, 1]; there is no image to reconstruct.

    Nothing is random: the generator is not used. feature_ssim_top: the mean of the highest tenth of the map in the
    brain, the paper's score of a picture.
    """

    def estimate(slices: torch.Tensor) -> tuple[torch.Tensor]:
        with fast_autocast(slices.device):
            features = model.features(slices)
            copies = model.autoencoder(features)
        difference = 1 - feature_ssim(features, copies).mean(dim=1, keepdim=True)
        return (functional.interpolate(difference, slices.shape[2:], mode="bilinear", align_corners=False),)

    planes = [plane for plane in config.planes if plane == "axial" or min(image.shape) > 1] or ["axial"]
    total = torch.zeros_like(image, dtype=torch.float32)
    for number, plane in enumerate(planes):

        def tell(share: float, number: int = number) -> None:
            if progress is not None:
                progress((number + share) / len(planes))

        (made,) = over_slices(image, estimate, plane=plane, batch_size=batch_size, progress=tell)
        total += made / len(planes)
    total = torch.where(brain_mask, total, 0)
    inside = total[brain_mask]
    top = inside.topk(max(1, math.ceil(_TOP_SHARE * len(inside)))).values.mean() if len(inside) else total.sum()
    return MethodOutput(maps={"feature_ssim": total}, figures={"feature_ssim_top": float(top)})


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)
