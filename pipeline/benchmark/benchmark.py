"""Runs the benchmarks of `benchmark.of` one after the other: a line of JSON for each figure, then tables."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pipeline.benchmark import tables
from pipeline.config.config import Config


class Measurement(NamedTuple):
    """One benchmark: the function that measures it, and the function that renders its figures."""

    measure: Callable[[Config], Iterable[list[Any]]]
    table: Callable[[list[Any]], str]


def benchmark(config: Config) -> Iterator[str]:
    """Lines to print, each as soon as its figure is measured; each benchmark ends with its tables."""
    for name in config.benchmark.of:
        measurement, figures = _measurement(name), []
        for measured in measurement.measure(config):
            for figure in measured:
                figures.append(figure)
                yield tables.json_line(figure)
        yield measurement.table(figures)


def _measurement(name: str) -> Measurement:
    """The named benchmark; imported on use, because each needs other packages."""
    if name == "images":
        from pipeline.benchmark.images import measure_images

        return Measurement(measure_images, tables.images_tables)
    if name == "operator":
        from pipeline.benchmark.operator import measure_operator

        return Measurement(measure_operator, tables.operator_tables)
    if name == "network":
        from pipeline.benchmark.network import measure_network

        return Measurement(measure_network, tables.network_table)
    from pipeline.benchmark.launchers import measure_launchers

    return Measurement(measure_launchers, tables.launchers_tables)
