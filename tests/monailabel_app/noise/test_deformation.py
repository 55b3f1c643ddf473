"""Random deformations: smooth, small, repeatable, and none where none is asked for."""

import torch

from monailabel_app.noise.deformation import DeformationConfig, deform_slices


def disc(radius: float = 15.0) -> torch.Tensor:
    x, y = torch.meshgrid(torch.arange(48.0) - 23.5, torch.arange(64.0) - 31.5, indexing="ij")
    return ((x**2 + y**2) < radius**2).float()[None, None]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_no_deformation_leaves_the_slices_as_they_are():
    slices = torch.rand(3, 1, 48, 64)
    assert deform_slices(slices, DeformationConfig(0, 0, 0), seeded()) is slices
    almost = deform_slices(slices, DeformationConfig(1e-9, 0, 0, 1.0), seeded())
    torch.testing.assert_close(almost, slices, atol=1e-4, rtol=0)


def test_each_slice_is_deformed_in_its_own_way_and_the_same_from_the_same_seed():
    slices = disc().expand(6, 1, 48, 64)
    made = deform_slices(slices, DeformationConfig(share=1.0), seeded())
    assert torch.equal(made, deform_slices(slices, DeformationConfig(share=1.0), seeded()))
    assert not torch.equal(made[0], made[1])
    areas = made.sum(dim=(1, 2, 3)) / slices.sum(dim=(1, 2, 3))
    assert areas.std() > 0.01
    assert (areas > 0.7).all()
    assert (areas < 1.4).all()


def test_a_rotation_keeps_a_disc():
    made = deform_slices(disc(), DeformationConfig(0, 20.0, 0, 1.0), seeded())
    torch.testing.assert_close(made.sum(), disc().sum(), rtol=0.01, atol=0)
    assert (made - disc()).abs().mean() < 0.01


def test_the_rest_of_the_slices_stays_as_it_is():
    slices = disc().expand(200, 1, 48, 64)
    made = deform_slices(slices, DeformationConfig(share=0.4), seeded())
    kept = (made == slices).flatten(1).all(dim=1).float().mean()
    assert 0.45 < kept < 0.75
