"""The settings of a run as flags: those of the stream, the net and the method that were typed, and no others."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

from docstring_parser import parse

from holdfast.cli.options import RunOptions, SweepOptions
from holdfast.cli.values import option
from holdfast.errors import OptionError
from holdfast.lab.config import RunConfig
from holdfast.lab.configured import OF_PICTURES, Configured, foreign_option
from holdfast.lab.kinds import KINDS, REGISTRIES, having, kind_of, named_by
from holdfast.lab.methods import GENERATORS, METHODS
from holdfast.lab.options import default_of, names_of, naming
from holdfast.lab.plugins import load_plugins
from holdfast.lab.registry import all_options

SWEPT = ("strength", "budget", "optimizer", "lr")
"""The settings that `holdfast sweep` chooses itself."""

_NAMED = ("stream", "method", "seed")
_DECIDING = ("stream", "method", "methods", "net", "data", "generator", "hold")


def run_record(base: type, argv: Sequence[str]) -> type:
    """The options of `holdfast run`: with those of what is typed, and of each its default.

    Raises:
        UnknownNameError: what is typed is not there.
    """
    typed = _typed(argv)
    stream, method = typed.pop("stream", None), typed.pop("method", None)
    if stream is None and {"-h", "--help"} & set(argv):
        told = (
            "Name a stream and a method for their options, as in: holdfast run split-mnist --method ewc-fisher --help"
        )
        return _extended(base, {}, more=told)
    return _settings_record(base, kind_of(stream), stream, [] if method is None else [method], typed, without=_NAMED)


def sweep_record(base: type, argv: Sequence[str]) -> type:
    """The options of `holdfast sweep`: with those of any of the methods that are typed."""
    typed = _typed(argv)
    stream, methods = typed.pop("stream", None), typed.pop("methods", [])
    return _settings_record(base, RunConfig, stream, methods, typed, without=(*_NAMED, *SWEPT), with_defaults=False)


def _settings_record(
    base: type,
    kind: type[Configured],
    stream: str | None,
    methods: Sequence[str],
    typed: Mapping[str, Any],
    *,
    without: Sequence[str],
    with_defaults: bool = True,
) -> type:
    groups: dict[str, tuple[dict[str, type], str]] = {
        "training": (_of(kind.record, (*without, *OF_PICTURES)), "Left out: as the stream's protocol has it.")
    }
    if pictures := {name: record for name, record in _of(kind.record, without).items() if name in OF_PICTURES}:
        groups["pictures"] = (pictures, "Of data that are pictures.")
    if stream is not None and stream != "list":
        entry = named_by(kind, "stream").named(stream)
        groups["tasks"] = (all_options(entry, typed), f"Of stream {stream}.")
    for name, net in _nets(kind, typed).items():
        groups["network"] = (all_options(named_by(kind, name).named(net), typed), f"Of net {net}.")
    if methods:
        entries = [named_by(kind, "method").named(method) for method in methods]
        own = {name: record for entry in entries for name, record in all_options(entry, typed).items()}
        groups["mechanism"] = (own, f"Of {', '.join(methods)}.")
    usual = None
    if with_defaults and stream in named_by(kind, "stream") and methods:
        usual = kind.usual(str(stream), methods[0], typed)
    records, seen = {}, set(without)
    for title, (own, told) in groups.items():
        rest = {name: record for name, record in own.items() if name not in seen}
        seen |= set(rest)
        if rest:
            records[title] = _record(rest, usual, told=told)
    return _extended(base, records)


def settings(options: Any) -> dict[str, Any]:
    """Setting -> value, of those that were typed."""
    found = {}
    for name in getattr(type(options), "setting_groups", ()):
        group = getattr(options, name)
        found |= {own.name: value for own in fields(group) if (value := getattr(group, own.name)) is not None}
    return found


def misplaced(flag: str, argv: Sequence[str]) -> OptionError | None:
    """What is wrong with a flag that is an option of something else than what was typed."""
    name = flag.lstrip("-").replace("-", "_")
    typed = _typed(argv)
    stream = typed.get("stream")
    kind, belongs_to = kind_of(stream), having(name)
    if stream is None or not belongs_to or name in names_of(kind.record):  # which a sweep chooses
        return None
    methods = [typed["method"]] if "method" in typed else typed.get("methods", [])
    return foreign_option(name, belongs_to, {"stream": stream, **_nets(kind, typed)}, methods)


def _nets(kind: type[Configured], typed: Mapping[str, Any]) -> dict[str, str]:
    """The network that was typed or is the default, of a kind of runs that has a choice of it."""
    return {"net": typed.get("net") or default_of(kind.record, "net")} if "net" in naming(kind.record) else {}


def explained(record: type) -> dict[str, str]:
    """Field -> what the docstrings of a record and its bases say of it."""
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        for own in parse(kind.__doc__ or "").params:
            text = " ".join((own.description or "").split()).rstrip(".")
            found[own.arg_name] = text.replace("None: ", "left out: ")
    return found


def _of(record: type, without: Iterable[str]) -> dict[str, type]:
    return {own.name: record for own in fields(record) if own.name not in without}


def _record(own: Mapping[str, type], usual: Mapping[str, Any] | None, *, told: str) -> type:
    """A dataclass of flags; None is what was not typed. Where it is known what is usual, their defaults are told."""
    entries = []
    for name, record in own.items():
        default = (usual or {}).get(name, default_of(record, name))
        shown = " ".join(map(str, default)) if isinstance(default, tuple | list) else default
        shown = {True: "yes", False: "no"}.get(shown, shown) if isinstance(shown, bool) else shown
        told_of = explained(record).get(name, "")
        if shown is not None and usual is not None:
            told_of += f" (default: {shown})"
        entries.append((name, option(name, get_type_hints(record)[name], told_of), field(default=None)))
    return make_dataclass("Settings", entries, frozen=True, namespace={"__doc__": told})


def _extended(base: type, groups: Mapping[str, type], *, more: str = "") -> type:
    return make_dataclass(
        base.__name__,
        [(title, record, field(default_factory=record)) for title, record in groups.items()],
        bases=(base,),
        frozen=True,
        namespace={"__doc__": f"{base.__doc__} {more}".strip(), "setting_groups": tuple(groups)},
    )


def _typed(argv: Sequence[str]) -> dict[str, Any]:
    """What decides which flags there are: read before the flags themselves; plug-ins are loaded."""
    texts = [text.replace("_", "-") if text.startswith("--") else text for text in argv]
    load_plugins(_parser(()).parse_known_args(texts)[0].plugin or ())
    records = [
        *(kind.record for kind in KINDS),
        *(entry.options for registry in REGISTRIES for entry in registry.values()),
    ]
    found = vars(_parser(records).parse_known_intermixed_args(texts)[0])
    found = {name: found[name] for name in _DECIDING if found.get(name)}
    for name, registry in (("generator", GENERATORS), ("hold", METHODS)):
        if name in found:
            registry.named(found[name])
    return found


def _parser(settings: Iterable[type]) -> argparse.ArgumentParser:
    """Knows how many values each flag takes, and so which text is the stream."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("stream", nargs="?")
    known = set()
    for record in (RunOptions, SweepOptions, *settings):
        for own in fields(record):
            if own.name in known or own.name == "stream":
                continue
            known.add(own.name)
            flag = "--" + own.name.replace("_", "-")
            if own.default is False and record in (RunOptions, SweepOptions):
                parser.add_argument(flag, action="store_true")
            else:
                parser.add_argument(flag, nargs="*" if isinstance(own.default, tuple) else "?")
    return parser
