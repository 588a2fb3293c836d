"""Small files of each format, and large ones made small."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile

Tensor = tuple[str, list[int], bytes]
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "I8": 1, "U8": 1}

# What a target takes for the end of one file and the beginning of the next.
SEPARATOR = b"\n%%%%\n"


def joined(*files: bytes) -> bytes:
    return SEPARATOR.join(files)


def to_json(value) -> bytes:
    return json.dumps(value).encode()


def noise(dtype: str, shape: list[int], seed: int) -> Tensor:
    """A tensor of seeded bytes; floats are small and finite."""
    source = random.Random(seed)
    n = 1
    for size in shape:
        n *= size
    values = [source.uniform(-1, 1) for _ in range(n)]
    if dtype == "F32":
        content = struct.pack(f"<{n}f", *values)
    elif dtype == "F16":
        content = struct.pack(f"<{n}e", *values)
    elif dtype == "BF16":
        content = b"".join(struct.pack("<f", value)[2:] for value in values)
    else:
        content = source.randbytes(n * WIDTHS[dtype])
    return dtype, shape, content


def safetensors(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = to_json(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def shrunk(content: bytes, limit: int) -> bytes:
    """A safetensors file without the modules that are largest, down to about `limit` bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    modules: dict[str, dict[str, Tensor]] = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        module = name.split("_proj")[0] if "_proj" in name else name.rsplit(".", 1)[0]
        modules.setdefault(module, {})[name] = (entry["dtype"], entry["shape"], content[start:end])
    size = lambda module: sum(len(tensor[2]) + 100 for tensor in module.values())
    # The smallest module of linears first, then what else has room.
    is_norm = lambda name: "_proj" not in name
    kept, used = {}, 0
    for name, module in sorted(modules.items(), key=lambda item: (is_norm(item[0]), size(item[1]))):
        if not kept or used + size(module) <= limit:
            kept |= module
            used += size(module)
    return safetensors(kept, metadata)


def wheel(files: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def tarball(files: dict[str, bytes], form=tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("package/data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../model.gguf"
        archive.addfile(link)
    return gzip.compress(out.getvalue(), mtime=0)


def gguf(keys: dict[str, tuple[int, object]], tensors: dict[str, tuple[int, list[int], bytes]]) -> bytes:
    """`keys` are types and values, `tensors` types, shapes as in the file and contents."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(kind, what) -> bytes:
        if kind == 8:
            return text(what)
        if kind == 9:
            of, items = what
            return struct.pack("<IQ", of, len(items)) + b"".join(value(of, item) for item in items)
        return struct.pack({4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q"}[kind], what)

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, (kind, what) in keys.items():
        out += text(name) + struct.pack("<I", kind) + value(kind, what)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    return out + b"\0" * (-len(out) % 32) + data

