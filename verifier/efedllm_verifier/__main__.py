"""`python -m efedllm_verifier`: the verifier's commands without the rest of `efedllm`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from efedllm.errors import EfedError
from efedllm_verifier.cli import app


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Exits 0, or 1 for an expected failure, which it prints as one line (one JSON object with --json)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        app(arguments)
    except EfedError as error:
        if "--json" in arguments:
            print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
        else:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
