"""ComfyUI's graphs: reading, checking, running; areas and masks beside their formulas. No picture is drawn here."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from sdjax.pictures.image import encode_png
from sdjax.pictures.opening import open_picture
from sdjax.scripts.main import main
from sdjax.serve.comfy.checking import check
from sdjax.serve.comfy.entries import around, both_sides, on_latent, weight_of
from sdjax.serve.comfy.graph import GraphError, Link, read_api_form
from sdjax.serve.comfy.nodes import NODES
from sdjax.serve.comfy.reading import read_workflow
from sdjax.serve.comfy.resizing import upscale
from sdjax.serve.comfy.running import Cache, NodeError, run
from sdjax.serve.comfy.values import Area, Control, Entry

RED = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0xFF0000}}
SAVED = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}}


class Host:
    """A host without files, which writes down what happens."""

    def __init__(self):
        self.events, self.saved = [], []

    def has(self, kind, name):
        return False

    def names(self, kind):
        return ["film.safetensors"]

    def save(self, pixels, prefix, texts, *, keep):
        self.saved.append((pixels, texts))
        return {"filename": f"{prefix}.png", "subfolder": "", "type": "output" if keep else "temp"}

    def node(self, kind, number, ui=None):
        self.events.append((kind, number))

    def progress(self, number, done, total):
        pass

    def cancelled(self):
        return False


def graph(**changes):
    """Returns a graph that inverts a red picture and saves it."""
    invert = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "a"}}
    return {"1": RED, "2": invert, "3": save, **changes}


def test_the_graph_in_the_documents_is_right():
    text = (Path(__file__).parents[2] / "docs/comfyui.md").read_text(encoding="utf-8")
    given = json.loads(text.partition("```json\n")[2].partition("```")[0])
    assert check(read_api_form(given)).graph.nodes.keys() == given.keys()


def test_a_graph_runs_and_its_picture_holds_it():
    host = Host()
    shown = run(check(read_api_form(graph())), host)
    assert shown == {"3": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
    pixels, texts = host.saved[0]
    assert (pixels == [0, 255, 255]).all()
    again = read_workflow(encode_png(pixels, texts))
    assert again == read_api_form(graph())


def test_only_nodes_that_changed_run_again():
    cache, host = Cache(), Host()
    run(check(read_api_form(graph())), host, cache)
    host.events.clear()
    changed = read_api_form(graph()).replace("3", "filename_prefix", "b")
    run(check(changed), host, cache)
    assert host.events == [("cached", "1"), ("cached", "2"), ("executing", "3"), ("executed", "3")]
    host.events.clear()
    run(check(changed.replace("1", "color", 0)), host, cache)
    assert [number for kind, number in host.events if kind == "executing"] == ["1", "2", "3"]


def test_nodes_that_no_output_needs_do_not_run():
    host = Host()
    run(check(read_api_form(graph(extra={"class_type": "ImageInvert", "inputs": {}}))), host)
    assert "extra" not in [number for _, number in host.events]


def test_unknown_nodes_are_listed_at_once_with_their_nearest():
    wrong = graph(a={"class_type": "KSamplerr", "inputs": {}}, b={"class_type": "VAEDecod", "inputs": {}})
    with pytest.raises(GraphError) as error:
        check(read_api_form(wrong))
    assert "KSampler" in error.value.nodes["a"][0]
    assert "VAEDecode" in error.value.nodes["b"][0]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"width": 8, "height": 8}, None),  # the others have defaults
        ({"width": "wide"}, "width is a whole number"),
        ({"width": 0}, "width is from 1 to 16384"),
        ({"width": [1, 2, 3]}, "width is a whole number"),
        ({"width": float("nan")}, "width is a whole number"),
        ({"width": ["3", 0]}, "circle"),
        ({"width": ["n", 1]}, "output 1 of node n, which has 1"),
        ({"width": ["9", 0]}, "not there"),
    ],
)
def test_values_are_checked(inputs, said):
    number = {"class_type": "PrimitiveInt", "inputs": {"value": 8}}
    made = graph(**{"1": {"class_type": "EmptyImage", "inputs": inputs}, "n": number})
    if said is None:
        check(read_api_form(made))
        return
    with pytest.raises(GraphError, match=said):
        check(read_api_form(made))


def test_links_of_another_type_are_refused():
    mask = {"class_type": "SolidMask", "inputs": {}}
    with pytest.raises(GraphError, match="images is a IMAGE; node 1 gives a MASK"):
        check(read_api_form({"1": mask, "2": SAVED}))


def test_a_file_that_is_not_there_is_named_with_the_nearest():
    load = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "fil.safetensors"}}
    decode = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}}
    empty = {"class_type": "EmptyLatentImage", "inputs": {}}
    save = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    with pytest.raises(GraphError, match="the nearest is 'film.safetensors'"):
        check(read_api_form({"1": load, "2": decode, "3": save, "4": empty}), Host())


@pytest.mark.parametrize(
    "data",
    [
        b"[]", b"{}", b"null", b"{", b"[" * 100_000, b'{"1": 3}', b'{"1": {"class_type": 3}}', b"\xff\xfe", b"",
        b'{"1": {"class_type": "SaveImage", "inputs": []}}', b'{"nodes": [3]}', b'{"nodes": [], "links": [[1]]}',
        b'{"nodes": [{"id": 1, "type": "SaveImage", "widgets_values": 3}], "links": []}', b"9" * 5000,
        json.dumps({str(i): SAVED for i in range(2001)}).encode(),
        json.dumps({"1": {"class_type": "X", "inputs": {"a": "x" * 100_001}}}).encode(),
        encode_png(np.zeros((8, 8, 3), np.uint8), {"prompt": "{"}), encode_png(np.zeros((8, 8, 3), np.uint8)),
    ],
)  # fmt: skip
def test_damaged_and_huge_files_are_refused_in_a_sentence(data):
    with pytest.raises(GraphError):
        check(read_workflow(data))


def test_a_circle_is_refused():
    one, two = ({"class_type": "ImageInvert", "inputs": {"image": [to, 0]}} for to in ("2", "1"))
    with pytest.raises(GraphError, match="circle"):
        check(read_api_form({"1": one, "2": two, "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}))


def test_a_long_chain_needs_no_recursion():
    chain = {str(i): {"class_type": "ImageInvert", "inputs": {"image": [str(i - 1), 0]}} for i in range(2, 1990)}
    check(read_api_form({"1": RED, **chain, "s": {"class_type": "PreviewImage", "inputs": {"images": ["1989", 0]}}}))


def test_a_node_that_fails_is_named():
    huge = {"class_type": "EmptyImage", "inputs": {"width": 16384, "height": 16384, "batch_size": 4096}}
    with pytest.raises(NodeError, match=r"node 1 \(EmptyImage\): a batch has at most"):
        run(check(read_api_form(graph(**{"1": huge}))), Host())


def editor(*nodes, links=(), **more):
    """Returns a workflow in UI form. Nodes are (id, type, values, inputs, mode)."""
    made = []
    for number, kind, values, inputs, *mode in nodes:
        slots = [{"name": name, "type": "IMAGE", "link": None} for name in inputs]
        made.append({"id": number, "type": kind, "widgets_values": values, "inputs": slots, "mode": (mode or [0])[0],
                     "outputs": [{"type": "IMAGE"}]})  # fmt: skip
    return json.dumps({"nodes": made, "links": list(links), **more}).encode()


def test_the_editors_form_is_read_with_reroutes_bypassed_and_primitive_nodes():
    read = read_workflow(
        editor(
            (1, "EmptyImage", [16, 8, 1, 255], ["width"]), (2, "Reroute", None, [""]),
            (3, "ImageInvert", [], ["image"], 4), (4, "SaveImage", ["x"], ["images"]),
            (5, "PrimitiveNode", [24, "fixed"], []),
            (6, "Note", ["hello"], []), (7, "PreviewImage", [], ["images"], 2),
            links=[[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"], [4, 5, 0, 1, 0, "INT"],
                   [5, 1, 0, 7, 0, "IMAGE"]],
        )
    )  # fmt: skip
    assert set(read.nodes) == {"1", "4"}
    assert read.nodes["4"].inputs == {"filename_prefix": "x", "images": Link("1", 0)}
    assert read.nodes["1"].inputs == {"width": 24, "height": 8, "batch_size": 1, "color": 255}


def test_what_happens_to_a_seed_after_a_run_is_no_value():
    values = [7, "randomize", 12, 5.5, "euler", "karras", 0.5]
    read = read_workflow(editor((1, "KSampler", values, [])))
    own = read.nodes["1"].inputs
    assert (own["seed"], own["steps"], own["scheduler"], own["denoise"]) == (7, 12, "karras", 0.5)


def test_nodes_of_a_subgraph_stand_beside_the_others():
    inner = json.loads(editor((5, "ImageInvert", [], ["image"])))
    inner |= {"id": "sub", "links": [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 5, "target_slot": 0, "type": "IMAGE"},
        {"id": 2, "origin_id": 5, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "IMAGE"},
    ]}  # fmt: skip
    read = read_workflow(
        editor(
            (1, "EmptyImage", [], []), (2, "sub", [], ["image"]), (3, "SaveImage", [], ["images"]),
            links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]], definitions={"subgraphs": [inner]},
        )
    )  # fmt: skip
    assert read.nodes["3"].links == {"images": Link("2:5", 0)}
    assert read.nodes["2:5"].links == {"image": Link("1", 0)}


def test_a_subgraph_that_holds_itself_is_refused():
    inner = {**json.loads(editor((5, "sub", [], []))), "id": "sub"}
    with pytest.raises(GraphError, match="in each other"):
        read_workflow(editor((1, "sub", [], []), definitions={"subgraphs": [inner]}))


CONTEXT = np.zeros((1, 77, 8), np.float32)


def test_an_areas_edges_fade_but_not_at_the_latents_edge():
    entry = Entry(CONTEXT, area=Area(32, 16, 0, 8), strength=2.0)
    weight = weight_of(entry, 32, 64)
    assert (np.delete(weight, np.s_[8:24], axis=1) == 0).all()
    np.testing.assert_allclose(weight[0, 8:16], [0.5, 1, 1.5, 2, 2, 2, 2, 2])  # 16 // 4 steps
    np.testing.assert_allclose(weight[0, 16:24], [2, 2, 2, 2, 2, 1.5, 1, 0.5])
    assert (weight[0] == weight[-1]).all()


def test_a_mask_weighs_and_its_bounds_are_an_area():
    mask = np.zeros((1, 32, 32), np.float32)
    mask[0, 20:30, 2:4] = 0.5
    assert around(mask) == Area(10, 8, 20, 2)
    (entry,) = on_latent((Entry(CONTEXT, mask=mask, mask_strength=3.0, bounds=True),), 32, 32)
    assert entry.area == Area(10, 8, 20, 2)
    assert weight_of(entry, 32, 32)[25, 2:6].tolist() == [1.5, 1.5, 0, 0]


def test_each_area_gets_an_entry_on_the_other_side():
    first, other = Entry(CONTEXT), Entry(CONTEXT + 1)
    left = Entry(CONTEXT + 2, area=Area(8, 8, 0, 0))
    positive, negative = both_sides([first, left], [other])
    assert len(positive) == 2
    assert [one.area for one in negative] == [None, left.area]
    assert negative[1].context is other.context


def test_an_old_control_node_steers_the_negative_side_too():
    control = Control("net", np.zeros((1, 8, 8, 3), np.float32), both=True)
    _, negative = both_sides([Entry(CONTEXT, controls=(control,))], [Entry(CONTEXT)])
    assert negative[0].controls == (control,)


def test_resizing_is_torchs():
    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    assert upscale(ramp, 1, 6, "nearest-exact").ravel().tolist() == [0, 1, 1, 2, 3, 3]
    np.testing.assert_allclose(upscale(ramp, 1, 2, "area").ravel(), [0.5, 2.5])
    np.testing.assert_allclose(upscale(ramp, 1, 3, "area").ravel(), [0.5, 1.5, 2.5])  # windows that overlap
    assert upscale(np.zeros((1, 8, 16, 1), np.float32), 4, 4, "bilinear", "center").shape == (1, 4, 4, 1)
    turned = upscale(np.array([[[[1.0, 0.0], [0.0, 1.0]]]], np.float32), 1, 4, "bislerp")
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), 1, atol=1e-6)  # on the sphere in between


def test_every_node_says_what_it_does_and_has_a_default_or_a_link_for_each_input():
    for one in NODES.values():
        assert one.purpose.endswith("."), one.name
        for given in one.inputs:
            assert given.kind != "COMBO" or given.choices or given.files, (one.name, given.name)
            assert given.default is not None or not given.is_value or given.files, (one.name, given.name)


def test_the_table_of_nodes_in_the_docs_is_that_of_the_code():
    page = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(page / "make_node_table.py"))["replaced"]
    text = (page / "comfyui.md").read_text(encoding="utf-8")
    assert made(text) == text  # `python docs/make_node_table.py` writes it


def test_the_command_runs_a_file_and_its_picture(tmp_path, capsys):
    (tmp_path / "graph.json").write_text(json.dumps(graph()), encoding="utf-8")
    assert main(["run", str(tmp_path / "graph.json"), "--outdir", str(tmp_path), "--set", "1.color=255"]) == 0
    picture = capsys.readouterr().out.strip()
    assert (open_picture(picture).pixels == [255, 255, 0]).all()
    assert main(["run", picture, "--dry-run"]) == 0
    assert "1 EmptyImage width=8 height=8 batch_size=1 color='255'" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "1.colour=3"], "EmptyImage has no input 'colour' to --set; it has width, height"),
        (["--set", "9.x=3"], "there is no node 9; the graph has 1, 2, 3"),
        (["--set", "steps=3"], "--set takes NODE.INPUT=VALUE"),
        (["--set", "1.width=wide"], "node 1: width is a whole number; got 'wide'"),
    ],
)
def test_the_command_refuses_in_a_sentence(given, said, tmp_path, capsys):
    (tmp_path / "graph.json").write_text(json.dumps(graph()), encoding="utf-8")
    assert main(["run", str(tmp_path / "graph.json"), *given]) == 2
    assert said in capsys.readouterr().err
