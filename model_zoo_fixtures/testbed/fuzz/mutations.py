"""Damage to model files: bytes at random, and edits that leave the file readable but its content wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from copy import deepcopy
from xml.etree import ElementTree

import onnx
from onnx import TensorProto

SIZES = (0, 1, -1, 2, 3, 5, 7, 255, 4096, 65_537, 2**20, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))
WORDS = ("", "image", "..", "/", "\0", "%s%n", "None", "nan", "-1", "0", "1e400", "9" * 40, "\u202e", "x" * 70_000)
ONNX_KINDS = (
    "Relu", "Conv", "Gemm", "MatMul", "Reshape", "Transpose", "Softmax", "Concat", "Split", "Slice", "Gather", "TopK",
    "ReduceMean", "GlobalAveragePool", "Loop", "If", "Scan", "Constant", "ConstantOfShape", "Expand", "Tile", "Range",
    "NonZero", "Resize", "SequenceEmpty", "StringNormalizer", "Optional", "Identity", "Unknown",
)  # fmt: skip
IR_KINDS = (
    "ReLU", "Convolution", "MatMul", "Reshape", "Transpose", "SoftMax", "Concat", "Split", "VariadicSplit", "Gather",
    "StridedSlice", "ReduceMean", "Broadcast", "Tile", "TensorIterator", "Loop", "If", "Const", "Parameter", "Result",
    "ShapeOf", "Assign", "ReadValue", "Interpolate", "Unknown",
)  # fmt: skip


def damage_bytes(content: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to eight edits at random places: bits, bytes, runs cut out, repeated, moved or taken from another file."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64, 512)), len(data) - at)
        match rng.randrange(8):
            case 0 | 1 if length:
                data[at] ^= 1 << rng.randrange(8)
            case 2 if length:
                data[at] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at:at] = rng.randbytes(length)
            case 6 if other:
                start = rng.randrange(len(other))
                data[at : at + length] = other[start : start + length]
            case _ if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


def damage_onnx(content: bytes, rng: random.Random) -> bytes:
    """One to three edits of the graph."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_ONNX_EDITS)(model, rng)
    return model.SerializeToString()


def _some(items: object, rng: random.Random) -> object:
    found = list(items)  # type: ignore[call-overload]
    return rng.choice(found) if found else None


def _names(model: onnx.ModelProto) -> list[str]:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return names + [tensor.name for tensor in model.graph.initializer]


def _drop_node(model, rng):  # type: ignore[no-untyped-def]
    if model.graph.node:
        del model.graph.node[rng.randrange(len(model.graph.node))]


def _repeat_node(model, rng):  # type: ignore[no-untyped-def]
    if node := _some(model.graph.node, rng):
        model.graph.node.insert(rng.randrange(len(model.graph.node) + 1), node)


def _shuffle_nodes(model, rng):  # type: ignore[no-untyped-def]
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rewire(model, rng):  # type: ignore[no-untyped-def]
    node = _some(model.graph.node, rng)
    if node and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*_names(model), "", "absent"])


def _rename_output(model, rng):  # type: ignore[no-untyped-def]
    node = _some(model.graph.node, rng)
    if node and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice([*_names(model), *WORDS[:4]])


def _change_arity(model, rng):  # type: ignore[no-untyped-def]
    if node := _some(model.graph.node, rng):
        names = rng.choice((node.input, node.output))
        if names and rng.random() < 0.5:
            names.pop()
        else:
            names.append(rng.choice([*_names(model), ""]))


def _change_kind(model, rng):  # type: ignore[no-untyped-def]
    if node := _some(model.graph.node, rng):
        node.op_type = rng.choice(ONNX_KINDS)


def _change_domain(model, rng):  # type: ignore[no-untyped-def]
    if node := _some(model.graph.node, rng):
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "nowhere", *WORDS[1:3]))


def _change_attribute(model, rng):  # type: ignore[no-untyped-def]
    attribute = _some((a for node in model.graph.node for a in node.attribute), rng)
    if attribute is None:
        return
    match rng.randrange(5):
        case 0 if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(SIZES)
        case 1:
            attribute.ints.append(rng.choice(SIZES))
        case 2:
            attribute.i = rng.choice(SIZES)
        case 3:
            attribute.f = rng.choice(FLOATS)
        case _:
            attribute.type = rng.choice((1, 2, 3, 4, 5, 6, 7, 8))


