"""Author files as modules: packages, helpers, lines for tracebacks, fresh modules each time."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines import loading
from pipelines.loading import NoPipeline, Sources
from pipelines.reuse import keeps_to_itself

PIPELINE = """
from pipelines import Pipeline
class CI(Pipeline):
    async def run(self, event, step): ...
"""


@pytest.fixture(autouse=True)
def _cleaned() -> Iterator[None]:
    yield
    loading.uninstall()


def load(**files: str) -> Any:
    texts = {f".ci/{name.replace('__', '/')}.py": text for name, text in files.items()}
    return loading.load(Sources(texts))


def test_helpers_and_packages_can_be_imported() -> None:
    (ci,) = load(
        pipeline="import helpers\nfrom lib.deep.x import y\n" + PIPELINE + "CI.got = helpers.h, y",
        helpers="h = 1",
        lib__deep__x="from ..near import z as y",
        lib__near="z = 2",
    )
    assert ci.got == (1, 2)


def test_a_package_may_have_an_init_file() -> None:
    files = {
        ".ci/pipeline.py": "from lib import v\n" + PIPELINE + "CI.v = v",
        ".ci/lib/__init__.py": "v = 3",
        ".ci/lib/other.py": "",
        ".ci/lib.py": "v = 4",
    }
    (ci,) = loading.load(Sources(files))
    assert vars(ci)["v"] == 3


def test_the_standard_library_wins_over_a_file_of_its_name() -> None:
    (ci,) = load(pipeline="import json\n" + PIPELINE + "CI.j = json", json="dumps = None")
    assert ci.j.dumps is not None


def test_each_activation_gets_fresh_modules_from_code_compiled_once() -> None:
    sources = Sources({".ci/pipeline.py": PIPELINE + "CI.seen = []"})
    (first,) = loading.load(sources)
    vars(first)["seen"].append(1)
    (second,) = loading.load(sources)
    assert first is not second
    assert vars(second)["seen"] == []
    assert sources.code_of("pipeline") is sources.code_of("pipeline")


def test_tracebacks_show_the_authors_lines_and_path() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        load(pipeline="x = 1\ny = x / 0\n")
    text = "".join(traceback.format_exception(caught.value))
    assert 'File ".ci/pipeline.py", line 2' in text
    assert "y = x / 0" in text


def test_nothing_of_it_stays_importable() -> None:
    load(pipeline=PIPELINE, helpers="")
    loading.uninstall()
    assert "pipeline" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("helpers")


def test_only_pipelines_that_the_file_declares_itself_count() -> None:
    found = load(
        pipeline="from base import Base\nfrom pipelines import Pipeline\n"
        "class B(Base): ...\nclass A(Base): ...\nclass _Hidden(Base): ...\nalias = A\n",
        base=PIPELINE.replace("CI", "Base"),
    )
    assert [each.__name__ for each in found] == ["B", "A"]
    assert loading.named(found, "A") is found[1]
    with pytest.raises(NoPipeline, match="declares no pipeline 'C' at this commit; it has: B, A"):
        loading.named(found, "C")


def test_a_file_without_a_pipeline_says_what_to_write() -> None:
    with pytest.raises(NoPipeline, match="does not exist at this commit"):
        load(other="")
    with pytest.raises(NoPipeline, match="declares no pipeline: write `class CI"):
        loading.describe(load(pipeline="x = 1"))


def test_paths_that_are_no_modules_are_left_alone() -> None:
    files = {
        ".ci/pipeline.py": PIPELINE,
        ".ci/my-script.py": "1/0",
        ".ci/data.txt": "",
        "elsewhere/x.py": "",
        ".ci/__init__.py": "1/0",
    }
    assert len(loading.load(Sources(files))) == 1


# --- reuse ---


@pytest.mark.parametrize(
    "text",
    [
        PIPELINE,
        "import asyncio, json, re\nclass A:\n    def f(self): self.x = 1\n",
        "import helpers\nfrom lib.x import y\n",
        "def f():\n    a = {}\n    a['b'] = 1\n    return [x for x in a]\n",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 1\n",
    ],
)
def test_ordinary_code_lets_its_interpreter_be_used_again(text: str) -> None:
    assert keeps_to_itself(compile(text, "x", "exec"), {"helpers", "lib"})


@pytest.mark.parametrize(
    "text",
    [
        "import json\njson.dumps = None",
        "import json\ndef f():\n    json.encoder.x = 1",
        "import json\ndel json.dumps",
        "import sys",
        "import os",
        "from wit_world.imports import host",
        "import pipelines.guest as g\ng.x = 1",
        "setattr(1, 'x', 2)",
        "exec('1')",
        "import decimal\ndecimal.getcontext().prec = 3",
        "import logging",
        "class A: pass\nA.__dict__",
        "def f():\n    def g():\n        import gc\n",
        "\n".join(f"x{i} = {i}.5" for i in range(300)) + "\nimport json\njson.x = x1",
    ],
)
def test_code_that_might_leave_something_behind_does_not(text: str) -> None:
    assert not keeps_to_itself(compile(text, "x", "exec"), set())
