"""The direction of imports, and what the package exports."""

import ast
from pathlib import Path

import pytest

import recipe

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"recipe": {"estimators", "applications"}, "estimators": {"applications"}, "applications": {"estimators"}}
EXTRAS = {"open_clip", "datasets", "transformers"}


def imports(path):
    """Top-level names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not FORBIDDEN[package] & set(imports(path)), path


def test_cvxpy_is_imported_in_one_file_and_extras_nowhere_at_import():
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*.py"):
            found = set(imports(path))
            assert "cvxpy" not in found or path.name == "convex.py", path
            assert not EXTRAS & found, path


def test_exported_names_are_sorted_and_there():
    def order(name):  # as the linter sorts them: constants, classes, functions
        return (not name.isupper(), not name[0].isupper(), name)

    assert recipe.__all__ == sorted(recipe.__all__, key=order)
    public = {name for name, value in vars(recipe).items() if getattr(value, "__module__", "").startswith("recipe.")}
    assert {name for name in public if not name.startswith("_")} <= set(recipe.__all__) | {"Batch"}
    for name in recipe.__all__:
        assert getattr(recipe, name) is not None
