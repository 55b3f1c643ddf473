"""Style-based generator and its inversion: modulation, whose gradient is whose, and projection by back-propagation."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from monailabel_app.errors import InvalidSettings
from monailabel_app.methods import stylegan2_inversion as method
from monailabel_app.networks.stylegan2 import (
    Discriminator,
    Generator,
    ModulatedConv,
    StyleGanConfig,
    minibatch_deviation,
)

SIZE = (32, 40)
CONFIG = replace(method.TINY, network=replace(method.TINY.network, size=SIZE))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> method.StyleGan:
    torch.manual_seed(0)
    return method.build(CONFIG)


def brains(count: int = 8, seed: int = 0) -> torch.Tensor:
    """Ellipses of varying size and grey, (n, 1, X, Y)."""
    drawn = torch.rand((count, 3, 1, 1), generator=seeded(seed))
    x, y = torch.linspace(-1, 1, SIZE[0])[:, None], torch.linspace(-1, 1, SIZE[1])
    inside = (x / (0.5 + 0.4 * drawn[:, 0])) ** 2 + (y / (0.5 + 0.4 * drawn[:, 1])) ** 2 < 1
    return (inside * (0.4 + 0.4 * drawn[:, 2]))[:, None]


def gradients(model: method.StyleGan, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, values, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(v) if g is None else g for n, v, g in zip(names, values, found, strict=True)}


def test_modulating_the_features_is_modulating_the_kernels():
    """Against the paper's definition: one kernel per slice, scaled and normalised, as a grouped convolution."""
    torch.manual_seed(1)
    layer = ModulatedConv(5, 7, 3, latent=4)
    features, latent = torch.randn(3, 5, 8, 6), torch.randn(3, 4)
    kernels = layer.conv.weight[None] / (5 * 9) ** 0.5 * layer.style(latent)[:, None, :, None, None]
    kernels = kernels / (kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    expected = functional.conv2d(features.reshape(1, 15, 8, 6), kernels.reshape(21, 5, 3, 3), padding=1, groups=3)
    torch.testing.assert_close(layer(features, latent), expected.reshape(3, 7, 8, 6), atol=1e-5, rtol=1e-4)


def test_demodulation_keeps_the_features_unit_size_whatever_the_style():
    torch.manual_seed(1)
    layer = ModulatedConv(16, 16, 3, latent=4)
    features = torch.randn(2, 16, 32, 32)
    for strength in (0.1, 10.0):
        made = layer(features, strength * torch.randn(2, 4)).detach()
        assert float(made[..., 1:-1, 1:-1].std()) == pytest.approx(1, abs=0.15)


def test_noise_counts_as_much_as_the_layer_learnt(model):
    latents = torch.randn(2, CONFIG.network.styles, CONFIG.network.latent)
    noise = [torch.randn(shape) for shape in model.generator.noise_shapes(2, SIZE)]
    torch.testing.assert_close(model.generator(latents, noise), model.generator(latents))
    with torch.no_grad():
        model.generator.layers[-1].noise_strength.fill_(0.5)
    assert (model.generator(latents, noise) - model.generator(latents)).abs().mean() > 0.01


@pytest.mark.parametrize("block_size", [1, 2])
def test_slices_of_another_size_than_the_constant_s_are_served(block_size):
    config = StyleGanConfig(size=(16, 24), channels=(8, 8), latent=8, block_size=block_size)
    generator, latents = Generator(config), torch.randn(2, config.styles, 8)
    assert generator(latents).shape == (2, 1, 16, 24)
    assert generator(latents, None, (32, 16)).shape == (2, 1, 32, 16)
    assert [tuple(s[2:]) for s in generator.noise_shapes(2, (32, 16))][-1] == (32 // block_size, 16 // block_size)
    assert Discriminator(config)(torch.rand(2, 1, 32, 16)).shape == (2,)
    with pytest.raises(InvalidSettings, match="multiples"):
        Generator(replace(config, size=(17, 24)))


def test_a_batch_of_equal_slices_is_told_by_its_deviation():
    one = torch.randn(1, 3, 4, 5)
    assert minibatch_deviation(one.repeat(8, 1, 1, 1)).max() == pytest.approx(1e-4, rel=0.1)
    assert minibatch_deviation(torch.randn(8, 3, 4, 5)).mean() > 0.5
    assert minibatch_deviation(torch.randn(6, 3, 4, 5)).shape == (6, 1, 4, 5)


def test_each_network_gets_the_gradient_of_its_own_loss(model):
    """Equal to the gradients of the three losses taken apart, with the others' networks left out by hand."""
    config = replace(CONFIG, r1_share=1.0, generator_reconstructs=False)
    batch = brains()
    together = gradients(model, method.training_loss(model, config, batch, seeded(5)))

    made = method.generate(model, config, batch.shape, seeded(5))
    real, fake = model.discriminator(batch), model.discriminator(made)
    judged = functional.softplus(-real).mean() + functional.softplus(fake).mean()
    judged = judged + 0.5 * method.gradient_penalty(model.discriminator, batch)
    fooled = functional.softplus(-fake).mean()
    apart = {"discriminator": gradients(model, judged), "generator": gradients(model, fooled)}
    for name, found in together.items():
        network = name.split(".")[0]
        if network in apart:
            torch.testing.assert_close(found, apart[network][name], atol=1e-5, rtol=1e-3, msg=name)
    # The same losses without that separation would be others: the test can fail.
    mixed = gradients(model, judged + fooled)
    for network in apart:
        assert any(
            not torch.allclose(mixed[name], value, atol=1e-5, rtol=1e-3)
            for name, value in together.items()
            if name.startswith(network)
        )


def test_the_encoder_s_loss_reaches_the_generator_only_where_it_may_and_never_the_discriminator(model):
    batch = brains()
    for shared in (True, False):
        error, _ = method._reconstruction_error(model, replace(CONFIG, generator_reconstructs=shared), batch)
        reached = {name.split(".")[0] for name, value in gradients(model, error).items() if value.abs().sum() > 0}
        assert reached == ({"encoder", "generator"} if shared else {"encoder"})


def test_the_gradient_penalty_is_the_squared_slope(model):
    slope = torch.randn(1, 1, *SIZE, generator=seeded(1))
    penalty = method.gradient_penalty(lambda images: (images * slope).sum(dim=(1, 2, 3)), brains(4))
    assert penalty == pytest.approx(float(slope.square().sum()), rel=1e-5)


def test_the_penalty_is_paid_seldom_and_weighs_as_much_as_always(model):
    model.encoder = None  # leaves the adversarial losses, which have no memory without augmentation
    batch, always = brains(), replace(CONFIG, r1_share=1.0, r1_weight=1000.0, augmentation=None)
    never, seldom = replace(always, r1_share=0.0), replace(always, r1_share=0.25)

    def loss(config, seed=0):
        return float(method.training_loss(model, config, batch, seeded(seed)).detach())

    constant = loss(always) - loss(never)
    paid = [loss(seldom, seed) - loss(never, seed) for seed in range(16)]
    assert sorted({round(value / constant, 1) for value in paid}) == [0.0, 4.0]


def test_augmentation_keeps_what_it_is_not_asked_to_change_and_passes_gradients():
    images = brains(64).requires_grad_()
    assert method.augment(images, 0.0, seeded()) is images
    changed = method.augment(images, 0.5, seeded())
    same = (changed == images).flatten(1).all(dim=1).float().mean()
    assert 0.05 < same < 0.5  # nothing happens with 0.5 * 0.5 * 0.75, and a mirrored ellipse is the same
    assert (changed.amin(dim=(1, 2, 3)) == 0).all()
    changed.sum().backward()
    assert (images.grad > 0).all()


def test_the_augmentation_follows_the_discriminator_s_certainty(model):
    for logit, expected in ((1.0, 0.1), (-1.0, 0.0)):
        model.augmentation.fill_(0.1 - 64 / 20_000 if logit > 0 else 64 / 20_000)
        method._adapt(model, CONFIG, torch.full((64,), logit))
        assert float(model.augmentation) == pytest.approx(expected, abs=1e-6)


def test_training_remembers_where_the_latents_lie_but_validation_does_not(model):
    batch = brains()
    for _ in range(3):
        method.training_loss(model, CONFIG, batch, seeded())
    before = model.latent_mean.clone()
    assert before.abs().sum() > 0
    with torch.inference_mode():
        held_out = method.training_loss(model, CONFIG, batch, seeded())
        torch.testing.assert_close(held_out, method.training_loss(model, CONFIG, batch, seeded(7)))
    torch.testing.assert_close(model.latent_mean, before)


def test_the_same_seed_gives_the_same_loss(model):
    first, second, other = (
        float(method.training_loss(deepcopy(model), CONFIG, brains(), seeded(seed)).detach()) for seed in (3, 3, 4)
    )
    assert first == pytest.approx(second, rel=1e-6)
    assert abs(first - other) > 1e-3


@pytest.mark.parametrize(
    ("mode", "space"), [(torch.inference_mode, "w"), (torch.inference_mode, "w+"), (torch.no_grad, "w+")]
)
def test_projection_finds_a_slice_that_the_generator_can_make(model, mode, space):
    """From the mean latent to another one: the error falls under any gradient mode, and the weights stay."""
    config = replace(
        CONFIG,
        network=replace(CONFIG.network, encoder=False),
        projection=method.ProjectionConfig(steps=40, learning_rate=0.1, space=space, latent_weight=0.0),
    )
    model = method.build(config)
    with torch.no_grad():
        model.generator.bias.fill_(0.5)
        wanted = model.generator(torch.randn(3, 1, 16, generator=seeded(1)).expand(-1, CONFIG.network.styles, -1))
        wanted = wanted.clamp(0, 1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with mode():
        target = wanted.clone()  # made in that mode, as the pipeline's images are
        begin, _ = method.project(model, method.light(config), target, seeded())
        made, latents = method.project(model, config, target, seeded())
    start = model.generator(torch.zeros(1, CONFIG.network.styles, 16)).clamp(0, 1)
    assert (made - wanted).abs().mean() < 0.4 * (start - wanted).abs().mean()
    assert (made - wanted).abs().mean() < (begin - wanted).abs().mean()
    assert latents.shape == (3, CONFIG.network.styles, 16)
    assert (latents[:, 0] == latents[:, 1]).all() == (space == "w")
    assert all(value.grad is None for value in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=0, rtol=0)


def test_slices_do_not_influence_each_other_s_projection(model):
    config = replace(CONFIG, projection=replace(CONFIG.projection, steps=8, jitter=0.0))
    slices = brains(4)
    together, _ = method.project(model, config, slices, seeded())
    alone, _ = method.project(model, config, slices[2:3], seeded())
    torch.testing.assert_close(together[2:3], alone, atol=2e-4, rtol=1e-3)


def test_the_noise_is_projected_onto_only_if_asked_and_stays_noise(model):
    with torch.no_grad():
        for layer in model.generator.layers:
            layer.noise_strength.fill_(0.3)
    slices = brains(2)
    without = replace(CONFIG, projection=replace(CONFIG.projection, steps=8, jitter=0.0))
    with_noise = replace(without, projection=replace(without.projection, noise=True, noise_weight=0.0))
    plain, drawn = (method.project(model, c, slices, seeded())[0] for c in (without, with_noise))
    again = method.project(model, with_noise, slices, seeded(1))[0]
    assert not torch.equal(drawn, again)
    assert not torch.equal(plain, drawn)
    torch.testing.assert_close(plain, method.project(model, without, slices, seeded(1))[0], atol=0, rtol=0)
    white = torch.randn(2, 1, *SIZE, generator=seeded())
    smooth = functional.avg_pool2d(white, 5, stride=1, padding=2)
    assert method.noise_correlation(smooth / smooth.std()).min() > 10 * method.noise_correlation(white).max()


def test_a_lesion_is_left_out_of_the_projection():
    """After a few hundred steps on ellipses, an ellipse with a spot comes back without it: the spot is what remains."""
    torch.manual_seed(0)
    config = replace(
        CONFIG,
        network=StyleGanConfig(size=SIZE, channels=(24, 16, 12), latent=16, mapping_layers=2),
        projection=method.ProjectionConfig(steps=15),
    )
    model = method.build(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.0, 0.99), weight_decay=0.0)
    generator = seeded()
    for step in range(90):
        optimizer.zero_grad()
        method.training_loss(model, config, brains(8, seed=step), generator).backward()
        optimizer.step()
    image = brains(6, seed=1000)[:, 0].permute(1, 2, 0).contiguous()
    spot = torch.zeros(SIZE, dtype=torch.bool)
    spot[13:18, 17:23] = True
    scan = image.clone()
    scan[spot] = 1.0
    seen = []
    with torch.inference_mode():
        output = method.analyse(model, config, scan, scan > 0, seeded(), progress=seen.append)
    residual = (scan - output.reconstruction)[spot].mean()
    elsewhere = (scan - output.reconstruction)[(scan > 0).all(dim=2) & ~spot].abs().mean()
    assert residual > 2 * elsewhere
    assert output.figures["projection_error"] > 0
    assert output.figures["latent_distance"] > 0
    assert seen[-1] == 1.0
    assert 0 <= output.reconstruction.min() <= output.reconstruction.max() <= 1


def test_slices_without_brain_cost_nothing(model, monkeypatch):
    counts = []
    project = method.project
    monkeypatch.setattr(method, "project", lambda m, c, s, *rest: counts.append(len(s)) or project(m, c, s, *rest))
    image = torch.zeros(*SIZE, 6)
    image[..., 2] = brains(1)[0, 0]
    output = method.analyse(model, CONFIG, image, image > 0, seeded())
    assert counts == [1]
    assert (output.reconstruction[..., [0, 1, 3, 4, 5]] == 0).all()
    empty = method.analyse(model, CONFIG, torch.zeros(*SIZE, 2), torch.zeros(*SIZE, 2, dtype=torch.bool), seeded())
    assert empty.figures == {}
    assert (empty.reconstruction == 0).all()


def test_the_quick_configuration_takes_the_encoder_s_word(model):
    quick = method.light(replace(CONFIG, projection=replace(CONFIG.projection, noise=True)))
    slices = brains(2)
    made, latents = method.project(model, quick, slices, seeded())
    with torch.no_grad():
        expected, _ = model.encoder(slices, model.latent_mean)
    torch.testing.assert_close(latents, expected, atol=0.05, rtol=0.05)
    assert made.shape == slices.shape


def test_compact_weights_are_small_enough_to_ship():
    with torch.device("meta"):
        assert sum(p.numel() for p in method.build(method.COMPACT).parameters()) <= 1_500_000


def test_half_of_the_adversarial_work_leaves_the_encoder_the_whole_batch(model):
    seen = {}

    def counts(name):
        def hook(_, inputs, __):
            seen.setdefault(name, len(inputs[0]))

        return hook

    for name in ("discriminator", "encoder"):
        getattr(model, name).register_forward_hook(counts(name))
    method.training_loss(model, replace(CONFIG, adversarial_share=0.5), brains(8), seeded())
    assert seen == {"discriminator": 4, "encoder": 8}


def test_the_published_kind_of_model_trains_and_projects_without_an_encoder():
    network = replace(method.LARGE.network, size=SIZE, channels=(8, 8), latent=8)
    config = replace(method.LARGE, network=network, projection=replace(method.LARGE.projection, steps=4))
    model = method.build(config)
    assert model.encoder is None
    loss = method.training_loss(model, config, brains(4), seeded())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.inference_mode():
        assert torch.isfinite(method.training_loss(model, config, brains(4), seeded()))
        made, latents = method.project(model, config, brains(2), seeded())
    assert made.shape == (2, 1, *SIZE)
    assert (latents[:, 0] == latents[:, 1]).all()
