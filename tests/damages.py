"""Random damages to what holdfast has saved, of every kind, and what loading says to them.

A kind of folder is made once, copied and damaged. Then loading must either refuse it with one line, or give what was
saved: anything else (another value, a raw exception, a file waited for without end) is a fault. Nothing is changed by
loading.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.files.folders import listing
from tqdm import tqdm

from holdfast.errors import HoldfastError
from holdfast.files.manifest import MANIFEST, write_manifest

SECONDS = 20
"""A load that takes longer waits for something."""


@dataclass(frozen=True)
class Kind:
    """One kind of folder.

    Attributes:
        name: of the kind.
        make: fills the folder it is given, which does not exist.
        load: what is read of it, as values that `print_of` takes.
        goes_on: loading goes on with what is there, and may change the folder where it is not refused.
        only: names of the files that are damaged, as a pattern; all by default.
        has_digests: of all its files; where they have none, an edit that has a meaning may be read as what it says.
    """

    name: str
    make: Callable[[Path], object]
    load: Callable[[Path], Any]
    goes_on: bool = False
    has_digests: bool = True
    only: str = "*"


@dataclass
class Tally:
    """What came of the damages of one kind.

    Attributes:
        refused: with one line.
        right: loaded, as what was saved.
        as_edited: loaded, as the edit says: where it was signed, or the files have no digests.
        faults: each in words.
    """

    refused: int = 0
    right: int = 0
    as_edited: int = 0
    faults: list[str] = field(default_factory=list)


def print_of(value: Any) -> str:
    """A digest of nested values, to compare what two loads gave."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        digest = hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return f"{plain.dtype} {tuple(plain.shape)} {digest.hexdigest()}"
    if isinstance(value, dict):
        return repr({str(key): print_of(entry) for key, entry in sorted(value.items(), key=lambda pair: str(pair[0]))})
    if isinstance(value, list | tuple):
        return repr([print_of(entry) for entry in value])
    return repr(value)


class HangsError(Exception):
    """A load that did not end."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `HangsError` in the block when it takes too long."""

    def stop(*_: Any) -> None:
        raise HangsError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def come_of(kind: Kind, folder: Path, right: str, how: str, *, signed: bool) -> Tally:
    """What came of one damage."""
    before = listing(folder)
    try:
        with limited(SECONDS):
            found = print_of(kind.load(folder))
    except HoldfastError as error:
        said = str(error)
        if "\n" in said or not 10 < len(said) < 1500:
            return Tally(
                faults=[f"{how}: refused in {said.count(chr(10)) + 1} lines, {len(said)} long: {said[:300]!r}"]
            )
        changed = _changed(before, folder)
        return Tally(faults=[f"{how}: the refusal changed {changed}"]) if changed else Tally(refused=1)
    except HangsError:
        return Tally(faults=[f"{how}: hangs"])
    except BaseException as error:
        return Tally(faults=[f"{how}: raw {type(error).__name__}: {str(error)[:200]!r}"])
    if not kind.goes_on and (changed := _changed(before, folder)):
        return Tally(faults=[f"{how}: loading changed {changed}"])
    if found == right:
        return Tally(right=1)
    if signed or not kind.has_digests:
        return Tally(as_edited=1)
    return Tally(faults=[f"{how}: loaded, and not what was saved"])


def _changed(before: dict[str, str], folder: Path) -> list[str]:
    after = listing(folder)
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


# --- damages


def damage(folder: Path, dice: random.Random, *, only: str = "*") -> str:
    """Damage one file of a folder, or an entry of a JSON file with the digests made anew; says how."""
    files = sorted(path for path in folder.rglob(only) if path.is_file())
    texts = [path for path in files if path.suffix in (".json", ".jsonl") and path.name != MANIFEST]
    if texts and dice.random() < 0.4:
        path = dice.choice(texts)
        how = _change_json(path, dice)
        ours = next((place for place in path.parents if (place / MANIFEST).exists()), None)
        if ours is not None and folder in (ours, *ours.parents) and dice.random() < 0.7:
            write_manifest(ours)
            how += ", and signed"
        return f"{path.relative_to(folder)}: {how}"
    path = dice.choice(files)
    name, act = dice.choice(sorted(_OF_FILES.items()))
    act(path, dice)
    return f"{path.relative_to(folder)}: {name}"


def _change_json(path: Path, dice: random.Random) -> str:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = dice.randrange(len(lines))
    content = json.loads(lines[number])
    spots = list(_spots(content))
    if not spots:
        return "empty, left as it is"
    holder, key = dice.choice(spots)
    was, kind = holder[key], dice.choice(sorted(_VALUES))
    holder[key] = _VALUES[kind](was)
    if kind == "gone":
        del holder[key]
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")
    return f"{key!r} was {str(was)[:40]!r}, now {kind}"


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested JSON: what holds it, and its key there."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield value, key
        yield from _spots(entry)


