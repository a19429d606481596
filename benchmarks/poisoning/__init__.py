"""Poisoning, measured by retraining victims: `python -m benchmarks poisoning`."""

from benchmarks.poisoning import enron, inspected, mnist, network, svm, targeted


def main() -> None:
    """All tables."""
    for loss in mnist.LOSSES:
        mnist.show(loss)
        mnist.show(loss, wide=True)
    enron.main()
    inspected.main()
    svm.main()
    network.main()
    targeted.main()
