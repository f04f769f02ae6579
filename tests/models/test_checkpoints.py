"""Published checkpoints that are odd, damaged or of another kind, and GGUF files made here."""

import dataclasses
import json
import shutil

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.parity.record import FOLDER
from tests.models.test_decoder import SHAPES, drawn, shaped
from vtune_jax.errors import UserError
from vtune_jax.models import build
from vtune_jax.models.checkpoints import export, load_params, open_checkpoint
from vtune_jax.models.checkpoints.families import FAMILIES, as_published, family_named, family_of
from vtune_jax.models.checkpoints.gguf_file import ARCHITECTURES
from vtune_jax.models.decoder_config import DecoderConfig, RotaryScaling


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER / "llama", tmp_path / "llama")
    return tmp_path / "llama"


def changed(folder, **tensors):
    """The folder's tensors with others in their place; None removes one."""
    file = folder / "model.safetensors"
    kept = {name: value for name, value in {**load_file(file), **tensors}.items() if value is not None}
    save_file(kept, file, metadata={"format": "pt"})


def said(folder, **keys):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_a_model_comes_back_to_the_bit(name, shard_bytes, tmp_path):
    config = dataclasses.replace(shaped(name), rows=64)
    params = drawn(build(config, 50))
    export(tmp_path / "out", config, params, vocabulary=64, shard_bytes=shard_bytes)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (shard_bytes == 3000)
    found = open_checkpoint(tmp_path / "out")
    assert as_published(found.config) == as_published(config)
    assert found.config.rows == 64
    assert_same(load_params(found), params)
    # What is read in halves is rounded once, and comes back in halves to the bit.
    export(tmp_path / "half", config, params, vocabulary=64, dtype="bfloat16")
    half = open_checkpoint(tmp_path / "half")
    assert half.stored == "bfloat16"
    assert_same(load_params(half), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params))
    assert jax.tree.leaves(load_params(half, dtype=jnp.bfloat16))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_config_says_the_same_in_both_languages(family):
    shapes = [shaped(name) for name in SHAPES]
    stretched = RotaryScaling(kind="llama3", factor=8.0, original_length=16)
    shapes += [dataclasses.replace(shape, rope_scaling=stretched) for shape in shapes]
    written = [shape for shape in map(as_published, shapes) if family_of(shape) == family]
    assert written
    for shape in written:
        assert family.config(json.loads(json.dumps(family.json(shape)))) == shape


def test_nothing_that_tells_families_apart_is_assumed():
    base = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama, neox = (family_named(name).config for name in ("llama", "gpt_neox"))
    read = llama({**base, "rms_norm_eps": 1e-3, "rope_theta": 7.0, "num_key_value_heads": 1, "head_dim": 8})
    assert (read.norm_epsilon, read.rope_theta, read.key_value_heads, read.head_width) == (1e-3, 7.0, 1, 8)
    # As release 5 of transformers writes it.
    assert llama({**base, "rope_parameters": {"rope_theta": 9.0, "rope_type": "default"}}).rope_theta == 9.0
    assert neox({**base, "rotary_emb_base": 5.0, "rotary_pct": 0.5}).turning == 8
    # What is left out is what the family's class has by default.
    assert llama(base).norm_epsilon == 1e-6
    assert neox(base).norm_epsilon == 1e-5
    assert family_named("mistral").config(base).window == 4096
    assert family_named("mistral").config({**base, "sliding_window": None}).window == 0
    assert family_named("qwen3").config(base).head_width == 128
    assert family_named("qwen2").config({**base, "sliding_window": 32}).window == 0


def test_a_tied_head_that_is_stored_all_the_same_is_the_embedding(folder):
    plain = load_params(open_checkpoint(folder))
    changed(folder, **{"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"]})
    assert_same(load_params(open_checkpoint(folder)), plain)


def test_frequencies_that_old_files_store_are_passed_over(folder):
    plain = load_params(open_checkpoint(folder))
    changed(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
    assert_same(load_params(open_checkpoint(folder)), plain)


def test_the_end_of_text_is_spelt_as_the_family_does(folder):
    assert open_checkpoint(folder).end_of_text == ""
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 2, "content": "</s>"}]}))
    said(folder, eos_token_id=[2, 7])
    assert open_checkpoint(folder).end_of_text == "</s>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    assert open_checkpoint(folder).end_of_text == "<|end|>"


def test_parameters_are_read_in_the_pieces_that_devices_hold(folder):
    # One device here: the pieces are whole, and read through the callback that shards are read through.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = load_params(open_checkpoint(folder), place=lambda shapes: jax.tree.map(lambda leaf: place, shapes))
    assert_same(placed, load_params(open_checkpoint(folder)))


