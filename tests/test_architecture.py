"""The layout's rules, held against the code: who may import whom, how long things may be, what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import qnext

ROOT = Path(qnext.__file__).parent

# Each part of the package, and the parts that it may import. Ground first: those that import nothing of ours.
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "kernels": set(),
    "text": set(),
    "config": set(),
    "models": set(),
    "studio": set(),
    "client": set(),
    "model": {"kernels"},
    "engine": {"model", "kernels"},
    "synthetic": {"text"},
    "evals": {"text", "synthetic"},
    "train": {"model", "kernels", "text", "config", "synthetic"},
    "llm": {"engine", "text", "models"},
    "server": {"engine", "text", "config", "version"},
    "examinee": {"llm", "engine", "evals"},
    "actor": {"engine", "model", "train"},
    "terminal": {"llm", "engine", "text"},
    "arguments": {"version"},
}
ALLOWED["cli"] = set(ALLOWED)
ALLOWED["__init__"] = {
    "version",
    "engine",
    "llm",
    "model",
    "text",
}  # the public names, loaded when first used

LATE_IMPORTS = {"cli.py", "__init__.py", "kernels/select.py"}
VAGUE = {"utils", "util", "common", "base", "manager", "helpers", "misc"}
FILE_LINES, KERNEL_LINES, FUNCTION_LINES = 300, 500, 60
PUBLIC = [
    "LLM",
    "SamplingParams",
    "EngineConfig",
    "ModelConfig",
    "Qwen3Next",
    "Packing",
    "Tokenizer",
    "Message",
]


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    root: Path
    path: str

    @cached_property
    def source(self) -> str:
        return (self.root / self.path).read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def part(self) -> str:
        return Path(self.path).parts[0].removesuffix(".py")

    @property
    def name(self) -> str:
        return ".".join((self.root.name, *Path(self.path).with_suffix("").parts)).removesuffix(".__init__")

    def imported(self, node: ast.AST) -> set[str]:
        """Full names of what an import statement takes from the package itself."""
        own = self.root.name
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folder = (own, *Path(self.path).parent.parts)
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            home = ".".join(filter(None, (base, node.module)))
            names = {f"{home}.{alias.name}" for alias in node.names}
        else:
            return set()
        return {name for name in names if name.split(".")[0] == own}

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def modules(root: Path) -> list[Module]:
    return [Module(root, path.relative_to(root).as_posix()) for path in sorted(root.rglob("*.py"))]


def import_faults(module: Module) -> Iterator[str]:
    if module.part not in ALLOWED:
        yield f"{module.path}: {module.part} has no row in the table of imports"
        return
    for node in ast.walk(module.tree):
        for name in sorted(module.imported(node)):
            part = name.split(".")[1] if "." in name else "__init__"
            if part != module.part and part not in ALLOWED[module.part]:
                yield f"{module.path}: {module.part} may not import {part} ({name})"


def late_import_faults(module: Module) -> Iterator[str]:
    if module.path in LATE_IMPORTS:
        return
    for function in module.functions():
        for node in ast.walk(function):
            for name in sorted(module.imported(node)):
                yield f"{module.path}: {function.name} imports {name}: move it to the top"


def size_faults(module: Module) -> Iterator[str]:
    lines, limit = module.source.count("\n"), KERNEL_LINES if module.part == "kernels" else FILE_LINES
    if lines > limit:
        yield f"{module.path}: {lines} lines, at most {limit}"
    for function in module.functions():
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        if length > FUNCTION_LINES:
            yield f"{module.path}: {function.name} has {length} lines, at most {FUNCTION_LINES}"


def manner_faults(module: Module) -> Iterator[str]:
    if module.source.strip() and not ast.get_docstring(module.tree):
        yield f"{module.path}: no docstring"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"{module.path}: global {', '.join(node.names)}"
    for part in Path(module.path).with_suffix("").parts:
        if VAGUE & set(part.split("_")):
            yield f"{module.path}: {part} says nothing of what it is"


def cycle_fault(root: Path) -> str | None:
    """The first circle of files that import one another, if there is one."""
    every = modules(root)
    names = {module.name for module in every}
    graph: dict[str, set[str]] = {}
    for module in every:
        taken = {name for node in ast.walk(module.tree) for name in module.imported(node)}
        # `from package import name` may mean the module package.name, or a name within package
        files = {name if name in names else name.rpartition(".")[0] for name in taken}
        if module.path != "__init__.py":  # it loads its names late
            graph[module.name] = (files & names) - {module.name, root.name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(error.args[1])
    return None


RULES = {
    "imports": import_faults,
    "late imports": late_import_faults,
    "sizes": size_faults,
    "manners": manner_faults,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_code_keeps_the_rule(rule: str) -> None:
    faults = [fault for module in modules(ROOT) for fault in RULES[rule](module)]
    assert not faults, "\n".join(faults)


def test_no_file_imports_itself_through_others() -> None:
    assert cycle_fault(ROOT) is None


def test_the_package_was_found() -> None:
    assert {"kernels", "model", "engine", "text", "server", "cli"} <= {
        module.part for module in modules(ROOT)
    }


LONG = "def long():\n" + "    pass\n" * FUNCTION_LINES
BROKEN = {
    "model/a.py": ('"""A."""\nfrom ..engine import b\n', "model may not import engine (qnext.engine.b)"),
    "engine/c.py": ('"""C."""\nimport qnext.text.d\n', "engine may not import text (qnext.text.d)"),
    "text/e.py": ('"""E."""\nfrom qnext import config\n', "text may not import config (qnext.config)"),
    "server/f.py": ('"""F."""\ndef f():\n    from .g import h\n', "f imports qnext.server.g.h: move it"),
    "plugins/i.py": ('"""I."""\n', "plugins has no row"),
    "engine/j.py": ('"""J."""\n' + "\n" * FILE_LINES, f"{FILE_LINES + 1} lines, at most {FILE_LINES}"),
    "kernels/k.py": ('"""K."""\n' + LONG, f"long has {FUNCTION_LINES + 1} lines, at most {FUNCTION_LINES}"),
    "train/l.py": ("x = 1\n", "no docstring"),
    "train/m.py": ('"""M."""\ndef f():\n    global x, y\n', "global x, y"),
    "train/string_utils.py": ('"""N."""\n', "string_utils says nothing"),
}


@pytest.mark.parametrize("path", BROKEN)
def test_a_broken_rule_is_noticed(path: str, tmp_path: Path) -> None:
    source, message = BROKEN[path]
    file = tmp_path / "qnext" / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    (module,) = modules(tmp_path / "qnext")
    faults = [fault for rule in RULES.values() for fault in rule(module)]
    assert len(faults) == 1 and message in faults[0], faults


def test_a_circle_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "qnext"
    root.mkdir()
    (root / "a.py").write_text("from . import b\n")
    (root / "b.py").write_text("from qnext.c import x\n")
    assert cycle_fault(root) is None
    (root / "c.py").write_text("from .a import y\n")
    fault = cycle_fault(root)
    assert fault is not None and {"qnext.a", "qnext.b", "qnext.c"} == set(fault.split(" -> "))


def test_importing_the_package_is_quick() -> None:
    heavy = ["torch", "numpy", "tokenizers", "safetensors", "jinja2", "fastapi", "sqlalchemy", "rich"]
    code = f"import sys, qnext; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names() -> None:
    assert sorted(qnext.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        value = getattr(qnext, name)
        assert value.__name__ == name and value.__module__.startswith("qnext.")
    with pytest.raises(AttributeError, match="'qnext' has no attribute 'Model'"):
        qnext.Model  # noqa: B018
