"""A YAML file with the line of every key: values, placeholders, and faults that a person can find and mend."""

import difflib
import os
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from analysis.errors import ConfigError

KeyPath = tuple[str | int, ...]
PLACEHOLDER = re.compile(r"\$\{(credential:)?([A-Za-z_][\w.-]*)\}")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong, at one key."""

    key: KeyPath
    text: str


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The values of a file, the line of every key, and what was wrong while reading it."""

    path: Path
    values: Any
    lines: dict[KeyPath, int]
    faults: tuple[Fault, ...]

    def position(self, fault: Fault) -> tuple[int, str]:
        return self.line_number(fault.key), dotted(fault.key)

    def line_number(self, key: KeyPath) -> int:
        """The line of the key, or of the nearest section above it that stands in the file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def line(self, fault: Fault) -> str:
        return f"{self.path}:{self.line_number(fault.key)} {dotted(fault.key) or '(whole file)'}: {fault.text}"

    def explain(self, error: Any, root: type) -> Fault:
        """One pydantic error in this file's words: found, expected, nearest valid key."""
        location: KeyPath = tuple(error["loc"])
        if error["type"] == "unexpected_keyword_argument":
            return Fault(location, f"found an unknown key, expected {_nearest(location, root)}")
        if error["type"] == "missing":
            return Fault(location, "found nothing, expected a value; this key has no default")
        while location and location not in self.lines:
            location = location[:-1]
        expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        return Fault(location, f"found {_short(error['input'])}, expected {expected}")


def read_config_file(path: Path) -> ConfigFile:
    """Read a YAML file; its values may hold `${NAME}` and `${credential:NAME}`.

    Raises
    ------
    ConfigError : not readable, or not YAML
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}:1 (whole file): found no readable file ({error}), expected YAML") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}:{line} (whole file): found {problem}, expected YAML") from error
    reader = _Reader()
    values = reader.read(root, ()) if root is not None else {}
    return ConfigFile(path, values if values is not None else {}, reader.lines, tuple(reader.faults))


class _Reader:
    """Walks the composed nodes once: values, lines, duplicate keys, placeholders."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.faults: list[Fault] = []
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, node: Node, key: KeyPath) -> Any:
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return dict(self._pairs(node, key))
        if isinstance(node, SequenceNode):
            return [self.read(child, (*key, index)) for index, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node, key)

    def _pairs(self, node: MappingNode, key: KeyPath) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for name_node, value_node in node.value:
            name = str(name_node.value)
            inner = (*key, name)
            if name in seen:
                self.faults.append(Fault(inner, "found the key twice, expected it once"))
            seen.add(name)
            self.lines[inner] = name_node.start_mark.line + 1
            yield name, self.read(value_node, inner)

    def _scalar(self, node: ScalarNode, key: KeyPath) -> Any:
        try:
            value = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.faults.append(Fault(key, f"found {_short(node.value)} ({error}), expected a plain value"))
            return None
        if isinstance(value, str):
            return self._filled_in(value, key)
        return _aware(value)

    def _filled_in(self, value: str, key: KeyPath) -> str:
        def replacement(match: re.Match[str]) -> str:
            credential, name = match.groups()
            found = _credential(name) if credential else os.environ.get(name)
            if found is None:
                what = "systemd credential" if credential else "environment variable"
                self.faults.append(
                    Fault(key, f"found ${{{credential or ''}{name}}}, expected the {what} {name} to be set")
                )
            return found or ""

        return PLACEHOLDER.sub(replacement, value)


def dotted(key: KeyPath) -> str:
    """("destinations", 0, "port") -> "destinations[0].port"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def _credential(name: str) -> str | None:
    """systemd puts LoadCredential= files into $CREDENTIALS_DIRECTORY (systemd.exec(5))."""
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / name
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _aware(value: Any) -> Any:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(location: KeyPath, root: type) -> str:
    """The valid key most like the one found, or all keys of that section."""
    names = [field.name for field in fields(_section_at(location[:-1], root))]
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    return f"{close[0]!r}" if close else f"one of {', '.join(names)}"


def _section_at(location: KeyPath, root: type) -> type:
    """The dataclass that the keys at this place belong to."""
    found = root
    for part in location:
        hints = get_type_hints(found)
        if isinstance(part, str) and part in hints:
            found = _dataclass_in(hints[part]) or found
    return found


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass inside Annotated, Optional, tuple or list."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    if get_origin(hint) in (Annotated, Union, types.UnionType, tuple, list, frozenset):
        return next((found for found in map(_dataclass_in, get_args(hint)) if found), None)
    return None
