"""`python -m jobs`, installed as `ccnet`: lists the verbs, and runs one: `ccnet VERB CONFIG.yaml [dotted.key=value ...]`."""

import sys

from jobs.usage import VERBS, all_verbs, module_of, unknown_verb


def main(argv: list[str] | None = None) -> int:
    """Runs a verb and returns its exit code; 2 for a verb that does not exist. Without a verb it lists them all."""
    verb, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        print(all_verbs())
        return 0
    if verb not in VERBS:
        print(unknown_verb(verb), file=sys.stderr)
        return 2
    code: int = module_of(verb).command(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
