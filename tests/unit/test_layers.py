"""The house of design.md holds: imports go downwards only, the core knows no Jupyter, one package knows libvirt."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vmlab"

#: The parts of the package by storey, from the ground up. A part imports parts of lower storeys only; that goes for
#: imports inside functions and for types, too.
STOREYS = (
    ("language",),
    ("errors", "private"),
    ("records", "checked"),
    ("render",),  # the means of drawing; knows no object, so that the objects can show themselves
    ("hypervisor",),
    ("network",),
    ("store",),
    ("engine", "guest", "images", "webconsole"),
    ("compare",),  # the file format of a snapshot's RAM is the engine's
    ("machines",),  # what is done to a machine, by store and name
    ("study", "host", "scenarios"),  # scenarios: what is done to several machines as one
    ("tree",),
    ("machine",),  # what people hold: doors
    ("image", "scenario"),
    ("lab",),
    ("views",),  # how the objects look
    ("commands",),
    ("notebook", "server"),
    ("cli",),
    ("__main__",),
)
STOREY = {part: number for number, parts in enumerate(STOREYS) for part in parts}
#: The package itself hands its parts what they cannot import: views, a notebook.
WHOLE = "__init__"

JUPYTER = {
    "IPython", "ipykernel", "ipywidgets", "anywidget", "jupyter_client", "jupyter_core", "jupyter_server", "jupyterlab",
    "nbclient", "nbconvert", "nbformat", "notebook", "tornado", "traitlets", "comm",
}  # fmt: skip
LIBVIRT = {"libvirt", "libvirt_qemu", "libvirtaio"}


def part_of(module: str) -> str:
    """Return the part of the package that a dotted module name of ours belongs to."""
    rest = module.split(".")[1:]
    return rest[0] if rest else "__init__"


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


class Imports(ast.NodeVisitor):
    """All modules that a module names in an import: at the top, inside functions, and for types only."""

    def __init__(self, module: str, known: Collection[str], *, is_package: bool) -> None:
        self.package = module if is_package else module.rpartition(".")[0]
        self.known = known
        self.found: list[tuple[str, int]] = []

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            # `from vmlab import machine` imports a module of ours, `from vmlab import Lab` the package.
            inner = f"{base}.{alias.name}"
            self.found.append((inner if inner in self.known else base, node.lineno))


@functools.cache
def imports() -> dict[str, list[tuple[str, int]]]:
    """Return what each module of ours imports, and in which line."""
    paths = dict(modules())
    names = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found = {}
    for name, path in names.items():
        visitor = Imports(name, names.keys(), is_package=path.name == "__init__.py")
        visitor.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        found[name] = visitor.found
    return found


def test_every_part_has_a_storey() -> None:
    parts = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir()}
    parts = {p for p in parts if (PACKAGE / f"{p}.py").exists() or (PACKAGE / p / "__init__.py").exists()}
    assert parts == set(STOREY) | {WHOLE}, "give the new part a storey here and a line in CONTRIBUTING"


def test_imports_go_downwards_only() -> None:
    wrong = []
    for module, found in imports().items():
        part = part_of(module)
        for name, line in found:
            other = part_of(name)
            if name.split(".")[0] != "vmlab" or WHOLE in (part, other) or other == part:
                continue
            if STOREY[other] >= STOREY[part]:
                wrong.append(f"{module}:{line}: {part} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {name for name, _ in found if name in imports() and name not in (module, "vmlab")}
        for module, found in imports().items()
        if module != "vmlab"
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail("a circle of files: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [(JUPYTER, {"notebook", "server"}), (LIBVIRT, {"hypervisor"})],
    ids=["only the adapters import Jupyter", "only the hypervisor imports libvirt"],
)
def test_outside_packages(packages: set[str], allowed: set[str]) -> None:
    wrong = [
        f"{module}:{line}: {name}"
        for module, found in imports().items()
        if part_of(module) not in allowed
        for name, line in found
        if name.split(".")[0] in packages
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_vmlab_loads_neither_jupyter_nor_libvirt() -> None:
    # Jupyter imports the package only to read its paths, and `vmlab --help` should be quick.
    code = "import sys, vmlab; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & (JUPYTER | LIBVIRT)


def test_the_test_itself_sees_imports() -> None:
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vmlab.cli\n"
        "def f():\n    from vmlab import lab, Lab\n    from . import load\n    from ..store import locks\n"
    )
    known = {"vmlab", "vmlab.lab", "vmlab.cli", "vmlab.engine", "vmlab.engine.load", "vmlab.store.locks"}
    visitor = Imports("vmlab.engine.save", known, is_package=False)
    visitor.visit(ast.parse(source))
    assert [name for name, _ in visitor.found] == [
        "typing",
        "vmlab.cli",
        "vmlab.lab",
        "vmlab",
        "vmlab.engine.load",
        "vmlab.store.locks",
    ]


class Joins(ast.NodeVisitor):
    """Where a module writes a path into the folder of all snapshots or of all bases."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def visit_BinOp(self, node: ast.BinOp) -> None:
        sides = (node.left, node.right)
        if isinstance(node.op, ast.Div) and any(
            isinstance(side, ast.Constant) and side.value in ("snapshots", "bases") for side in sides
        ):
            self.found.append(node.lineno)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        # Docstrings may say where things lie.
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and re.search(r"(^|/)(snapshots|bases)/", node.value):
            self.found.append(node.lineno)


def test_one_place_says_where_snapshots_and_bases_lie() -> None:
    """A second one, which nobody writes to, must be possible."""
    wrong = []
    for module, path in modules():
        # Addresses of the REST API.
        if module in ("vmlab.store.places", "vmlab.server.routes"):
            continue
        joins = Joins()
        joins.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        wrong += [f"{module}:{line}" for line in joins.found]
    assert not wrong, "ask Store.snapshot_folder, base_folder, base_file: " + ", ".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        'x = home / "snapshots" / name',
        'home / "bases"',
        'f"{home}/snapshots/{name}"',
        'g("../bases/x")',
        '"bases/.new-*", 1',
    ],
)
def test_joined_paths_are_seen(source: str) -> None:
    joins = Joins()
    joins.visit(ast.parse(source))
    assert joins.found
