"""What is on disk: folders with a manifest, safetensors and JSON; no pickle, and nothing of a user's is replaced."""

from holdfast.files.checks import check_files, check_output, holds
from holdfast.files.door import new_folder
from holdfast.files.manifest import FORMAT_VERSION, MANIFEST, check_described
from holdfast.files.plain import (
    opened,
    parsed_json,
    read_bytes,
    read_json,
    replacing,
    special_files,
    write_bytes,
    write_json,
    write_text,
)
from holdfast.files.saved import Saved, is_saved, read_folder, write_description
from holdfast.files.sealed import read_sealed, seal_of, write_sealed
from holdfast.files.tensors import (
    SHARD_BYTES,
    from_bytes,
    read_state,
    take_the_rest,
    to_bytes,
    write_state,
    write_tensors,
)

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "SHARD_BYTES",
    "Saved",
    "check_described",
    "check_files",
    "check_output",
    "from_bytes",
    "holds",
    "is_saved",
    "new_folder",
    "opened",
    "parsed_json",
    "read_bytes",
    "read_folder",
    "read_json",
    "read_sealed",
    "read_state",
    "replacing",
    "seal_of",
    "special_files",
    "take_the_rest",
    "to_bytes",
    "write_bytes",
    "write_description",
    "write_json",
    "write_sealed",
    "write_state",
    "write_tensors",
    "write_text",
]
