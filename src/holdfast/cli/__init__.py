"""The command line: `holdfast`, or `python -m holdfast`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: what stands behind the program's name; None: what was typed.

    Returns:
        The exit status: 0; 1 where runs failed, or code of yours that a command called, or another of several
        processes is gone; 2 after bad input; 130 when interrupted. What went wrong is said in one line on the standard
        error.
    """
    try:
        import rich  # noqa: F401
        import tyro  # noqa: F401
    except ImportError as error:
        print(
            f'holdfast: the command line needs {error.name}, which is not installed: pip install "torch-holdfast[cli]"',
            file=sys.stderr,
        )
        return 2
    from holdfast.cli.dispatch import dispatch

    return dispatch(sys.argv[1:] if argv is None else list(argv))
