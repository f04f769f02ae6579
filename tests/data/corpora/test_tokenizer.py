"""Tokenizers as they are published: that cut, pad, lose characters, have holes, or end documents in their own way."""

import io
import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from tests.data.corpora.test_corpus import corpus, documents, prepared, write
from vtune_jax.data.corpora.config import CorpusConfig, DomainConfig
from vtune_jax.data.corpora.tokenizer import (
    END_OF_TEXT,
    MOST_LOST,
    TokenizerConfig,
    encode,
    knows_all_bytes,
    load_tokenizer,
    train_tokenizer,
    unknown_token,
    vocabulary_size,
)
from vtune_jax.errors import UserError


def saved(tokenizer, path):
    tokenizer.save(str(path))
    return path


def trained():
    return train_tokenizer(documents(0), 300)


def words(*known, unknown="<unk>", end=END_OF_TEXT):
    """A word is a token; others are the unknown one."""
    names = [name for name in (unknown, end, *known) if name]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token=unknown or ""))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([name for name in (unknown, end) if name])
    return tokenizer


def letters(known="abc "):
    """A letter is a token; others are dropped without a word."""
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(known)}, []))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def tokens(path, texts, end=""):
    tokenizer, out = load_tokenizer(path, end), io.BytesIO()
    counts = encode(texts, [0] * len(texts), {0: out}, tokenizer, tokenizer.token_to_id(end or END_OF_TEXT))[0]
    assert len(out.getvalue()) == 2 * counts.tokens
    return np.frombuffer(out.getvalue(), "<u2").tolist(), counts


@pytest.mark.parametrize("change", ["truncation", "padding", "both"])
def test_a_tokenizer_that_cuts_or_pads_does_neither(tmp_path, change):
    texts = ["a long text of many words, longer than the others", "short"]
    plain, _ = tokens(saved(trained(), tmp_path / "plain.json"), texts)
    tokenizer = trained()
    if change != "padding":
        tokenizer.enable_truncation(4)
    if change != "truncation":
        tokenizer.enable_padding(length=64)
    path = saved(tokenizer, tmp_path / "changed.json")
    assert json.loads(path.read_text())["truncation" if change == "truncation" else "padding"] is not None
    assert tokens(path, texts)[0] == plain


def test_the_vocabulary_reaches_to_the_largest_id_over_holes(tmp_path):
    plain = json.loads(trained().to_str())
    plain["added_tokens"][0]["id"] = plain["model"]["vocab"][END_OF_TEXT] = 70_000
    path = tmp_path / "holes.json"
    path.write_text(json.dumps(plain))
    tokenizer = load_tokenizer(path)
    assert tokenizer.get_vocab_size() < vocabulary_size(tokenizer) == 70_001
    config = TokenizerConfig(file=str(path))
    out = prepared(corpus(tmp_path, tokenizer=config), tmp_path / "out")
    assert out.manifest.vocab_size == 70_001
    assert out.manifest.dtype == "<u4"
    assert out.domain("a").train.array.max() == 70_000


@pytest.mark.parametrize(
    ("tokenizer", "unknown", "whole"),
    [(trained, None, True), (letters, None, False), (words, 0, False)],
)
def test_what_a_tokenizer_can_lose_is_known_from_its_file(tokenizer, unknown, whole):
    made = tokenizer()
    assert unknown_token(made) == unknown
    assert knows_all_bytes(made) is whole


def pieces_of(names):
    return models.BPE({name: place for place, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)


def unigram_of(names):
    return models.Unigram([(name, -float(place)) for place, name in enumerate(names)], 0, byte_fallback=True)


@pytest.mark.parametrize("model", [pieces_of, unigram_of])
def test_a_tokenizer_that_falls_back_to_bytes_loses_nothing(tmp_path, model):
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]
    tokenizer = Tokenizer(model(names))
    tokenizer.add_special_tokens([END_OF_TEXT])
    assert knows_all_bytes(tokenizer)
    ids, counts = tokens(saved(tokenizer, tmp_path / "t.json"), ["aä"])
    assert ids == [257, 1 + 0xC3, 1 + 0xA4, 258]
    assert counts.unknown == 0
    # Without one of the bytes there are texts that have no tokens.
    assert not knows_all_bytes(Tokenizer(model([name for name in names if name != "<0xA4>"])))


