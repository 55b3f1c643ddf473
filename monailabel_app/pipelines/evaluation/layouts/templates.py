"""Texts with ``{fields}``: filled from a row, or read backwards out of the paths in a folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from monailabel_app.errors import InvalidSettings

from ..description_file import Keys, inside

_FIELD = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,63}")
_MOST_FILES = 1_000_000
_MOST_FIELDS = 12  # each can be matched in many ways


class Template:
    """A text such as ``sub-{subject}/flair.nii.gz`` under ``key`` of a description.

    known: the fields that there are; None leaves that to ``fill``. Raises InvalidSettings for braces without a name
    and for unknown fields.
    """

    def __init__(self, keys: Keys, key: str, text: str, known: Collection[str] | None) -> None:
        self.text, self._keys, self._key = text, keys, key
        self.fields = tuple(_FIELD.findall(text))
        rest = _FIELD.sub("", text)
        if "{" in rest or "}" in rest or not all(_NAME.fullmatch(name) for name in self.fields):
            raise keys.error(key, "fields as {name} in the text", repr(text[:80]))
        if known is not None:
            self._check(known)

    def _check(self, known: Collection[str]) -> None:
        unknown = [name for name in self.fields if name not in known]
        if unknown:
            raise self._keys.error(
                self._key, f"fields out of {', '.join(sorted(known)) or 'none'}", f"{{{unknown[0]}}}"
            )

    def complete(self, fields: Mapping[str, str]) -> bool:
        """Whether every field has a value; an empty cell of a table says that there is no such file."""
        self._check(fields)
        return all(fields[name].strip() for name in self.fields)

    def fill(self, fields: Mapping[str, str], where: str) -> str:
        """The text of one row. Raises InvalidSettings for a field that is not there."""
        self._check(fields)
        return _FIELD.sub(lambda match: fields[match[1]].strip(), self.text)

    def path(self, fields: Mapping[str, str], root: Path, where: str) -> Path:
        """The text of one row as a path below ``root``.

        A user's own description may start it with an absolute folder; it stays below that. Raises InvalidSettings.
        """
        text = self.fill(fields, where)
        if self._keys.own and self.text.startswith("/"):
            root = Path(self.text.partition("{")[0].rpartition("/")[0] or "/")
        return inside(root, text, f"{self._keys.file}: {where}: {self._key}")


def matches(keys: Keys, key: str, text: str, root: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The files and DICOM folders below ``root`` of a pattern, sorted, each with what its fields stand for.

    A field or ``*`` stands for a part of one name, never for several folders.
    """
    template = Template(keys, key, text, None)
    if text.startswith("/") or ".." in Path(text).parts or "**" in text or "[" in text:
        raise keys.error(key, "a pattern inside the root, of names, {fields}, * and ?", repr(text[:80]))
    if len(template.fields) + text.count("*") > _MOST_FIELDS:
        raise keys.error(key, f"at most {_MOST_FIELDS} fields and * in a pattern", repr(text[:80]))
    pattern = re.compile(_as_regex(text))
    glob = re.sub(r"\*+", "*", _FIELD.sub("*", text))
    for count, path in enumerate(sorted(root.glob(glob))):
        if count >= _MOST_FILES:
            raise InvalidSettings(f"{keys.file}: {key}: expected at most {_MOST_FILES} files, found more")
        found = pattern.fullmatch(path.relative_to(root).as_posix())
        if found and not any(part.startswith(".") for part in path.relative_to(root).parts):
            values = found.groups()
            yield path, dict(zip(dict.fromkeys(template.fields), values, strict=True))


def _as_regex(text: str) -> str:
    made, seen, position = "", {}, 0
    for match in _FIELD.finditer(text):
        made += _plain(text[position : match.start()])
        name = match[1]
        if name in seen:
            made += f"(?:\\{seen[name]})"
        else:
            seen[name] = len(seen) + 1
            made += "([^/]+?)"
        position = match.end()
    return made + _plain(text[position:])


def _plain(text: str) -> str:
    return "".join("[^/]*" if c == "*" else "[^/]" if c == "?" else re.escape(c) for c in text)
