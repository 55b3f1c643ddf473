"""Brain extraction by HD-BET, when the user has installed it.

HD-BET (Isensee et al., Human Brain Mapping 2019) was trained on many more brains than the shipped network and
is far slower without a GPU. It is called through its own command line, version 2, in its own process; here a
file is only handed over and a mask read back. HD-BET is never started without its parameters, so that it
downloads nothing by itself.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from monailabel_app.errors import BrainNotFound, InvalidSettings
from monailabel_app.types import Volume

logger = logging.getLogger(__name__)

_INSTALL = (
    "install it with 'pip install hd-bet' and run 'hd-bet' once by hand, so that it fetches its parameters"
)
_TIMEOUT_SECONDS = 1800


def hd_bet_mask(volume: Volume, device: str = "cpu") -> np.ndarray:
    """The brain mask (x, y, z) bool that HD-BET finds, on the volume's own grid.

    Raises InvalidSettings if HD-BET or its parameters are not installed, BrainNotFound if it fails.
    """
    command = shutil.which("hd-bet")
    if command is None:
        raise InvalidSettings(
            f"backend 'hd_bet' expects the program hd-bet, which is not installed: {_INSTALL}"
        )
    if not (_parameter_folder() / "fold_all" / "checkpoint_final.pth").is_file():
        raise InvalidSettings(
            f"backend 'hd_bet' expects HD-BET's parameters, which are not there: {_INSTALL}"
        )
    with tempfile.TemporaryDirectory(prefix="brain_") as name:
        scan, out = Path(name) / "scan.nii.gz", Path(name) / "out.nii.gz"
        nib.save(nib.Nifti1Image(volume.data[0], volume.affine), scan)
        arguments = [
            command,
            "-i",
            str(scan),
            "-o",
            str(out),
            "-device",
            "cuda" if "cuda" in device else device,
        ]
        arguments += ["--save_bet_mask", "--no_bet_image"]
        if "cuda" not in device:
            arguments.append("--disable_tta")  # eight times faster, as HD-BET recommends without a GPU
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise BrainNotFound(
                f"expected HD-BET to finish within {_TIMEOUT_SECONDS // 60} minutes, "
                "it did not: use backend 'network'"
            ) from None
        masks = sorted(Path(name).glob("out_*.nii.gz"))
        if done.returncode != 0 or not masks:
            logger.warning("hd-bet returned %d", done.returncode)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BrainNotFound(f"expected a mask from HD-BET, it failed with: {last}; use backend 'network'")
        mask = np.asarray(nib.load(masks[0]).dataobj) > 0
    if mask.shape != volume.shape:
        raise BrainNotFound(f"expected a mask of shape {volume.shape} from HD-BET, got {mask.shape}")
    return mask


def _parameter_folder() -> Path:
    """Where HD-BET 2 keeps its parameters: as it says itself if importable here, else its default."""
    try:
        return Path(importlib.import_module("HD_BET.paths").folder_with_parameter_files)
    except (ImportError, AttributeError):
        return Path.home() / "hd-bet_params" / "release_2.0.0"
