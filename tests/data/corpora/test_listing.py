"""Folders and patterns as they are found in the wild."""

import json
import os

import pytest

from vtune_jax.data.corpora.config import DomainConfig
from vtune_jax.data.corpora.listing import LFS_POINTER, files_of
from vtune_jax.errors import UserError


def written(path, content=b'{"text": "x"}\n'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(source, root):
    return [str(file.relative_to(root)) for file in files_of(str(source), "d").files]


def test_a_source_is_a_file_a_folder_or_a_glob(tmp_path):
    first, second = written(tmp_path / "b.txt"), written(tmp_path / "sub" / "a.jsonl")
    written(tmp_path / "c.pdf")
    assert files_of(str(first), "d").files == [first]
    assert files_of(str(tmp_path), "d").files == [first, second]
    assert files_of(str(tmp_path / "**" / "*.jsonl"), "d").files == [second]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jsonl", "domain 'd': .*nothing.jsonl does not exist"),
        ("c.pdf", "c.pdf has an unknown format"),
        ("empty", "holds no file that can be read"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_with_the_formats(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    written(tmp_path / "c.pdf")
    with pytest.raises(UserError, match=message) as refused:
        files_of(str(tmp_path / name), "d")
    assert ".jsonl" in refused.value.fix


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/old.jsonl", "._a.jsonl", "_temporary/0/part.jsonl", "deep/.git/x.jsonl", "_SUCCESS"]
)
def test_hidden_files_and_folders_are_no_data_unless_named(tmp_path, hidden):
    written(tmp_path / "a.jsonl")
    written(tmp_path / "deep" / "b.jsonl")
    path = written(tmp_path / hidden)
    assert names(tmp_path, tmp_path) == ["a.jsonl", "deep/b.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl", tmp_path) == ["a.jsonl", "deep/b.jsonl"]
    assert files_of(str(tmp_path), "d").passed_over == []
    if path.suffix == ".jsonl":
        assert files_of(str(path), "d").files == [path]


def test_a_pattern_that_asks_for_hidden_names_finds_them(tmp_path):
    written(tmp_path / "_x" / "a.jsonl")
    assert names(tmp_path / "_*" / "*.jsonl", tmp_path) == ["_x/a.jsonl"]
    assert names(tmp_path / "_x" / "*.jsonl", tmp_path) == ["_x/a.jsonl"]


def test_a_folder_that_a_pattern_finds_is_read_like_one_that_is_named(tmp_path):
    written(tmp_path / "x.parquet" / "part-0.parquet")
    written(tmp_path / "x.parquet" / "_SUCCESS")
    written(tmp_path / "y.parquet")
    assert names(tmp_path / "*.parquet", tmp_path) == ["x.parquet/part-0.parquet", "y.parquet"]


def test_what_a_folder_holds_beside_data_is_told(tmp_path):
    written(tmp_path / "a.jsonl")
    other = [written(tmp_path / name, b"x") for name in ("b.pdf", "c.json", "d.jsonl.lz4", "e.parquet.gz")]
    listing = files_of(str(tmp_path), "d")
    assert (listing.files, listing.passed_over) == ([tmp_path / "a.jsonl"], other)


@pytest.mark.parametrize(
    ("content", "is_data"),
    [
        (b'{"text": "x"}\n{"text": "y"}\n', True),
        (b'\n\xef\xbb\xbf{"text": "x"}\n', True),
        (b'[\n{"text": "x"}]', True),
        (b'{\n"text": "x"}\n', False),
        (b'"text"\n', False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_json_in_a_folder_is_data_by_its_content(tmp_path, content, is_data):
    written(tmp_path / "a.jsonl")
    path = written(tmp_path / "b.json", content)
    assert (path in files_of(str(tmp_path), "d").files) == is_data


def saved(folder, *names):
    state = {"_data_files": [{"filename": name} for name in names]}
    for name in names:
        written(folder / name)
    written(folder / "cache-1b2c.arrow")
    written(folder / "dataset_info.json", b"{}")
    written(folder / "state.json", json.dumps(state).encode())
    return folder


def test_a_saved_dataset_is_read_by_its_own_list_wherever_it_lies(tmp_path):
    saved(tmp_path / "sub" / "one", "data-0.arrow")
    written(tmp_path / "a.jsonl")
    assert names(tmp_path / "sub" / "one", tmp_path) == ["sub/one/data-0.arrow"]
    assert names(tmp_path, tmp_path) == ["a.jsonl", "sub/one/data-0.arrow"]


def test_of_several_splits_one_must_be_named(tmp_path):
    saved(tmp_path / "train", "data-0.arrow")
    saved(tmp_path / "test", "data-0.arrow")
    written(tmp_path / "dataset_dict.json", b'{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"several splits \(train, test\)") as refused:
        files_of(str(tmp_path), "d")
    assert str(tmp_path / "train") in refused.value.fix
    assert names(tmp_path / "train", tmp_path) == ["train/data-0.arrow"]
    written(tmp_path / "dataset_dict.json", b'{"splits": ["train"]}')
    assert names(tmp_path, tmp_path) == ["train/data-0.arrow"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"_data_files": 3}', b'{"_data_files": [7]}', b"{}", b"\xff"])
def test_a_damaged_list_of_a_saved_dataset_is_named(tmp_path, content):
    saved(tmp_path, "data-0.arrow")
    written(tmp_path / "state.json", content)
    with pytest.raises(UserError, match=r"state.json is damaged"):
        files_of(str(tmp_path), "d")


@pytest.mark.parametrize("name", ["gone.arrow", "../a.jsonl"])
def test_a_saved_dataset_whose_files_are_elsewhere_is_refused(tmp_path, name):
    written(tmp_path / "a.jsonl")
    saved(tmp_path / "set")
    written(tmp_path / "set" / "state.json", json.dumps({"_data_files": [{"filename": name}]}).encode())
    with pytest.raises(UserError, match="lacks its file"):
        files_of(str(tmp_path / "set"), "d")


def test_links_are_followed_each_file_is_read_once_and_circles_end(tmp_path):
    root = tmp_path / "root"
    written(tmp_path / "elsewhere" / "b.jsonl")
    first = written(root / "a.jsonl")
    (root / "latest.jsonl").symlink_to(first)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert names(root, root) == ["a.jsonl", "linked/b.jsonl"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    written(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for source in (tmp_path, tmp_path / "b.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(UserError, match=r"b.jsonl is a link that leads nowhere"):
            files_of(str(source), "d")


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    written(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    for source in (tmp_path, tmp_path / "b.jsonl"):
        with pytest.raises(UserError, match=r"b.jsonl is no file but a pipe, socket or device"):
            files_of(str(source), "d")


def test_a_pointer_of_large_file_storage_is_named(tmp_path):
    written(tmp_path / "a.parquet", LFS_POINTER + b"/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS") as refused:
        files_of(str(tmp_path), "d")
    assert "git lfs pull" in refused.value.fix


def test_token_files_are_known_by_capitals_too():
    assert DomainConfig(name="d", source="A.NPY").is_tokens


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written(tmp_path / "data" / "a.jsonl")
    assert files_of("~/data", "d").files == [path]
    assert files_of("~/data/*.jsonl", "d").files == [path]
    with pytest.raises(UserError, match="domain 'd': ~nobody-of-this-name/x.jsonl does not exist"):
        files_of("~nobody-of-this-name/x.jsonl", "d")


def test_brackets_in_a_path_are_told_and_the_advice_works(tmp_path):
    path = written(tmp_path / "a[1].jsonl")
    assert files_of(str(path), "d").files == [path]
    written(tmp_path / "[x]" / "b.jsonl")
    pattern = str(tmp_path / "[x]" / "*.jsonl")
    with pytest.raises(UserError, match=r"finds no file .* Fix: write \[\[\] for a bracket"):
        files_of(pattern, "d")
    assert names(pattern.replace("[", "[[]", 1), tmp_path) == ["[x]/b.jsonl"]
