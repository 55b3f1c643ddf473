"""One noisy step with the patient as the unit: who takes part, what each adds, and where the noise comes from.

A patient's contribution is the gradient of the *mean* loss over that patient's slices, clipped as a whole. Reverse-mode
differentiation gives exactly that vector in one pass per patient, so no gradient of a single slice is ever formed: any
layer can be tuned, and memory is that of one piece of one patient. Opacus' DPOptimizer clips, adds up and adds noise.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from monailabel_app.errors import InvalidSettings, TrainingFailed

from .cache import TrainingCache
from .privacy_settings import TRAINABLE
from .slices import SlicePool

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

_ATTENTION = {"attention", "attn", "attentions", "transformer_blocks"}
_STATISTICS = ("BatchNorm", "EMAQuantizer", "VectorQuantizer")
_CPU_STATE_BYTES, _WORDS, _WORDS_AT = 5056, 624, 24


class PatientPool:
    """The slices with brain of each patient. ``len`` is the number of patients, which counts as public."""

    def __init__(self, cache: TrainingCache, device: torch.device) -> None:
        self._slices = SlicePool(cache, device)
        patients = sorted(set(cache.patients))
        number = {patient: i for i, patient in enumerate(patients)}
        owner = torch.tensor([number[patient] for patient in cache.patients])[self._slices.index[:, 0]]
        self._rows = [torch.nonzero(owner == i).flatten() for i in range(len(patients))]

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, rate: float, generator: torch.Generator) -> list[int]:
        """Every patient independently with probability ``rate``; may be empty, and that is a step too."""
        drawn = torch.rand(len(self), generator=generator, dtype=torch.float64) < rate
        return torch.nonzero(drawn).flatten().tolist()

    def slices(self, patient: int, count: int, copies: int, generator: torch.Generator) -> torch.Tensor:
        """(n, 1, X, Y): ``copies`` of each of ``count`` random slices; none for a patient without brain.

        Without replacement, unless the patient has fewer.
        """
        rows = self._rows[patient]
        if len(rows) == 0:
            return self._slices.take(rows)
        if len(rows) >= count:
            chosen = torch.randperm(len(rows), generator=generator)[:count]
        else:
            chosen = torch.randint(len(rows), (count,), generator=generator)
        return self._slices.take(rows[chosen].repeat(copies))


def private_generators(seed: int | None, device: torch.device) -> tuple[torch.Generator, torch.Generator]:
    """(draws on the CPU, noise on ``device``), independent of each other.

    Without a seed both come from the operating system's entropy. A CPU generator of PyTorch uses only 32 bits of a
    seed, few enough to try them all, so the whole state of the Mersenne twister is filled instead (19,937 bits); a
    CUDA generator takes 64 bits. A seed is for tests: whoever knows it can subtract the noise.
    """
    draws, noise = torch.Generator(), torch.Generator(device=device)
    if seed is None:
        for generator in (draws, noise):
            _fill_from_entropy(generator)
    else:
        words = np.random.SeedSequence(seed).generate_state(2, np.uint32)
        for generator, word in zip((draws, noise), words, strict=True):
            generator.manual_seed(int(word))
    return draws, noise


def _fill_from_entropy(generator: torch.Generator) -> None:
    generator.manual_seed(secrets.randbits(63))
    state = generator.get_state()
    if generator.device.type != "cpu":
        return
    if state.numel() != _CPU_STATE_BYTES:
        raise TrainingFailed(
            f"expected a generator state of {_CPU_STATE_BYTES} bytes, got {state.numel()}: this version of PyTorch "
            "keeps it in another way; use the pinned version"
        )
    words = np.frombuffer(secrets.token_bytes(4 * _WORDS), np.uint32).astype(np.uint64)
    state[_WORDS_AT : _WORDS_AT + 8 * _WORDS] = torch.from_numpy(words.view(np.uint8).copy())
    generator.set_state(state)


def choose_trainable(network: nn.Module, part: str) -> list[str]:
    """Freeze all but ``part`` of a network and return the names of what is tuned.

    ``attention_and_last``: attention blocks and the output block (Lyu et al. 2023, DP-LDM, tune attention only);
    ``last``: the output block; ``all``. Raises InvalidSettings for another name.
    """
    if part not in TRAINABLE:
        raise InvalidSettings(f"expected the part to be tuned out of {', '.join(TRAINABLE)}, got {part!r}")
    last = _last_module(network)
    tuned = []
    for name, parameter in network.named_parameters():
        parts = set(name.split(".")[:-1])
        is_last = "out" in parts or name.startswith(f"{last}.")
        chosen = part == "all" or is_last or (part == "attention_and_last" and bool(parts & _ATTENTION))
        parameter.requires_grad_(chosen)
        if chosen:
            tuned.append(name)
    return tuned


def _last_module(network: nn.Module) -> str:
    """The name of the last module that has weights of its own."""
    owners = [name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if not owners:
        raise InvalidSettings("expected a network with weights, got one without")
    return owners[-1]


def refuse_batch_statistics(network: nn.Module) -> None:
    """Refuse layers that mix patients or remember them outside the gradient. Raises InvalidSettings naming them."""
    found = [
        f"{name} ({type(module).__name__})"
        for name, module in network.named_modules()
        if any(kind in type(module).__name__ for kind in _STATISTICS) or getattr(module, "track_running_stats", False)
    ]
    if found:
        raise InvalidSettings(
            f"expected group normalisation only in a private training, got {', '.join(found[:5])}: running statistics "
            "of private scans are outside the budget; use a network with GroupNorm"
        )


def backward(method: Any, network: nn.Module, config: Any, slices: torch.Tensor, generator, piece: int, cast) -> None:
    """Leave the gradient of the mean loss over all slices of one patient in ``.grad``, computed ``piece`` at a time.

    cast: makes the autocast context of one forward pass.
    """
    for part in slices.split(piece):
        with cast():
            loss = method.training_loss(network, config, part, generator)
        (loss * (len(part) / len(slices))).backward()


def add_patient(optimizer: DPOptimizer) -> None:
    """Clip the gradient in ``.grad`` to the norm C as one vector and add it to the step's sum.

    A gradient with NaN or infinity adds nothing: to stop the run there would tell something about that patient.
    """
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.float() for p in optimizer.params]
    whole = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    for parameter, gradient in zip(optimizer.params, gradients, strict=True):
        parameter.grad_sample = (gradient if whole else torch.zeros_like(gradient))[None]
    optimizer.signal_skip_step(True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def noisy_step(optimizer: DPOptimizer) -> None:
    """Add the noise to the sum (also to an empty one), divide by the *expected* number of patients, update."""
    for parameter in optimizer.params:
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
    optimizer.signal_skip_step(False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
