"""A reader of soft-label stores, written from README.md of storage_schemas and from nothing else.

It imports tensorstore, numpy and the standard library. The test runs it as a program:

    python -I spec_reader.py STORE OUT.npz

and gets every label of the store at every declared temperature, or exit code 1 and what is wrong.
"""

import hashlib
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import tensorstore as ts

ARRAYS = ("ids", "gaps", "commits")
FIELDS = {
    "format", "version", "teacher", "num_rows", "num_views", "k", "num_classes", "activation",
    "temperatures", "precision", "shard_rows", "chunk_rows", "classes", "global_ids",
    "label_space_digest", "manifest_chain", "manifest_rows", "split", "recipe",
    "fingerprint_parts", "fingerprint", "grown_at", "library_versions", "created", "encoding",
}  # fmt: skip
OPTIONAL = {"selection", "top_p"}


class Refused(Exception):
    """The store is not one that this reader may read."""


def crc_table():
    """Return the 256 steps of the Castagnoli CRC of RFC 3720, bits reflected."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = crc_table()


def crc32c(content):
    """Return the crc32c of bytes."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def digest(value):
    """Return the sha256 of the canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def expected_encoding(schema):
    """Return the steps and offsets that the other fields give (section 3)."""
    compact = schema["precision"] == "compact"
    if schema.get("selection", "top_k") == "sampled":
        return {"draws": schema["k"]}
    step = 1 / 16 if compact else 1 / 2048
    if schema["activation"] == "sigmoid":
        return {"gap_step": step, "top_offset": 8 if compact else 16}
    kept = 1 if schema.get("selection", "top_k") == "top_p" else schema["k"]
    return {
        "gap_step": step,
        "tail_step": 1 / 8 if compact else 1 / 2048,
        "tail_offset": math.ceil(math.log(max(schema["num_classes"] - kept, 1))),
    }


def read_schema(store):
    """Return the schema, after every check of section 2; raise `Refused` with all problems."""
    attributes = json.loads((store / "zarr.json").read_text("utf-8"))["attributes"]
    schema, problems = attributes["soft_labels"], []
    if schema.get("format") != "concentrate.soft_labels" or schema.get("version") != 1:
        raise Refused("another format or version")
    if set(schema) - OPTIONAL != FIELDS:
        problems.append(f"fields differ: {sorted(set(schema) ^ FIELDS)}")
    if attributes["digest"] != digest({"soft_labels": schema, "arrays": attributes["arrays"]}):
        problems.append("digest of the attributes")
    if schema["fingerprint"] != digest(schema["fingerprint_parts"])[:16]:
        problems.append("fingerprint")
    if schema["encoding"] != expected_encoding(schema):
        problems.append("encoding")
    small, compact = schema["num_classes"] <= 65535, schema["precision"] == "compact"
    size, rows = schema["shard_rows"], schema["num_rows"]
    if schema["activation"] == "sigmoid" or schema.get("selection") == "sampled":
        columns = schema["k"]
    else:
        columns = schema["k"] - 1 + len(schema["temperatures"])
    wanted = {
        "ids": ("uint16" if small else "uint32", size, rows, schema["k"]),
        "gaps": ("uint8" if compact else "uint16", size, rows, columns),
        "commits": ("uint32", 1, -(-rows // size), 3),
    }
    for name in ARRAYS:
        document = json.loads((store / name / "zarr.json").read_text("utf-8"))
        shape = document.pop("shape")
        if digest(document) != attributes["arrays"][name]:
            problems.append(f"digest of {name}")
        kind, shard, least, width = wanted[name]
        fill = 0 if name == "commits" else int(np.iinfo(kind).max)
        grid = document["chunk_grid"]["configuration"]["chunk_shape"]
        if (document["data_type"], document["fill_value"]) != (kind, fill):
            problems.append(f"type or fill of {name}")
        if grid != [1, shard, width]:
            problems.append(f"shards of {name}")
        if [shape[0], shape[2]] != [schema["num_views"], width] or shape[1] < least:
            problems.append(f"shape of {name}")
    if problems:
        raise Refused("; ".join(problems))
    return schema


def read_shard(arrays, schema, view, shard):
    """Return ids and gaps of a committed shard up to row N, or None (section 4)."""
    try:
        rows, *crcs = arrays["commits"][view, shard].read().result().tolist()
    except ValueError:
        return None
    if rows == 0:
        return None
    first, size = shard * schema["shard_rows"], schema["shard_rows"]
    stop = min(first + size, schema["num_rows"])
    found = []
    for name, crc in zip(("ids", "gaps"), crcs, strict=True):
        values = arrays[name][view, first:stop].read().result()
        little = values.astype(values.dtype.newbyteorder("<"))
        whole = np.full((size, values.shape[1]), np.iinfo(values.dtype).max, little.dtype)
        whole[: len(values)] = little
        place = f"{schema['fingerprint']}/{name}/{view}/{shard}/".encode("ascii")
        if crc32c(place + whole.tobytes()) != crc:
            raise Refused(f"crc32c of {name}, view {view}, shard {shard}")
        found.append(values)
    if int((found[0][:, 0] != np.iinfo(found[0].dtype).max).sum()) != rows:
        raise Refused(f"labels of view {view}, shard {shard}")
    return found


def decode(schema, ids, gaps, temperature):
    """Return log p of each rank and log tail of labelled rows, in float64 (section 3)."""
    k, classes, code = schema["k"], schema["num_classes"], schema["encoding"]
    there = ids != np.iinfo(ids.dtype).max
    steps = np.where(gaps == np.iinfo(gaps.dtype).max, 0, gaps).astype(np.float64)
    no_tail = np.full(len(ids), -np.inf)
    if schema.get("selection", "top_k") == "sampled":
        with np.errstate(divide="ignore"):
            return np.log(steps / k), no_tail
    c = np.concatenate([np.zeros((len(ids), 1)), np.cumsum(steps[:, : k - 1], axis=1)], axis=1)
    if schema["activation"] == "sigmoid":
        logits = code["gap_step"] * (steps[:, -1:] - c) - code["top_offset"]
        return -np.log1p(np.exp(-logits / temperature)), no_tail
    z = np.where(there, -code["gap_step"] * c / temperature, -np.inf)
    at = schema["temperatures"].index(temperature)
    y = code["tail_offset"] - code["tail_step"] * steps[:, k - 1 + at]
    y = np.where(there.sum(axis=1) == classes, -np.inf, y)
    norm = np.log(np.exp(z).sum(axis=1) + np.exp(y))
    return z - norm[:, None], y - norm


def main(store, out):
    """Write ids, log_probs and log_tail of every label; -1 and -inf where there is none."""
    schema = read_schema(store)
    arrays = {}
    for name in ARRAYS:
        kvstore = {"driver": "file", "path": str(store / name)}
        arrays[name] = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    views, rows, k = schema["num_views"], schema["num_rows"], schema["k"]
    count = len(schema["temperatures"])
    ids = np.full((views, rows, k), -1, np.int64)
    log_probs = np.full((count, views, rows, k), -np.inf)
    log_tail = np.full((count, views, rows), -np.inf)
    for view, shard in np.ndindex(views, -(-rows // schema["shard_rows"])):
        found = read_shard(arrays, schema, view, shard)
        if found is None:
            continue
        labelled = np.flatnonzero(found[0][:, 0] != np.iinfo(found[0].dtype).max)
        at = shard * schema["shard_rows"] + labelled
        own = found[0][labelled]
        ids[view, at] = np.where(own == np.iinfo(own.dtype).max, -1, own.astype(np.int64))
        for position, temperature in enumerate(schema["temperatures"]):
            values = decode(schema, own, found[1][labelled], temperature)
            log_probs[position, view, at], log_tail[position, view, at] = values
    np.savez(out, ids=ids, log_probs=log_probs, log_tail=log_tail, classes=schema["classes"])


if __name__ == "__main__":
    # RFC 3720, appendix B.4: 32 bytes of zeros.
    assert struct.pack("<I", crc32c(bytes(32))) == bytes([0xAA, 0x36, 0x91, 0x8A])
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except Refused as refused:
        sys.exit(f"refused: {refused}")
    ours = {"storage_schemas", "pipeline", "flows", "zarr", "torch"} & set(sys.modules)
    assert not ours, ours
