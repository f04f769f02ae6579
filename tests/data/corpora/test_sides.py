"""Which documents are trained on and which are held out, and what is said where a side is empty."""

import dataclasses
import hashlib

import pytest
from tokenizers import Tokenizer

from tests.data.corpora.test_corpus import corpus, documents, prepared, write
from vtune_jax.data.corpora import documents as readers
from vtune_jax.data.corpora import parts
from vtune_jax.data.corpora.config import CorpusConfig, DomainConfig, corpus_fingerprint
from vtune_jax.data.corpora.tokenizer import TokenizerConfig
from vtune_jax.errors import UserError


def few(tmp_path, count, fraction, first=0):
    source = write(tmp_path / "few.jsonl", [f"document {first + number} of few" for number in range(count)])
    config = corpus(tmp_path)
    domains = (DomainConfig(name="few", source=source), config.domains[1])
    return CorpusConfig(domains=domains, base=config.base, tokenizer=config.tokenizer, heldout_fraction=fraction)


@pytest.mark.parametrize(("fraction", "heldout"), [(1e-9, 1), (1 - 1e-9, 5)])
def test_chance_leaves_no_side_of_a_domain_empty(tmp_path, fraction, heldout):
    entry = prepared(few(tmp_path, 6, fraction), tmp_path / "out").manifest.domains[0]
    assert (entry.train.documents, entry.heldout.documents) == (6 - heldout, heldout)


def test_the_document_of_the_smallest_hash_is_held_out_whatever_the_parts(tmp_path, monkeypatch):
    found = []
    for size in (10**6, 40):
        monkeypatch.setattr(parts, "spans", lambda path, size=size: readers.spans(path, size))
        out = prepared(few(tmp_path, 6, 1e-9), tmp_path / f"out-{size}")
        tokenizer = Tokenizer.from_file(str(out.folder / "tokenizer.json"))
        heldout = out.domain("few").heldout
        found.append(tokenizer.decode(heldout.slice(0, len(heldout)).tolist()))
    texts = [f"document {number} of few" for number in range(6)]
    assert found == [min(texts, key=lambda text: hashlib.sha256(text.encode()).digest())] * 2


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["same"] * 9, {}, r"is one document, which cannot be both .* Fix: cut it with cut_bytes"),
        (["one text\n\n" * 30], {}, r"is one document"),
        (["x"] * 3 + ["y"] * 3, {"min_bytes": 5}, r"has no documents: all are too short or too long. Fix: lower min_b"),
        ([" ", "\n"], {}, r"has no documents: its files hold nothing but white space. Fix: give it a source with text"),
    ],
)
def test_why_a_domain_has_no_documents_is_told(tmp_path, texts, options, message):
    config = corpus(tmp_path)
    domain = DomainConfig(name="odd", source=write(tmp_path / "odd.jsonl", texts), **options)
    with pytest.raises(UserError, match=message):
        prepared(dataclasses.replace(config, domains=(domain, config.domains[1])), tmp_path / "out")


def test_documents_that_another_domain_has_are_told(tmp_path):
    config = corpus(tmp_path)
    copy = DomainConfig(name="copy", source=config.domains[0].source)
    with pytest.raises(UserError, match=r"'copy' .* has no documents: each is equal to .* one of a domain before it"):
        prepared(dataclasses.replace(config, domains=(*config.domains, copy)), tmp_path / "out")
    own = dataclasses.replace(config.domains[0], heldout=config.domains[0].source)
    with pytest.raises(UserError, match=r"has no documents: each is equal to a held-out one of its own"):
        prepared(dataclasses.replace(config, domains=(own, config.domains[1])), tmp_path / "own")


def test_one_long_document_is_cut_as_advised(tmp_path):
    config = corpus(tmp_path)
    text = "\n\n".join(documents(5, 40))
    domain = DomainConfig(name="book", source=write(tmp_path / "book.jsonl", [text]), cut_bytes=400)
    entry = prepared(dataclasses.replace(config, domains=(domain, config.domains[1])), tmp_path / "out").manifest
    book = entry.domains[0]
    assert book.train.documents + book.heldout.documents > 10
    assert book.train.bytes + book.heldout.bytes > 0.9 * len(text)


def test_a_missing_tokenizer_is_named_before_anything_is_read(tmp_path):
    config = dataclasses.replace(corpus(tmp_path), tokenizer=TokenizerConfig(file=str(tmp_path / "none.json")))
    with pytest.raises(UserError, match=r"there is no tokenizer .*none.json"):
        corpus_fingerprint(config)
