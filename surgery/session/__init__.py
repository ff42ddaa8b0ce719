"""One person's work on the page, one file a feature."""
