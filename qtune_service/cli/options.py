"""Commands that share options: one parameter of a function stands for several options that typer reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection


def replace_parameter(
    run: Callable[..., None], signature: inspect.Signature, name: str, new: Collection[inspect.Parameter]
) -> None:
    """Set the signature of `run` that typer reads: that of a command, with several parameters in place of one."""
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for old in signature.parameters.values()
        for parameter in (new if old.name == name else [old])
    ]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
