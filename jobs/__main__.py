"""`python -m jobs`: says how a command is started."""

import sys
from pathlib import Path

if __name__ == "__main__":
    others = ("__init__", "__main__", "cli")
    verbs = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in others)
    print(f"usage: python -m jobs.VERB CONFIG.yaml [dotted.key=value ...]; VERB is one of {', '.join(verbs)}", file=sys.stderr)
    sys.exit(2)
