"""Poisoning, measured by retraining victims: `python -m benchmarks poisoning`."""

from benchmarks.poisoning import enron, mnist, network, targeted


def main() -> None:
    """All tables."""
    for loss in mnist.LOSSES:
        mnist.show(loss)
    enron.main()
    network.main()
    targeted.main()
