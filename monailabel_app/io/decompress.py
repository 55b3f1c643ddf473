"""Compressed DICOM pixels, decoded by GDCM in a process of their own.

Decoders of JPEG, JPEG-LS and JPEG 2000 are large C libraries that a damaged file can crash or keep busy for ever. In a
child with a limit on memory and time that costs the one scan, not the server.

The child is this file run as a module: it reads {files, columns, rows} as JSON from its input, since paths may hold
names of patients and a command line is seen by everybody, and writes the slices as float32 to the file ``out``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monailabel_app.errors import UnreadableVolume

_ROOT = Path(__file__).resolve().parents[2]
_MEMORY = 3 * 2**30  # of addresses: the libraries alone take more than one
_SECONDS, _SECONDS_PER_MEGAVOXEL = 30, 5


def decode_slices(files: Sequence[str], columns: int, rows: int) -> np.ndarray:
    """The slices (columns, rows, slices) float32, slope and intercept applied. Raises UnreadableVolume."""
    count = len(files) * columns * rows
    seconds = _SECONDS + _SECONDS_PER_MEGAVOXEL * count / 1e6
    with tempfile.TemporaryDirectory(prefix="anomaly_dicom_") as folder:
        out = Path(folder) / "slices"
        task = {
            "files": [os.path.abspath(file) for file in files],
            "columns": columns,
            "rows": rows,
            "out": str(out),
            "memory": _MEMORY + 64 * columns * rows,
            "seconds": int(seconds),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "monailabel_app.io.decompress"],
                input=json.dumps(task).encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=_ROOT,
                # A server may be busy: the limit of processor time is the one that counts.
                timeout=10 * seconds,
                check=False,
            )
            data = np.fromfile(out, dtype=np.float32) if done.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            data = None
    if data is None or data.size != count:
        raise UnreadableVolume(
            "expected pixel data that GDCM can decode, got a damaged file or an unknown compression: export the series "
            "again, uncompressed"
        )
    return data.reshape(len(files), rows, columns).transpose(2, 1, 0)


def main() -> int:
    """The child."""
    task = json.load(sys.stdin)
    _limit(task["memory"], task["seconds"])
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with open(task["out"], "wb") as out:
        for file in task["files"]:
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(file)
            reader.ReadImageInformation()
            if tuple(reader.GetSize()) not in {(task["columns"], task["rows"]), (task["columns"], task["rows"], 1)}:
                return 3
            reader.SetOutputPixelType(sitk.sitkFloat32)
            sitk.GetArrayFromImage(reader.Execute()).tofile(out)
    return 0


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:
        # Not on Windows: there the limit of time alone holds.
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
