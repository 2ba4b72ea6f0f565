"""The shape of the library: its layers, what it imports, its public names, and no pickle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import imports

import holdfast

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "holdfast"
PUBLIC_NAMES = Path(__file__).with_name("public_names.txt")

CORE = {"torch", "numpy", "safetensors", "tqdm"}
EXTRAS = {"tyro", "rich", "matplotlib", "scipy", "pandas", "jinja2", "pyarrow", "tensorboard", "optuna", "sqlalchemy"}
EXTRAS |= {"PIL", "docstring_parser", "transformers", "tokenizers", "accelerate", "lightning", "peft", "datasets"}
NEVER_WITH_HOLDFAST = EXTRAS | {"sklearn"}
MAY_USE_EXTRAS = {"cli", "integrations", "lab", "language"}
COMES_WITH_TORCH = {path: {"triton"} for path in ("moments/kernels/fused.py", "retention/fused.py")}  # on CUDA, lazily
COMES_WITH_TORCH["files/exclusive.py"] = {"filelock"}

FACTORIES = {"empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "zeros"}
MAKE_NETWORKS = {"cli", "lab", "replay"}  # of the user's default dtype

PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
TORCH_PICKLERS = {"load", "save", "serialization"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_roots(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and first part of the name of every absolute import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def pickles(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that reads or writes pickled data."""
    for line, root in imported_roots(tree):
        if root in PICKLERS:
            yield line, root
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "torch" and node.attr in TORCH_PICKLERS:
                yield node.lineno, f"torch.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in {"torch", "torch.serialization"}:
            names = {alias.name for alias in node.names} & TORCH_PICKLERS
            yield from ((node.lineno, f"torch.{name}") for name in names)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno, "allow_pickle"


def default_dtypes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every call that makes a tensor of the dtype that is the default when it runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}:
            if not any(keyword.arg == "dtype" for keyword in node.keywords):
                yield node.lineno, ast.unparse(node)


def open_matches(tree: ast.AST) -> Iterator[int]:
    """Lines of every `match` on names that does not end by refusing all others.

    Not those on the name of an event: who watches a run passes over the events that it does not show.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Match) and ast.unparse(node.subject) != "event['event']":
            strings = [part for case in node.cases for part in ast.walk(case.pattern) if isinstance(part, ast.Constant)]
            last = node.cases[-1]
            refuses = isinstance(last.body[-1], ast.Raise) or ast.unparse(last.body[-1]).startswith("assert_never(")
            is_any = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None and last.guard is None
            if any(isinstance(part.value, str) for part in strings) and not (is_any and refuses):
                yield node.lineno


def test_no_last_case_chooses_behaviour():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sources()
        for line in open_matches(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "end with `case _:` and an error, or `assert_never`, in " + ", ".join(found)


@pytest.mark.parametrize(
    ("cases", "is_open"),
    [
        ("case 'a': x = 1\n case _: raise ValueError", False),
        ("case 'a' | 'b': x = 1\n case other: assert_never(other)", False),
        ("case ['a', rest]: x = 1\n case _: raise ValueError", False),
        ("case 'a': x = 1", True),
        ("case 'a': x = 1\n case _: x = 2", True),
        ("case 'a': x = 1\n case _ if y: raise ValueError", True),
        ("case 'a': raise ValueError\n case 'b': raise ValueError", True),
        ("case int(): x = 1\n case _: x = 2", False),
    ],
)
def test_the_search_for_open_matches_finds_them(cases: str, is_open: bool):
    assert list(open_matches(ast.parse(f"match kind:\n {cases}"))) == [1] * is_open


def test_imports_keep_the_contracts():
    """The contracts stand in pyproject.toml; `make lint` checks the same ones."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["holdfast", "holdfast.lab.streams"])
def test_importing_holdfast_imports_no_extra(module: str):
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "torch" in done.stdout.split()
    assert not NEVER_WITH_HOLDFAST & set(done.stdout.split())


def test_only_declared_packages_are_imported():
    found = []
    for path in sources():
        inside = path.relative_to(PACKAGE)
        above_the_core = inside.parts[0].removesuffix(".py") in MAY_USE_EXTRAS
        allowed = sys.stdlib_module_names | CORE | {"holdfast"} | (EXTRAS if above_the_core else set())
        allowed |= COMES_WITH_TORCH.get(inside.as_posix(), set())
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{inside}:{line}: {root}" for line, root in imported_roots(tree) if root not in allowed]
    assert sources()
    assert not found, "\n".join(found)


