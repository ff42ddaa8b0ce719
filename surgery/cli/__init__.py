"""The command line, one file a verb.

A verb's file imports at its top only what its options need. What does the work is imported inside the function that
does it (for annotations, under TYPE_CHECKING), so that `--help` and the refusal of an option load no torch. A test asks
every verb.
"""
