"""Entry point of the Space: builds the page and launches it."""

from __future__ import annotations

import importlib.util
import os
import sys

from surgery.common.files import sweep_cache
from surgery.common.stopping import end_on_signals
from surgery.errors import InputError
from surgery.workbench.limits import read_limits
from surgery.workbench.workbench import Workbench
from ui.api.zero_gpu import borrowing, on_zero_gpu
from ui.page import build
from ui.tabs import Sessions
from ui.theme import launch_arguments


def main() -> None:
    """Serve the page on 127.0.0.1:7860, or where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say (as on a Space).

    MODEL_SURGERY_... limit what visitors may do, see `surgery.workbench.limits`; the limits in force are printed.
    MODEL_SURGERY_MCP=1 offers the endpoints as MCP tools too.
    """
    end_on_signals()
    sweep_cache()
    on_space = bool(os.environ.get("SPACE_ID"))
    tools = os.environ.get("MODEL_SURGERY_MCP") == "1"
    try:
        limits = read_limits(os.environ)
        if tools and importlib.util.find_spec("mcp") is None:
            raise InputError("MODEL_SURGERY_MCP=1 needs the package mcp: pip install -r requirements-mcp.txt.")
        elsewhere = borrowing(limits) if on_zero_gpu(os.environ) else None
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(limits.words(), file=sys.stderr)
    page = build(Sessions(Workbench(limits=limits, gpu=elsewhere is None)), elsewhere)
    page.queue(default_concurrency_limit=16).launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT") or 7860),
        mcp_server=tools,
        **launch_arguments(limits.upload),
    )


if __name__ == "__main__":
    main()
