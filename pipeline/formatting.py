"""Numbers for people."""


def percent(share: float) -> str:
    """A share of 1: `62 %`, `99.9 %`."""
    return f"{100 * share:.3g} %"


def size(num_bytes: float) -> str:
    """Bytes: `75 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"
