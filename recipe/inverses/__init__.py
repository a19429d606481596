"""Inverses: how vectors are multiplied with the inverse of the curvature."""

from recipe.inverses.arnoldi import Arnoldi
from recipe.inverses.cg import CG
from recipe.inverses.datainf import DataInf
from recipe.inverses.dense import Dense
from recipe.inverses.inverse import Inverse
from recipe.inverses.lissa import LiSSA
from recipe.inverses.nystroem import Nystroem
from recipe.inverses.woodbury import Woodbury

__all__ = ["CG", "Arnoldi", "DataInf", "Dense", "Inverse", "LiSSA", "Nystroem", "Woodbury"]
