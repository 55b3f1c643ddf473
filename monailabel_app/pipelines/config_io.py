"""Method configurations as plain YAML values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_type_hints

from monailabel_app.errors import CorruptModel


def config_to_plain(config: Any) -> dict[str, Any]:
    """A (nested) frozen dataclass as dicts and lists."""
    return _plain(asdict(config))


def config_from_plain(kind: type, values: dict[str, Any]) -> Any:
    """The inverse of ``config_to_plain``. Raises CorruptModel for a key the dataclass does not have."""
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
        made[name] = config_from_plain(nested, value) if is_dataclass(nested) else _tuples(value)
    return kind(**made)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
