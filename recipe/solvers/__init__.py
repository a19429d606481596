"""Solvers: what optimises a `Problem` over its feasible set."""

from recipe.solvers.convex import Convex
from recipe.solvers.gradient_ascent import GradientAscent
from recipe.solvers.greedy import Greedy
from recipe.solvers.top_k import TopK

__all__ = ["Convex", "GradientAscent", "Greedy", "TopK"]
