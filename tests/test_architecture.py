"""The house's rules, read from the source: who may import whom."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOTS = {
    "kinship_daemon": ROOT / "daemon",
    "kinship_policies": ROOT / "policies",
    "kinship_storage": ROOT / "storage",
}
# The lowest first: each may import itself and those before it.
ORDER = ["kinship_storage", "kinship_policies", "kinship_daemon"]
# Inside the daemon: what a folder may use of it. Not the loop, not the config, not the lineage.
FOLDERS = {
    "foreign": {"foreign"},
    "weights": {
        *("child_process", "durable", "errors", "extensions", "foreign", "model_files", "ranges"),
        "weights",
    },
    "evaluate": {
        "child_process",
        "device",
        "errors",
        "evaluate",
        "extensions",
        "foreign",
        "imports",
        "weights",
    },
    "execute": {
        *("child_process", "durable", "errors", "evaluate", "execute", "extensions"),
        *("hub", "weights"),  # a node has its models from the hub
    },
    "hub": {"durable", "errors", "extensions", "foreign", "hub", "model_files", "ranges"},
}


def modules(package):
    found = sorted((ROOTS[package] / package).rglob("*.py"))
    assert found, f"{package} has no modules"
    return found


def imports(path):
    """Every absolute name that the file imports, wherever in it; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package, top):
    """Files of the package that import the top-level module, relative to the package."""
    return {
        str(path.relative_to(ROOTS[package] / package))
        for path in modules(package)
        if any(name.split(".")[0] == top for name in imports(path))
    }


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_one_way_only(package):
    above = ORDER[ORDER.index(package) + 1 :]
    assert {name: importers(package, name) for name in above} == {name: set() for name in above}


@pytest.mark.parametrize("package", ORDER)
def test_nobody_imports_a_source_root(package):
    for root in ("daemon", "policies", "storage"):
        assert importers(package, root) == set()


def test_source_roots_are_no_packages():
    assert [root for root in ROOTS.values() if (root / "__init__.py").exists()] == []


def test_only_the_hubs_client_talks_to_the_hub():
    assert importers("kinship_daemon", "huggingface_hub") <= {"hub/client.py"}
    assert importers("kinship_policies", "huggingface_hub") == set()
    assert importers("kinship_storage", "huggingface_hub") == set()


def test_only_the_storage_talks_to_sqlite():
    for top in ("sqlite3", "sqlite_utils"):
        assert importers("kinship_daemon", top) == set()
        assert importers("kinship_policies", top) == set()


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_folders_know_nothing_of_each_other_nor_of_the_loop(folder):
    where = ROOTS["kinship_daemon"] / "kinship_daemon" / folder
    files = sorted(where.rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top != "kinship_policies", f"{path} imports {name}"
            if top == "kinship_storage":
                # The words that all share; never the database.
                assert rest.split(".")[0] in {"records", "errors"}, f"{path} imports {name}"
            if top == "kinship_daemon":
                assert rest.split(".")[0] in FOLDERS[folder], f"{path} imports {name}"


def test_policies_decide_without_a_world():
    """No clock, network, storage or tensors; no chance but a seeded one."""
    allowed = {"cma", "numpy", "pydantic", "scipy", "yaml", "kinship_policies", "kinship_storage"}
    worldly = {"asyncio", "datetime", "os", "random", "secrets", "socket", "sqlite3", "subprocess"}
    worldly |= {"threading", "time", "urllib", "uuid", "http"}
    for path in modules("kinship_policies"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in allowed or top in sys.stdlib_module_names, f"{path} imports {name}"
            assert top not in worldly, f"{path} imports {name}"
            if top == "kinship_storage":
                assert name.startswith("kinship_storage.errors."), f"{path} imports {name}"


@pytest.mark.parametrize("package", ORDER)
def test_no_imports_go_round_in_a_circle(package):
    """Neither between files, nor within a function, nor for types alone."""
    root = ROOTS[package]
    known = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules(package)
    }

    def target(name):
        """The file that a name is imported from."""
        return next((n for n in (name, name.rpartition(".")[0]) if n in known), None)

    graph = {
        name: {found for each in imports(path) if (found := target(each)) not in {None, name}}
        for name, path in known.items()
    }
    done, circles = set(), []

    def visit(name, above):
        if name in above:
            circles.append([*above[above.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*above, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    assert circles == []
