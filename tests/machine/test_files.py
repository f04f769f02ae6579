import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vtune_jax.errors import disk_is_full
from vtune_jax.machine.files import replacing, sha256, user_path, write_whole, written_whole


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail():
        with written_whole(path) as out:
            out.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_writes(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    program = (
        "import os, sys; from pathlib import Path; from vtune_jax.machine.files import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as out:\n"
        "    out.write(b'half of it'); out.flush(); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 9
    assert path.read_bytes() == b"old"
    in_another_process(path, "näw")
    assert path.read_bytes() == b"n\xc3\xa4w"
    assert os.listdir(tmp_path) == ["file"]


def in_another_process(path, text):
    program = "import sys; from pathlib import Path; from vtune_jax.machine.files import write_whole\n"
    program += "write_whole(Path(sys.argv[1]), sys.argv[2])"
    subprocess.run([sys.executable, "-c", program, str(path), text], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_as_one(tmp_path):
    def fill():
        with replacing(tmp_path / "file") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("x" * 100_000)

    with pytest.raises(OSError) as caught:  # noqa: PT011
        fill()
    assert disk_is_full(caught.value)
    assert not (tmp_path / "file").exists()


def test_two_processes_may_write_one_file_and_what_a_dead_one_left_is_removed(tmp_path):
    path = tmp_path / "file"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living, left = (tmp_path / f"file.{platform.node()}-{process}.tmp" for process in (os.getppid(), dead.pid))
    living.write_text("another's")
    left.write_text("nobody's")
    with replacing(path) as ours:
        assert ours not in (living, left)
        ours.write_text("ours")
        in_another_process(path, "another's")
        assert path.read_text() == "another's"
    assert path.read_text() == "ours"
    assert sorted(tmp_path.iterdir()) == sorted([path, living])


def test_a_path_with_a_tilde_is_one_whatever_follows(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_path("~/texts") == Path("/home/somebody/texts")
    for odd in ("~nobody-of-this-name/x", "~\0x"):
        assert user_path(odd) == Path(odd)


def test_the_hash_is_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "none") == ""
