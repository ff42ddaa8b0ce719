"""Serves the page as a ZeroGPU Space does, with the real package `spaces`, on a computer without a GPU.

Only that package's hold on CUDA is left out, which torch's build for the CPU has no handles for.
"""

from __future__ import annotations

import sys
from types import ModuleType

cuda = ModuleType("spaces.zero.torch")
for name in ("patch", "unpatch", "init", "move", "is_in_bad_fork"):
    setattr(cuda, name, lambda *given, **named: None)
for name in ("pack", "size"):
    setattr(cuda, name, lambda: 0)
sys.modules[cuda.__name__] = cuda

import app  # noqa: E402

app.main()