def test_a_unigram_tokenizer_without_bytes_has_an_unknown_token(tmp_path):
    model = models.Unigram([("<unk>", 0.0), ("a", -1.0), ("ab", -1.5), ("b", -2.0)], 0)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["</s>"])
    assert unknown_token(tokenizer) == 0
    assert not knows_all_bytes(tokenizer)
    ids, counts = tokens(saved(tokenizer, tmp_path / "t.json"), ["abaXb"], "</s>")
    assert ids == [2, 1, 0, 3, 4]
    assert counts.unknown == 1


def test_lost_characters_and_unknown_tokens_are_counted(tmp_path):
    ids, counts = tokens(saved(letters(), tmp_path / "letters.json"), ["ab cxx", "xyz\n"])
    assert ids == [0, 1, 3, 2, 4, 4]
    assert (counts.characters, counts.lost, counts.unknown) == (8, 5, 0)
    ids, counts = tokens(saved(words("a", "b"), tmp_path / "words.json"), ["a b what a", "other"])
    assert ids == [2, 3, 0, 2, 1, 0, 1]
    assert (counts.characters, counts.lost, counts.unknown) == (12, 0, 2)


@pytest.mark.parametrize(
    ("strange", "message"),
    [(1, None), (40, r"domain 'mine': 2\d\.\d\d% of its tokens are the unknown token")],
)
def test_few_unknown_tokens_are_told_and_many_refused(tmp_path, strange, message):
    strangers = [f"stranger{index} " * 10 if index < strange else "" for index in range(40)]
    texts = {
        "mine": [strangers[index] + "one three " * (index % 5 + 1) + "two " * index for index in range(40)],
        "other": ["two " * (index + 1) for index in range(40)],
        "general": ["three " * (index + 1) for index in range(40)],
    }
    path = saved(words("one", "two", "three"), tmp_path / "words.json")
    mine, other, general = (
        DomainConfig(name=name, source=write(tmp_path / f"{name}.jsonl", of)) for name, of in texts.items()
    )
    tokenizer = TokenizerConfig(file=str(path))
    config = CorpusConfig(domains=(mine, other), base=general, tokenizer=tokenizer, heldout_fraction=0.2)
    said = []
    if message is None:
        prepared(config, tmp_path / "out", report=said.append)
        assert any("of its tokens are the unknown token" in line for line in said)
    else:
        with pytest.raises(UserError, match=message) as refused:
            prepared(config, tmp_path / "out", report=said.append)
        assert f"at most {MOST_LOST:.0%} is allowed" in refused.value.fix


def test_the_end_of_text_is_spelt_as_the_config_says(tmp_path):
    path = saved(words("a", end="</s>"), tmp_path / "t.json")
    with pytest.raises(UserError, match=r"has no token <\|endoftext\|>; its special tokens are <unk>, </s>") as refused:
        load_tokenizer(path)
    assert "corpus.tokenizer.end_of_text" in refused.value.fix
    with pytest.raises(UserError, match=r"has no token <eos>"):
        load_tokenizer(path, "<eos>")
    assert tokens(path, ["a x a"], "</s>")[0] == [2, 0, 2, 1]
    plain = json.loads(trained().to_str().replace("endoftext", "end"))
    (tmp_path / "other.json").write_text(json.dumps(plain))
    config = TokenizerConfig(file=str(tmp_path / "other.json"), end_of_text="<|end|>")
    out = prepared(corpus(tmp_path, tokenizer=config), tmp_path / "out")
    usual = prepared(
        corpus(tmp_path, tokenizer=TokenizerConfig(file=str(saved(trained(), tmp_path / "usual.json")))),
        tmp_path / "usual",
    )
    np.testing.assert_array_equal(out.domain("a").train.array, usual.domain("a").train.array)


def test_a_tokenizer_that_cannot_encode_every_text_is_refused_on_loading(tmp_path):
    tokenizer = words("a", unknown="")
    with pytest.raises(UserError, match=r"cannot encode every text \(.*UNK"):
        load_tokenizer(saved(tokenizer, tmp_path / "t.json"))


def test_added_tokens_that_are_not_special_stay_tokens(tmp_path):
    tokenizer = trained()
    tokenizer.add_tokens([AddedToken("vtune")])
    ids, _ = tokens(saved(tokenizer, tmp_path / "t.json"), ["a vtune"])
    assert vocabulary_size(tokenizer) - 1 in ids


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_bytes": -1}, "train_bytes must be at least 1, got -1"),
        ({"vocab_size": 256}, "vocab_size must be at least 257"),
        ({"end_of_text": "</s>"}, "end_of_text must be left out where a tokenizer is trained"),
    ],
)
def test_impossible_tokenizers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**fields)