SMALLEST = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: said(f, model_type="gpt2"), "models of the kind 'gpt2' are not known. Fix: give one of llama, mis"),
        (lambda f: said(f, hidden_act="relu"), "an MLP with 'relu' is not known here"),
        (lambda f: said(f, rope_parameters={"rope_type": "yarn"}), "rope scaling of the kind 'yarn' is not known"),
        (lambda f: said(f, num_hidden_layers=3), "lacks model.layers.2.input_layernorm.weight, .* and 5 more"),
        (lambda f: said(f, num_hidden_layers=1), "has not: model.layers.1.input_layernorm.weight"),
        (lambda f: said(f, num_attention_heads=5), "is no config of llama: .*key_value_heads must divide"),
        (
            lambda f: said(f, intermediate_size=25),
            r"has the shape \[16, 24\], which is no mlp.down.matrix of \[25, 16\]",
        ),
        (lambda f: changed(f, **{"model.norm.weight": None}), "lacks model.norm.weight"),
        (lambda f: changed(f, adapter=SMALLEST), "has tensors that a model of the family llama has not: adapter"),
        (lambda f: changed(f, **{"model.norm.weight": SMALLEST}), r"model.norm.weight has the shape \[2, 2\]"),
        (lambda f: changed(f, adapter=SMALLEST.astype(int)), "holds tensors of the kind I64. Fix: give one of F32"),
        (lambda f: (f / "config.json").unlink(), "there is no .*config.json. Fix: give a folder of Hugging Face's"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is no JSON object"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "does not say 'num_attention_heads'"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors is cut off or damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is cut off or damaged"),
        (lambda f: (f / "model.safetensors").rename(f / "x.txt"), "holds no safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "a pickle file, and reading one runs"),
        (lambda f: index(f, "model.safetensors", "other"), "names other, which its shard does not hold"),
        (lambda f: index(f, "shard-2.safetensors"), "names shard-2.safetensors, which is not there"),
    ],
)
def test_what_cannot_be_a_model_is_refused_in_one_line(folder, break_it, message):
    break_it(folder)
    with pytest.raises(UserError, match=message):
        load_params(open_checkpoint(folder))


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def index(folder, file, name="model.norm.weight"):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: file}}))


def test_a_shape_that_nobody_publishes_is_not_written(tmp_path):
    config = DecoderConfig(norm="layer")
    with pytest.raises(UserError, match="no published family has a decoder of this shape"):
        export(tmp_path / "out", config, build(config, 9).init(0), vocabulary=9)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="holds something already"):
        export(tmp_path / "full", DecoderConfig(), build(DecoderConfig(), 9).init(0), vocabulary=9)


def gguf_file(path, architecture, config, params, kind=gguf.GGMLQuantizationType.F32, **metadata):
    """A decoder as llama.cpp's converter writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {
        "block_count": config.layers,
        "embedding_length": config.width,
        "feed_forward_length": config.hidden,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.key_value_heads,
        "attention.key_length": config.of_head,
    }
    for name, value in numbers.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.norm_epsilon)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_theta)
    for name, value in metadata.items():
        writer.add_string(name, value)
    leaves = {
        ".".join(key.key for key in keys): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path_of, place in ARCHITECTURES[architecture][0].places(leaves).items():
        for layer in range(config.layers) if path_of.startswith("blocks.") else [None]:
            ours = leaves[path_of] if layer is None else leaves[path_of][layer]
            tensor = np.ascontiguousarray(place.layout.theirs((ours,), config))
            if tensor.ndim == 2:
                writer.add_tensor(place.name.format(layer), gguf.quants.quantize(tensor, kind), raw_dtype=kind)
            else:
                writer.add_tensor(place.name.format(layer), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


WIDE = DecoderConfig(layers=2, width=64, heads=2, key_value_heads=1, hidden=96)


@pytest.mark.parametrize(
    ("kind", "error"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 0.01), ("Q4_0", 0.2), ("Q4_1", 0.2)]
)
def test_every_kind_of_gguf_tensor_is_read(kind, error, tmp_path):
    params = drawn(build(WIDE, 50))
    path = gguf_file(tmp_path / "m.gguf", "llama", WIDE, params, gguf.GGMLQuantizationType[kind])
    found = open_checkpoint(path)
    assert found.config == dataclasses.replace(WIDE, rows=50, head_width=32)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(load_params(found)), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=error * float(np.abs(ours).max()), rtol=0)
    assert kind in found.stored


@pytest.mark.parametrize(("architecture", "shape"), [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")])
def test_families_of_gguf_come_back_to_the_bit(architecture, shape, tmp_path):
    config = dataclasses.replace(shaped(shape), rows=50)
    params = drawn(build(config, 50))
    found = open_checkpoint(gguf_file(tmp_path / "m.GGUF", architecture, config, params))
    assert as_published(found.config) == as_published(config)
    assert_same(load_params(found), params)


def test_llamas_rows_of_gguf_are_neighbouring_pairs(tmp_path):
    # Row 1 of a head in the file is the partner of its row 0, which with us stands half a head further on.
    params = drawn(build(WIDE, 50))
    path = gguf_file(tmp_path / "m.gguf", "llama", WIDE, params)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    np.testing.assert_array_equal(
        stored["blk.1.attn_q.weight"][1], params["blocks"]["attention"]["query"]["matrix"][1, :, 16]
    )


def test_gguf_files_that_are_not_read_are_refused_in_one_line(tmp_path):
    params = drawn(build(WIDE, 50))
    whole = gguf_file(tmp_path / "m.gguf", "llama", WIDE, params)
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:-1000])
    (tmp_path / "text.gguf").write_text("a text that is long enough to hold a header of the format")
    other = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    odd = gguf_file(tmp_path / "odd.gguf", "llama", WIDE, params, **{"llama.rope.scaling.type": "yarn"})
    wide = dataclasses.replace(WIDE, width=256, hidden=256)
    fine = gguf_file(tmp_path / "k.gguf", "llama", wide, drawn(build(wide, 256)))
    for name, message in [
        ("none.gguf", "cannot read .*none.gguf"),
        ("cut.gguf", "cut off or no GGUF file"),
        ("text.gguf", "cut off or no GGUF file"),
        ("other.gguf", "holds a model of the kind 'mamba'. Fix: give one of llama, qwen2, qwen3"),
        ("odd.gguf", "rope scaling of the kind 'yarn'"),
    ]:
        with pytest.raises(UserError, match=message):
            load_params(open_checkpoint(tmp_path / name))
    assert odd.exists()
    assert fine.exists()
