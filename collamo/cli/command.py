"""How a function becomes a command."""

from __future__ import annotations

from collections.abc import Callable

import typer
from typer.core import TyperCommand


def command(
    *, open_ended: bool = False, epilog: str | None = None, cls: type[TyperCommand] = TyperCommand
) -> Callable[[Callable[..., None]], TyperCommand]:
    """Return the decorator that makes a function a command of its name and docstring.

    Parameters
    ----------
    open_ended
        Options that the function does not name are left in ``context.args``: keys of a recipe.
    epilog
        What ``--help`` says last.
    cls
        The kind of command, where one reads its arguments in a way of its own.
    """
    settings = {"allow_extra_args": True, "ignore_unknown_options": True} if open_ended else None

    def decorate(function: Callable[..., None]) -> TyperCommand:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cls=cls, epilog=epilog, context_settings=settings)(function)
        built = typer.main.get_command(app)
        assert isinstance(built, TyperCommand)
        return built

    return decorate
