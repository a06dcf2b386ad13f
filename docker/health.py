"""Asks the app in this container whether it answers: exit code 0 if so. For HEALTHCHECK and the start script."""

import os
import sys
import urllib.error
import urllib.request

PORT = os.environ.get("SEEDVR_PORT", "7860")


def main() -> int:
    """0 if /healthz answers within 5 s. A serverless worker serves no page; there the supervisor speaks for it."""
    if os.environ.get("MODE", "pod") == "serverless":
        return 0
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
