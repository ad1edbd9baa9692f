"""Figures as files; equal figures are equal files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from kdbench.bench.errors import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = ("png", "svg", "pdf")
DATES = {"svg": "Date", "pdf": "CreationDate"}
"""The metadata that would make equal figures unequal files, by form."""


def check_picture(form: str) -> None:
    """Checks the name of a picture's form.

    Raises:
        InputError: if it is not one of PICTURES.
    """
    if form not in PICTURES:
        raise unknown("picture format", form, PICTURES)


def figure_file(figure: Figure, form: str, dpi: int = 100) -> bytes:
    """A figure as a file.

    Args:
        figure: what was drawn.
        form: png, svg or pdf.
        dpi: dots per inch of a png.

    Raises:
        InputError: for another form.
    """
    import matplotlib

    check_picture(form)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdbench"}):
        figure.savefig(file, format=form, dpi=dpi, metadata={DATES[form]: None} if form in DATES else None)
    return file.getvalue()
