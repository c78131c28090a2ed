"""A real server that can be told to die (kill -9) at a step of an upload. Run by test_crashes.py.

A supervisor loads the project once and forks the server, again each time that it dies. The file FAILPOINT holds the
name of a step; the server removes it and dies when it gets there, so that the next one lives.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

from example_project.postgres import end_with_parent

STEPS = (
    "before the turn",
    "before the journal is asked",
    "before the first operation",
    "between two operations",
    "after the operations",
    "before the answer is noted",
    "after the answer is noted",
    "after the first commit",
    "after the last commit",
    "before the answer is sent",
)

FORGETS = "forgets"  # a file beside the failpoint: the journal finds nothing


def main(port: int, failpoint: Path) -> None:
    """Serve for ever."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.integration.uploads.crash_settings"
    django.setup()
    import uvicorn
    from django.core.asgi import get_asgi_application

    application = get_asgi_application()
    _place_failpoints(failpoint)
    while True:
        child = os.fork()
        if child == 0:
            end_with_parent(signal.SIGKILL)
            uvicorn.run(application, host="127.0.0.1", port=port, log_level="warning", lifespan="off")
            os._exit(0)
        os.waitpid(child, 0)


def _place_failpoints(file: Path) -> None:
    from django_localsync import views
    from django_localsync.upload import UploadHandler, handler, journal

    def reach(step: str) -> None:
        assert step in STEPS
        try:
            wanted = file.read_text()
        except FileNotFoundError:
            return
        if wanted == step:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, before: str | None, after: str | None = None) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            if before:
                reach(before)
            result = original(*args, **kwargs)
            if after:
                reach(after)
            return result

        setattr(owner, name, replacement)

    around(journal, "wait_for_turn", "before the turn", "before the journal is asked")
    find = journal.find_answer
    journal.find_answer = lambda *args: None if file.with_name(FORGETS).exists() else find(*args)
    around(journal, "find_answer", None, "before the first operation")
    around(UploadHandler, "apply_operation", None, "between two operations")
    around(handler, "_check_constraints", "after the operations")
    around(journal, "record", "before the answer is noted", "after the answer is noted")
    around(UploadHandler, "_answer", None, "after the first commit")
    around(UploadHandler, "handle", None, "after the last commit")
    around(views, "encode_answer", None, "before the answer is sent")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
