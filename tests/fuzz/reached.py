"""Which lines of some modules a corpus reaches: ``python tests/fuzz/reached.py TARGET FOLDER MODULE...``.

Lines of functions only: those of the module itself run when it is imported. A module is its path, such as
``lib/unpacking.py``.
"""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz.fuzz import target_of  # noqa: E402


def lines_of(path: Path) -> set[int]:
    """The lines of functions that can run."""
    return {line for code in _functions(compile(path.read_text(), str(path), "exec")) for line in _inside(code)}


def _functions(code: types.CodeType) -> Iterator[types.CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if inner.co_flags & 2:  # CO_NEWLOCALS, which a class body has not
                yield inner
            yield from _functions(inner)


def _inside(code: types.CodeType) -> set[int]:
    return {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}


def main() -> None:
    """Print, for each module, how many of its lines were reached."""
    target, seeds = target_of(sys.argv[1])
    wanted = {str(ROOT / name): set() for name in sys.argv[3:]}
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    def local(frame: types.FrameType, event: str, _: object):
        if event == "line":
            wanted[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    contents = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())] if sys.argv[2] != "-" else []
    sys.settrace(lambda frame, event, _: local if frame.f_code.co_filename in wanted else None)
    for content in (*seeds(), *contents):
        target(content)
    sys.settrace(None)
    for name in sys.argv[3:]:
        there = lines_of(ROOT / name)
        print(f"{name}: {len(wanted[str(ROOT / name)] & there)} of {len(there)}")


if __name__ == "__main__":
    main()
