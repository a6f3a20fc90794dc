"""The rules of the house, read from the source: who may import whom, sizes, names, and what must not be there."""

import ast
import itertools
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "sash"

# From the roof down. A module imports from its own room and from rooms further down; rooms on one floor are strangers.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("server",),
    ("evaluation", "training"),
    ("",),
    ("lm",),
    ("explain",),
    ("engine",),
    ("checkpoint",),
    ("families",),
    ("network",),
    ("attention",),
    ("quantize",),
    ("kernels",),
    ("text",),
    ("hub", "sampling", "memory"),
    ("errors",),
)
# The room of `LM`, the object that a user holds, stands in several files.
ROOM = dict.fromkeys(
    (
        "answer",
        "asked",
        "completion",
        "conversation",
        "loading",
        "masked",
        "reading",
        "saved",
        "session",
        "session_reader",
        "session_state",
        "session_tokens",
        "speculation",
        "variants",
    ),
    "lm",
)
RANK = {room: rank for rank, rooms in enumerate(FLOORS) for room in rooms}

# What `sash --help`, ls, show and plan touch, and the scheduler: free of torch when they are imported.
TORCH_FREE = (
    "sash.cli", "sash.explain", "sash.families", "sash.hub", "sash.errors", "sash.text", "sash.network.config",
    "sash.attention.pattern", "sash.engine.scheduler", "sash.engine.request",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = ("sash", *path.relative_to(HOUSE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(HOUSE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = {module_name(path): path for path in FILES}


def room_of(module: str) -> str:
    """The room of a module: the first name below `sash`, or the room that it is a part of; "" is `sash` itself."""
    first = module.split(".")[1] if "." in module else ""
    return ROOM.get(first, first)


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that a tree imports, in functions and for types too, with the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: name the module in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else str(node.module)), node


def at_import_time(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: not those of functions, nor those for type checkers."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.stmt):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


def test_every_room_has_a_floor():
    rooms = {room_of(module) for module in MODULES}
    assert rooms <= set(RANK), f"rooms without a floor: {sorted(rooms - set(RANK))}"


def test_imports_point_down_only():
    wrong = []
    for module, path in MODULES.items():
        for target, node in imports(TREES[path]):
            if target.split(".")[0] != "sash":
                continue
            here, there = room_of(module), room_of(target)
            if here != there and RANK[there] <= RANK[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {target}")
    assert wrong == []


def test_torch_free_modules_import_no_torch_at_import_time():
    free = [module for module in MODULES if module == "sash" or module.startswith(TORCH_FREE)]
    assert len(free) > 10
    wrong = [
        f"{module}:{node.lineno}"
        for module in free
        for node in at_import_time(TREES[MODULES[module]])
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(name.split(".")[0] in ("torch", "transformers") for name, _ in imports(node))
    ]
    assert wrong == []
    # What they import in turn must not bring torch either: ask Python itself.
    code = (
        "import importlib, sys\n"
        f"for module in {free!r}:\n"
        "    if module != 'sash.__main__': importlib.import_module(module)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{module} brought torch')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_sorted_and_there():
    import sash

    tree = TREES[HOUSE / "__init__.py"]
    (stated,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    # The order that ruff sorts by: CONSTANTS, then Classes, then the rest.
    assert list(stated) == sorted(stated, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert len(set(stated)) == len(stated)
    assert [name for name in stated if not hasattr(sash, name)] == []


def test_files_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = sorted(f"{path.relative_to(ROOT)} {count}" for path, count in lines.items() if count > 300)
    if long:
        warnings.warn(f"files over 300 lines: {', '.join(long)}", stacklevel=1)
    assert [str(path) for path, count in lines.items() if count > 500] == []


def test_functions_are_short():
    """Their bodies: a command has as many parameters as it has options."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {node.end_lineno - node.body[0].lineno + 1}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.body[0].lineno + 1 > 60
    ]
    assert long == []


def test_no_file_has_a_name_that_says_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
    assert [
        module for module in MODULES if empty & set(itertools.chain(*(p.split("_") for p in module.split("."))))
    ] == []


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called, as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_exactly_one_template_environment_is_made_and_it_is_sandboxed():
    made = [
        name.split(".")[-1]
        for tree in TREES.values()
        for name, _ in calls(tree)
        if name.split(".")[-1] in ("Environment", "SandboxedEnvironment", "ImmutableSandboxedEnvironment", "Template")
    ]
    assert made == ["ImmutableSandboxedEnvironment"]


def test_nothing_untrusted_can_be_run():
    forbidden_calls = {"eval", "exec", "compile", "torch.load", "os.system", "builtins.eval", "builtins.exec"}
    forbidden_modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    wrong = []
    for path, tree in TREES.items():
        where = path.relative_to(ROOT)
        wrong += [f"{where}:{node.lineno} {name}" for name, node in calls(tree) if name in forbidden_calls]
        wrong += [
            f"{where}:{node.lineno} {name}" for name, node in imports(tree) if name.split(".")[0] in forbidden_modules
        ]
        wrong += [
            f"{where}:{node.lineno} trust_remote_code"
            for _, node in calls(tree)
            if any(keyword.arg == "trust_remote_code" for keyword in node.keywords)
        ]
    assert wrong == []


def test_the_library_prints_nothing():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in TREES.items()
        for name, node in calls(tree)
        if name == "print" and room_of(module_name(path)) != "cli"
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "at_import"),
    [
        ("import torch", True),
        ("def f():\n    import torch", False),
        ("if TYPE_CHECKING:\n    import torch", False),
        ("class A:\n    import torch", True),
        ("try:\n    import torch\nexcept ImportError:\n    pass", True),
    ],
)
def test_the_reader_of_imports_sees_what_it_should(source, at_import):
    found = [node for node in at_import_time(ast.parse(source)) if isinstance(node, ast.Import)]
    assert bool(found) is at_import
