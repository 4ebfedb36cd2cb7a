"""Go types of an ELF binary: the fields of its structs, with their tags.

Every Go binary carries the descriptions that `reflect` works with. kubectl's hold the Kubernetes API's own Go types,
so the JSON names, `omitempty`, protobuf numbers and pointers are read from where kubectl has them. 64-bit, little
endian, not position independent (as kubectl's releases are); layout of Go 1.22 to 1.26 (`internal/abi.Type`).
"""

import re
import struct

KINDS = {1: "bool", 2: "int", 3: "int8", 4: "int16", 5: "int32", 6: "int64", 8: "uint8", 10: "uint32", 11: "uint64",
         13: "float32", 14: "float64", 20: "interface", 21: "map", 22: "ptr", 23: "slice", 24: "string", 25: "struct"}


class Binary:
    def __init__(self, path):
        self.data = open(path, "rb").read()
        (offset,), (size, count, names) = struct.unpack_from("<Q", self.data, 0x28), struct.unpack_from("<HHH", self.data, 0x3A)
        rows = [struct.unpack_from("<IIQQQQ", self.data, offset + i * size) for i in range(count)]
        text = rows[names][4]
        self.sections = {}
        for name, _, _, address, at, length in rows:
            end = self.data.index(b"\0", text + name)
            self.sections[self.data[text + name:end].decode()] = (address, at, length)
        self.base = self.sections[".rodata"][0]
        self.seen = {}

    def at(self, address):
        for start, at, length in self.sections.values():
            if start and start <= address < start + length:
                return address - start + at
        raise ValueError(hex(address))

    def read(self, form, address):
        return struct.unpack_from("<" + form, self.data, self.at(address))

    def name(self, address):
        """(name, tag) of an abi.Name."""
        at = self.at(address)
        flags = self.data[at]

        def text(at):
            length = shift = 0
            while True:
                byte = self.data[at]
                at += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return self.data[at:at + length].decode(), at + length
        name, at = text(at + 1)
        return name, text(at)[0] if flags & 2 else "", bool(flags & 8)

    def type(self, address):
        if address in self.seen:
            return self.seen[address]
        flags, kind = self.read("B2xB", address + 20)
        kind = KINDS.get(kind & 31, "other")
        (name,) = self.read("i", address + 40)
        shown = self.name(self.base + name)[0]
        found = {"kind": kind, "name": shown[1:] if flags & 2 else shown, "package": ""}
        self.seen[address] = found
        if flags & 1 and kind not in ("other", "interface", "map"):
            (package,) = self.read("i", address + {"struct": 80, "ptr": 56, "slice": 56}.get(kind, 48))
            found["package"] = self.name(self.base + package)[0] if package else ""
        if kind in ("ptr", "slice"):
            found["element"] = self.type(self.read("Q", address + 48)[0])
        elif kind == "map":
            found["key"], found["element"] = (self.type(self.read("Q", address + o)[0]) for o in (48, 56))
        elif kind == "struct":
            fields, count = self.read("QQ", address + 56)
            found["fields"] = []
            for i in range(count):
                field, kind, _ = self.read("QQQ", fields + i * 24)
                name, tag, embedded = self.name(field)
                tags = dict(re.findall(r'(\w+):"([^"]*)"', tag))
                found["fields"].append({"name": name, "tags": tags, "embedded": embedded, "type": self.type(kind)})
        return found

    def structs(self):
        """Named structs by (package, name)."""
        start, at, length = self.sections[".typelink"]
        for offset in struct.unpack_from("<%di" % (length // 4), self.data, at):
            self.type(self.base + offset)
        return {(t["package"], t["name"].split(".")[-1]): t for t in self.seen.values()
                if t["kind"] == "struct" and t["package"]}
