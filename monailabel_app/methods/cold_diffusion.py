"""Restoration by cold diffusion: a network learns to undo synthetic lesions of any severity.

Bansal et al. 2022 (arXiv 2208.09392) for diffusion without noise; Naval Marimont et al., DISYRE (ISBI 2024), for
synthetic lesions as the corruption and the sweep over severities. Changed: the network is lean and predicts the change
rather than the slice, lesions are more various (``noise.synthetic_lesions``), the loss counts lesion pixels more, and
two more outputs estimate where the slice is brighter or darker than it should be (the ``evidence`` scores), trained on
the same synthetic lesions. No real lesion is seen in training.

Time is the severity, 0 (healthy) to 1. x_t is the slice with lesions of severity t, the network's first output
f(x_t, t) gives the estimate x_t + f of the healthy slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn import functional

from monailabel_app.networks.restoration_unet import RestorationConfig, RestorationUnet
from monailabel_app.noise.deformation import DeformationConfig, deform_slices
from monailabel_app.noise.synthetic_lesions import LesionConfig, implant_synthetic

from .output import MethodOutput, Progress, fast_autocast, over_slices

_OUTPUTS = 3  # change, evidence of brighter, evidence of darker
_LOGIT_LIMIT = 12.0
_LEAST_DEPTH = 24


@dataclass(frozen=True)
class Config:
    """severities: the times asked for at test, whose estimates are averaged. steps: from each of them down to 0.
    flip: average with the mirrored slice (first axis left-right: not for sagittal slices).

    lesion_weight: of lesion pixels in the restoration loss, beside 1. evidence_weight: of the evidence's loss.
    visible: change of intensity from which on a pixel counts wholly as lesion. positive_weight: of lesion pixels in
    the evidence's loss. planes: those trained on. test_planes: those whose estimates are averaged.
    """

    network: RestorationConfig = field(
        default_factory=lambda: RestorationConfig(attention=True, mirror=True, outputs=_OUTPUTS)
    )
    lesions: LesionConfig = field(default_factory=LesionConfig)
    deformation: DeformationConfig = field(default_factory=lambda: DeformationConfig(share=0.0))
    lesion_weight: float = 4.0
    evidence_weight: float = 0.1
    visible: float = 0.05
    positive_weight: float = 1.0
    severities: tuple[float, ...] = (0.2, 0.5)
    steps: int = 1
    flip: bool = False
    planes: tuple[str, ...] = ("axial", "coronal")
    test_planes: tuple[str, ...] = ("axial", "coronal")


# Volumes: there are slices enough, and a deformed slice is more blurred than a scan's.
COMPACT = Config()
# Single slices of one level: lesions up to a hemisphere, more often bright than dark (FLAIR), on slices normalised by
# their median.
SLICES = Config(
    lesions=LesionConfig(
        lesions=4,
        healthy_share=0.15,
        radius=(1.5, 32.0),
        contrast=(0.15, 1.2),
        fixed_quantile=0.5,
        darker_share=0.4,
    ),
    deformation=DeformationConfig(),
    visible=0.12,
    severities=(0.05, 0.2, 0.35, 0.5, 0.7),
    planes=("axial",),
    test_planes=("axial",),
)
# Volumes of any sequence, normalised by their median.
VOLUMES = replace(SLICES, severities=(0.2, 0.5), planes=("axial", "coronal"), test_planes=("axial", "coronal"))
# For a GPU: 16 M parameters, on pixels.
LARGE = Config(
    network=RestorationConfig(
        channels=(64, 128, 256, 384),
        blocks=2,
        norm_groups=16,
        block_size=1,
        attention=True,
        mirror=True,
        outputs=_OUTPUTS,
    ),
    flip=True,
)
# Learns to see gross lesions in a minute: for trying out a server.
TINY = Config(
    network=RestorationConfig(channels=(16, 32), outputs=_OUTPUTS),
    severities=(0.5,),
    planes=("axial",),
    test_planes=("axial",),
)
PRESETS = {"compact": COMPACT, "slices": SLICES, "volumes": VOLUMES, "large": LARGE, "tiny": TINY}


def build(config: Config) -> nn.Module:
    """A network with fresh weights, which changes nothing yet."""
    return RestorationUnet(replace(config.network, outputs=_OUTPUTS))


def training_loss(model: nn.Module, config: Config, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """batch: (n, 1, X, Y) healthy slices in [0, 1], zero outside the brain."""
    healthy = deform_slices(batch, config.deformation, generator)
    made = implant_synthetic(healthy, config.lesions, generator)
    out = model(made.images, made.severity).float()
    brain = (made.clean > 0).float()
    area = brain.sum().clamp(min=1)
    restored = made.images + out[:, :1]
    weight = brain * (1 + config.lesion_weight * made.share)
    loss = ((restored - made.clean).abs() * weight).sum() / area
    change = (made.images - made.clean) / config.visible
    target = torch.cat((change, -change), dim=1).clamp(0, 1)
    evidence = functional.binary_cross_entropy_with_logits(
        out[:, 1:], target, reduction="none", pos_weight=torch.tensor(config.positive_weight, device=out.device)
    )
    return loss + config.evidence_weight * (evidence * brain).sum() / area


def sweep(model: nn.Module, config: Config, slices: torch.Tensor) -> Iterator[torch.Tensor]:
    """(n, 1, X, Y) slices -> one (n, 3, X, Y) per severity: the healthy estimate, log odds of brighter, of darker."""
    for severity in config.severities:
        made = _restored(model, config, slices, severity)
        if config.flip:
            made = (made + _restored(model, config, slices.flip(2), severity).flip(2)) / 2
        yield made


def _restored(model: nn.Module, config: Config, slices: torch.Tensor, severity: float) -> torch.Tensor:
    """Cold diffusion's improved sampling (Bansal et al., algorithm 2) from ``severity`` down to 0 in config.steps.

    A lesion is blended in linearly, so going from t to s < t takes (t - s) / t of the estimated change. The evidence is
    that of the slice as it is.
    """
    current, evidence = slices, slices
    for step in range(config.steps):
        time = severity * (config.steps - step) / config.steps
        with fast_autocast(slices.device):
            out = model(current, torch.full((len(slices),), time, device=slices.device))
        out = out.float()
        if step == 0:
            evidence = out[:, 1:].clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)
        current = current + out[:, :1] / (config.steps - step)
    return torch.cat((current, evidence), dim=1)


@torch.inference_mode()
def analyse(
    model: nn.Module,
    config: Config,
    image: torch.Tensor,
    brain_mask: torch.Tensor,
    generator: torch.Generator,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MethodOutput:
    """The pseudo-healthy volume of (X, Y, Z), its variance over severities and planes, and the evidence maps.

    ``evidence``: how sure the network is that the slice is brighter than it should be, less how sure that it is darker,
    as log odds, which do not saturate in a lesion as shares would. ``evidence_brighter`` and ``evidence_darker`` are
    the same and its negative, for one sign only. Nothing is drawn: the generator is not used. Of a few slices, only the
    axial plane is looked at.
    """
    planes = _usable(config, image)
    total, square = torch.zeros_like(image), torch.zeros_like(image)
    evidence = torch.zeros_like(image)

    def estimate(slices: torch.Tensor) -> list[torch.Tensor]:
        brain = (slices > 0).float()
        made = [brain * step for step in sweep(model, config, slices)]
        restored = [step[:, :1].clamp(0, 1) for step in made]
        return [
            sum(restored),
            sum(step**2 for step in restored),
            sum(step[:, 1:2] - step[:, 2:3] for step in made) / len(made),
        ]

    for number, plane in enumerate(planes):
        made = over_slices(
            image,
            estimate,
            outputs=3,
            plane=plane,
            batch_size=batch_size,
            progress=_part(progress, number, len(planes)),
        )
        total, square, evidence = total + made[0], square + made[1], evidence + made[2] / len(planes)
    passes = len(planes) * len(config.severities)
    mean = total / passes
    variance = torch.where(brain_mask, (square / passes - mean**2).clamp(min=0), 0.0)
    evidence = torch.where(brain_mask, evidence, 0.0)
    return MethodOutput(
        torch.where(brain_mask, mean, 0.0),
        maps={"evidence": evidence, "evidence_brighter": evidence, "evidence_darker": -evidence},
        variance=variance if passes > 1 else None,
    )


def light(config: Config) -> Config:
    """One severity, one plane and no mirror image, for figures that follow a training."""
    middle = config.severities[len(config.severities) // 2]
    return replace(config, severities=(middle,), test_planes=config.test_planes[:1], flip=False, steps=1)


def _usable(config: Config, image: torch.Tensor) -> tuple[str, ...]:
    """The test planes, without those that are mere strips in a volume of few slices."""
    deep = image.shape[2] >= _LEAST_DEPTH and image.shape[2] % config.network.size_multiple == 0
    return config.test_planes if deep else ("axial",)


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    return None if progress is None else lambda share: progress((number + share) / count)
