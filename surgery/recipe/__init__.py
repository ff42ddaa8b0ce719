"""The recipe: what is to be done, as pure data."""

from surgery.old_names import MOVED, lookup

__getattr__ = lookup(__name__, MOVED[__name__])
