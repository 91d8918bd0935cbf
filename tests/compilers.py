"""How tests run compilers and what they make."""

from __future__ import annotations

import os

# `make sanitize` preloads AddressSanitizer into Python; a compiler, or a program under another sanitizer, dies of it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
