"""Poisoning, a red team's tool for one's own systems: threat models, attacks by any datamodel, and their evaluation."""

from applications.poisoning.decoys import Decoy, label_flip_decoys
from applications.poisoning.evaluation import Damage, Defended, Evaluation, already_wrong, evaluate
from applications.poisoning.goals import Backdoor, Goal, Indiscriminate, Subpopulation, Targeted, Trigger
from applications.poisoning.kkt import KKT, LabelFlipKKT
from applications.poisoning.label_flips import chosen_label_flips, random_label_flips
from applications.poisoning.poisons import Poisons
from applications.poisoning.sanitation import Sanitation, let_through
from applications.poisoning.task import Poisoning
from applications.poisoning.threat_model import Near, Range, Surrogates, ThreatModel

__all__ = [
    "KKT",
    "Backdoor",
    "Damage",
    "Decoy",
    "Defended",
    "Evaluation",
    "Goal",
    "Indiscriminate",
    "LabelFlipKKT",
    "Near",
    "Poisoning",
    "Poisons",
    "Range",
    "Sanitation",
    "Subpopulation",
    "Surrogates",
    "Targeted",
    "ThreatModel",
    "Trigger",
    "already_wrong",
    "chosen_label_flips",
    "evaluate",
    "label_flip_decoys",
    "let_through",
    "random_label_flips",
]
