"""Descriptions of data sets as YAML: read within limits, every key checked, every path kept inside its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monailabel_app.errors import EvaluationFailed, InvalidSettings

_LARGEST_BYTES = 256 * 2**10
_DEEPEST = 8
_MOST_NODES = 20_000
WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Keys:
    """The ``key: value`` pairs of a description, or of a part of it.

    file: for messages; prefix: of nested keys. own: a user's own description, whose paths may be absolute.
    """

    values: Mapping[str, Any]
    file: str
    prefix: str = ""
    own: bool = False

    def error(self, key: str, expected: str, came: str) -> InvalidSettings:
        """The error of one key."""
        return InvalidSettings(f"{self.file}: {self.prefix}{key}: expected {expected}, got {came}")

    def only(self, known: Collection[str]) -> None:
        """Raises InvalidSettings for a key that is not one of ``known``."""
        unknown = [str(key)[:40] for key in self.values if key not in known]
        if unknown:
            raise InvalidSettings(
                f"{self.file}: {self.prefix}{unknown[0]}: expected one of the keys {', '.join(sorted(known))}, got "
                f"{', '.join(map(repr, unknown[:5]))}"
            )

    def has(self, key: str) -> bool:
        """Whether a value is given (null counts as not given)."""
        return self.values.get(key) is not None

    def text(self, key: str, default: str | None = None, *, longest: int = 2000) -> str:
        """A text. Raises InvalidSettings; without a ``default`` the key must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, str) and value.strip() and len(value) <= longest and "\0" not in value:
            return value.strip()
        raise self.error(key, f"a text of at most {longest} characters", _came(value))

    def texts(self, key: str) -> tuple[str, ...]:
        """A text or a list of texts; empty where the key is not given."""
        value = self.values.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if all(isinstance(item, str) and item.strip() and "\0" not in item and names_fit(item) for item in listed):
            return tuple(item.strip() for item in listed)
        raise self.error(key, "a text or a list of texts, as names of files can be", _came(value))

    def words(self, key: str) -> tuple[str, ...]:
        """A plain value or a list of them, as texts: what the cells of a table are compared with."""
        value = self.values.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(item, bool) for item in listed):
            raise self.error(key, "texts or numbers", "yes, no, true or false without quotes; write them as 'yes'")
        if all(isinstance(item, (str, int, float)) for item in listed):
            return tuple(str(item).strip() for item in listed)
        raise self.error(key, "a value or a list of values", _came(value))

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key, default)
        if isinstance(value, bool):
            return value
        raise self.error(key, "true or false", _came(value))

    def number(self, key: str, default: float | None, low: float, high: float) -> float | None:
        """A number from ``low`` to ``high``."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise self.error(key, f"a number from {low:g} to {high:g}", _came(value))

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.values.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise self.error(key, f"a whole number from {low} to {high}", _came(value))

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> str:
        """One of some words."""
        value = self.values.get(key, default)
        if isinstance(value, str) and value in choices:
            return value
        raise self.error(key, f"one of {', '.join(choices)}", _came(value))

    def part(self, key: str) -> Keys:
        """The nested ``key: value`` pairs under a key; empty where it is not given."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.error(key, "key: value pairs", _came(value))
        return Keys(value, self.file, f"{self.prefix}{key}.", self.own)

    def path(self, key: str, root: Path) -> Path:
        """A path below ``root``, or an absolute one in a user's own description. Raises InvalidSettings."""
        said = self.text(key, longest=1000)
        if self.own and Path(said).expanduser().is_absolute():
            return absolute(Path(said))
        return inside(root, said, f"{self.file}: {self.prefix}{key}")


