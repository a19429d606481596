"""Tasks that raise or lower losses refuse outputs that point the other way."""

from recipe.datamodel import OutputFunction
from recipe.outputs import Correct, Margin, TopMargin


def check_losses(f: OutputFunction, who: str) -> None:
    """Raise `ValueError` where `f` is known to measure something that is better when larger."""
    if f.setting is not None and isinstance(f.setting.output, (Margin, TopMargin, Correct)):
        raise ValueError(
            f"{who} losses, but the outputs are {f.setting.output}, which are better when larger. Make the setting "
            "with `output=Loss()`, or pass `f.on(output=Loss())`."
        )
