"""The house of design.md holds: imports go downwards only, the core knows no Jupyter, one package knows libvirt."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vmlab"

#: Part of the package -> its layer. A part may import lower layers, and the parts named beside it in ``SIBLINGS``.
LAYERS = {
    "errors": 0,
    "render": 1,  # what results look like; holds no machine, so that the objects can show themselves
    "store": 1,
    "hypervisor": 1,
    "engine": 2,
    "compare": 2,
    "guest": 2,
    "hardware": 2,
    "images": 2,
    "doctor": 3,
    "gateway": 3,
    "snapshot": 3,
    "image": 3,
    "machine": 3,
    "lab": 3,
    "diff": 3,
    "throwaway": 3,
    "timeline": 3,
    "commands": 4,
    "notebook": 5,
    "server": 5,
    "cli": 5,
    "__main__": 6,
    "__init__": 6,
}
OBJECTS = {"lab", "machine", "snapshot", "image", "doctor", "diff", "throwaway", "timeline"}
SIBLINGS = {
    # The objects hold each other: a machine has snapshots, a snapshot knows its machine.
    **dict.fromkeys(OBJECTS, OBJECTS),
    # The file format of a snapshot's RAM is the engine's.
    "compare": {"engine"},
    # The account that owns the files of the store is the hypervisor's; a domain's files lie in the store.
    "store": {"hypervisor"},
    "hypervisor": {"store"},
}

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
    """All modules that a module imports when it runs, also inside functions; not those for type checking only."""

    def __init__(self, module: str, *, is_package: bool) -> None:
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: list[tuple[str, int]] = []

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
        for child in node.orelse if name == "TYPE_CHECKING" else [*node.body, *node.orelse]:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        if base == "vmlab":
            # `from vmlab import doctor` imports a part, `from vmlab import Lab` the whole; the parts are known.
            self.found += [
                (f"vmlab.{a.name}" if a.name in LAYERS else "vmlab", node.lineno) for a in node.names
            ]
        else:
            self.found.append((base, node.lineno))


def imports(module: str, path: Path) -> list[tuple[str, int]]:
    visitor = Imports(module, is_package=path.name == "__init__.py")
    visitor.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return visitor.found


def test_every_part_has_a_layer() -> None:
    parts = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir()}
    parts = {p for p in parts if (PACKAGE / f"{p}.py").exists() or (PACKAGE / p / "__init__.py").exists()}
    assert parts <= set(LAYERS), "give the new part a layer here and a line in CONTRIBUTING"


def test_imports_go_downwards_only() -> None:
    wrong = []
    for module, path in modules():
        part = part_of(module)
        for name, line in imports(module, path):
            if name.split(".")[0] != "vmlab":
                continue
            other = part_of(name)
            if other == part or other in SIBLINGS.get(part, ()):
                continue
            if other not in LAYERS or LAYERS[other] >= LAYERS[part]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {part} imports {other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [(JUPYTER, {"notebook", "server"}), (LIBVIRT, {"hypervisor"})],
    ids=["only the adapters import Jupyter", "only the hypervisor imports libvirt"],
)
def test_outside_packages(packages: set[str], allowed: set[str]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path in modules()
        if part_of(module) not in allowed
        for name, line in imports(module, path)
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
        "def f():\n    from vmlab import lab, Lab\n    from . import mapped\n    from ..store import records\n"
    )
    visitor = Imports("vmlab.engine.save", is_package=False)
    visitor.visit(ast.parse(source))
    assert [name for name, _ in visitor.found] == [
        "typing",
        "vmlab.lab",
        "vmlab",
        "vmlab.engine",
        "vmlab.store",
    ]
