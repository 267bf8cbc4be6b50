"""What each setting is: type, legal values, default and description, read from the JSON schema of the sections.

`python -m jobs.reference` writes docs/settings.md and jobs/configs/schema.json; a test holds both to the sections.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

Node = dict[str, Any]
SCHEMA, PAGE = Path(__file__).parent / "configs/schema.json", Path(__file__).parents[1] / "docs/settings.md"
TOP = ""
"""Stands for the settings outside of all sections: `name` and `seed`."""
WIDTH = 100
"""Characters of a line of `help_text`."""
LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
TYPES = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number", "null": "null"}


class Setting(NamedTuple):
    """One line of the reference."""

    key: str
    """Dotted; a part in capitals is a name that the user chooses."""
    kind: str
    """Type and legal values, in words."""
    default: str | None
    """As YAML; None if the setting must be given."""
    description: str


@cache
def schema() -> Node:
    """JSON schema of a configuration (draft 2020-12), as editors read it: the file, because pydantic takes half a second."""
    found: Node = json.loads(SCHEMA.read_text()) if SCHEMA.exists() else schema_of_sections()
    return found


def schema_of_sections() -> Node:
    """The schema of the sections as they are now."""
    from pipeline.config.config import Config

    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()


def sections() -> list[str]:
    """Names of the sections, in order; `TOP` first."""
    return [TOP, *(name for name, node in schema()["properties"].items() if _section_in(node))]


def settings(section: str) -> list[Setting]:
    """All settings of a section, in order."""
    if section == TOP:
        names = {name: node for name, node in schema()["properties"].items() if not _section_in(node)}
        return list(_settings("", schema() | {"properties": names}))
    return list(_settings(f"{section}.", _section_in(schema()["properties"][section]) or {}))


def help_text(*names: str) -> str:
    """The settings of the named sections for a terminal."""
    lines = []
    for setting in (setting for name in names for setting in settings(name)):
        default = "" if setting.default is None else f"; default {setting.default}"
        lines.append(fill(f"{setting.key}  ({setting.kind}{default})", WIDTH, initial_indent="  ", subsequent_indent="    "))
        lines.append(fill(setting.description, WIDTH, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def markdown() -> str:
    """The reference as a page: a table for each section."""
    parts = [
        "# Settings\n\nA configuration is a YAML file; `section.key=value` on the command line replaces a value. A part in "
        "capitals is a\nname that you choose. `ccnet VERB --help` shows the settings of one verb. This page is written by "
        "`python -m\njobs.reference` from the sections in `pipeline/config/`.\n"
    ]
    for name in sections():
        rows = ["| setting | type and legal values | default | what it is |", "| --- | --- | --- | --- |"]
        for setting in settings(name):
            default = "must be given" if setting.default is None else f"`{setting.default}`"
            cells = (f"`{setting.key}`", setting.kind, default, setting.description)
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("\n".join([f"## {name or 'Of the run'}\n", *rows, ""]))
    return "\n".join(parts)


def _settings(prefix: str, node: Node) -> Iterator[Setting]:
    required = node.get("required", ())
    for name, each in node["properties"].items():
        key, inner = f"{prefix}{name}", _section_in(each)
        if inner is None or "anyOf" in each:  # a section that may be null is a value too
            default = None if name in required else _yaml(each.get("default"))
            yield Setting(key, _kind(each), default, " ".join(each.get("description", "").split()))
        if inner is not None:
            yield from _settings(f"{key}.", inner)
        for name_of_entry, entry in (("NAME", each.get("additionalProperties")), ("N", each.get("items"))):
            if (inner := _section_in(entry)) is not None:
                yield from _settings(f"{key}.{name_of_entry}.", inner)


def _section_in(node: Any) -> Node | None:
    """The section that a node refers to, alone or as an alternative to null."""
    for each in [node, *node.get("anyOf", ())] if isinstance(node, dict) else []:
        if "$ref" in each:
            found: Node = schema()["$defs"][each["$ref"].rpartition("/")[2]]
            return found
    return None


def _kind(node: Node) -> str:
    """Type and legal values in words."""
    if "anyOf" in node:
        return " or ".join(_kind(each) for each in node["anyOf"])
    if "$ref" in node:
        return "section"
    if "enum" in node or "const" in node:
        *most, last = map(str, node.get("enum", [node.get("const")]))
        return f"{', '.join(most)} or {last}" if most else last
    if node.get("type") == "array":
        if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])} {_plural(node['prefixItems'][0])}"
        return f"list of {_plural(node['items'])}"
    if node.get("type") == "object":
        names = "/".join(node.get("propertyNames", {}).get("enum", ["NAME"]))
        return f"{names}: {_kind(node['additionalProperties'])}"
    limits = ", ".join(f"{word} {node[key]}" for key, word in LIMITS.items() if key in node)
    return f"{TYPES.get(node.get('type', ''), 'any value')} {limits or node.get('pattern', '')}".strip()


def _plural(node: Node) -> str:
    words = _kind(node)
    for one, many in (("number", "numbers"), ("text", "texts"), ("any value", "values"), ("section", "sections")):
        words = words.replace(one, many, 1)
    return words


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    """Writes the schema, and the page from it."""
    SCHEMA.write_text(json.dumps(schema_of_sections(), indent=1) + "\n")
    PAGE.write_text(markdown())


if __name__ == "__main__":
    main()
