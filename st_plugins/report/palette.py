"""Colors for numbers: one scale for all pictures, safe for color-blind eyes, with ink that can be read on it."""

from __future__ import annotations

Color = tuple[int, int, int]

# From no to full strength, darker all the way: blues for positive numbers, browns for negative ones.
_POSITIVE: tuple[Color, ...] = ((247, 247, 247), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
_NEGATIVE: tuple[Color, ...] = ((247, 247, 247), (254, 224, 182), (253, 174, 97), (191, 91, 23), (107, 50, 4))


def color(value: float) -> Color:
    """Return the color of a number."""
    # Beyond 1 nothing gets darker, and NaN looks like 0.
    anchors = _POSITIVE if value > 0 else _NEGATIVE
    place = min(abs(value), 1.0) * (len(anchors) - 1) if value == value else 0.0
    index = min(int(place), len(anchors) - 2)
    part = place - index
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(anchors[index], anchors[index + 1], strict=True))
    return red, green, blue


def ink(background: Color) -> Color:
    """Return black or white, whichever has more contrast (WCAG 2.2) on a color; that is always at least 4.5 : 1."""
    black = (_luminance(background) + 0.05) / 0.05 >= 1.05 / (_luminance(background) + 0.05)
    return (0, 0, 0) if black else (255, 255, 255)


def hexadecimal(rgb: Color) -> str:
    """Return a color as style sheets and terminals write it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _luminance(rgb: Color) -> float:
    # sRGB, as WCAG 2.2 defines it.
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
