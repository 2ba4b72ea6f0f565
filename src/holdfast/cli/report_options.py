"""The options of `holdfast report`, apart from the command so that --help needs none of what it draws with."""

# `option` makes annotations when this module is imported:
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from holdfast.cli.options import Plugin, Quiet
from holdfast.cli.values import option

_Folders = Annotated[
    Positional[tuple[str, ...]],
    arg(metavar="DIR ...", help="folders that hold runs, or results by themselves", help_behavior_hint=""),
]


@dataclass(frozen=True)
class ReportOptions:
    """One page, pictures (PNG, SVG) and tables (CSV, Parquet) of all finished runs at or below some folders."""

    folders: _Folders
    where: option("where", tuple[str, ...], "of the runs those that match, such as method=ewc-* seed=0") = ()
    trials: Annotated[bool, arg(help="with the runs of sweeps that were not chosen", help_behavior_hint="")] = False
    quick: Annotated[bool, arg(help="with the runs of recipes' --quick versions", help_behavior_hint="")] = False
    output: option("output", str, "folder of the report (left out: report in the first DIR)") = None
    plugin: Plugin = ()
    quiet: Quiet = False
