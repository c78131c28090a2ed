"""Runs replicator and web server as one process tree; SIGTERM ends both."""

import os
import signal
import subprocess
import sys

COMMANDS = (
    [sys.executable, "-m", "django", "run_replicator"],
    [sys.executable, "-m", "uvicorn", "benchmarks.server.asgi:application", "--port", "8000", "--log-level", "warning",
     "--timeout-graceful-shutdown", "3"],
)  # fmt: skip


def main() -> None:
    """Start both, wait for a signal or for one to end, end the other."""
    children = [subprocess.Popen(command, env=os.environ) for command in COMMANDS]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        os.wait()
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(10)


if __name__ == "__main__":
    main()
