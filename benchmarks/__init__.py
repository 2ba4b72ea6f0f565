"""How long things take: `python -m benchmarks` lists and runs the measurements.

Each module has `measure(*, quick)`, which returns a `Table`; its docstring says what is measured.
"""