_VALUES: dict[str, Callable[[Any], Any]] = {
    "gone": lambda was: was,
    "null": lambda was: None,
    "a text": lambda was: "x",
    "an empty text": lambda was: "",
    "true": lambda was: True,
    "a list": lambda was: [1, "a"],
    "an object": lambda was: {"a": [1]},
    "a fraction": lambda was: 0.5,
    "minus one": lambda was: -1,
    "large": lambda was: 10**30,
    "not a number": lambda was: float("nan"),
    "infinite": lambda was: float("inf"),
    "in a list": lambda was: [was],
    "half a character": lambda was: "\ud800",
    "huge": lambda was: 10**4000,
    "deep": lambda was: json.loads("[" * 300 + "]" * 300),
}


def _flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def _folder(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, dice: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _swap(path: Path, dice: random.Random) -> None:
    other = dice.choice(sorted(p for p in path.parent.iterdir() if p.is_file()))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def _link(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to(dice.choice(["nowhere", path.name, "/dev/zero"]))


def _write(make: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, dice: path.write_bytes(make(path.read_bytes(), dice)) and None


_OF_FILES: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped": _flip,
    "truncated": _write(lambda content, dice: content[: dice.randrange(len(content) + 1)]),
    "longer": _write(lambda content, dice: content + dice.randbytes(dice.randrange(1, 40))),
    "empty": _write(lambda content, dice: b""),
    "noise": _write(lambda content, dice: dice.randbytes(len(content))),
    "zeros": _write(lambda content, dice: bytes(len(content))),
    "nested": _write(lambda content, dice: b"[" * 50_000 + b"]" * 50_000),
    "a list": _write(lambda content, dice: b"[1, 2]"),
    "missing": lambda path, dice: path.unlink(),
    "a folder": _folder,
    "a pipe": _pipe,
    "another's": _swap,
    "a link": _link,
}


def tally(kind: Kind, work: Path, *, times: int, seed: int) -> Tally:
    """What came of so many damages of one kind of folder."""
    whole = work / kind.name / "whole"
    whole.parent.mkdir(parents=True)
    kind.make(whole)
    copy = work / kind.name / "copy"
    shutil.copytree(whole, copy, symlinks=True)
    right = print_of(kind.load(copy))
    shutil.rmtree(copy)
    total = Tally()
    for number in range(times):
        dice = random.Random(f"{kind.name} {seed} {number}")
        shutil.copytree(whole, copy, symlinks=True)
        how = damage(copy, dice, only=kind.only)
        one = come_of(kind, copy, right, f"{kind.name} {number}: {how}", signed=how.endswith("signed"))
        total.refused, total.right = total.refused + one.refused, total.right + one.right
        total.as_edited, total.faults = total.as_edited + one.as_edited, total.faults + one.faults
        shutil.rmtree(copy)
    return total


def check(kind: Kind, work: Path, *, times: int, seed: int) -> None:
    """Damage a kind so often; fails where anything but a refusal in one line or the right value came of it."""
    found = tally(kind, work, times=times, seed=seed)
    told = f"{kind.name}: {times} damages, {found.refused} refused, {found.right} right, {found.as_edited} as edited"
    print(f"{told}, {len(found.faults)} faults")
    assert not found.faults, "\n".join(found.faults)


# --- a reader beside a writer


def check_beside(kind: Kind, other: Callable[[Path], object], work: Path, *, times: int) -> None:
    """Load a folder so often while another process saves into it, now this way and now the other.

    Each load must give one of the two saves whole.
    """
    place, saves = work / kind.name, (kind.make, other)
    right = set()
    for save in saves:
        save(place)
        right.add(print_of(kind.load(place)))
    assert len(right) == 2, "two saves that cannot be told apart"
    writer = multiprocessing.get_context("fork").Process(target=_save_on, args=(saves, place), daemon=True)
    writer.start()
    found = Tally()
    try:
        for number in range(times):
            try:
                with limited(SECONDS):
                    print_found = print_of(kind.load(place))
            except HoldfastError as error:
                found.refused += 1
                found.faults.append(f"{kind.name} {number}: refused: {error}")
            except BaseException as error:
                found.faults.append(f"{kind.name} {number}: raw {type(error).__name__}: {str(error)[:200]!r}")
            else:
                found.right += print_found in right
                found.faults += [] if print_found in right else [f"{kind.name} {number}: a mix of two saves"]
        assert writer.is_alive(), "the writer has ended"
    finally:
        writer.kill()
        writer.join()
    print(f"{kind.name}: {times} loads beside a writer, {found.right} right, {len(found.faults)} faults")
    assert not found.faults, "\n".join(found.faults)


def _save_on(saves: Sequence[Callable[[Path], object]], place: Path) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # this process is killed, and would take the lock of its parent with it
    while True:
        for save in saves:
            save(place)
            time.sleep(0.002)
