"""Messages to text, long texts to documents, and texts too long to be encoded at once."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vtune_jax.data.corpora.config import DomainConfig
from vtune_jax.data.corpora.documents import DocumentReader
from vtune_jax.data.corpora.long_texts import pieces
from vtune_jax.data.corpora.texts import cut, example_turn, joined_turns
from vtune_jax.data.corpora.tokenizer import encode, train_tokenizer
from vtune_jax.errors import UserError

CHAT = [{"role": "user", "content": "Hi {x}"}, {"role": "assistant", "content": None}, {"role": "user", "content": 7}]


def test_messages_become_text_by_a_template(tmp_path):
    assert joined_turns(CHAT, "<{role}>{content}\n") == "<user>Hi {x}\n<assistant>\n<user>7\n"
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n" + json.dumps({"messages": None}) + "\n")
    assert list(DocumentReader(text_field="messages", turn="{content};").read(path)) == ["Hi {x};;7;"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([{"from": "user", "value": "x"}], r"a message has no field 'content'. Fix: set turn to fields that all have"),
        (["a", "b"], r"a turn is no object but 'a'. Fix: leave turn out"),
    ],
)
def test_messages_that_do_not_fit_the_template_are_bad_documents(tmp_path, record, message):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"text": record}) + "\n" + json.dumps({"text": CHAT}) + "\n")
    with pytest.raises(UserError, match=f"chat.jsonl, line 1: {message}"):
        list(DocumentReader(turn="{content}").read(path))
    reader = DocumentReader(turn="{content}", skip_bad=True)
    assert list(reader.read(path)) == ["Hi {x}7"]
    assert reader.skipped == 1


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("speaker", "text"), ("a", "b")])
def test_the_template_that_is_advised_works(tmp_path, keys):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"text": [dict(zip(keys, ("user", "hello"), strict=True))]}) + "\n")
    with pytest.raises(UserError, match="say how a turn becomes text") as refused:
        list(DocumentReader().read(path))
    advised = refused.value.fix.partition('turn = "')[2].partition('"')[0].replace("\\n", "\n")
    text = next(DocumentReader(turn=advised).read(path))
    assert "user" in text
    assert "hello" in text
    assert example_turn({}) == "{content}\\n"


@pytest.mark.parametrize("turn", ["text", "{", "{}", "{0}", "{role.x}", "{role[0]}", "{role!r}", "{role:>9}", "{a b}"])
def test_a_template_is_plain_fields(turn):
    with pytest.raises(ValueError, match="turn must name fields of a message in braces"):
        DomainConfig(name="d", source="x.jsonl", turn=turn)


@given(st.text(max_size=200), st.integers(16, 60))
@settings(max_examples=200, deadline=None)
def test_pieces_of_a_text_hold_all_of_it_and_are_short_enough(text, most):
    found = list(cut(text, most))
    assert all(len(piece.encode()) <= most and piece.strip() for piece in found)
    if len(text.encode()) <= most:
        assert found == ([text] if text.strip() else [])
    assert "".join("".join(found).split()) == "".join(text.split())


def test_a_text_is_cut_at_blank_lines_then_line_ends_then_spaces():
    assert list(cut("one two three\n\n  four\nfive six seven", 20)) == ["one two three", "  four\nfive six ", "seven"]
    assert list(cut("one two\nthree four\n\nfive", 20)) == ["one two\nthree four", "five"]
    assert list(cut("x" * 50, 20)) == ["x" * 20, "x" * 20, "x" * 10]
    assert list(cut("\u00e4" * 15, 20)) == ["\u00e4" * 10, "\u00e4" * 5]


def byte_level(pattern=None, texts=()):
    if pattern is None:
        return train_tokenizer(texts, 500)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return made


def with_a_mark(texts):
    """As Llama 2's: a mark before each text and in place of each space."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False, max_token_length=12)
    made.train_from_iterator(texts, trainer)
    return made


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PROSE = (
    "It's a line, and another;\n\n  def f(x):\n\treturn x + 12345  # why?\n\u4e2d\u6587\uff0c\u4e2d\u6587 na\u00efve "
    "caf\u00e9 \u0939\u093f\u0928\u094d\u0926\u0940 don't!!\r\n"
)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "lines", "mark"])
def test_the_tokens_of_pieces_are_those_of_the_whole_text(kind):
    rng = np.random.default_rng(0)
    words = PROSE.split(" ")
    text = " ".join(rng.choice(words) for _ in range(4000))
    texts = [text[:4000], PROSE]
    tokenizer = {
        "gpt2": lambda: byte_level(None, texts),
        "llama3": lambda: byte_level(LLAMA_3, texts),
        "lines": lambda: byte_level(r"[^\n]*\n", texts),  # whole lines are words
        "mark": lambda: with_a_mark(texts),
    }[kind]()

    def ids(part):
        return tokenizer.encode(part, add_special_tokens=False).ids

    found = list(pieces(text, ids, long=3000))
    assert "".join(found) == text
    assert [token for piece in found for token in ids(piece)] == ids(text)
    if kind == "mark":
        # Every piece would begin with the mark.
        assert found == [text]
    elif kind != "lines":
        assert len(found) > 3
        assert all(len(piece) <= 3000 for piece in found)


def test_a_text_without_a_place_to_cut_stays_whole_and_short_ones_are_not_looked_at():
    assert list(pieces("x" * 100, long=10)) == ["x" * 100]
    assert list(pieces("", long=10)) == [""]
    assert list(pieces("a b", pytest.fail, long=10)) == ["a b"]
    assert list(pieces("aaaa bbbbbbbbbbbbbbbbbb cc dd", long=8)) == ["aaaa bbbbbbbbbbbbbbbbbb", " cc dd"]


def test_a_long_document_is_written_as_one_with_one_end(monkeypatch):
    texts = [PROSE * 30, "short", PROSE * 20]
    tokenizer = byte_level(None, texts)

    def written():
        out = io.BytesIO()
        return encode(texts, [1, 1, 1], {1: out}, tokenizer, 0)[1], out.getvalue()

    whole = written()
    for module in ("long_texts", "tokenizer"):
        monkeypatch.setattr(f"vtune_jax.data.corpora.{module}.LONG", 300)
    monkeypatch.setattr("vtune_jax.data.corpora.tokenizer.pieces", lambda text, ids: pieces(text, ids, long=300))
    assert written() == whole
    assert whole[0].documents == 3
