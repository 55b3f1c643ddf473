"""Cold diffusion undoes synthetic lesions, tells their sign, and sweeps severities, planes and mirror images."""

from dataclasses import replace

import pytest
import torch

from monailabel_app.methods import cold_diffusion
from monailabel_app.networks.restoration_unet import RestorationConfig, RestorationUnet
from monailabel_app.noise.deformation import DeformationConfig
from monailabel_app.noise.synthetic_lesions import LesionConfig

CONFIG = cold_diffusion.Config(
    network=RestorationConfig(channels=(16, 32), norm_groups=4, outputs=3),
    lesions=LesionConfig(
        lesions=2,
        healthy_share=0.1,
        radius=(3.0, 5.0),
        contrast=(0.4, 0.8),
        fillings=(1, 0, 0, 0, 0, 0),
        tissue_share=0.0,
        severity=(0.7, 1.0),
    ),
    deformation=DeformationConfig(0, 0, 0),
    severities=(0.7, 0.9),
    planes=("axial",),
    test_planes=("axial",),
)


def slices(n: int) -> torch.Tensor:
    """(n, 1, 32, 40) smooth brains of different brightness."""
    x, y = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(40.0) - 19.5, indexing="ij")
    inside = (x / 14) ** 2 + (y / 18) ** 2 < 1
    values = 0.4 + 0.1 * torch.cos(x / 3) * torch.cos(y / 4)
    return torch.where(inside, values, 0.0) * torch.linspace(0.9, 1.1, n)[:, None, None, None]


def volume() -> tuple[torch.Tensor, torch.Tensor]:
    """(32, 40, 6) image and brain mask; the first and the last slice are empty."""
    image = torch.zeros(32, 40, 6)
    image[:, :, 1:5] = slices(4)[:, 0].permute(1, 2, 0)
    return image, image > 0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def undone(image: torch.Tensor, share: float = 1.0):
    """A network that always finds the right change towards 0.5, and names its sign."""

    def network(now: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        change = share * (0.5 - now) * (now > 0)
        return torch.cat((change, -50 * change, 50 * change), dim=1)

    return network


@pytest.fixture(scope="module")
def trained() -> RestorationUnet:
    torch.manual_seed(0)
    model, generator = cold_diffusion.build(CONFIG), seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        cold_diffusion.training_loss(model, CONFIG, slices(8), generator).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("contrast", [0.6, -0.45])
def test_a_lesion_is_restored_and_its_sign_is_told(trained, contrast):
    image, mask = volume()
    lesion = torch.zeros_like(mask)
    lesion[10:17, 14:21, 2:4] = True
    lesioned = torch.where(lesion, image * (1 + contrast), image)
    made = cold_diffusion.analyse(trained, CONFIG, lesioned, mask, seeded())
    before, after = ((seen - image)[lesion].abs().mean() for seen in (lesioned, made.reconstruction))
    assert after < 0.7 * before
    healthy = cold_diffusion.analyse(trained, CONFIG, image, mask, seeded())
    assert (healthy.reconstruction - image)[mask].abs().mean() < 0.1 * before
    name, other = ("brighter", "darker") if contrast > 0 else ("darker", "brighter")
    seen = made.maps[f"evidence_{name}"]
    assert seen[lesion].mean() > 2
    assert seen[lesion].mean() > 2 + seen[mask & ~lesion].mean()
    torch.testing.assert_close(made.maps[f"evidence_{other}"], -seen)


def test_an_untrained_network_changes_nothing():
    image, mask = volume()
    made = cold_diffusion.analyse(cold_diffusion.build(CONFIG).eval(), CONFIG, image, mask, seeded())
    torch.testing.assert_close(made.reconstruction, image, atol=1e-2, rtol=0)
    assert (made.maps["evidence"] == 0).all()


def test_each_severity_is_asked_for_and_followed_down_in_steps():
    image, mask = volume()
    asked = []

    def network(now, times):
        asked.append(round(float(times[0]), 6))
        return undone(image)(now, times)

    config = replace(CONFIG, severities=(0.6, 0.9), steps=3)
    made = cold_diffusion.analyse(network, config, image, mask, seeded())
    assert asked == pytest.approx([0.6, 0.4, 0.2, 0.9, 0.6, 0.3])
    torch.testing.assert_close(made.reconstruction[mask], torch.full_like(image[mask], 0.5), atol=2e-3, rtol=0)


def test_severities_that_agree_have_no_variance_and_others_have_some():
    image, mask = volume()
    assert cold_diffusion.analyse(undone(image), CONFIG, image, mask, seeded()).variance.max() < 1e-6

    def unsure(now, times):
        return undone(image)(now, times) * times[:, None, None, None]

    assert cold_diffusion.analyse(unsure, CONFIG, image, mask, seeded()).variance[mask].mean() > 1e-5
    assert cold_diffusion.analyse(unsure, cold_diffusion.light(CONFIG), image, mask, seeded()).variance is None


def test_empty_slices_cost_nothing_and_progress_ends_at_one():
    image, mask = torch.zeros(32, 40, 24), torch.zeros(32, 40, 24, dtype=torch.bool)
    image[:, :, 9:15], mask[:, :, 9:15] = volume()
    sizes, seen = [], []

    def network(now, times):
        sizes.append(len(now))
        return undone(image)(now, times)

    config = replace(CONFIG, test_planes=("axial", "coronal", "sagittal"))
    made = cold_diffusion.analyse(network, config, image, mask, seeded(), batch_size=16, progress=seen.append)
    used = sum(int(mask.sum(dim=axes).count_nonzero()) for axes in ((0, 1), (0, 2), (1, 2)))
    assert sum(sizes) == 2 * used
    assert (made.reconstruction[~mask] == 0).all()
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)


