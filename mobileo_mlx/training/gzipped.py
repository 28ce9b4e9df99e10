"""Gzip of others: read piece by piece, and only as far as its size is in proportion to that of the file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from .quadruplets import Malformed

CHUNK = 2**16  # bytes
# Images hardly shrink, text and tar headers by a factor of 10 to 50; a file made to fill a disk by up to 1032.
_MAX_RATIO = 100
_MAX_RATIO_FROM = 2**24  # bytes: less is unpacked whatever the ratio


def is_gzip(file: BinaryIO) -> bool:
    """Whether the content of a file begins as gzip does; the file is left at its beginning."""
    start = file.read(2)
    file.seek(0)
    return start == b"\x1f\x8b"


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """The content of an open file in pieces of at most `CHUNK` bytes, unpacked where it is gzip.

    Raises:
        Malformed: it is damaged or cut short, unpacks to far more than data would, or can't be read.
    """
    try:
        if is_gzip(file):
            yield from _inflated(file)
        else:
            yield from iter(lambda: file.read(CHUNK) or b"", b"")  # None where it would have to wait
    except OSError as error:
        raise Malformed(f"can't be read ({error.strerror or error})") from error


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    allowed = max(_MAX_RATIO * os.fstat(file.fileno()).st_size, _MAX_RATIO_FROM)
    inflater = zlib.decompressobj(wbits=31)
    ended = False
    while packed := file.read(CHUNK):
        while packed:
            if ended:  # several may follow each other, and zeros at the end fill a block
                packed = packed.lstrip(b"\0")
                if not packed:
                    break
                inflater = zlib.decompressobj(wbits=31)
            try:
                data = inflater.decompress(packed, CHUNK)
            except zlib.error as error:
                raise Malformed("is damaged gzip; get it again") from error
            ended = inflater.eof
            packed = inflater.unused_data if ended else inflater.unconsumed_tail
            allowed -= len(data)
            if allowed < 0:
                raise Malformed(f"is gzip that unpacks to more than {_MAX_RATIO} times its size; unpack it with gunzip")
            if data:
                yield data
    if not ended:
        raise Malformed("is gzip that is cut short; get it again")
