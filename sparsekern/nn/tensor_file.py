"""Named tensors in one safetensors file; tensors that several names share are stored once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsekern._files import whole_file

ALIASES = "aliases"  # entry of the file's metadata: name -> the name it is stored under


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a ``state_dict`` as a whole or not at all.

    Raises:
        TypeError: an entry that is not a tensor.
        FileNotFoundError: no such folder.
    """
    from safetensors.torch import save_file

    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected the folder of {path} to exist. Got no such folder.")
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"Expected every entry of the state_dict to be a tensor. Got {name} of type "
                f"{type(tensor).__name__}."
            )
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in names:
            aliases[name] = names[key]
        else:
            names[key] = name
            stored[name] = _own_memory(tensor)
    content = {"format": "pt", **(metadata or {}), ALIASES: json.dumps(aliases)}
    with whole_file(path) as temporary:
        save_file(stored, temporary, content)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Puts the metadata into alphabetical order: safetensors writes them in a random one, and equal
    models should be equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _own_memory(tensor: Tensor) -> Tensor:
    """Contiguous, and alone in its memory, as safetensors wants it."""
    tensor = tensor.detach().contiguous()
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file on the CPU, aliases included, and its metadata.

    Raises:
        ValueError: not there, truncated, or not a safetensors file; one sentence.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"Expected {path} to be a file. Got no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
        aliases = json.loads(metadata.get(ALIASES, "{}"))
        tensors |= {alias: tensors[name] for alias, name in aliases.items()}
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected {path} to be a safetensors file. Got: {error}.") from None
    return tensors, metadata