def test_planes_are_averaged_but_a_few_slices_are_only_looked_at_in_their_plane():
    image, mask = torch.zeros(32, 40, 24), torch.zeros(32, 40, 24, dtype=torch.bool)
    image[:, :, 4:20], mask[:, :, 4:20] = (part.repeat(1, 1, 4)[:, :, :16] for part in (v[:, :, 1:5] for v in volume()))

    def network(now, times):
        """Whole tissue in axial slices is 1, in others 0."""
        value = 1.0 if now.shape[3] == 40 else 0.0
        return torch.cat(((value - now) * (now > 0), now * 0, now * 0), dim=1)

    config = replace(CONFIG, test_planes=("axial", "coronal"))
    made = cold_diffusion.analyse(network, config, image, mask, seeded()).reconstruction
    torch.testing.assert_close(made[mask], torch.full_like(made[mask], 0.5), atol=1e-3, rtol=0)
    for depth in (1, 7):
        few, inside = image[:, :, 8 : 8 + depth], mask[:, :, 8 : 8 + depth]
        made = cold_diffusion.analyse(network, config, few, inside, seeded()).reconstruction
        torch.testing.assert_close(made[inside], torch.ones_like(made[inside]), atol=1e-3, rtol=0)


def test_the_mirrored_scan_has_the_mirrored_result_when_both_are_averaged(trained):
    image, mask = volume()
    image = image * torch.linspace(0.8, 1.2, 32)[:, None, None]
    config = replace(CONFIG, flip=True)
    one = cold_diffusion.analyse(trained, config, image, mask, seeded())
    other = cold_diffusion.analyse(trained, config, image.flip(0), mask.flip(0), seeded())
    torch.testing.assert_close(other.reconstruction.flip(0), one.reconstruction, atol=1e-2, rtol=0)
    torch.testing.assert_close(other.maps["evidence"].flip(0), one.maps["evidence"], atol=0.2, rtol=0)


def test_the_loss_is_the_same_from_the_same_seed():
    model = cold_diffusion.build(CONFIG)
    one, again, other = (float(cold_diffusion.training_loss(model, CONFIG, slices(4), seeded(s))) for s in (1, 1, 2))
    assert one == again != other
