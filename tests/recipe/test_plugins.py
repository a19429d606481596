"""Plug-ins by name: what is found, what is built, and what the errors say."""

import tomllib
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from estimators.regression import Lasso, Regression, Ridge
from recipe import plugins
from recipe.calculus import GaussNewton, Hessian
from recipe.inverses import CG
from recipe.solvers.convex import Convex
from recipe.solvers.gradient_ascent import GradientAscent
from recipe.solvers.top_k import TopK

DECLARED = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
ALL = [(group, name, value) for group, entries in DECLARED.items() for name, value in entries.items()]


@dataclass(frozen=True)
class Knobs:
    """Parameters of many kinds."""

    rule: str = "linear"
    share: float = 0.5
    flag: bool = False
    size: int | tuple[int, int] = 3


@pytest.mark.parametrize("group", DECLARED)
def test_available_is_what_pyproject_declares_sorted(group):
    assert list(plugins.available(group)) == sorted(DECLARED[group])


@pytest.mark.parametrize(("group", "name", "value"), ALL, ids=[name for _, name, _ in ALL])
def test_find_gives_the_class_and_it_says_what_it_is(group, name, value):
    kind = plugins.find(group, name)
    module, _, name = value.partition(":")
    assert kind.__name__ == name
    assert f"{kind.__module__}.".startswith(f"{module}.")  # a package may hold it in a file of its own
    assert plugins.about(kind).endswith(".")


def test_an_unknown_name_lists_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"no estimator 'influense'\. Nearest: influence.*Installed: .*similarity"):
        plugins.find(plugins.ESTIMATORS, "influense")
    with pytest.raises(ValueError, match=r"no solver 'xyz'\. Installed: convex, .*top-k\.$"):
        plugins.find(plugins.SOLVERS, "xyz")


@pytest.mark.parametrize("value", ["no_such_module:Thing", "recipe.plugins:no_such_class"])
def test_a_plug_in_that_cannot_be_imported_is_named(monkeypatch, value):
    broken = EntryPoint("broken", value, plugins.ESTIMATORS)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [broken])
    with pytest.raises(ValueError, match=rf"estimator 'broken' \({value}\).*cannot be imported: \w+Error: .*no_such"):
        plugins.find(plugins.ESTIMATORS, "broken")


@pytest.mark.parametrize(
    ("kind", "assignments", "wanted"),
    [
        (Influence, [], Influence()),
        (Influence, ["models=5", "damping=0.1"], Influence(models=5, damping=0.1)),
        (Influence, ["damping=1"], Influence(damping=1.0)),
        (Influence, ["curvature=Hessian()", "inverse=CG(tolerance=1e-3)"], Influence(Hessian(), CG(1e-3))),
        (Influence, ["inverse=CG(1e-3, iterations=7)"], Influence(inverse=CG(1e-3, 7))),
        (Influence, ["models=5", "models=2"], Influence(models=2)),
        (NewtonStep, [" curvature = GaussNewton() "], NewtonStep(GaussNewton())),
        (Regression, ["subsets=9", "penalty=Lasso(penalty=0.1)"], Regression(9, penalty=Lasso(penalty=0.1))),
        (Regression, ["subsets=9", "penalty=Ridge(penalty=None)"], Regression(9, penalty=Ridge())),
        (GradientAscent, ["lr=.1", "steps=3", "sign=True", "refit=None"], GradientAscent(0.1, 3, True)),
        (Convex, ["integer=True"], Convex(integer=True)),
        (TopK, [], TopK()),
        (Knobs, ["rule=cosine", "size=(2, 5)", "flag=True"], Knobs("cosine", size=(2, 5), flag=True)),
        (Knobs, ["rule='a = b'"], Knobs("a = b")),
        (Knobs, ["rule=not python at all"], Knobs("not python at all")),
    ],
)
def test_build_reads_assignments(kind, assignments, wanted):
    built = plugins.build(kind, assignments)
    assert built == wanted
    assert repr(built) == repr(wanted)  # 1 is not 1.0


@pytest.mark.parametrize(
    ("kind", "assignments", "message"),
    [
        (Influence, ["model=3"], r"Influence has no parameter 'model'\. Nearest: models\..*inverse=Dense\(\).*seed=0"),
        (Influence, ["models"], "key=value, for example models=5; got 'models'"),
        (Influence, ["models="], "key=value"),
        (Influence, ["models=2.5"], r"Influence\.models must be int; got 2\.5"),
        (Influence, ["models=True"], r"Influence\.models must be int; got True"),
        (Influence, ["models=many"], r"Influence\.models=many cannot be read"),
        (Influence, ["curvature=Hessian"], r"curvature=Hessian cannot be read: write Hessian\(\)\."),
        (Influence, ["curvature=Hesian()"], r"cannot be Hesian.*Nearest: Hessian\. Known: GaussNewton, Hessian\."),
        (Influence, ["curvature=Dense()"], r"Influence\.curvature must be .*Curvature; got Dense\(\)"),
        (Influence, ["inverse=CG(tol=1)"], r"CG has no parameter 'tol'\. Nearest: tolerance"),
        (Influence, ["inverse=CG(1, 2, 3, 4)"], "CG takes tolerance, iterations"),
        (Influence, ["inverse=CG(1, tolerance=2)"], "give every argument of CG once"),
        (Influence, ["inverse=CG(**{})"], "give every argument of CG once"),
        (Influence, ["inverse=CG('x')"], r"CG\.tolerance must be float; got 'x'"),
        (Influence, ["damping=__import__('os').getcwd()"], r"cannot be __import__\('os'\)\.getcwd"),
        (Influence, ["damping=1+1"], r"damping=1 \+ 1 cannot be read"),
        (Regression, [], r"Regression needs a value for subsets\. Its parameters: subsets, alpha=0\.5"),
        (Regression, ["subsets=1"], "at least two subsets"),
        (GradientAscent, ["lr=0.1"], "GradientAscent needs a value for steps"),
        (TopK, ["k=3"], "TopK has no parameter 'k'. Its parameters: none"),
        (Knobs, ["size=(2, 5"], r"Knobs\.size must be int \| tuple"),
    ],
)
def test_build_says_what_it_expected(kind, assignments, message):
    with pytest.raises(ValueError, match=message):
        plugins.build(kind, assignments)


def test_an_estimator_can_be_a_piece_of_another_with_pieces_of_its_own():
    from estimators.ekfac import EKFAC, SampledFisher

    regression = plugins.find(plugins.ESTIMATORS, "regression")
    built = plugins.build(regression, ["subsets=9", "prior=EKFAC(models=5, fisher=SampledFisher(4))"])
    assert built.prior == EKFAC(models=5, fisher=SampledFisher(4))
