"""The imports between the packages of holdfast, as a picture: `python -m tests.imports` draws it anew into the docs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
_BLOCK = re.compile(r"```mermaid\n.*?```\n", flags=re.DOTALL)


def layers() -> list[list[str]]:
    """The layers of the import contract, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = next(contract for contract in contracts if contract["id"] == "layers")["layers"]
    return [re.findall(r"\w+", layer) for layer in named]


def arrows() -> set[tuple[str, str]]:
    """(importer, imported) between the packages and modules right below holdfast."""
    graph = grimp.build_graph("holdfast", cache_dir=None)
    found = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = tuple(([*module.split("."), ""])[1] for module in (importer, imported))
            if pair[0] and pair[1] and pair[0] != pair[1]:
                found.add(pair)
    return found


def picture() -> str:
    """A mermaid diagram: a box a layer, and the arrows that do not follow from others."""
    own = arrows()
    below: dict[str, set[str]] = {}
    for layer in reversed(layers()):
        for name in layer:
            direct = {imported for importer, imported in own if importer == name}
            below[name] = direct.union(*(below.get(each, set()) for each in direct))
    lines = ["flowchart TD"]
    for number, layer in enumerate(layers()):
        lines += [f"    subgraph layer{number}[ ]", *(f"        {name}" for name in layer if name in below), "    end"]
    for importer, imported in sorted(own):
        others = {each for who, each in own if who == importer} - {imported}
        if not any(imported in below[each] for each in others):
            lines.append(f"    {importer} --> {imported}")
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def main() -> None:
    """Draw it into the page."""
    PAGE.write_text(_BLOCK.sub(lambda _: picture(), PAGE.read_text()))


if __name__ == "__main__":
    main()
