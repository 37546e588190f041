"""Imports point one way. Reads the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "workbench"
SOURCES = sorted(PACKAGE.rglob("*.py"))

TORCH = ("torch", "triton", "transformers", "safetensors")
ABOVE = (
    "workbench.trace",
    "workbench.widgets",
    "workbench.evals",
    "workbench.bench",
    "workbench.demo",
    "workbench.soak",
)

# layer -> what it must not know
FORBIDDEN = {
    "workbench.engine": (
        *TORCH,
        "pandas",
        "tqdm",
        "workbench.runtime",
        "workbench.models",
        "workbench.llm",
        *ABOVE,
    ),
    "workbench.cache": (
        *TORCH,
        "pandas",
        "tqdm",
        "workbench.runtime",
        "workbench.models",
        "workbench.llm",
        *ABOVE,
    ),
    "workbench.params": (
        *TORCH,
        "numpy",
        "pandas",
        "workbench.engine",
        "workbench.runtime",
        "workbench.models",
    ),
    "workbench.token_logprobs": (*TORCH, "pandas", "workbench.engine", "workbench.runtime"),
    "workbench.speculate": (
        *TORCH,
        "pandas",
        "workbench.engine.scheduler",
        "workbench.runtime",
        "workbench.models",
        "workbench.llm",
        *ABOVE,
    ),
    "workbench.structured": (
        *TORCH,
        "pandas",
        "workbench.cache",
        "workbench.engine",
        "workbench.runtime",
        "workbench.models",
        "workbench.llm",
        *ABOVE,
    ),
    "workbench.lora": (
        *TORCH,
        "pandas",
        "workbench.cache",
        "workbench.engine",
        "workbench.runtime",
        "workbench.llm",
        *ABOVE,
    ),
    "workbench.outputs": (*TORCH, "pandas", "workbench.engine", "workbench.runtime", "workbench.models"),
    "workbench.runtime": ("pandas", "workbench.engine.scheduler", "workbench.llm", *ABOVE),
    "workbench.models": ("pandas", "workbench.engine.scheduler", *ABOVE),
    "workbench.trace": (
        *TORCH,
        "ipywidgets",
        "workbench.widgets",
        "workbench.runtime",
        "workbench.models",
        "workbench.llm",
        "workbench.engine.scheduler",
    ),
    "workbench.widgets": (*TORCH, "workbench.runtime", "workbench.models", "workbench.llm"),
}
NOBODY_KNOWS = ("workbench.widgets",)
LONGEST_FILE = 400  # lines; past that it is asking to be two
LONGEST_FUNCTION = 60

# The zoo trains and checks its models through the front door.
EXEMPT = ("workbench.models.zoo",)
KNOWS_PANDAS = ("workbench.trace.tables", "workbench.bench", "workbench.evals", "workbench.widgets")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, `from a import b` as both a and a.b."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(name, package) if node.level else name
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found


def belongs(name: str, layer: str) -> bool:
    return name == layer or name.startswith(layer + ".")


def offences(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return sorted(name for name in imports(path) if any(belongs(name, layer) for layer in forbidden))


def test_the_referee_sees_every_kind_of_import(tmp_path: Path) -> None:
    lines = [
        "import a.b",
        "from c import d",
        "from . import plan",
        "from ..cache import pool",
        "def f(): import torch",
    ]
    tree = tmp_path / "workbench" / "engine" / "example.py"
    tree.parent.mkdir(parents=True)
    tree.write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "ROOT", tmp_path)
        assert imports(tree) == {
            "a.b", "c", "c.d", "torch",
            "workbench.engine", "workbench.engine.plan", "workbench.cache", "workbench.cache.pool",
        }  # fmt: skip
        assert offences(tree, TORCH) == ["torch"]


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_does_not_import_what_is_above_it(layer: str) -> None:
    sources = [path for path in SOURCES if belongs(module_name(path), layer)]
    sources = [path for path in sources if not any(belongs(module_name(path), other) for other in EXEMPT)]
    assert sources, f"{layer} has no source"
    assert {module_name(path): bad for path in sources if (bad := offences(path, FORBIDDEN[layer]))} == {}


@pytest.mark.parametrize("room", NOBODY_KNOWS)
def test_a_room_on_top_is_imported_by_nobody_else(room: str) -> None:
    others = [path for path in SOURCES if not belongs(module_name(path), room)]
    assert [module_name(path) for path in others if offences(path, (room,))] == []


def test_kernels_know_nothing_of_the_engine() -> None:
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        engine = [name for name in imports(path) if belongs(name, "workbench") and name != "workbench"]
        assert [name for name in engine if not belongs(name, "workbench.kernels")] == [], path


def test_pandas_stays_at_the_edge() -> None:
    inside = [path for path in SOURCES if not any(belongs(module_name(path), edge) for edge in KNOWS_PANDAS)]
    assert [module_name(path) for path in inside if offences(path, ("pandas",))] == []


@pytest.mark.parametrize("folder", ["kernels", "datasets"])
def test_folders_that_transformers_would_import_are_not_packages(folder: str) -> None:
    # transformers looks for hub projects of these names; with an __init__.py it would execute ours instead.
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_file_is_too_long_and_every_one_says_what_it_does(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_function_is_too_long(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, kinds)]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
