"""Numbers of bytes as people read them."""


def size(nbytes: float) -> str:
    """Bytes in decimal units: 65.5 GB."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    value, units = float(nbytes), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = ""
    while value >= 999.5 and (next_unit := next(units, None)):
        value, unit = value / 1000, next_unit
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
