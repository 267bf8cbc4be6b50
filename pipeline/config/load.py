"""Reads a configuration, one YAML file plus dotted overrides (`train.steps=100`), and reports all its mistakes together.

An override of a setting that is a text, such as an address, takes the text as typed; of all others the value is YAML.

Each mistake names the key, the value given, the legal values and the nearest fix. The keys of a search space are dotted too.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config.base import Storage
from pipeline.config.config import Config
from pipeline.config.explain import explain, section_in
from pipeline.config.settings_yaml import parse_yaml
from pipeline.errors import ConfigError


def override(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with dotted keys replaced. Raises ConfigError."""
    tree = config.model_dump(mode="json")
    try:
        for key, value in values.items():
            _put(tree, key, value)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    return parse(tree)


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML file and applies `dotted.key=value` overrides. Raises ConfigError."""
    try:
        tree = parse_yaml(Path(path).read_bytes())
    except OSError as error:
        shipped = sorted(str(p) for p in Path(path).parent.glob("*.yaml") if p.is_file())
        near = difflib.get_close_matches(str(path), shipped, n=1)
        raise ConfigError([f"{path}: {error.strerror}" + (f" (did you mean {near[0]}?)" if near else "")]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds a {'list' if isinstance(tree, list) else 'single value'}"
        raise ConfigError([f"{path}: {found}: write `section: {{setting: value}}` lines, as in jobs/configs/demo.yaml"])
    mistakes = apply(tree, overrides)
    try:
        config = parse(tree)
    except ConfigError as error:
        raise ConfigError(mistakes + error.mistakes) from None
    if mistakes:
        raise ConfigError(mistakes)
    return config


def apply(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Puts `dotted.key=value` overrides into a nested mapping; returns the mistakes of their form."""
    mistakes = []
    for item in overrides:
        key, equals, text = item.partition("=")
        try:
            if not equals:
                raise ValueError("an override must have the form dotted.key=value")
            _put(tree, key, _typed(key, text))
        except ValueError as error:
            mistakes.append(f"{item}: {error}")
    return mistakes


def storage_at(address: str, overrides: Sequence[str] = ()) -> Storage:
    """How an address is accessed where there is no configuration; `path` is the address, made absolute. Raises ConfigError.

    Of the overrides, those of `storage` count, except its path.
    """
    tree: dict[str, Any] = {"storage": {}}
    if mistakes := apply(tree, [item for item in overrides if item.startswith("storage.")]):
        raise ConfigError(mistakes)
    try:
        return Storage.model_validate(tree["storage"] | {"path": address})
    except ValidationError as error:
        raise ConfigError([f"{address}: {each['msg'].removeprefix('Value error, ')}" for each in error.errors()]) from None


def parse(tree: dict[str, Any]) -> Config:
    """Validates a nested mapping, including the keys and values of its search space. Raises ConfigError."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    mistakes = []
    for key, dimension in config.tune.space.items():
        for value in dimension.examples():
            candidate = config.model_dump(mode="json")
            candidate["tune"]["space"] = {}
            try:
                _put(candidate, key, value)
                Config.model_validate(candidate)
            except ValidationError as error:
                mistakes += [f"tune.space: {line}" for line in explain(error)]
            except ValueError as error:
                mistakes.append(f"tune.space: {error}")
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return config


def _typed(key: str, text: str) -> Any:
    """The value of an override: the text itself if the setting is a text (`null` still means none), otherwise YAML."""
    kinds = _kinds(_find(key)[1])
    if str not in kinds or (text == "null" and type(None) in kinds):
        try:
            return parse_yaml(text)
        except ValueError:  # the setting's own check says what is legal
            return text
    if not text:
        raise ValueError("has no value" + (" (try null)" if type(None) in kinds else ""))
    return text


def _find(key: str) -> tuple[list[str], Any]:
    """The parts of a dotted key, and the type of the setting; None if there is none. Keys of a dictionary may have dots."""
    parts: list[str] = []
    rest: list[str] = key.split(".")
    kind: Any = None
    model: type[BaseModel] | None = Config
    while rest and model and rest[0] in model.model_fields:
        kind = model.model_fields[rest[0]].annotation
        parts.append(rest.pop(0))
        model = section_in(kind)
        if rest and get_origin(kind) is dict:
            kind = get_args(kind)[1]
            model = section_in(kind)
            num_fields = int(len(rest) > 1 and model is not None and rest[-1] in model.model_fields)
            parts.append(".".join(rest[: len(rest) - num_fields]))
            rest = rest[len(rest) - num_fields :]
    return parts + rest, None if rest else kind


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation allows, such as {str, NoneType} for `Address | None`."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for each in get_args(annotation) for kind in _kinds(each)}
    return {annotation}


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = _find(key)[0]
    for depth, part in enumerate(parents):
        child = tree.setdefault(part, {})
        if child is None:  # a section that is null by default, such as loss.ohem
            child = tree[part] = {}
        if not isinstance(child, dict):
            raise ValueError(f"{key}: `{'.'.join(parents[: depth + 1])}` is a setting, not a section")
        tree = child
    tree[last] = value
