"""Method configurations as plain YAML values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from monailabel_app.errors import CorruptModel


def config_to_plain(config: Any) -> dict[str, Any]:
    """A (nested) frozen dataclass as dicts and lists."""
    return _plain(asdict(config))


def config_from_plain(kind: type, values: dict[str, Any]) -> Any:
    """The inverse of ``config_to_plain``.

    Raises CorruptModel for a key the dataclass does not have, and for a value of another kind: it would be an error in
    the middle of an analysis.
    """
    if not isinstance(values, Mapping):
        raise CorruptModel(
            f"expected key: value pairs for {kind.__name__}, got {type(values).__name__}; restore the model"
        )
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise CorruptModel(
            f"expected configuration keys out of {sorted(known)}, got {sorted(unknown)}; restore the model"
        )
    made = {}
    for name, value in values.items():
        nested = hints[name]
        if is_dataclass(nested):
            made[name] = config_from_plain(nested, value)
            continue
        made[name] = _tuples(value)
        if not _fits(made[name], nested):
            wanted = nested.__name__ if isinstance(nested, type) and not get_args(nested) else nested
            raise CorruptModel(
                f"expected {wanted} for {name} in the configuration, got {str(value)[:40]!r}; restore the model"
            )
    return kind(**made)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a kind: bool, int, float, str, None, tuples of them, one of a few values or kinds."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in {Union, UnionType}:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1:] == (...,) else parts
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if hint in {int, float}:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (hint is float and isinstance(value, float))
    return isinstance(value, hint) if isinstance(hint, type) else True


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