def types_of(tree: ast.Module) -> Iterator[str]:
    """Names of the classes and of the type aliases that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            if not target.id.isupper() and target.id.lstrip("_")[:1].isupper():
                yield target.id


def test_a_name_of_a_type_has_one_meaning():
    """Of both packages; the callbacks of two trainers bear one name by intent."""
    found: dict[str, list[str]] = {}
    for path in [*sources(), *(ROOT / "recipes").rglob("*.py")]:
        for name in types_of(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    callbacks = {"HoldfastCallback", "RehearsalCallback"}
    assert twice.keys() - callbacks == set(), twice
    assert callbacks <= found.keys()


def test_nothing_is_pickled():
    found = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(PACKAGE)}:{line}: {what}" for line, what in pickles(tree)]
    assert not found, "use safetensors and JSON instead of\n" + "\n".join(found)


def test_what_is_computed_has_no_default_dtype():
    """`torch.set_default_dtype` is the user's, and what holdfast measures and holds is of a dtype that it names."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {call}"
        for path in sources()
        if path.relative_to(PACKAGE).parts[0] not in MAKE_NETWORKS
        for line, call in default_dtypes(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "pass dtype= to\n" + "\n".join(found)


def test_the_search_for_default_dtypes_finds_them():
    code = "x = torch.zeros(3)\ny = torch.zeros(3, dtype=d)\nz = torch.zeros_like(y)\nw = f(torch.rand(2, device=d))"
    assert [line for line, _ in default_dtypes(ast.parse(code))] == [1, 4]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from joblib import dump", "joblib"),
        ("torch.load(path, weights_only=True)", "torch.load"),
        ("from torch import save", "torch.save"),
        ("from torch.serialization import load", "torch.load"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle"),
    ],
)
def test_the_search_for_pickles_finds_one(code: str, what: str):
    assert what in {name for _, name in pickles(ast.parse(code))}


IMPORTANCES = {"Importance", "FactoredImportance", "AnyImportance", "Curvature", "MeasuredLayer"}
IMPORTANCES |= {"KroneckerFactors", "KroneckerCurvature"}
THEIR_OWN = ("records.py", "curvature/")


def class_tests(tree: ast.AST, names: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of every test whether an object is of a class of these names, by whatever module it is spelled."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"isinstance", "issubclass"} and len(node.args) > 1:
            found = node.args[1]
        elif isinstance(node, ast.MatchClass):
            found = node.cls
        elif isinstance(node, ast.Compare) and any("type(" in ast.unparse(part) for part in ast.walk(node)):
            found = node
        else:
            continue
        parts = [part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in ast.walk(found)]
        if names.intersection(parts):
            yield getattr(node, "lineno", 0), ast.unparse(node)


def test_no_importance_is_told_by_its_class_outside_its_package():
    """Ask for its `layers`, `diagonal`, `covers` or `to_diagonal()`: every kind has them."""
    found = []
    for path in sources():
        inside = path.relative_to(PACKAGE).as_posix()
        if not inside.startswith(THEIR_OWN):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{inside}:{line}: {what}" for line, what in class_tests(tree, IMPORTANCES)]
    assert all((PACKAGE / name).exists() for name in THEIR_OWN)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "is_test"),
    [
        ("isinstance(x, Importance)", True),
        ("isinstance(x, dict | hf.FactoredImportance)", True),
        ("assert isinstance(x, (int, Importance))", True),
        ("issubclass(kind, KroneckerFactors)", True),
        ("type(x) is Importance", True),
        ("match x:\n    case FactoredImportance():\n        y = 1", True),
        ("isinstance(x, dict)", False),
        ("Importance(x, info)", False),
        ("isinstance(Importance(x, info), Mapping)", False),
    ],
)
def test_the_search_for_class_tests_finds_them(code: str, is_test: bool):
    assert bool(list(class_tests(ast.parse(code), IMPORTANCES))) == is_test


