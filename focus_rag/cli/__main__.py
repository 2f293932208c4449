"""`python -m focus_rag.cli`."""

from __future__ import annotations

import sys

from focus_rag.cli import main

sys.exit(main())