def _drop_attribute(model, rng):  # type: ignore[no-untyped-def]
    node = _some((node for node in model.graph.node if node.attribute), rng)
    if node is not None:
        del node.attribute[rng.randrange(len(node.attribute))]


def _change_tensor(model, rng):  # type: ignore[no-untyped-def]
    tensor = _some(model.graph.initializer, rng)
    if tensor is None:
        return
    match rng.randrange(6):
        case 0 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(SIZES)
        case 1:
            tensor.dims.append(rng.choice(SIZES))
        case 2:
            tensor.data_type = rng.randrange(26)
        case 3:
            tensor.raw_data = damage_bytes(tensor.raw_data, rng)
        case 4:
            tensor.raw_data = b""
        case _:
            tensor.name = rng.choice([*_names(model), ""])


def _make_external(model, rng):  # type: ignore[no-untyped-def]
    if tensor := _some(model.graph.initializer, rng):
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        places = ("../secret", "/etc/passwd", "absent.data", "", ".", "model.onnx", "C:\\x", "x" * 5000)
        for key, value in (
            ("location", rng.choice(places)),
            ("offset", str(rng.choice(SIZES))),
            ("length", str(rng.choice(SIZES))),
        ):
            if rng.random() < 0.8:
                tensor.external_data.add(key=key, value=value)


def _change_shape(model, rng):  # type: ignore[no-untyped-def]
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    value = _some(values, rng)
    if value is None:
        return
    dims = value.type.tensor_type.shape.dim
    match rng.randrange(6):
        case 0 | 1 | 2 if dims:
            dims[rng.randrange(len(dims))].dim_value = rng.choice(SIZES)
        case 3:
            dims.add(dim_param=rng.choice(("N", "", "H")))
        case 4 if dims:
            dims.pop()
        case _:
            value.type.tensor_type.elem_type = rng.randrange(26)


def _change_interface(model, rng):  # type: ignore[no-untyped-def]
    ports = rng.choice((model.graph.input, model.graph.output))
    match rng.randrange(4):
        case 0 if ports:
            ports.pop()
        case 1 if ports:
            ports.append(ports[0])
        case 2 if ports:
            ports[0].name = rng.choice([*_names(model), *WORDS])
        case _:
            ports.add(name=rng.choice([*_names(model), "saliency_map"]))


def _change_version(model, rng):  # type: ignore[no-untyped-def]
    match rng.randrange(4):
        case 0:
            model.ir_version = rng.choice(SIZES)
        case 1:
            del model.opset_import[:]
        case 2:
            model.opset_import.add(domain=rng.choice(("", "nowhere")), version=rng.choice(SIZES))
        case _ if model.opset_import:
            model.opset_import[0].version = rng.choice((*range(30), *SIZES))


def _add_loop(model, rng):  # type: ignore[no-untyped-def]
    """Put a loop that runs very often, or without end, behind a value of the graph."""
    node = _some((node for node in model.graph.node if node.output), rng)
    if node is None:
        return
    helper = onnx.helper
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    trips = helper.make_tensor("trips", TensorProto.INT64, [], [rng.choice((*[3] * 20, 2**62))])
    always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    model.graph.initializer.extend([trips, always])
    before = node.output[0]
    node.output[0] = "before_loop"
    count = "trips" if rng.random() < 0.8 else ""
    at = list(model.graph.node).index(node) + 1
    loop = helper.make_node("Loop", [count, "always", "before_loop"], [before], body=body)
    model.graph.node.insert(at, loop)


