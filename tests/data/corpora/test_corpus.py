import dataclasses
import json

import numpy as np
import pytest

from vtune_jax.data.corpora import embedded
from vtune_jax.data.corpora.config import CorpusConfig, DomainConfig, corpus_fingerprint
from vtune_jax.data.corpora.prepare import prepare
from vtune_jax.data.corpora.tokenizer import END_OF_TEXT, TokenizerConfig, load_tokenizer
from vtune_jax.data.tokens.prepared import PreparedCorpus
from vtune_jax.errors import UserError


def documents(seed, count=60):
    rng = np.random.default_rng(seed)
    words = [chr(65 + seed) * 2 + "".join(chr(97 + int(digit)) for digit in f"{index:02d}") for index in range(30)]
    return [" ".join(rng.choice(words, 40)) for _ in range(count)]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def corpus(tmp_path, *, vocab_size=300, **changes):
    domains = tuple(
        DomainConfig(name=name, source=write(tmp_path / f"{name}.jsonl", documents(seed)))
        for seed, name in enumerate(("a", "b"))
    )
    base = DomainConfig(name="base", source=write(tmp_path / "base.jsonl", documents(9)))
    options = {"domains": domains, "base": base, "tokenizer": TokenizerConfig(vocab_size=vocab_size)}
    return CorpusConfig(**{**options, "heldout_fraction": 0.2, **changes})


def prepared(config, folder, **options):
    folder.mkdir(exist_ok=True)
    prepare(config, folder, **options)
    return PreparedCorpus.open(folder, verify=True)


def decoded(corpus, name, part):
    tokenizer = load_tokenizer(corpus.folder / "tokenizer.json")
    text = tokenizer.decode(getattr(corpus.domain(name), part).array.tolist(), skip_special_tokens=False)
    return text.split(END_OF_TEXT)[:-1]


def test_tokens_decode_to_the_documents_each_on_one_side(tmp_path):
    corpus_ = prepared(corpus(tmp_path), tmp_path / "out")
    assert corpus_.names == ("a", "b")
    assert corpus_.base_name == "base"
    for name, seed in (("a", 0), ("b", 1), ("base", 9)):
        train, heldout = decoded(corpus_, name, "train"), decoded(corpus_, name, "heldout")
        assert sorted(train + heldout) == sorted(documents(seed))
        assert not set(train) & set(heldout)
        assert 2 <= len(heldout) <= 25


def test_the_split_depends_on_the_text_alone(tmp_path):
    first = prepared(corpus(tmp_path), tmp_path / "one")
    config = corpus(tmp_path)
    write(tmp_path / "a.jsonl", reversed(documents(0)))
    second = prepared(config, tmp_path / "two")
    assert sorted(decoded(first, "a", "heldout")) == sorted(decoded(second, "a", "heldout"))


def test_preparing_twice_gives_the_same_manifest(tmp_path):
    config = corpus(tmp_path)
    manifests = [prepared(config, tmp_path / name).manifest for name in ("one", "two")]
    assert manifests[0] == manifests[1]
    assert manifests[0].as_json() == json.loads((tmp_path / "one" / "manifest.json").read_text())


def test_duplicates_are_kept_once_and_counted(tmp_path):
    config = corpus(tmp_path)
    write(tmp_path / "b.jsonl", documents(1) + documents(0)[:7] + documents(1)[:2])
    messages = []
    manifest = prepared(config, tmp_path / "out", report=messages.append).manifest
    assert [domain.duplicates for domain in manifest.domains] == [0, 9, 0]
    assert messages == ["domain 'b': 9 duplicate documents left out"]


