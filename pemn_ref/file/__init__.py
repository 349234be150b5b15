"""The compressed model on disk: a bit for every weight, the prototypes by value, and the rest.

FORMAT.md in this folder describes the bytes: a safetensors file, written and read here with torch
alone. A file whose header is not exactly what a writer would make, or whose checksum is wrong,
raises :class:`FileError`. ``import pemn_ref`` does not import this package.
"""

from pemn_ref.file.bits import pack, unpack
from pemn_ref.file.header import Info
from pemn_ref.file.loading import FileError, inspect, load, load_dense
from pemn_ref.file.saving import save

__all__ = ["FileError", "Info", "inspect", "load", "load_dense", "pack", "save", "unpack"]
