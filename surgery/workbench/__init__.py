"""The process: open models shared by all sessions, limits, and the documents of the command line."""

from surgery.old_names import MOVED, lookup

__getattr__ = lookup(__name__, MOVED[__name__])
