"""From a view to HTML or JSON. Pure."""
