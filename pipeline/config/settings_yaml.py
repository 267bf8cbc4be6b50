"""Reads and writes the YAML of settings: numbers and words as YAML 1.2 reads them, and no key twice."""

import re
from typing import Any

import yaml
from yaml.composer import ComposerError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `1e-3` is a number; `no`, `1:30` and dates are texts, `010` is 10; YAML 1.1 differs."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:  # the first one's value would be lost
                    problem = f"`{key.value}` is already in line {lines[key.value]}: keep one of the two"
                    raise ComposerError(None, None, problem, key.start_mark)
                lines[key.value] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes each text that YAML 1.1 or 1.2 would read as something else."""


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True))
_Loader.yaml_implicit_resolvers = {}  # without those of YAML 1.1
for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     "-+0123456789."),
    ("merge", r"<<", "<"),
]:  # fmt: skip
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML text. Raises ValueError, which says what is wrong in which line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:
        raise ValueError("not text in UTF-8: save it as such") from error
    except yaml.MarkedYAMLError as error:
        mark, fix = error.problem_mark, ": indent with blanks" if "'\\t'" in str(error.problem) else ""
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"not valid YAML: {where}{' '.join(str(error.problem).split())}{fix}") from error
    except RecursionError as error:
        raise ValueError("not valid YAML: lists or sections are nested too deep") from error


def dump_yaml(tree: Any) -> str:
    """The YAML text that `parse_yaml` reads as `tree`."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flow(value: Any) -> str:
    """The YAML text of a value, in one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
