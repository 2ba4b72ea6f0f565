"""`holdfast demo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.cli.console import console_for, say, warnings_told
from holdfast.cli.options import DemoOptions
from holdfast.cli.progress import EventDisplay
from holdfast.cli.tables import rows_table
from holdfast.lab.demo import STREAM, demo
from holdfast.lab.frame import DataFrame
from holdfast.lab.groups import method_label
from holdfast.lab.tables import result_rows


def demo_command(options: DemoOptions) -> None:
    """Run the demonstration, and show what it found."""
    console = console_for(quiet=options.quiet)
    say(console, ("Five tasks of handwritten digits", "bold"), f" ({STREAM}), learned one after the other.")
    say(console, "Average accuracy on all five at the end, method by method:\n")
    with warnings_told(console), EventDisplay(console, STREAM, brief=True) as display:

        def on_event(event: Mapping[str, Any]) -> None:
            display({**event, "label": method_label(event["method"])} if event["event"] == "run" else event)

        found = demo(output=options.output, seed=options.seed, device=options.device, on_event=on_event)
    table = result_rows(found.results)
    console.print()
    console.print(rows_table(table, seeds=False))
    say(console, _in_a_sentence(table) + "\n")
    say(console_for(), f"pictures: {found.accuracy}\n          {found.matrix}\nruns:     {options.output}")


def _in_a_sentence(table: DataFrame) -> str:
    accuracy = table.set_index("method")["accuracy"]
    held = table[~table["method"].isin(["joint", "none"])]
    best = held.loc[held["accuracy"].idxmax()]
    return (
        f"Plain training keeps {accuracy['none']:.1%}, {best['configuration']} {best['accuracy']:.1%}; joint training, "
        f"which sees all data at once, {accuracy['joint']:.1%}."
    )