def read_description(path: Path, own: bool = False) -> Keys:
    """The pairs of a YAML file. No image is read. own: see ``Keys``.

    Raises InvalidSettings: not YAML, too large or too deep, aliases (which can blow up what a file says), a key given
    twice, or something other than ``key: value`` pairs.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise InvalidSettings(
                f"{path.name}: expected a description of at most {_LARGEST_BYTES // 1024} KiB, got a larger file; "
                "lists of scans belong in a table (layout: csv)"
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidSettings(
            f"{path.name}: expected a readable description of a data set, got {type(error).__name__}"
        ) from None
    except UnicodeDecodeError:
        raise InvalidSettings(f"{path.name}: expected a text file in UTF-8, got other bytes") from None
    try:
        _check_events(text, path.name)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise InvalidSettings(f"{path.name}: {where}expected YAML, got an error: {problem}") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise InvalidSettings(f"{path.name}: expected plain YAML values, got {type(error).__name__}") from None
    if not isinstance(values, dict) or not values:
        raise InvalidSettings(f"{path.name}: expected key: value pairs, got {_came(values)}")
    return Keys(values, path.name, own=own)


def _check_events(text: str, name: str) -> None:
    """Refuse what ``yaml.safe_load`` would accept silently. Works on events, so that depth costs nothing."""
    stack: list[set[str] | None] = []
    expects_key: list[bool] = []
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1
        if count > _MOST_NODES:
            raise InvalidSettings(f"{name}: expected at most {_MOST_NODES} values, got more")
        if isinstance(event, yaml.AliasEvent):
            raise InvalidSettings(f"{name}: line {line}: expected plain values, got an alias (*); write the value out")
        opens = isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
        if (opens or isinstance(event, yaml.ScalarEvent)) and stack and stack[-1] is not None:
            if expects_key[-1]:
                if opens:
                    raise InvalidSettings(f"{name}: line {line}: expected a text as key, got a list or pairs")
                if event.value in stack[-1]:
                    raise InvalidSettings(f"{name}: line {line}: expected each key once, got {event.value[:9]!r} twice")
                stack[-1].add(event.value)
            expects_key[-1] = not expects_key[-1]
        if opens:
            if len(stack) >= _DEEPEST:
                raise InvalidSettings(f"{name}: line {line}: expected at most {_DEEPEST} levels, got more")
            stack.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            expects_key.append(True)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            stack.pop()
            expects_key.pop()


def inside(root: Path, relative: str, where: str) -> Path:
    """A path below ``root``; one that is absolute must lie there, too. Raises InvalidSettings.

    ``..`` is taken away before comparing; links are followed by whoever reads, and are the folder owner's business.
    """
    if "\0" in relative or not names_fit(relative):
        raise InvalidSettings(f"{where}: expected a path with names of usual length, got {relative[:40]!r}")
    made = Path(os.path.normpath(root / relative))
    if made != root and root not in made.parents:
        raise InvalidSettings(
            f"{where}: expected a path inside the root {root}, got {relative[:120]!r}, which leaves it; give a root "
            "(an absolute one in your own description) that holds everything"
        )
    return made


def names_fit(path: str) -> bool:
    """Whether a path, and each name in it, is short enough for a file system."""
    try:
        return len(path) <= 1000 and all(len(os.fsencode(part)) <= 255 for part in path.split("/"))
    except UnicodeEncodeError:
        return False


def absolute(path: Path) -> Path:
    """Without ``..`` and ``~``; links stay."""
    return Path(os.path.abspath(Path(path).expanduser()))


def require_files(name: str, missing: list[tuple[str, Path]], count: int) -> None:
    """Raises EvaluationFailed when files of the description ``name`` are missing: (key, path) each, of ``count``."""
    if missing:
        listed = "; ".join(f"{key}: {path}" for key, path in missing[:3])
        raise EvaluationFailed(
            f"{name}: expected {count} files, {len(missing)} are not there: {listed}"
            f"{' ...' if len(missing) > 3 else ''}; restore them, correct the description, or say missing: skip"
        )


def _came(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "key: value pairs" if isinstance(value, dict) else "a list"
    return repr(value)[:60]
