"""Entry point of the Space: builds the page and launches it."""

from __future__ import annotations

import os

from ui.page import build, launch_arguments


def main() -> None:
    """Serve the page on 127.0.0.1:7860, or where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say (as on a Space)."""
    on_space = bool(os.environ.get("SPACE_ID"))
    page = build()
    page.queue(default_concurrency_limit=16).launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT") or 7860),
        **launch_arguments(),
    )


if __name__ == "__main__":
    main()
