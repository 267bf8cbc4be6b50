"""Reads a configuration, one YAML file plus dotted overrides (`train.steps=100`), and reports all its mistakes together.

An override of a setting that is a text, such as an address, takes the text as typed; of all others the value is YAML.

Each mistake names the key, the value given, the legal values and the nearest fix. The keys of a search space are dotted too.
"""

import difflib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.config import Config
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
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        shipped = sorted(str(p) for p in Path(path).parent.glob("*.yaml"))
        near = difflib.get_close_matches(str(path), shipped, n=1)
        raise ConfigError([f"{path}: {error.strerror}" + (f" (did you mean {near[0]}?)" if near else "")]) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: expected a mapping of settings, found {type(tree).__name__}"])
    mistakes = []
    for item in overrides:
        key, equals, text = item.partition("=")
        try:
            if not equals:
                raise ValueError("an override must have the form dotted.key=value")
            _put(tree, key, _typed(key, text))
        except ValueError as error:
            mistakes.append(f"{item}: {error}")
    try:
        config = parse(tree)
    except ConfigError as error:
        raise ConfigError(mistakes + error.mistakes) from None
    if mistakes:
        raise ConfigError(mistakes)
    return config


def parse(tree: dict[str, Any]) -> Config:
    """Validates a nested mapping, including the keys and values of its search space. Raises ConfigError."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([_explain(e) for e in error.errors()]) from None
    mistakes = []
    for key, dimension in config.tune.space.items():
        for value in dimension.examples():
            candidate = config.model_dump(mode="json")
            candidate["tune"]["space"] = {}
            try:
                _put(candidate, key, value)
                Config.model_validate(candidate)
            except ValidationError as error:
                mistakes += [f"tune.space: {_explain(e)}" for e in error.errors()]
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
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # the setting's own check says what is legal
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
        model = _section_in(kind)
        if rest and get_origin(kind) is dict:
            kind = get_args(kind)[1]
            model = _section_in(kind)
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


def _options(annotation: Any) -> list[str]:
    """The values that an annotation such as `Literal["a", "b"] | None` lists."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for inner in get_args(annotation) for value in _options(inner)]


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


def _explain(error: Any) -> str:
    """One pydantic error as `key = value: what is legal (nearest fix)`."""
    # For a union, pydantic appends the type that it tried to the location; such a part is not the name of a setting.
    location = [str(p) for p in error["loc"] if not (isinstance(p, str) and (p in ("int", "float") or p.startswith("tuple[")))]
    key = ".".join(location)
    section, field = _section(location[:-1]), location[-1] if location else ""
    unknown = error["type"] == "extra_forbidden"
    if error["type"] == "model_type" and (entry := _section(location)):  # an entry of a dictionary of sections
        name, dot, setting = field.rpartition(".")
        if not dot:
            legal = ", ".join(entry.model_fields)
            return f"{key} = {error['input']!r}: needs the name of a setting (try {key}.SETTING=...); legal here: {legal}"
        location, section, field, unknown = [*location[:-1], name, setting], entry, setting, True
    if unknown:
        near = difflib.get_close_matches(field, section.model_fields, n=1) if section else []
        home = _homes(field)
        hint = (
            f" (did you mean {'.'.join([*location[:-1], near[0]])}?)" if near else f" (did you mean {home[0]}?)" if home else ""
        )
        legal = ", ".join(section.model_fields) if section else ""
        return f"{key} = {error['input']!r}: no such setting{hint}; legal here: {legal}"
    if error["type"] == "missing":
        about = _about(section, field)
        return f"{key}: missing; {about or 'it has no default'}"
    value = error["input"]
    if error["type"] == "literal_error":
        options = _options(section.model_fields[field].annotation) if section else []
        near = difflib.get_close_matches(str(value), options, n=1)
        return f"{key} = {value!r}: must be one of {', '.join(options)}" + (f" (try {near[0]})" if near else "")
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(value, dict):  # the text of a rule about several settings names them already
        return f"{key}.{message}" if key else message
    return f"{key} = {value!r}: {message[0].lower() + message[1:]}"


def _section(location: list[str]) -> type[BaseModel] | None:
    """The section at a location. The entries of a dictionary of sections have any name."""
    model: type[BaseModel] | None = Config
    parts = iter(location)
    for part in parts:
        annotation = model.model_fields[part].annotation if model and part in model.model_fields else None
        model = _section_in(annotation)
        if get_origin(annotation) is dict and next(parts, None) is None:
            return None
    return model


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation such as `Section | None` means."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return kinds[0] if kinds else None


def _homes(field: str) -> list[str]:
    """`section.field` for each section that has a setting of this name."""
    sections = {n: f.annotation for n, f in Config.model_fields.items()}
    return [
        f"{name}.{field}"
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel) and field in section.model_fields
    ]


def _about(section: type[BaseModel] | None, field: str) -> str:
    description = section.model_fields[field].description if section and field in section.model_fields else None
    return " ".join((description or "").split())
