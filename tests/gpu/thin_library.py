"""Empty a CUDA library of the machine code for all GPUs but one kind, so that it compresses to a tenth.

    python tests/gpu/thin_library.py libtransformer_engine.so OUT.so 90

The file keeps its size and layout: within the section `.nv_fatbin`, the contents of every entry that is not machine
code (kind 2) for the wanted architecture become zeros. The driver takes the entry that fits its GPU and reads no other.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

_CONTAINER, _CONTAINER_MAGIC = struct.Struct("<IHHQ"), 0xBA55ED50
"""Magic, version, size of this header, size of the entries."""
_ENTRY = struct.Struct("<HHIQIIHHI")
"""Kind, -, size of this header, size of the contents, -, -, minor and major version, architecture."""
_MACHINE_CODE = 2


def thin(library: bytearray, architecture: int) -> int:
    """Empty the other entries in place; the bytes that are left of machine code."""
    start, size = _section(library, b".nv_fatbin")
    at, end, kept = start, start + size, 0
    while at + _CONTAINER.size <= end:
        magic, _, header, length = _CONTAINER.unpack_from(library, at)
        if magic != _CONTAINER_MAGIC:
            at += 8  # containers are aligned
            continue
        entry, at = at + header, at + header + length
        while entry < at:
            kind, _, entry_header, contents, *_, found = _ENTRY.unpack_from(library, entry)
            entry += entry_header
            if (kind, found) == (_MACHINE_CODE, architecture):
                kept += contents
            else:
                library[entry : entry + contents] = bytes(contents)
            entry += contents
    return kept


def _section(library: bytearray, name: bytes) -> tuple[int, int]:
    """Where a section of a 64-bit ELF file lies: offset and size."""
    (table,) = struct.unpack_from("<Q", library, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", library, 58)
    sections = [struct.unpack_from("<IIQQQQ", library, table + i * entry_size) for i in range(count)]
    names = sections[names_index][4]
    for name_offset, _, _, _, offset, size in sections:
        if library[names + name_offset :].startswith(name + b"\0"):
            return offset, size
    raise SystemExit(f"there is no section {name.decode()}: this is no CUDA library")


if __name__ == "__main__":
    source, target, architecture = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    contents = bytearray(source.read_bytes())
    kept = thin(contents, architecture)
    if not kept:
        raise SystemExit(f"{source} holds no machine code for architecture {architecture}")
    target.write_bytes(contents)
    print(f"{target}: {kept / 2**20:.0f} MiB of machine code for architecture {architecture} are left")
