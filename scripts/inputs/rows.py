"""What is compared: an input, what is right, what the program makes of it."""

from dataclasses import dataclass
from typing import Callable

# Two programs sum in another order; a wrong model is off by far more.
TOLERANCE = 2e-4


@dataclass
class Row:
    """`right` is a number, a text, or the words that an error must hold."""

    input: str
    right: "float | str | Says"
    source: str
    now: "Callable[[], float | str]"


@dataclass
class Says:
    """An error that holds these words."""

    words: tuple

    def __init__(self, *words):
        self.words = words


def is_right(right, found):
    """Whether the program's value is the right one."""
    if isinstance(right, Says):
        return isinstance(found, str) and all(word.lower() in found.lower() for word in right.words)
    if isinstance(right, str) or isinstance(found, str):
        return right == found
    return abs(found / right - 1) < TOLERANCE


def shown(value):
    """A value in a cell of the table."""
    if isinstance(value, Says):
        return "an error that says " + ", ".join(f"`{word}`" for word in value.words)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value.replace("|", "\\|").replace("\n", "\\n")
    return text if len(text) < 260 else text[:120] + " ... " + text[-130:]
