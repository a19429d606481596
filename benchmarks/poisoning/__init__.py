"""Poisoning, measured by retraining victims: `python -m benchmarks poisoning`."""

from benchmarks.poisoning import mnist, network, targeted


def main() -> None:
    """All tables."""
    for loss in mnist.LOSSES:
        mnist.show(loss)
    network.main()
    targeted.main()
