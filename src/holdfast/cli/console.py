"""Where the command line writes: colours and a moving line in a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from holdfast.language.launched import launch_of

PLAIN_WIDTH = 100


def console_for(*, quiet: bool = False) -> Console:
    """The standard output; silent when `quiet`; of a fixed width where it is no terminal, so that files look alike.

    Of several processes the first alone is heard. Brackets are brackets: paths and messages may hold them, so that
    styles are given beside the text, never in it.
    """
    launch = launch_of(os.environ)
    console = Console(highlight=False, markup=False, quiet=quiet or (launch is not None and launch.rank > 0))
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def own_device(name: str) -> str:
    """The device that was named, of several processes each one's own.

    Raises:
        OptionError: one CUDA device was named for all of them.
    """
    launch = launch_of(os.environ)
    return name if launch is None else launch.device(name)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print one line, however long, of texts and (text, style) pairs."""
    console.print(Text.assemble(*parts), soft_wrap=True)


@contextmanager
def warnings_told(console: Console) -> Iterator[None]:
    """Show each warning of the library once, as one line in place of Python's two."""
    told = set()  # Python's own "once" begins anew whenever some code inside catches warnings

    def tell(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        text = " ".join(str(message).split())
        if text not in told:
            told.add(text)
            say(console, ("warning: ", "yellow"), text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell  # type: ignore[assignment]
        yield
