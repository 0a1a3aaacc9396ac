#!/usr/bin/env python3
"""Looks at and trims eBPF objects for bpf/build.sh.

    object.py digest FILE       what decides the object's behaviour, a line each, for comparing two
    object.py trim FROM TO      the object without debug information, which no loader reads and
                                which alone differs from one build folder to another

The digest has code sections with their relocations by symbol name, read-only data, the license, and
BTF, where map definitions are.
"""

import hashlib
import struct
import sys


HEADER = "<IIQQQQIIQQ"


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    if data[:6] != b"\x7fELF\x02\x01":
        sys.exit(f"{path} is not a 64-bit little-endian ELF object")
    offset, = struct.unpack_from("<Q", data, 40)
    size, count, names_index = struct.unpack_from("<HHH", data, 58)
    fields = ("name", "kind", "flags", "address", "at", "length", "link", "info", "align", "entry")
    sections = [dict(zip(fields, struct.unpack_from(HEADER, data, offset + number * size)))
                for number in range(count)]
    names = sections[names_index]
    table = data[names["at"]:names["at"] + names["length"]]
    for section in sections:
        section["label"] = text(table, section["name"])
    return data, sections


def text(table, at):
    return table[at:table.index(b"\0", at)].decode()


def trim(source, target):
    data, sections = read(source)
    out = bytearray(data[:64])
    for section in sections:
        # Emptied, not removed: the numbers of sections and symbols stay.
        if section["label"].startswith((".debug", ".rel.debug")):
            section["length"] = 0
        if section["kind"] not in (0, 8):
            out += bytes(-len(out) % max(section["align"], 1))
            body = data[section["at"]:section["at"] + section["length"]]
            section["at"] = len(out)
            out += body
    out += bytes(-len(out) % 8)
    struct.pack_into("<Q", out, 40, len(out))
    for section in sections:
        out += struct.pack(HEADER, *(section[field] for field in (
            "name", "kind", "flags", "address", "at", "length", "link", "info", "align", "entry")))
    with open(target, "wb") as file:
        file.write(out)


def digest(path):
    data, sections = read(path)
    count = len(sections)

    def bytes_of(section):
        return data[section["at"]:section["at"] + section["length"]]

    symbols = []
    for section in sections:
        if section["kind"] == 2:
            strings = bytes_of(sections[section["link"]])
            table = bytes_of(section)
            for at in range(0, len(table), 24):
                name, info, _, home, value, length = struct.unpack_from("<IBBHQQ", table, at)
                label = text(strings, name)
                if info & 15 == 3 and home < count:
                    label = sections[home]["label"]
                symbols.append((label, info & 15, home, value, length))

    lines = []
    for section in sections:
        name = section["label"]
        if name == ".BTF" or section["kind"] == 1 and section["flags"] & 2:
            digest = hashlib.sha256(bytes_of(section)).hexdigest()[:32]
            lines.append(f"section {name}: {section['length']} bytes, {digest}")
        if section["kind"] == 9 and sections[section["info"]]["flags"] & 4:
            digest = hashlib.sha256()
            table = bytes_of(section)
            for at in range(0, len(table), 16):
                place, info = struct.unpack_from("<QQ", table, at)
                digest.update(f"{place} {info & 0xffffffff} {symbols[info >> 32][0]}\n".encode())
            lines.append(f"relocations of {sections[section['info']]['label']}: "
                         f"{digest.hexdigest()[:32]}")
    for label, kind, home, value, length in symbols:
        if home < count and kind in (1, 2) and not sections[home]["label"].startswith(".debug"):
            what = "object" if kind == 1 else "program"
            lines.append(f"{what} {label} in {sections[home]['label']} at {value}, {length} bytes")
    print("\n".join(sorted(lines)))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "digest":
        digest(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[1] == "trim":
        trim(sys.argv[2], sys.argv[3])
    else:
        sys.exit(__doc__)
