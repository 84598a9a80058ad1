"""A model's colour and marker: the same in all figures."""

from __future__ import annotations

COLOURS = {
    "adm": "#0072B2",
    "adm-ip": "#D55E00",
    "adm-gp": "#009E73",
    "adm-wd": "#CC79A7",
    "ddpm-y": "#B8860B",
    "ddim": "#56B4E9",
    "ddim-ip": "#000000",
}
"""Okabe and Ito's colours (told apart with any colour vision)."""
EXTRA = ("#882255", "#44AA99", "#999933", "#332288", "#AA4499", "#117733", "#661100", "#888888")
MARKERS = {"adm": "o", "adm-ip": "s", "adm-gp": "^", "adm-wd": "D", "ddpm-y": "v", "ddim": "P", "ddim-ip": "X"}


def colour(model: str) -> str:
    """A model's colour; unknown models take one by their name."""
    return COLOURS.get(model) or EXTRA[_index(model) % len(EXTRA)]


def marker(model: str) -> str:
    """A model's marker; unknown models take one by their name."""
    return MARKERS.get(model, "oshD^v"[_index(model) % 6])


def _index(name: str) -> int:
    return sum((place + 1) * ord(letter) for place, letter in enumerate(name))
