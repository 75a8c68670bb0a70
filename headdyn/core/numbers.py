"""Numbers as text for a reader, with as many digits as their interval supports."""

import math
from collections.abc import Mapping
from typing import Any

ABSENT = "–"
MINUS = "−"


def decimals(value: float, low: float | None = None, high: float | None = None) -> int:
    """How many decimals an interval supports: two digits of its half-width if these are 10 to 35, else one digit.

    That is the rounding rule of the Review of Particle Physics. Without an interval, four significant digits.
    """
    half = (high - low) / 2 if low is not None and high is not None else 0.0
    if half > 0:
        return min(6, max(0, -math.floor(math.log10(half / 3.55))))
    return 3 if value == 0 else min(6, max(0, 3 - math.floor(math.log10(abs(value)))))


def fixed(value: float | None, places: int, *, signed: bool = False) -> str:
    """The number with `places` decimals and a true minus sign, never −0; a dash for None."""
    if value is None:
        return ABSENT
    text = f"{value:.{places}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return ("+" if signed and value > 0 else "") + text.replace("-", MINUS)


def number(value: float | None) -> str:
    """Up to four significant digits, thousands apart, powers of ten for the very small."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == int(value) or abs(value) >= 1e4:
        return f"{round(value):,}".replace(",", " ").replace("-", MINUS)
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    return fixed(value, decimals(value))


def p_value(p: float | None) -> str:
    """`0.032`, `< 0.001`."""
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def p_is(p: float, name: str = "p") -> str:
    """`p = 0.032`, `q < 0.001`."""
    return f"{name} {'' if p < 0.001 else '= '}{p_value(p)}"


def spelled(scalar: Mapping[str, Any] | None, *, scale: float = 1.0, signed: bool = False) -> str:
    """`0.412 [0.405, 0.419]`, or the value alone if it has no interval."""
    if scalar is None or scalar.get("value") is None:
        return ABSENT
    value, low, high = (None if scalar.get(k) is None else scale * scalar[k] for k in ("value", "ci_low", "ci_high"))
    assert value is not None
    places = decimals(value, low, high)
    text = fixed(value, places, signed=signed)
    if low is not None and high is not None:
        text += f" [{fixed(low, places, signed=signed)}, {fixed(high, places, signed=signed)}]"
    return text


def duration(seconds: float | None) -> str:
    """`8.3 s`, `2 min 05 s`, `1 h 20 min`."""
    if seconds is None:
        return ABSENT
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(n: int, thing: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def units(scalar: Mapping[str, Any]) -> str:
    """`128 sequences`: the number of a scalar's independent units; "" if the scalar has none."""
    return count(scalar["n"], scalar["unit"]) if scalar.get("n") and scalar.get("unit") else ""


def capital(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
