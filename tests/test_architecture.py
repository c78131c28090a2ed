"""The rules of docs/architecture.md that a machine can check: rooms, imports, documentation, tidiness."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from django_localsync import conf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "django_localsync"

FLOORS = [
    {"exceptions", "buckets", "pgoutput"},
    {"sync_rules", "protocol"},
    {
        "querysets",
        "storage",
        "models",
        "upload_models",
        "migrations",
        "conf",
        "tokens",
        "key_sets",
        "counters",
    },
    {
        "replication",
        "evaluation",
        "health",
        "metrics",
        "streams",
        "consumers",
        "revocation",
        "authentication",
        "views",
        "upload",
    },
    {"apps", "urls", "routing", "admin", "checks", "management", "testing"},
]
PURE_ROOMS = {"exceptions", "buckets", "pgoutput", "sync_rules", "protocol"}
PURE_LIBRARIES = {"backports", "compression", "orjson", "yaml"}  # backports.zstd: compression.zstd of Python 3.14
IMPURE_STANDARD = {
    "asyncio", "ctypes", "fcntl", "ftplib", "glob", "http", "io", "logging", "mmap", "multiprocessing", "os", "pathlib",
    "queue", "random", "secrets", "select", "selectors", "shutil", "signal", "smtplib", "socket", "sqlite3", "ssl",
    "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip
CLIENT_USES = {"client", "buckets", "protocol", "exceptions"}


class Import(NamedTuple):
    """One import: the module that does it, and the dotted name that it asks for."""

    module: Path
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.module.relative_to(ROOT)}:{self.line} imports {self.name}"

    @property
    def importer(self) -> str:
        return room_of(self.module)

    @property
    def room(self) -> str | None:
        """The room of the package that is asked for; None outside of it."""
        parts = self.name.split(".")
        return parts[1] if parts[0] == PACKAGE.name and len(parts) > 1 else None

    @property
    def library(self) -> str:
        return self.name.split(".")[0]


def room_of(module: Path) -> str:
    """The first part of a module's path inside the package: a directory, or a module at the top."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@cache
def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


@cache
def imports() -> list[Import]:
    return [found for module in modules() for found in imports_of(module)]