def test_given_heldout_documents_are_used_and_dropped_from_train(tmp_path):
    config = corpus(tmp_path)
    own = write(tmp_path / "own.jsonl", [*documents(5, 8), documents(0)[3]])
    domains = (DomainConfig(name="a", source=config.domains[0].source, heldout=own), config.domains[1])
    out = prepared(CorpusConfig(domains=domains, base=config.base, tokenizer=config.tokenizer), tmp_path / "out")
    assert sorted(decoded(out, "a", "heldout")) == sorted([*documents(5, 8), documents(0)[3]])
    assert documents(0)[3] not in decoded(out, "a", "train")
    assert len(decoded(out, "a", "train")) == 59


def test_text_that_spells_the_end_token_does_not_end_the_document(tmp_path):
    config = corpus(tmp_path)
    write(tmp_path / "a.jsonl", [*documents(0), f"an {END_OF_TEXT} inside"])
    out = prepared(config, tmp_path / "out")
    ends = sum(
        int((getattr(out.domain("a"), part).array == out.manifest.end_of_text_id).sum())
        for part in ("train", "heldout")
    )
    assert ends == 61


def test_a_prior_chooses_the_tokenizers_text(tmp_path):
    config = corpus(tmp_path, vocab_size=400)
    only_a = prepared(config, tmp_path / "one", prior=lambda sizes: np.array([1.0, 0.0]))
    vocabulary = load_tokenizer(only_a.folder / "tokenizer.json").get_vocab()
    assert any("AA" in word for word in vocabulary)
    assert not any("BB" in word for word in vocabulary)


def test_a_given_tokenizer_is_used(tmp_path):
    first = prepared(corpus(tmp_path), tmp_path / "one")
    given = TokenizerConfig(file=str(first.folder / "tokenizer.json"))
    second = prepared(corpus(tmp_path, tokenizer=given), tmp_path / "two")
    assert second.tokenizer_sha256 == first.tokenizer_sha256


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_domain_of_one_document_is_told_that_it_needs_another(tmp_path, fraction):
    book = tmp_path / "book.txt"
    book.write_text("one long text " * 99)
    config = corpus(tmp_path, heldout_fraction=fraction)
    domains = (DomainConfig(name="book", source=str(book)), *config.domains[1:])
    with pytest.raises(UserError, match=r"domain 'book' .* is one document, which cannot be both") as told:
        prepared(dataclasses.replace(config, domains=domains), tmp_path / "out")
    assert "a .txt file is one document" in told.value.fix


def test_files_of_no_known_format_are_told(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "x.jsonl", documents(0))
    (folder / "notes.pdf").write_text("x")
    config, said = corpus(tmp_path), []
    domains = (dataclasses.replace(config.domains[0], source=str(folder)), *config.domains[1:])
    prepared(dataclasses.replace(config, domains=domains), tmp_path / "out", report=said.append)
    assert f"domain 'a': 1 files in {folder} are of no known format: notes.pdf" in said


