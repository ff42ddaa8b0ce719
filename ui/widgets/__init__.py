"""Interactive pictures for the page; each one knows only JSON and nothing about models."""
