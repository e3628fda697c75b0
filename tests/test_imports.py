"""The architecture's rules, read from the source: one-way imports, steps apart, one broad except, no prints."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("node", "storage", "analysis")  # each may import itself and what stands to its right
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in LAYERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name in MODULES}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_from_node_to_storage_to_analysis(name: str) -> None:
    own = LAYERS.index(name.split(".")[0])
    upward = {other for other in imported_modules(MODULES[name]) if LAYERS.index(other.split(".")[0]) < own}
    assert not upward, f"{name} imports {upward}, against node -> storage -> analysis"


@pytest.mark.parametrize("name", [n for n in sorted(MODULES) if n.startswith("analysis.")])
def test_no_analysis_step_imports_training_or_simulation(name: str) -> None:
    if name.startswith(("analysis.training", "analysis.simulation")):
        return
    wrong = {o for o in imported_modules(MODULES[name]) if o.startswith(("analysis.training", "analysis.simulation"))}
    assert not wrong, f"{name} imports {wrong}"


def test_the_import_graph_has_no_cycle() -> None:
    graph = {name: imported_modules(path) - {name} for name, path in MODULES.items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in finished:
            for other in graph[name]:
                visit(other, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_one_broad_except_stands_at_the_job_boundary() -> None:
    broad = [
        f"{name}:{handler.lineno}"
        for name, path in MODULES.items()
        for handler in ast.walk(ast.parse(path.read_text()))
        if isinstance(handler, ast.ExceptHandler)
        and (handler.type is None or getattr(handler.type, "id", "") in {"Exception", "BaseException"})
    ]
    assert len(broad) <= 1 and all(place.startswith("node.worker") for place in broad), broad


def test_only_the_command_line_prints() -> None:
    prints = [
        f"{name}:{call.lineno}"
        for name, path in MODULES.items()
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "print"
    ]
    assert not prints, prints
