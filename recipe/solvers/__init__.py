"""Solvers: what optimises a `Problem` over its feasible set."""

from recipe.solvers.convex import Convex
from recipe.solvers.gradient_ascent import GradientAscent
from recipe.solvers.greedy import Greedy
from recipe.solvers.gumbel_top_k import GumbelTopK
from recipe.solvers.metagradient import Metagradient
from recipe.solvers.restarts import Restarts
from recipe.solvers.rounded import Rounded
from recipe.solvers.top_k import TopK

__all__ = ["Convex", "GradientAscent", "Greedy", "GumbelTopK", "Metagradient", "Restarts", "Rounded", "TopK"]
