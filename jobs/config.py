"""`python -m jobs.config CONFIG.yaml [dotted.key=value ...]`: prints every setting as it is used, and where the run lies."""

import sys
from typing import TYPE_CHECKING

from jobs.cli import main

if TYPE_CHECKING:
    from pipeline.config.config import Config


def command(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    return main(run, argv)


def run(config: "Config") -> int:
    """Prints a YAML file that gives the same configuration, without the password of the tracking server.

    Its first lines, which are comments, are the run key, the folders of run and model, and the line that uses the model.
    """
    from pipeline.config.settings_yaml import dump_yaml

    model = f"{config.models_url}/{config.run_key}"
    print(f"# run key  {config.run_key}")
    print(f"# run      {config.runs_url}/{config.run_key}")
    print(f"# model    {model}")
    print(f'# use it   ccnet.load({model!r}).predict("image.jpg")')
    print(dump_yaml(config.record()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(command())
