"""The shape of the tree: who imports whom, how large things are, what must not be committed."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipelines", "git_store", "ci_platform", "web")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600

CORE = {
    "ci_platform.effects",
    "ci_platform.model",
    "ci_platform.errors",
    "ci_platform.ports",
    "ci_platform.labels",
    "ci_platform.rates",
    "ci_platform.scheduling",
    "ci_platform.family",
    "ci_platform.shell",
    "ci_platform.durable",
    "ci_platform.envelope",
    "ci_platform.hosts",
}
FRONT = {
    "ci_platform.commands",
    "ci_platform.queries",
    "ci_platform.identity",
    "ci_platform.live",
    "ci_platform.model",
    "ci_platform.errors",
    "ci_platform.ports",
    "ci_platform.scheduling",
    "ci_platform.shell",
    "ci_platform.step_commands",
}
MAY_IMPORT: dict[str, set[str]] = {
    "pipelines": set(),
    "git_store": set(),
    "ci_platform.model": CORE,
    "ci_platform.errors": CORE,
    "ci_platform.ports": CORE,
    "ci_platform.labels": CORE,
    "ci_platform.rates": set(),
    "ci_platform.scheduling": set(),
    "ci_platform.family": set(),
    "ci_platform.shell": CORE,
    "ci_platform.hosts": set(),
    "ci_platform.outgoing": CORE | {"git_store"},
    "ci_platform.durable": set(),
    "ci_platform.envelope": CORE,
    "ci_platform.engine": CORE,
    "ci_platform.store": CORE,
    "ci_platform.source": CORE | {"git_store"},
    "ci_platform.sandbox": CORE | {"pipelines"},
    "ci_platform.runner": CORE,
    "ci_platform.worker": CORE | {"ci_platform.engine"},
    "ci_platform.identity": CORE | {"ci_platform.engine"},
    "ci_platform.queries": CORE
    | {
        "ci_platform.engine",
        "ci_platform.identity",
    },
    "ci_platform.step_commands": CORE
    | {"ci_platform.engine", "ci_platform.identity", "ci_platform.queries"},
    "ci_platform.commands": CORE | {"ci_platform.engine", "ci_platform.identity"},
    "ci_platform.live": CORE,
    "ci_platform.capabilities": CORE,
    "ci_platform.api": FRONT,
    "ci_platform.webhooks": FRONT,
    "web": FRONT,
}
"""What each of our modules may import, of ours; longest prefix wins. Not listed: anything."""

HOMES = {
    "dulwich": ("git_store",),
    "sqlmodel": ("ci_platform.store", "git_store"),
    "wasmtime": ("ci_platform.sandbox",),
    "jinja2": ("web",),
    "subprocess": (
        "ci_platform.runner",
        "ci_platform.sandbox",
        "ci_platform.server.supervise",
        "ci_platform.cli.demo",
        "ci_platform.cli.local",
        "ci_platform.cli.client",
        "ci_platform.capabilities",
        "git_store",
    ),
}
"""Libraries with one home: nothing else imports them."""


def ours() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a module imports, `from a import b` as both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", ours(), ids=lambda path: module_name(path))
def test_packages_import_only_downwards(path: Path) -> None:
    name = module_name(path)
    rule = max((prefix for prefix in MAY_IMPORT if within(name, prefix)), key=len, default=None)
    if rule is None:
        return
    allowed = MAY_IMPORT[rule] | {rule}
    for target in imports(path):
        if not any(within(target, package) for package in PACKAGES) or target in PACKAGES:
            continue
        assert any(within(target, prefix) for prefix in allowed), f"{name} imports {target}"


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_with_one_home_is_imported_only_there(library: str) -> None:
    for path in ours():
        name = module_name(path)
        if any(within(name, home) for home in HOMES[library]):
            continue
        assert library not in {target.split(".")[0] for target in imports(path)}, name


def test_pipelines_need_only_the_standard_library() -> None:
    import sys

    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        for target in imports(path):
            top = target.split(".")[0]
            assert top in sys.stdlib_module_names | {"pipelines", "wit_world"}, f"{path}: {top}"


def test_no_module_and_no_function_is_too_long() -> None:
    for path in ours():
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= MODULE_LINES_MAX, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = (
                    node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                )
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                assert lines <= FUNCTION_LINES_MAX, f"{path}: {node.name} has {lines} lines"


def test_every_module_says_what_it_owns() -> None:
    for path in ours():
        source = path.read_text(encoding="utf-8")
        if source.strip():
            assert ast.get_docstring(ast.parse(source)), path


def test_imports_stand_at_the_top() -> None:
    for path in ours():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, f"{path}: {node.name} imports inside a function"


def test_no_error_is_swallowed() -> None:
    for path in ours():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (
                    isinstance(node.type, ast.Name)
                    and node.type.id in {"Exception", "BaseException"}
                )
                silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                assert not (broad and silent), f"{path}:{node.lineno}"


def test_every_module_is_imported_by_something() -> None:
    entered = {  # started by the interpreter or by the guest's builder, not by an import
        "ci_platform.cli.__main__",
        "ci_platform.sandbox.child",
        "ci_platform.sandbox.compile",
        "ci_platform.sandbox.guest.guest_app",
        "pipelines.guest",
        "pipelines.testing",
        "ci_platform.testing",
    }
    imported = {target for path in ours() for target in imports(path)}
    for path in ours():
        name = module_name(path)
        if path.name == "__init__.py" or name in entered or ".migrations" in name:
            continue
        assert name in imported, f"nothing imports {name}"


def test_nothing_committed_names_a_machine_or_is_left_open() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listing.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file() or path.stat().st_size > 1 << 20:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not re.search(r"(?<![\w./])/(work|root)/\w", text), f"{name} names a path"
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", text), f"{name} leaves something open"
