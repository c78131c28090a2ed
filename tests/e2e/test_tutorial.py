"""The tutorial works when pasted: its files are written, its commands run, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.databases import temporary_database
from tests.processes import ROOT, Process, free_port

PAGE = ROOT / "docs/tutorial/first-sync.md"
# A comment says what is to be done with the block below it; blocks without one are for people alone.
BLOCK = re.compile(r"<!-- (?P<verb>\w+)(?:: (?P<object>.+?))? -->\n```\w*\n(?P<text>.*?)```\n", re.DOTALL)


class Step(NamedTuple):
    """`write` or `append` a file, `run` commands, `start` a process until it says `object`, `expect` an output."""

    verb: str
    object: str | None
    text: str


def read_steps(port: int) -> Iterator[Step]:
    page = PAGE.read_text().replace("8000", str(port))
    return (Step(*match.group("verb", "object", "text")) for match in BLOCK.finditer(page))


class Reader:
    """Does what the page says, in a folder."""

    def __init__(self, folder: Path, database_url: str, cleanup: ExitStack) -> None:
        self._folder, self._cleanup, self._output = folder, cleanup, ""
        (folder / ".venv").symlink_to(sys.prefix)
        variables = {"DATABASE_URL": database_url, "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        self._environment = os.environ | variables | {"PYTHONPATH": f"{ROOT}:{folder}"}

    def follow(self, step: Step) -> None:
        match step.verb:
            case "write" | "append":
                with (self._folder / step.object).open(step.verb[0]) as file:
                    file.write(step.text)
            case "run":
                self._output = self._run(step.text)
            case "start":
                self._start(step)
            case "expect":
                assert self._output == step.text
            case _:
                raise AssertionError(f"{PAGE.name} says {step.verb!r}")

    def _run(self, commands: str) -> str:
        shell = ["sh", "-e", "-c", commands]
        done = subprocess.run(shell, cwd=self._folder, env=self._environment, text=True, capture_output=True)
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, step: Step) -> None:
        log = self._folder / f"{len(list(self._folder.iterdir()))}.log"
        command = ["sh", "-c", f"cd {shlex.quote(str(self._folder))} && exec {step.text.strip()}"]
        process = Process(step.text.strip(), command, log, self._environment)
        self._cleanup.callback(process.stop)
        process.wait_for_log(step.object)


def test_the_tutorial_works_when_pasted(server_url: str, tmp_path: Path):
    steps = list(read_steps(free_port()))
    assert {step.verb for step in steps} == {"write", "append", "run", "start", "expect"}

    with temporary_database(server_url) as database_url, ExitStack() as cleanup:
        reader = Reader(tmp_path, database_url, cleanup)
        for step in steps:
            reader.follow(step)
