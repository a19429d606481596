"""Stores: what outlives the process, on a local disk or at any fsspec address; a file is one kind of store."""

from recipe.stores.bank import Bank
from recipe.stores.blocks import Effects
from recipe.stores.effects import Stored, collected, collected_by_outputs
from recipe.stores.segments import DamagedError

__all__ = ["Bank", "DamagedError", "Effects", "Stored", "collected", "collected_by_outputs"]
