"""The layout of the sources: which room imports which, read from the sources themselves.

docs/architecture.md says what each room is for. Imports inside functions count like all others, and
so do names of modules in text, as `import_module` takes them. Those under `if TYPE_CHECKING:` count
for the order of the rooms, and not as parts of a circle, as they never run.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import REPOSITORY

LIBRARY = "bertvision_stream"

# The ground first: a room imports the rooms before it. Neither of `data` and `heads` needs the
# other.
ROOMS = (
    *("utils", "settings", "data", "heads", "stream", "training", "models", "report", "modes"),
    *("actors", "tune"),
)

# The two files of the library itself look upward: the command line, and what `import
# bertvision_stream` offers. They do so inside functions, so that importing them stays light.
DOORS = (LIBRARY, f"{LIBRARY}.run")

# The only files that import what other projects keep private.
PRIVATE = {"ray": "actors.ray_private", "transformers": f"{LIBRARY}.models.transformers_private"}

# Modules of transformers that its documentation does not promise, though no underscore says so.
NOT_PROMISED = ("transformers.initialization", "transformers.utils.generic")

MOST_PARAMETERS = 8

FILES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for top in (LIBRARY, "actors", "tune")
    for path in sorted((REPOSITORY / top).rglob("*.py"))
}
"""Every module that is installed, by its name."""

TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


@dataclass(frozen=True)
class Import:
    """One module imports another, when it is itself imported or later."""

    importer: str
    imported: str
    line: int
    later: bool
    only_for_types: bool

    def __str__(self) -> str:
        return f"{FILES[self.importer].relative_to(REPOSITORY)}:{self.line} imports {self.imported}"


def room(module: str) -> str:
    """The room that a module stands in; a door's own name; or a folder that is not installed."""
    return module if module in DOORS else module.removeprefix(f"{LIBRARY}.").partition(".")[0]


def allowed(name: str) -> Sequence[str]:
    """The rooms that a room may import, and itself."""
    rooms = ROOMS[: ROOMS.index(name) + 1]
    return [other for other in rooms if (name, other) != ("heads", "data")]


def imports(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, later: bool, only_for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for name in modules_named(child):
                in_text = isinstance(child, ast.Constant)
                yield Import(module, name, child.lineno, later or in_text, only_for_types)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            is_check = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from walk(child, later or is_function, only_for_types or is_check)

    return walk(TREES[module], False, False)


def modules_named(node: ast.AST) -> list[str]:
    """What is imported here; of other projects with the name that is taken from a module."""
    if isinstance(node, ast.Constant) and "." in str(node.value):
        return [str(node.value)] if node.value in FILES else []
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert not node.level, f"line {node.lineno}: imports begin with the name of a package"
    members = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in FILES or not is_ours(name) else str(node.module) for name in members]


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in (LIBRARY, "actors", "tune", "benchmarks", "tests", "tools")


ALL_IMPORTS = [each for module in FILES for each in imports(module)]
IMPORTS = [each for each in ALL_IMPORTS if is_ours(each.imported)]


def report(wrong: Sequence[str]) -> None:
    if wrong:
        pytest.fail("\n".join(dict.fromkeys(wrong)), pytrace=False)  # each line once


def test_a_room_imports_only_itself_and_rooms_before_it():
    from_rooms = [each for each in IMPORTS if each.importer not in DOORS]
    report(
        [
            f"{each}, but the room may import only {', '.join(allowed(room(each.importer)))}"
            for each in from_rooms
            if room(each.imported) not in (*allowed(room(each.importer)), LIBRARY)
        ]
    )


def test_doors_look_upward_only_inside_functions():
    report(
        [
            f"{each} outside of a function, where it may import only utils and settings"
            for each in IMPORTS
            if each.importer in DOORS and not (each.later or each.only_for_types)
            if room(each.imported) not in (*DOORS, "utils", "settings")
        ]
    )


def test_no_circle_of_files():
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for each in IMPORTS:
        through_door = each.importer in DOORS and each.later
        if not (each.only_for_types or through_door):
            graph[each.importer].add(each.imported)
    circle: list[str] = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    report([" imports ".join(reversed(circle))] if circle else [])


def test_the_library_itself_holds_only_its_doors():
    found = {path.name for path in (REPOSITORY / LIBRARY).glob("*.py")}
    assert found == {"__init__.py", "run.py"}, "other modules stand in one of the rooms"


def test_the_documentation_has_a_row_for_each_room():
    assert {room(name) for name in FILES} - set(DOORS) == set(ROOMS)
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `(?:{LIBRARY}/)?(\w+)/` \|", text, re.MULTILINE)
    assert tuple(rows) == ROOMS, "docs/architecture.md has a table of rooms, the ground first"


def test_what_others_keep_private_stands_in_one_file_each():
    wrong = []
    for each in ALL_IMPORTS:
        name = each.imported
        home = PRIVATE.get(name.partition(".")[0], each.importer)
        if each.importer != home and ("._" in name or name.startswith(NOT_PROMISED)):
            wrong.append(f"{each}, which only {home} may do")
    report(wrong)


def test_each_dependency_has_its_reason_in_the_documentation():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [re.split("[<>=]", each)[0] for each in project["project"]["dependencies"]]
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Dependencies")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)) == sorted(needed)


def test_the_documentation_names_files_that_exist():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = [f"/{path}" for path in (*FILES.values(), *(REPOSITORY / "tests").rglob("*.py"))]
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert [name for name in named if not any(f.endswith(f"/{name}") for f in files)] == []


def test_functions_have_at_most_eight_parameters():
    wrong = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(each.arg not in ("self", "cls") for each in given)
            if count > MOST_PARAMETERS:
                where = f"{FILES[module].relative_to(REPOSITORY)}:{node.lineno} {node.name}"
                wrong.append(f"{where} has {count} parameters, of {MOST_PARAMETERS} at most")
    report(wrong)


def test_settings_and_plans_load_neither_torch_nor_ray():
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    rooms = {name for name in FILES if room(name) in ("settings", "data", "stream")}
    light = packages | rooms - {f"{LIBRARY}.stream.codecs"} | set(DOORS)
    code = f"""
import sys
from importlib import import_module

def load(name, without):
    import_module(name)
    loaded = [each for each in without if each in sys.modules]
    assert not loaded, f"{{name}} loads {{', '.join(loaded)}}"

for name in {sorted(light)}:
    load(name, without=("torch", "transformers", "ray"))
load("actors.stream", without=("torch", "transformers"))  # it holds references, and no tensor
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
