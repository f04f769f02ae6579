import numpy as np
import pytest

from vtune_jax.errors import UserError
from vtune_jax.machine.json_lines import JsonLines


def test_json_lines_leave_out_a_line_cut_short_and_are_cut_back_to_a_step(tmp_path):
    file = JsonLines(tmp_path / "new" / "rows.jsonl")
    assert list(file.rows()) == []
    file.append([{"step": step, "loss": np.float32(0.1)} for step in (1, 2, 3)])
    whole = file.path.read_bytes()
    with file.path.open("ab") as out:
        out.write(b'{"step": 4, "lo')
    assert [row["step"] for row in file.rows()] == [1, 2, 3]
    file.cut(2)
    assert file.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    file.append([{"step": 3, "loss": np.float32(0.1)}])
    assert file.path.read_bytes() == whole


def test_json_lines_of_an_earlier_spelling_are_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 5, "learning_rate": 1e-05, "loss": null}\n')
    assert list(JsonLines(tmp_path / "rows.jsonl").rows()) == [{"step": 5, "learning_rate": 0.00001, "loss": None}]


def test_json_lines_without_a_path_write_nothing():
    file = JsonLines(None)
    file.append([{"step": 1}])
    file.cut(0)
    assert list(file.rows()) == []


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"step": "5"}', "\x00\x00"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(
        UserError, match=r"rows.jsonl is damaged in line 2. Fix: put the file back, or delete its folder"
    ):
        list(JsonLines(path).rows())


def test_rows_that_are_missing_are_seen_on_resuming(tmp_path):
    file = JsonLines(tmp_path / "rows.jsonl")
    file.append([{"step": step} for step in (1, 3)])
    file.cut(3)
    with pytest.raises(UserError, match="has 2 rows up to step 3 instead of 3"):
        file.cut(3, 3)
    file.path.unlink()
    with pytest.raises(UserError, match="has 0 rows up to step 3 instead of 3"):
        file.cut(3, 3)
    assert not file.path.exists()
