"""Says in one line what is wrong with a setting: the key, the value given, the legal values and the nearest fix."""

import difflib
import re
import reprlib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config.config import Config

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 200
_short.maxlist = _short.maxtuple = _short.maxdict = 10
_short.maxlevel = 2


def explain(error: ValidationError) -> list[str]:
    """A line for each mistake."""
    return list(dict.fromkeys(_line(each) for each in error.errors() if not _of_other_form(each)))


def _of_other_form(error: Any) -> bool:
    """Whether the mistake is that a list is no number: of a setting that may be either, the other mistake says more."""
    return "int" in error["loc"] and isinstance(error["input"], list | tuple)


def _line(error: Any) -> str:
    """One pydantic error as `key = value: what is legal (nearest fix)`."""
    # For a union, pydantic appends the type that it tried to the location; such a part is not the name of a setting.
    location = [str(p) for p in error["loc"] if not (isinstance(p, str) and (p in ("int", "[key]") or p.startswith("tuple[")))]
    if few := error["type"] == "missing" and location[-1].isdecimal():
        location.pop()
    key = ".".join(location)
    section, field = _section(location[:-1]), location[-1] if location else ""
    unknown = error["type"] == "extra_forbidden"
    if error["type"] == "model_type" and "." in field and (entry := _section(location)):
        # An entry of a dictionary of sections: the text of `storage.buckets.b.x=1` does not say where the entry's name ends.
        name, _, setting = field.rpartition(".")
        location, section, field, unknown = [*location[:-1], name, setting], entry, setting, True
    if unknown:
        near = difflib.get_close_matches(field, section.model_fields, n=1) if section else []
        home = _homes(field)
        hint = (
            f" (did you mean {'.'.join([*location[:-1], near[0]])}?)" if near else f" (did you mean {home[0]}?)" if home else ""
        )
        legal = ", ".join(section.model_fields) if section else ""
        return f"{key} = {_short.repr(error['input'])}: no such setting{hint}; legal here: {legal}"
    about, value = _about(section, field), _short.repr(error["input"])
    if error["type"] == "missing" and not few:
        return f"{key}: missing; {about or 'it has no default'}"
    if error["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        near = difflib.get_close_matches(str(error["input"]), options, n=1)
        return f"{key} = {value}: must be one of {', '.join(options)}" + (f" (try {near[0]})" if near else "")
    if few or error["type"] == "too_long":
        return f"{key} = {value}: has too {'few' if few else 'many'} values" + (f"; {about}" if about else "")
    if error["type"] == "tuple_type":
        return f"{key} = {value}: must be a list" + (f"; {about}" if about else "")
    if error["type"] in ("model_type", "dict_type"):
        example = (
            f"{key}.{next(iter(own.model_fields))}=..."
            if error["type"] == "model_type" and (own := _section(location))
            else f"{key}.NAME=..."
        )
        return f"{key} = {value}: is a section, which takes no value: set what is in it ({example}), or leave it out"
    if error["type"] == "string_type":
        return f"{key} = {value}: must be a text: write it in quotes"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict):  # the text of a rule about several settings names them already
        return f"{key}.{message}" if key else message
    return f"{key} = {value}: {message[0].lower() + message[1:]}"


def _section(location: list[str]) -> type[BaseModel] | None:
    """The section at a location. The entries of a dictionary of sections have any name."""
    model: type[BaseModel] | None = Config
    parts = iter(location)
    for part in parts:
        annotation = model.model_fields[part].annotation if model and part in model.model_fields else None
        model = section_in(annotation)
        if get_origin(annotation) is dict and next(parts, None) is None:
            return None
    return model


def section_in(annotation: Any) -> type[BaseModel] | None:
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