def imports_of(module: Path) -> Iterator[Import]:
    """Every import of a module, also those inside functions and under TYPE_CHECKING, with absolute names."""
    package = [PACKAGE.name, *module.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            yield from (Import(module, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from (Import(module, node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_every_module_stands_on_a_floor():
    rooms = {room_of(module) for module in modules()}

    assert rooms <= set.union(*FLOORS) | {"client"}


def test_imports_go_down_only():
    inside = [item for item in imports() if item.room and item.importer != "client"]

    assert [str(item) for item in inside if item.room == "client"] == []
    assert [str(item) for item in inside if floor_of(item.room) > floor_of(item.importer)] == []


def test_rooms_do_not_import_each_other_in_circles():
    graph: dict[str, set[str]] = {}
    for item in imports():
        if item.room and item.room != item.importer:
            graph.setdefault(item.importer, set()).add(item.room)

    TopologicalSorter(graph).prepare()  # raises CycleError, which names the rooms


def test_pure_rooms_do_no_io():
    def is_pure(item: Import) -> bool:
        standard = item.library in sys.stdlib_module_names and item.library not in IMPURE_STANDARD
        return item.room is not None or standard or item.library in PURE_LIBRARIES

    assert [str(item) for item in imports() if item.importer in PURE_ROOMS and not is_pure(item)] == []


def test_pure_rooms_read_no_clock_file_or_terminal():
    impure = re.compile(r"\b(open|print|input)\(|\.(now|today|utcnow)\(|\buuid4\(")
    pure_modules = [module for module in modules() if room_of(module) in PURE_ROOMS]

    calls = [
        f"{module.relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}"
        for module in pure_modules
        for node in ast.walk(parse(module))
        if isinstance(node, ast.Call) and impure.search(ast.unparse(node.func) + "(")
    ]
    assert calls == []


def test_the_client_uses_only_what_a_device_has():
    of_client = [item for item in imports() if item.importer == "client"]

    assert of_client
    assert [str(item) for item in of_client if item.room and item.room not in CLIENT_USES] == []


def test_the_client_works_where_django_and_postgres_are_not_installed():
    server_only = ["django", "rest_framework", "channels", "psycopg", "psycopg_pool", "jwt", "yaml"]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({server_only!r}))"

    result = run_python(f"{blocked}; import django_localsync.client")

    assert result.returncode == 0, result.stderr


def test_importing_the_package_costs_nothing():
    result = run_python(
        "import sys; before = set(sys.modules); import django_localsync; print(set(sys.modules) - before)"
    )

    assert ast.literal_eval(result.stdout) == {"django_localsync"}


def test_everything_public_says_what_it_is():
    silent = [
        f"{module.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', '')}"
        for module in modules()
        if room_of(module) != "migrations" and module.read_text().strip()
        for node in public_nodes(parse(module))
        if ast.get_docstring(node) is None
    ]

    assert silent == []


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public_nodes(parent: Documented) -> Iterator[Documented]:
    """A module, its public classes and functions, and the public methods of these classes."""
    yield parent
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node):
            yield node
        elif isinstance(node, ast.ClassDef) and is_public(node) and node.name != "Meta":
            yield from public_nodes(node)


def is_public(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    stub = len(node.body) == 1 and isinstance(node.body[0], ast.Expr) and ast.unparse(node.body[0]) == "..."
    overload = any(ast.unparse(decorator).endswith((".setter", "overload")) for decorator in node.decorator_list)
    return not (node.name.startswith("_") or stub or overload)


# Documentation.


def read_docs(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def sources() -> str:
    return "\n".join(module.read_text() for module in modules())


def test_every_setting_is_documented_as_its_docstring_says():
    page = " ".join(read_docs("reference/settings.md").split())
    body = next(node for node in parse(PACKAGE / "conf.py").body if getattr(node, "name", "") == "Settings").body
    said = {
        field.target.id: " ".join(meaning.value.value.split())
        for field, meaning in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(meaning, ast.Expr)
    }

    names = [field.name for field in dataclasses.fields(conf.Settings) if field.name != "unknown"]
    assert [name for name in names if f"## `{name.upper()}`" not in page or said[name] not in page] == []


def test_every_system_check_is_documented():
    ids = set(re.findall(r"localsync\.[EWI]\d{3}", sources()))

    assert sorted(ids - set(re.findall(r"localsync\.[EWI]\d{3}", read_docs("reference/checks.md")))) == []


def test_every_error_is_documented():
    text = sources()
    codes = set(re.findall(r'^    code = "(\w+)"', text, re.MULTILINE))
    codes |= set(re.findall(r"PSYNC_S\d{4}", text)) | set(re.findall(r'OperationRejected\("(\w+)"', text))
    page = read_docs("reference/errors.md")

    assert len(codes) > 20
    assert sorted(code for code in codes if f"`{code}`" not in page) == []


def test_pages_that_code_names_exist():
    named = set(re.findall(r"docs/[\w/-]+\.(?:md|json)", sources()))

    assert sorted(page for page in named if not (ROOT / page).exists()) == []


def test_every_command_is_documented():
    commands = {path.stem for path in (PACKAGE / "management/commands").glob("*.py")} - {"__init__"}
    page = read_docs("reference/commands.md")

    assert sorted(command for command in commands if f"`{command}`" not in page) == []


# What a checkout may say.

UNWANTED = {
    "a path of one machine": re.compile(r"(?<![\w.~:/}])/(?:root|home|Users|work|opt)/[\w.]"),
    "the address of a package registry": re.compile(
        r"https?://[\w.-]*(?:pypi|pythonhosted|npmjs|yarnpkg|registry)[\w.]"
    ),
    "a resolved address in a lock file": re.compile(r'"resolved":'),
    "an index in a requirements file": re.compile(r"^--(?:(?:extra-)?index-url|find-links|trusted-host)", re.MULTILINE),
}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", UNWANTED)
def test_no_tracked_file_tells_of_the_place_where_it_was_made(what: str):
    texts = {path: path.read_bytes().decode(errors="ignore") for path in tracked_files() if path != Path(__file__)}

    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in texts.items()
        for match in UNWANTED[what].finditer(text)
    ]
    assert found == []
