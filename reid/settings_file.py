"""Settings as people write them: strict YAML, `key=value` overrides, and errors that say what was meant.

A file holds only what differs from the defaults. An override is a dotted path and a value in YAML
(`training.loop.epochs=30`, `data.loader.processes=0`). Unknown keys, duplicate keys, wrong types and values out of
range are errors; all of them are shown together, each with its path and, for a misspelt key, the likely one.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from reid.contracts import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)


class ConfigError(ValueError):
    """All problems of a configuration at once; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str], source: str) -> None:
        self.problems = tuple(problems)
        self._source = source
        super().__init__(f"{source}: {len(problems)} problem(s)\n" + "\n".join(f"  {line}" for line in problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...], str]]:
        """Crosses processes whole."""
        return type(self), (self.problems, self._source)


def read_file(path: str | Path) -> dict[str, Any]:
    """The nested values of a YAML file.

    Raises:
        ConfigError: The file cannot be read, is no strict YAML, or sets nothing: a run of nothing but defaults is not
            what a file was meant for.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror or error}"], str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"is no UTF-8 text (byte {error.start})"], str(path)) from None
    except RecursionError:
        raise ConfigError(["is nested too deeply"], str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(error)], str(path)) from None
    if not values:
        raise ConfigError(["sets nothing: leave it out for the defaults (--print-config shows them)"], str(path))
    return values


def read_settings(
    schema: type[AnySettings],
    overrides: Sequence[str],
    values: Mapping[str, Any] | None = None,
    source: str = "settings",
) -> AnySettings:
    """Settings of any schema from values and `key=value` overrides.

    Args:
        schema: What they are.
        overrides: `dotted.key=value`, value in YAML.
        values: What is overridden; None: the defaults.
        source: What errors name as their origin.

    Raises:
        ConfigError: for anything wrong, all problems together.
    """
    values = copy.deepcopy(dict(values or {}))
    problems: list[str] = []
    for override in overrides:
        try:
            _override(values, override)
        except (ValueError, yaml.YAMLError) as error:
            problems.append(f"override {override!r}: {' '.join(str(error).split())}")
    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        problems += [_problem(schema, detail) for detail in error.errors()]
        raise ConfigError(problems, source) from None
    if problems:
        raise ConfigError(problems, source)
    return settings


def to_yaml(settings: Settings) -> str:
    """The settings as a YAML file that `load_settings` reads back to the same, each key with its description."""
    return "\n".join(_commented(settings, 0)) + "\n"


def parse_yaml(text: str) -> dict[str, Any]:
    r"""A mapping from YAML text, read by YAML 1.2's core rules: `1e-3` is a number, `no` a word, duplicate keys an
    error.

    >>> parse_yaml("rate: 1e-3\nanswer: no")
    {'rate': 0.001, 'answer': 'no'}
    """
    value = yaml.load(text, Loader=_StrictLoader)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise yaml.YAMLError(f"expected a mapping of settings, got {type(value).__name__}")
    return value


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader by YAML 1.2's core schema, refusing duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {text}" if mark else str(text)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        hint = "; configurations are named by --config" if override.endswith((".yaml", ".yml")) else ""
        raise ValueError(f"expected key=value, such as training.loop.epochs=30{hint}")
    node = values
    *parents, last = key.strip().split(".")
    for name in parents:
        child = node.get(name)
        if not isinstance(child, dict):
            # A null or absent section is opened by an override inside it.
            child = node[name] = {}
        node = child
    node[last] = yaml.load(text, Loader=_StrictLoader)


def _problem(schema: type[Settings], detail: Mapping[str, Any]) -> str:
    location = detail["loc"]
    path = ".".join(str(part) for part in location) or "settings"
    match detail["type"]:
        case "extra_forbidden":
            siblings = _fields_at(schema, location[:-1])
            name = str(location[-1])
            close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
            if not close:
                close = [k for k in _all_keys(schema) if k.rsplit(".", 1)[-1] == name][:1]
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(siblings)}"
            return f"{path}: unknown key; {hint}"
        case _:
            message = detail["msg"]
            got = "" if isinstance(detail["input"], dict) else f", got {detail['input']!r}"
            return f"{path}: {message[0].lower()}{message[1:]}{got}"


def _sections(annotation: Any) -> list[type[Settings]]:
    """The Settings classes an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [section for argument in typing.get_args(annotation) for section in _sections(argument)]
    return []


def _fields_at(section: type[Settings], location: Sequence[Any]) -> list[str]:
    if not location:
        return list(section.model_fields)
    name, *rest = location
    field = section.model_fields.get(str(name))
    if field is None:
        return []
    return [key for inner in _sections(field.annotation) for key in _fields_at(inner, rest)]


def _all_keys(section: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")


def _commented(section: Settings, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if field.description:
            yield from (f"{indent}# {line}" for line in field.description.splitlines())
        if isinstance(value, Settings):
            yield f"{indent}{name}:"
            yield from _commented(value, depth + 1)
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            yield f"{indent}{name}: {json.dumps(plain, ensure_ascii=False)}"
