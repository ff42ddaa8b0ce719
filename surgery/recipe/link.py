"""A recipe as the end of an address: base64url of compressed JSON, and back, bounded on the way.

What a link holds is as untrusted as an uploaded file: `Recipe` validates it, and nothing that it names is opened here.
"""

from __future__ import annotations

import base64
import json
import zlib

from surgery.errors import RecipeError
from surgery.recipe.recipe import LARGEST_RECIPE, Recipe

LONGEST_LINK = 512 * 2**10
"""Characters that are read."""


def encode(recipe: Recipe) -> str:
    """The recipe without its results: letters, digits, `-` and `_` only."""
    document = recipe.document()
    document.pop("results", None)
    written = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(zlib.compress(written, 9)).decode().rstrip("=")


def decode(text: str) -> Recipe:
    """The recipe that `encode` wrote. Raises RecipeError: too long, damaged, or not a valid recipe."""
    if len(text) > LONGEST_LINK:
        raise RecipeError(f"The link's recipe is longer than {LONGEST_LINK:,} characters: import it as a file.")
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        unpacking = zlib.decompressobj()
        written = unpacking.decompress(packed, LARGEST_RECIPE + 1)
    except (ValueError, zlib.error):
        raise RecipeError("The link's recipe is damaged: copy the whole link again.") from None
    if not unpacking.eof and len(written) <= LARGEST_RECIPE:
        raise RecipeError("The link's recipe is cut off: copy the whole link again.")
    return Recipe.parse(written)
