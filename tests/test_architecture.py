"""The rooms import downwards only, stay small, and each says what it owns."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    ["call", "config", "prompts"],
    ["logs", "schema", "spool", "records", "durable", "facts", "memory", "rag"],
    ["telephony", "providers"],
    ["userdata"],
    ["behaviors"],
    ["tools"],
    ["support"],
    ["caretaker", "agent"],
]
ORDER = [room for layer in LAYERS for room in layer]
SHARED = {room for layer in LAYERS[:2] for room in layer}
PROGRAMS = ["simulator", "commands"]
SOURCES = sorted(path for folder in (".", *PROGRAMS) for path in (ROOT / folder).glob("*.py"))


def imports(path: Path, *, for_types: bool = True) -> set[str]:
    """The top-level names that a module imports (without `for_types`: not for types alone)."""
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [
            n
            for n in tree.body
            if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
        ]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    ours = imports(ROOT / f"{room}.py", for_types=False) & {*ORDER, *PROGRAMS}

    assert ours <= set(ORDER[: ORDER.index(room)])


def test_every_room_is_in_the_plan() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(ORDER)


def test_programs_share_only_the_lower_rooms() -> None:
    for path in (ROOT / "simulator").glob("*.py"):
        allowed = SHARED | ({"commands"} if path.stem == "demo" else set())

        assert imports(path) & {*ORDER, "commands"} <= allowed, path.name


def test_nothing_imports_the_composition_root() -> None:
    assert not [path for path in SOURCES if "agent" in imports(path)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_is_small_and_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 40]

    assert ast.get_docstring(tree)
    assert text.count("\n") <= 400
    assert not long
