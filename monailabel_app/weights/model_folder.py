"""Model folders: config.yaml, model.safetensors, calibration files, card.md, and the sha256 of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from monailabel_app.errors import CorruptModel

CONFIG, WEIGHTS, CARD, SUMS = "config.yaml", "model.safetensors", "card.md", "sha256sums.txt"
VERSIONS = "versions"
_DECIDING = (CONFIG, WEIGHTS, "calibration.")
_VERSION = re.compile(r"[0-9]{4,8}")
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class ModelFolder:
    """A verified model folder. hash: of its checksum list, so it names weights, settings and calibration together."""

    path: Path
    config: Mapping[str, Any]
    hash: str

    @property
    def id(self) -> str:
        """``ddpm_t1@0002`` for a published version (``ddpm_t1/versions/0002``), else the folder's name."""
        return model_id(self.path)

    def weights(self) -> dict[str, torch.Tensor]:
        """The network's tensors in float32. Raises CorruptModel when the file cannot be read."""
        try:
            return {name: _wide(tensor) for name, tensor in load_file(str(self.path / WEIGHTS)).items()}
        except (OSError, SafetensorError) as error:
            raise CorruptModel(
                f"expected readable weights in {self.id}/{WEIGHTS}, got {error}; restore the file"
            ) from error


def is_version(text: str) -> bool:
    """Whether a folder name is a version number, such as ``0002``."""
    return bool(_VERSION.fullmatch(text))


def model_id(path: Path) -> str:
    """The id of the model in a folder: ``name@version`` of a published version, else the folder's name."""
    if path.parent.name == VERSIONS and is_version(path.name):
        return f"{path.parent.parent.name}@{path.name}"
    return path.name


def open_model_folder(path: Path) -> ModelFolder:
    """Verify every file against sha256sums.txt and read the configuration.

    Raises CorruptModel that names the file which is missing or does not match.
    """
    path = Path(path)
    hashes = verify(path)
    try:
        config = yaml.safe_load((path / CONFIG).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CorruptModel(f"expected a readable {path.name}/{CONFIG}, got {error}; restore the file") from error
    if not isinstance(config, Mapping):
        raise CorruptModel(f"expected key: value pairs in {path.name}/{CONFIG}, got {type(config).__name__}")
    return ModelFolder(path, config, hashes)


def verify(path: Path, required: Sequence[str] = (CONFIG, WEIGHTS)) -> str:
    """Check the folder against its checksum list and return the list's own sha256.

    required: files that the list has to name. Raises CorruptModel that names the first file which is missing, not
    listed or different.
    """
    sums = path / SUMS
    if not sums.is_file():
        raise CorruptModel(f"expected the checksum list {SUMS} in model folder {path.name}, found none; restore it")
    entries = [_SUM_LINE.fullmatch(line) for line in sums.read_text(errors="replace").splitlines() if line.strip()]
    if not entries or not all(entries):
        raise CorruptModel(f"expected lines '<sha256>  <file>' in {path.name}/{SUMS}, got something else; restore it")
    listed = {entry.group(2) for entry in entries}
    for name in required:
        if name not in listed:
            raise CorruptModel(f"expected the checksum of {name} in {path.name}/{SUMS}, found none; restore the folder")
    for entry in entries:
        wanted, name = entry.groups()
        file = path / Path(name).name
        if not file.is_file():
            raise CorruptModel(f"expected the file {name} in model folder {path.name}, it is missing; restore it")
        found = sha256_of(file)
        if found != wanted:
            raise CorruptModel(
                f"expected {path.name}/{name} with sha256 {wanted[:12]}, got {found[:12]}; the file was changed or "
                "damaged, restore it"
            )
    return hashlib.sha256(sums.read_bytes()).hexdigest()


def result_hash(path: Path) -> str:
    """sha256 of what decides the results of a model: its configuration, weights and calibration, as listed.

    Unlike the folder's hash it stays when the card is rewritten. Nothing is verified here. Raises CorruptModel when
    there is no checksum list.
    """
    return _hash_of(path, _DECIDING)


def weights_hash(path: Path) -> str:
    """sha256 of what a calibration belongs to: configuration and weights, as listed; as ``result_hash`` otherwise."""
    return _hash_of(path, (CONFIG, WEIGHTS))


def calibration_hash(path: Path) -> str:
    """sha256 of the calibration in a model folder, as listed; as ``result_hash`` otherwise."""
    return _hash_of(path, ("calibration.",))


def seal(path: Path, required: Sequence[str] = (CONFIG, WEIGHTS)) -> str:
    """Write sha256sums.txt over every other file of the folder; returns the folder's hash."""
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name != SUMS)
    (path / SUMS).write_text("".join(f"{sha256_of(file)}  {file.name}\n" for file in files))
    return verify(path, required)


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """config.yaml, keys in the given order."""
    (path / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False, width=110))


def write_weights(path: Path, state: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> None:
    """model.safetensors; bfloat16 halves it and is what inference computes with."""
    tensors = {
        name: (tensor.detach().cpu().to(dtype) if tensor.is_floating_point() else tensor.detach().cpu()).contiguous()
        for name, tensor in state.items()
    }
    save_file(tensors, str(path / WEIGHTS))


def sha256_of(file: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash_of(path: Path, prefixes: tuple[str, ...]) -> str:
    try:
        lines = (path / SUMS).read_text(errors="replace").splitlines()
    except OSError as error:
        raise CorruptModel(f"expected the checksum list {SUMS} in model folder {path.name}; restore it") from error
    entries = [match.groups() for line in lines if (match := _SUM_LINE.fullmatch(line))]
    deciding = [f"{name}:{value}" for value, name in entries if name.startswith(prefixes)]
    return hashlib.sha256("\n".join(sorted(deciding)).encode()).hexdigest()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
