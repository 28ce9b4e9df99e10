"""Tar files with odd members and odd headers."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Sequence

from hypothesis import strategies as st

from .mutations import TEXTS, Draw, damaged


@st.composite
def tar_bytes(draw: Draw, members: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar file of these members and odd ones, whole or damaged."""
    files: list[tuple[tarfile.TarInfo, bytes]] = []
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        files.append((info, data))
    for _ in range(draw(st.integers(1, 3))):
        if not files:
            break
        index = draw(st.integers(0, len(files) - 1))
        info, data = files[index]
        kind = draw(st.integers(0, 8))
        if kind == 0:
            data = draw(st.one_of(st.sampled_from([t.encode("utf-8", "surrogatepass") for t in TEXTS]), damaged(data)))
        elif kind == 1:
            name = draw(
                st.sampled_from(
                    (
                        *TEXTS,
                        info.name.upper(),
                        f"/{info.name}",
                        f"../../{info.name}",
                        f"a.b/{info.name}",
                        info.name.replace(".", "..", 1),
                        f"._{info.name}",
                        f"__MACOSX/{info.name}",
                    )
                )
            )
            info.name = name
        elif kind == 2:
            info.type = draw(
                st.sampled_from(
                    (
                        tarfile.LNKTYPE,
                        tarfile.SYMTYPE,
                        tarfile.CHRTYPE,
                        tarfile.FIFOTYPE,
                        tarfile.DIRTYPE,
                        tarfile.CONTTYPE,
                        tarfile.GNUTYPE_SPARSE,
                        b"x",
                        b"g",
                        b"L",
                        b"Z",
                    )
                )
            )
            info.linkname = draw(st.sampled_from(("/etc/passwd", "", files[0][0].name)))
        elif kind == 3:
            del files[index]
            continue
        elif kind == 4:
            files.append((info, data))
        elif kind == 5:
            info.pax_headers = {
                draw(
                    st.sampled_from(
                        (
                            "path",
                            "size",
                            "GNU.sparse.map",
                            "GNU.sparse.size",
                            "GNU.sparse.major",
                            "GNU.sparse.realsize",
                            "mtime",
                            "hdrcharset",
                            "comment",
                            "x",
                        )
                    )
                ): draw(st.sampled_from((*TEXTS[:20], "9" * 30, "1.5", "0,1", "1099511627776")))
            }
        elif kind == 6:
            data = data * draw(st.sampled_from((0, 2, 3)))
        elif kind == 7:
            info.mtime = draw(st.sampled_from((0, -1, 2**33, 10**20)))
        else:
            files.insert(index, files.pop())
            continue
        if info.size == len(files[index][1]):
            info.size = len(data)
        files[index] = (info, data)
    stream = io.BytesIO()
    form = draw(st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
    try:
        with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogatepass") as tar:
            for info, data in files:
                tar.addfile(info, io.BytesIO(data) if data else None)
    except (ValueError, OSError, struct.error):
        pass  # what tarfile does not write is left as it is: a tar that is cut
    data = stream.getvalue()
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(damaged(data))
    if kind <= 3:
        return draw(_odd_header(data))
    if kind == 4:
        return gzip.compress(data)[: draw(st.sampled_from((None, -10, 20)))]
    return data


@st.composite
def _odd_header(draw: Draw, data: bytes) -> bytes:
    """A tar file with one header's field changed, and the header's sum made right again."""
    places = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
    if not places:
        return data
    start = draw(st.sampled_from(places))
    header = bytearray(data[start : start + 512])
    field = draw(
        st.sampled_from(
            (
                (0, 100),
                (100, 8),
                (124, 12),
                (136, 12),
                (156, 1),
                (157, 100),
                (257, 8),
                (329, 8),
                (345, 155),
                (386, 96),
                (482, 30),
            )
        )
    )
    content = draw(
        st.sampled_from(
            (
                b"\x80" + b"\xff" * 11,
                b"\xff" * 12,
                b"77777777777\0",
                b"-1",
                b"abc",
                b"\0" * 12,
                b"S",
                b"x",
                b"g",
                b"K",
                b"00000000001\0",
                b"\x80\0\0\0\0\1\0\0\0\0\0\0",
            )
        )
    )
    header[field[0] : field[0] + field[1]] = content.ljust(field[1], b"\0")[: field[1]]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]
