"""One way to refuse settings outside their range."""

import math
from typing import Any


def check_ranges(section: str, settings: Any, **intervals: str) -> None:
    """Refuse settings outside their intervals.

    Args:
        section: Of the configuration.
        settings: Whose attributes are checked: numbers, tuples of numbers, or None, which is always taken.
        intervals: By name of the setting, as mathematicians write them: ``[0, 1)``, ``[1, inf)``.

    Raises:
        ValueError: A number (or NaN) lies outside: which, what is expected, and what was found.

    >>> from types import SimpleNamespace
    >>> check_ranges("unet", SimpleNamespace(heads=0), heads="[1, inf)")
    Traceback (most recent call last):
    ValueError: unet.heads must be at least 1, found 0
    """
    for name, interval in intervals.items():
        value = getattr(settings, name)
        low, high = (float(end) for end in interval[1:-1].split(","))
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            above = one >= low if interval[0] == "[" else one > low
            below = one <= high if interval[-1] == "]" else one < high
            if not (above and below):
                expected = f"lie in {interval}"
                if math.isinf(high):
                    expected = f"be {'at least' if interval[0] == '[' else 'above'} {low:g}"
                raise ValueError(f"{section}.{name} must {expected}, found {one}")