FOREIGN = {  # private names of torch and the standard library that have no public way; no class of ours has them
    "torch": {"_C", "_set_grad_enabled", "_are_functorch_transforms_active", "_current_graph_task_id", "_unsafe_view"}
    | {"_local_scalar_dense", "_scaled_dot_product_flash_attention_for_cpu"},
    "torch.autograd": {"_current_level", "_execution_engine"},
    "OpOverload": {"_schema"},
    "Tensor": {"_is_view", "_backward_hooks", "_post_accumulate_grad_hooks"},
    "Module": {"_modules", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks"}
    | {"_non_persistent_buffers_set", "_reversed_padding_repeated_twice", "_orig_mod"},
    "sys": {"_getframe"},
    "os": {"_exit"},
}
FOREIGN_NAMES = set().union(*FOREIGN.values())
FOREIGN_USES = {"module._parameters", "module._buffers", "tensor._values"}  # names that classes of ours have too
FOREIGN_USES |= {"hasattr(value, '_fields')", "hasattr(tree, '_fields')"}  # of a named tuple
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.endswith("__")


def defined_names(tree: ast.AST) -> set[str]:
    """Names of functions, classes, variables, fields and attributes of `self` that a module defines."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def reach_ins(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every use of a private name that belongs to an object of another module."""
    allowed = defined_names(tree) | FOREIGN_NAMES
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")) | ast.Attribute(value=ast.Call(ast.Name("super"))):
                continue
            case ast.Attribute(attr=name) if not name.startswith("_foreach_"):
                names = [name]
            case ast.Call(func=ast.Name(id=function), args=[_, ast.Constant(value=name), *_]) if function in BY_NAME:
                names = [name]
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == "holdfast":
                names = [alias.name for alias in node.names]
            case _:
                continue
        text = ast.unparse(node)
        if text not in FOREIGN_USES and any(is_private(name) and name not in allowed for name in names):
            yield node.lineno, text


def test_nothing_reaches_into_another_modules_objects():
    found = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not defined_names(tree) & FOREIGN_NAMES, f"{path}: a name of torch's for something of ours"
        found += [f"{path.relative_to(PACKAGE)}:{line}: {what}" for line, what in reach_ins(tree)]
    assert not found, "give it a public name, or list it in FOREIGN where it is not ours:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("keeper._holdings.held", ["keeper._holdings"]),
        ("self.keeper._holdings = 1", ["self.keeper._holdings"]),
        ("keepers[0]._take()", ["keepers[0]._take"]),
        ("getattr(keeper, '_holdings', None)", ["getattr(keeper, '_holdings', None)"]),
        ("from holdfast.records import _card", ["from holdfast.records import _card"]),
        ("self._holdings; cls._kind; super()._take()", []),
        ("class A:\n    _kind = 1\n    def join(self, other):\n        return other._kind", []),
        ("class A:\n    def __init__(self, a):\n        self._a = a._a", []),
        ("importance._values", ["importance._values"]),
        ("tensor._values(); torch._foreach_add_(a, b); torch._C.f(); keeper.__class__; os._exit(0)", []),
    ],
)
def test_the_search_for_reach_ins_finds_them(code: str, found: list[str]):
    assert [what for _, what in reach_ins(ast.parse(code))] == found


def imports_for_types(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every import of our own that is made for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            for part in node.body:
                yield from ((line, root) for line, root in imported_roots(part) if root == "holdfast")


def test_no_import_circle_is_hidden_from_the_interpreter():
    """A type that two modules need stands below both."""
    found = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(PACKAGE)}:{line}" for line, _ in imports_for_types(tree)]
    assert not found, "import it as it is, or move it, in " + ", ".join(found)


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("if TYPE_CHECKING:\n    from holdfast.records import Importance", [2]),
        ("if typing.TYPE_CHECKING:\n    import torch\n    import holdfast", [3]),
        ("if TYPE_CHECKING:\n    from matplotlib.axes import Axes", []),
        ("from holdfast.records import Importance", []),
    ],
)
def test_the_search_for_imports_for_types_finds_them(code: str, lines: list[int]):
    assert [line for line, _ in imports_for_types(ast.parse(code))] == lines


def test_no_text_sends_a_user_to_another_project():
    """On PyPI `holdfast` is somebody else's: what we tell people to install is `torch-holdfast`."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*sources(), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "pyproject.toml"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"pip install [\"'`]*holdfast|[\"']holdfast\[", line)
    ]
    assert sources()
    assert not found, "say torch-holdfast in " + ", ".join(found)


def test_public_names_are_those_agreed():
    """A name added or taken away is a change users see: edit public_names.txt and the changelog with it."""
    agreed = PUBLIC_NAMES.read_text(encoding="utf-8").split()
    public = list(holdfast.__all__)
    assert agreed == sorted(set(agreed)), "public_names.txt: one name a line, sorted, each once"
    assert sorted(public) == agreed, (
        f"new in holdfast.__all__: {sorted(set(public) - set(agreed))}; "
        f"gone from it: {sorted(set(agreed) - set(public))}; "
        f"there more than once: {sorted({name for name in public if public.count(name) > 1})}"
    )


def test_public_names_exist():
    missing = [name for name in holdfast.__all__ if not hasattr(holdfast, name)]
    assert not missing


FUNCTIONS = {"sum", "mean", "max", "min", "log", "exp", "sqrt", "diag", "tr"}
GREEK = {"alpha", "beta", "gamma", "delta", "eta", "theta", "lambda", "mu", "phi", "sigma", "omega"}
LIBRARIES = {"holdfast", "tyro"}


def test_docstrings_begin_with_a_capital_or_with_a_symbol():
    """Words have a capital; symbols and code keep their case, which ruff's D403 does not tell apart."""
    strings = (
        (path.relative_to(ROOT), node.value.lineno, node.value.value)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    words = [
        f"{path}:{line}: {found[0]}"
        for path, line, text in strings
        if (found := re.match(r"[a-z]+(?=[ ,.:']|$)", text)) and len(found[0]) > 1
        if found[0] not in FUNCTIONS | GREEK | LIBRARIES
    ]
    assert not words


def test_the_picture_of_the_imports_is_todays_and_no_arrow_leads_upward():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert imports.picture() in page, "draw it anew: python -m tests.imports"
    place = {name: number for number, layer in enumerate(imports.layers()) for name in layer}
    upward = {(one, other) for one, other in imports.arrows() if place[one] >= place[other]}
    assert not upward
