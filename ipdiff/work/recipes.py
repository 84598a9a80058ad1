"""The recipe beside an artifact's files: what it was made from, with its own digest; the commit marker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.work.files import md5

RECIPE = "recipe.json"


def read(path: Path) -> dict[str, Any]:
    """The recipe at `path`; UserError if it is missing, IntegrityError if it is none."""
    try:
        recipe = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: that artifact has not been made (or pulled) yet") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise IntegrityError(path, "a JSON recipe", "something else") from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("outputs"), dict):
        raise IntegrityError(path, "a recipe that names its outputs", "other JSON")
    if recipe.get("digest") != (found := sealed(recipe)["digest"]):
        raise IntegrityError(path, str(recipe.get("digest")), found)
    return recipe


def sealed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the md5 of its other fields: nothing else guards the parameters it hands on."""
    rest = {key: value for key, value in recipe.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True)
    return {**rest, "digest": md5(text.encode())}
