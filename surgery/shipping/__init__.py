"""A folder to take away, and the proof that it holds what was measured."""

from surgery.old_names import MOVED, lookup

__getattr__ = lookup(__name__, MOVED[__name__])