def _nest(model, rng):  # type: ignore[no-untyped-def]
    """Graphs within graphs, deeper than a recursive reader's stack."""
    graph = onnx.GraphProto(name="deep")
    for _ in range(rng.choice((3, 20, 30))):
        outer = onnx.GraphProto(name="deep")
        node = outer.node.add(op_type="If", output=["x"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(graph)
        graph = outer
    if node := _some(model.graph.node, rng):
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(graph)


def _add_function(model, rng):  # type: ignore[no-untyped-def]
    """A function that calls itself, or two that call each other, in place of a node."""
    if node := _some(model.graph.node, rng):
        names = ("f", rng.choice(("f", "g")))
        for name, called in (names, names[::-1]):
            function = model.functions.add(name=name, domain="loop", input=["x"], output=["y"])
            function.opset_import.add(domain="", version=17)
            function.opset_import.add(domain="loop", version=1)
            function.node.add(op_type=called, domain="loop", input=["x"], output=["y"])
        node.domain, node.op_type = "loop", "f"
        model.opset_import.add(domain="loop", version=1)


def _metadata(model, rng):  # type: ignore[no-untyped-def]
    model.metadata_props.add(
        key=rng.choice(("xai_insert.version", "model_info labels", *WORDS)), value=rng.choice(WORDS)
    )


_ONNX_EDITS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _drop_node, _repeat_node, _shuffle_nodes, _rewire, _rewire, _rename_output, _change_arity, _change_kind,
    _change_domain, _change_attribute, _change_attribute, _drop_attribute, _change_tensor, _change_tensor,
    _make_external, _change_shape, _change_shape, _change_interface, _change_version, _add_loop, _nest, _add_function,
    _metadata,
)  # fmt: skip

_BOMB = (
    '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaaaaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "&{a};&{a};&{a};&{a};&{a};&{a};&{a};&{a};&{a};&{a};">'
        for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    + "]>"
)
_FOREIGN = '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


def damage_ir(xml: bytes, rng: random.Random) -> bytes:
    """One to three edits of the XML."""
    if rng.random() < 0.04:
        return _with_entities(xml.decode(), rng).encode()
    root = ElementTree.fromstring(xml)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _edit_xml(root, rng)
    return ElementTree.tostring(root)


def _with_entities(text: str, rng: random.Random) -> str:
    declaration, entity = rng.choice(((_BOMB, "&j;"), (_FOREIGN, "&x;")))
    text = re.sub(r"<\?xml[^>]*\?>", "", text)
    return f'<?xml version="1.0"?>{declaration}' + re.sub(r'name="[^"]*"', f'name="{entity}"', text, count=3)


def _edit_xml(root: ElementTree.Element, rng: random.Random) -> None:
    parents = [element for element in root.iter() if len(element)]
    elements = [element for element in root.iter() if element.attrib]
    match rng.randrange(10):
        case 0 if parents:
            parent = rng.choice(parents)
            parent.remove(rng.choice(list(parent)))
        case 1 if parents:
            parent = rng.choice(parents)
            parent.insert(rng.randrange(len(parent) + 1), deepcopy(rng.choice(list(parent))))
        case 2 if parents:
            rng.choice(parents).append(deepcopy(rng.choice(elements)))  # itself would be a tree without end
        case 3:
            _change_number(root, rng)
        case 4 if layers := [element for element in elements if element.tag == "layer"]:
            rng.choice(layers).set("type", rng.choice(IR_KINDS))
        case 5 if texts := [element for element in root.iter() if element.text and element.text.strip()]:
            rng.choice(texts).text = rng.choice([*map(str, SIZES), *WORDS[5:]]).replace("\0", "")
        case 6 if edges := [element for element in elements if element.tag == "edge"]:
            edge = rng.choice(edges)
            key = rng.choice(sorted(edge.attrib))
            edge.set(key, rng.choice(edges).get(key, "0"))
        case _:
            element = rng.choice(elements)
            key = rng.choice(sorted(element.attrib))
            others = [other.attrib[key] for other in elements if key in other.attrib]
            words = [word.replace("\0", "") for word in WORDS]
            element.set(key, rng.choice([*map(str, SIZES), *words, *rng.choices(others, k=20)]))
            if rng.random() < 0.2:
                del element.attrib[key]


def _change_number(root: ElementTree.Element, rng: random.Random) -> None:
    """One number inside an attribute such as shape, offset, size or strides."""
    places = [(e, key) for e in root.iter() for key, text in e.attrib.items() if re.search(r"\d", text)]
    if places:
        element, key = rng.choice(places)
        numbers = list(re.finditer(r"-?\d+", element.attrib[key]))
        chosen = rng.choice(numbers)
        text = element.attrib[key]
        element.set(key, text[: chosen.start()] + str(rng.choice(SIZES)) + text[chosen.end() :])
