"""Loads an author's `.ci/**/*.py` from text: modules, packages, and lines for tracebacks.

`.ci/pipeline.py` is the module `pipeline`, `.ci/lib/x.py` is `lib.x`. The standard library wins
over a file of the same name. Compiled code is kept with the Sources, so that a second activation of
the same code executes fresh modules without compiling again. Used by guest.py and testing.py.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
from collections.abc import Mapping, Sequence
from types import CodeType, ModuleType

from pipelines import declare
from pipelines.declare import Pipeline
from pipelines.reuse import keeps_to_itself
from pipelines.wire import Json

FOLDER = ".ci/"
MAIN = "pipeline"
MAIN_PATH = ".ci/pipeline.py"


class Sources:
    """The files of one commit, as a finder and loader of modules."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = dict(files)
        self._paths: dict[str, str | None] = {}  # module -> its file; None: a folder without one
        self._compiled: dict[str, CodeType] = {}
        self._tidy: dict[str, bool] = {}
        for path in sorted(files):
            self._add(path)

    def _add(self, path: str) -> None:
        parts = path.removeprefix(FOLDER).removesuffix(".py").split("/")
        if not path.startswith(FOLDER) or not path.endswith(".py"):
            return
        if parts[-1] == "__init__":
            parts.pop()
        if not parts or not all(part.isidentifier() for part in parts):
            return
        for end in range(1, len(parts)):
            self._paths.setdefault(".".join(parts[:end]), None)
        name = ".".join(parts)
        if self._paths.get(name) is None or path.endswith("/__init__.py"):  # a package wins
            self._paths[name] = path

    def install(self) -> None:
        """Make the files importable, and forget the modules of earlier activations."""
        uninstall()
        sys.meta_path.append(self)

    def forget_modules(self) -> None:
        for name in self._paths:
            if _is_authors(sys.modules.get(name)):
                del sys.modules[name]

    def run_main(self) -> ModuleType:
        """Execute `.ci/pipeline.py`. Goes past the import system, whose search for a module that
        is surely here costs as much as a small activation."""
        spec = self.find_spec(MAIN)
        if spec is None or spec.loader is None:
            raise NoPipeline(f"{MAIN_PATH} does not exist at this commit")
        module = importlib.util.module_from_spec(spec)
        sys.modules[MAIN] = module
        spec.loader.exec_module(module)
        return module

    # --- the import system's protocol ---

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._paths:
            return None
        file = self._paths[name]
        package = file is None or file.endswith("/__init__.py")
        spec = importlib.util.spec_from_loader(name, _Loader(self), origin=file, is_package=package)
        if spec is not None and file is not None:
            spec.has_location = True
        return spec

    def code_of(self, name: str) -> CodeType | None:
        """A module's compiled code; None for a folder without a file."""
        path = self._paths[name]
        if path is None:
            return None
        code = self._compiled.get(name)
        if code is None:
            text = self._files[path]
            linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
            code = compile(text, path, "exec", dont_inherit=True)
            self._compiled[name] = code
        return code

    @property
    def tidy(self) -> bool:
        """Whether the code that was loaded surely left nothing behind in the interpreter."""
        for name, code in self._compiled.items():
            if name not in self._tidy:
                self._tidy[name] = keeps_to_itself(code, self._paths)
        return all(self._tidy.values())


class _Loader(importlib.abc.Loader):
    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        code = self.sources.code_of(module.__name__)
        if code is not None:
            exec(code, module.__dict__)


def uninstall() -> None:
    """Make no author's files importable any more."""
    for finder in [each for each in sys.meta_path if isinstance(each, Sources)]:
        finder.forget_modules()
        sys.meta_path.remove(finder)


def _is_authors(module: ModuleType | None) -> bool:
    return isinstance(getattr(getattr(module, "__spec__", None), "loader", None), _Loader)


class NoPipeline(Exception):
    """The file declares no pipeline, or not the one that was asked for."""


def load(sources: Sources) -> list[type[Pipeline]]:
    """Import `.ci/pipeline.py` and return the pipelines it declares, in order. Raises whatever the
    author's code raises."""
    return declared_in(load_module(sources))


def load_module(sources: Sources) -> ModuleType:
    """Import `.ci/pipeline.py` afresh. Raises whatever the author's code raises."""
    sources.install()
    return sources.run_main()


def declared_in(module: ModuleType) -> list[type[Pipeline]]:
    """The Pipeline subclasses that a module defines itself, in order."""
    found = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Pipeline)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    return list(dict.fromkeys(found))


def describe(pipelines: Sequence[type[Pipeline]]) -> dict[str, Json]:
    """What a file says of itself: the JSON of Description."""
    if not pipelines:
        raise NoPipeline(
            f"{MAIN_PATH} declares no pipeline: write `class CI(Pipeline)` with "
            "`async def run(self, event, step)`"
        )
    described = [declare.describe(pipeline) for pipeline in pipelines]
    names = [each["name"] for each in described]
    for name in names:
        if names.count(name) > 1:
            raise NoPipeline(f"{MAIN_PATH} declares the pipeline {name} twice")
    return {"pipelines": described}


def named(pipelines: Sequence[type[Pipeline]], name: str) -> type[Pipeline]:
    """The pipeline of a run."""
    for pipeline in pipelines:
        if pipeline.__name__ == name:
            return pipeline
    known = ", ".join(each.__name__ for each in pipelines) or "none"
    raise NoPipeline(f"{MAIN_PATH} declares no pipeline {name!r} at this commit; it has: {known}")