def test_the_fingerprint_counts_how_a_file_is_read(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    write(folder / "x.jsonl", documents(0))
    config = corpus(tmp_path)
    domains = (dataclasses.replace(config.domains[0], source=str(folder)), *config.domains[1:])
    config = dataclasses.replace(config, domains=domains)
    before = corpus_fingerprint(config)
    (folder / "x.jsonl").rename(folder / "x.txt")
    assert corpus_fingerprint(config) != before


def test_the_fingerprint_follows_the_content_not_the_file_times(tmp_path):
    config = corpus(tmp_path)
    before = corpus_fingerprint(config)
    write(tmp_path / "a.jsonl", documents(0))
    assert corpus_fingerprint(config) == before
    write(tmp_path / "a.jsonl", documents(0)[1:])
    assert corpus_fingerprint(config) != before


def damage(out, kind):
    if kind == "tokenizer":
        (out.folder / "tokenizer.json").write_text("{}")
    elif kind == "short":
        path = out.folder / "train.bin"
        path.write_bytes(path.read_bytes()[:-2])
    elif kind == "changed":
        path = out.folder / "train.bin"
        path.write_bytes(path.read_bytes()[:-2] + b"\1\0")
    elif kind == "manifest":
        (out.folder / "manifest.json").unlink()
    else:
        path = out.folder / "manifest.json"
        changes = {"cut": ("}", ""), "renamed": ("vocab_size", "words"), "older": ('version": 2', 'version": 1')}
        path.write_text(path.read_text().replace(*changes[kind]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tokenizer", "is not the one its tokens were made with"),
        ("short", r"train.bin has \d+ bytes, the manifest says"),
        ("changed", "are damaged: .*train.bin, bytes 0 to"),
        ("manifest", "holds no prepared corpus"),
        ("cut", "manifest.json is damaged"),
        ("renamed", "manifest.json is damaged"),
        ("older", "was prepared by another version"),
    ],
)
def test_files_that_are_not_the_manifests_are_refused(tmp_path, kind, message):
    out = prepared(corpus(tmp_path), tmp_path / "out")
    damage(out, kind)
    with pytest.raises(UserError, match=message):
        PreparedCorpus.open(out.folder, verify=True)


def test_an_empty_corpus_and_a_missing_heldout_side_are_refused(tmp_path):
    config = corpus(tmp_path)
    write(tmp_path / "b.jsonl", [])
    with pytest.raises(UserError, match="domain 'b' .* has no documents"):
        prepared(config, tmp_path / "out")
    write(tmp_path / "b.jsonl", documents(1)[:1])
    with pytest.raises(UserError, match="is one document, which cannot be both"):
        prepared(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no tokenizer"), ("{}", "is no tokenizer"), ("plain", "has no token")],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content == "plain":
        from tokenizers import Tokenizer, models

        Tokenizer(models.BPE()).save(str(path))
    elif content:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": 1}, "domains must be at least two"),
        ({"base": "a"}, "different names, got 'a' twice"),
        ({"heldout_fraction": 1.0}, "heldout_fraction must lie in"),
    ],
)
def test_impossible_corpora_are_refused(tmp_path, changes, message):
    whole = corpus(tmp_path)
    options = {"domains": whole.domains, "base": whole.base}
    if "domains" in changes:
        options["domains"] = whole.domains[:1]
    elif "base" in changes:
        options["base"] = DomainConfig(name="a", source="x")
    else:
        options |= changes
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**options)


@pytest.mark.parametrize(("name", "source"), [("../x", "a"), ("", "a"), ("x", "")])
def test_unsafe_names_and_empty_sources_are_refused(name, source):
    with pytest.raises(ValueError, match="must"):
        DomainConfig(name=name, source=source)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size must be at least 257"):
        TokenizerConfig(vocab_size=100)


@pytest.mark.parametrize("name", embedded.CORPORA)
def test_every_embedded_corpus_has_real_text_and_is_read_alike_twice(name):
    first = embedded.read(name)
    size = sum(len(text) for text in first)
    assert size > 250_000
    assert max(map(len, first)) <= embedded.MAX_DOCUMENT_CHARACTERS
    # Past the cache.
    assert first == embedded.read.__wrapped__(name)


def test_the_embedded_base_shares_no_document_with_the_domains():
    base = set(embedded.read("general"))
    for name in embedded.CORPORA.keys() - {"general"}:
        shared = base & set(embedded.read(name))
        # Boilerplate such as a licence head may recur; `prepare` drops it.
        assert len(shared) <= 0.01 * len(base)


def test_an_unknown_embedded_corpus_lists_the_known_ones():
    with pytest.raises(UserError, match="no embedded corpus 'cobol'") as refused:
        embedded.read("cobol")
    assert "c_headers" in refused.value.fix


def test_cutting_keeps_every_paragraph_and_the_limit():
    text = "\n\n".join(f"paragraph {index} " + "x" * 50 for index in range(40))
    pieces = list(embedded.cut(text, 300))
    assert max(map(len, pieces)) <= 300
    assert "\n\n".join(pieces) == text
