"""The loss attack: it finds the patients of an overfit network, and nobody in one that has seen none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monailabel_app.errors import EvaluationFailed
from monailabel_app.methods import ddpm
from monailabel_app.training.cache import TrainingCache
from monailabel_app.training.membership import advantage, loss_attack, membership_inference, patient_losses
from tests.monailabel_app.synthetic import TINY

CONFIG = TINY["ddpm"]
FEW = {"slices_per_patient": 4, "draws": 2, "resamples": 100}


def noisy_patients(count: int, seed: int, scans: int = 1, levels: int = 4) -> TrainingCache:
    """Patients of pure texture: nothing is common to them, so all that is learnt of one is that one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count * scans, 24, 32, levels, dtype=torch.uint8)
    images[:, 4:20, 4:28] = torch.randint(256, (count * scans, 16, 24, levels), generator=generator, dtype=torch.uint8)
    ids = tuple(f"{seed}-{i}" for i in range(count * scans))
    return TrainingCache(images, images > 0, ids, "t1", tuple(f"{seed}-{i // scans}" for i in range(count * scans)))


@pytest.fixture(scope="module")
def members():
    return noisy_patients(4, 1)


@pytest.fixture(scope="module")
def others():
    return noisy_patients(12, 2)


class Memory(torch.nn.Module):
    """A network that has learnt its patients by heart: it answers with the stored slice nearest to the noisy one."""

    def __init__(self, cache: TrainingCache):
        super().__init__()
        slices = cache.images.permute(0, 3, 1, 2).reshape(-1, 1, *cache.images.shape[1:3]).float() / 255
        self.register_buffer("slices", slices * 2 - 1)

    def forward(self, noisy, timesteps):
        distance = torch.cdist(noisy.flatten(1), self.slices.flatten(1))
        return self.slices[distance.argmin(1)]


def test_a_network_that_learnt_its_patients_by_heart_is_found_out(members, others):
    found = membership_inference("ddpm", CONFIG, Memory(members), members, others, **FEW)
    assert found.auroc > 0.95
    assert found.advantage > 0.9
    assert found.auroc_interval[0] > 0.8
    assert found.p_value < 0.05
    assert found.member_loss < found.other_loss
    assert (found.members, found.others) == (4, 12)


def test_an_overfit_diffusion_network_is_found_out():
    members, others = noisy_patients(2, 1, levels=1), noisy_patients(16, 2, levels=1)
    mild = replace(CONFIG, diffusion=replace(CONFIG.diffusion, noise="gaussian", train_levels=(0.5, 0.6)))
    torch.manual_seed(0)
    network = ddpm.build(mild)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    slices = members.images.permute(0, 3, 1, 2).reshape(-1, 1, 24, 32).float() / 255
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        ddpm.training_loss(network, mild, slices, generator).backward()
        optimizer.step()
    found = membership_inference("ddpm", mild, network, members, others, **FEW)
    assert found.auroc > 0.8


def test_a_fresh_network_gives_nobody_away(members, others):
    torch.manual_seed(0)
    found = membership_inference("ddpm", CONFIG, ddpm.build(CONFIG), members, others, **FEW)
    assert found.p_value > 0.05
    assert found.auroc_interval[0] < 0.5


def test_the_figures_repeat_and_the_network_is_left_as_it_was(members, others):
    network = ddpm.build(CONFIG).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, again = (membership_inference("ddpm", CONFIG, network, members, others, **FEW) for _ in range(2))
    assert first == again
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_equal_slices_have_equal_losses_whoever_they_belong_to(members):
    network = ddpm.build(CONFIG)
    twin = replace(members, ids=tuple("wxyz"), patients=tuple("wxyz"))
    options = {"slices_per_patient": 4, "draws": 2}
    np.testing.assert_array_equal(
        patient_losses("ddpm", CONFIG, network, members, **options),
        patient_losses("ddpm", CONFIG, network, twin, **options),
    )


def test_all_scans_of_a_patient_count_once(others):
    two_each = noisy_patients(3, 5, scans=2)
    assert len(patient_losses("ddpm", CONFIG, ddpm.build(CONFIG), two_each, slices_per_patient=8, draws=1)) == 3


def test_a_patient_on_both_sides_is_refused(members):
    with pytest.raises(EvaluationFailed, match="4 in both groups"):
        membership_inference("ddpm", CONFIG, ddpm.build(CONFIG), members, members)


def attack(members, others):
    return loss_attack(members, others, generator=np.random.default_rng(0), resamples=200)


def test_figures_of_a_known_case():
    found = attack([1.0, 2.0, 5.0], [3.0, 4.0, 6.0])
    assert found.auroc == pytest.approx(7 / 9)
    assert found.advantage == pytest.approx(2 / 3)
    assert (found.tpr, found.fpr) == (pytest.approx(2 / 3), 0.0)
    assert (found.member_loss, found.other_loss) == (pytest.approx(8 / 3), pytest.approx(13 / 3))


def test_with_a_hundred_others_one_of_them_may_be_taken_for_a_member():
    found = attack(np.linspace(0, 1, 50), np.linspace(0.005, 2, 100))
    assert found.fpr == pytest.approx(0.01)
    assert attack(np.linspace(0, 1, 50), np.linspace(0.005, 2, 99)).fpr == 0


def test_losses_that_are_higher_for_members_give_no_advantage():
    assert advantage(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 0


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_groups_that_cannot_be_compared_are_refused(members, others):
    with pytest.raises(EvaluationFailed, match="finite losses"):
        attack(members, others)
