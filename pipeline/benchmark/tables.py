"""A figure as one line of JSON. Imports neither torch nor Ray, for the measured processes load it with `jobs.benchmark`."""

import json
from typing import Any, Protocol


class Figure(Protocol):
    """A named tuple of what was measured."""

    def _asdict(self) -> dict[str, Any]: ...


def json_line(figure: Figure) -> str:
    """Names and values, floats rounded to 5 decimals."""
    return json.dumps(_rounded(figure._asdict()))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 5) if isinstance(value, float) else value
