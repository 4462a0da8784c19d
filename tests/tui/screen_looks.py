"""What a screen looks like, as a file that people can read and compare: its letters, and under each row its styles.

A style has one letter for all themes together; the legend at the end says what it is in each. Times, speeds and
sizes that differ from run to run are blanked out with as many characters.
"""

import re
import string
from itertools import groupby

MASKED = (
    (re.compile(r"\d\d:\d\d(:\d\d)?"), "time"),
    (re.compile(r"first after \d+\.\d+ s"), "first after"),
)
NAMES = string.ascii_letters + string.digits


def look_of(shots):
    """The text of a look; `shots` are (theme, strips) of one and the same screen."""
    grids = {theme: [_cells(strip) for strip in strips] for theme, strips in shots.items()}
    first = next(iter(grids.values()))
    rows = ["".join(character for character, _ in row) for row in first]
    letters: dict[tuple, str] = {}
    lines = []
    for at, row in enumerate(rows):
        styles = list(zip(*([style for _, style in grid[at]] for grid in grids.values()), strict=True))
        named = [letters.setdefault(style, NAMES[len(letters)]) for style in styles]
        lines += [
            _masked(row).rstrip(),
            "    " + " ".join(f"{name}{len(list(run))}" for name, run in groupby(named)),
        ]
    legend = [f"{name}: " + " | ".join(style) for style, name in letters.items()]
    return "\n".join([*lines, "", " | ".join(grids), *legend]) + "\n"


def worst_contrast(strips):
    """The lowest contrast (WCAG 2.2) of any letter or digit that is meant to be read, with its text."""
    worst = (21.0, "")
    for strip in strips:
        for segment in strip:
            style, text = segment.style, segment.text.strip()
            if style is None or style.color is None or style.bgcolor is None or not re.search(r"\w", text):
                continue
            lights = sorted(map(_luminance, (style.color.get_truecolor(), style.bgcolor.get_truecolor())))
            worst = min(worst, ((lights[1] + 0.05) / (lights[0] + 0.05), text))
    return worst


def _cells(strip):
    cells = []
    for segment in strip:
        style = _described(segment.style)
        cells += [(character, style) for character in segment.text]
    return cells


def _described(style):
    if style is None:
        return "plain"
    marks = [name for name in ("bold", "dim", "italic", "underline", "reverse") if getattr(style, name)]
    colours = [colour.name if colour else "-" for colour in (style.color, style.bgcolor)]
    return " ".join([" on ".join(colours), *marks])


def _masked(row):
    for pattern, _ in MASKED:
        row = pattern.sub(lambda found: re.sub(r"\d", "0", found[0]), row)
    return row


def _luminance(colour):
    linear = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
