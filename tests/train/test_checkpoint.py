import jax.numpy as jnp

from vtune_jax.train import checkpoint
from vtune_jax.train.checkpoint import SIZES, Checkpoints


def test_a_note_that_a_kill_left_half_written_is_no_damage(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(1, {"x": jnp.arange(3)}, {})
    saved.close()
    note = tmp_path / "step_1" / SIZES
    note.rename(note.with_name(f"{SIZES}.tmp"))
    warnings = []
    again = Checkpoints(tmp_path, warn=warnings.append)
    again.wait()
    assert note.exists()
    assert again.restore({"x": jnp.zeros(3, jnp.int32)}, {}).step == 1
    assert warnings == []
    again.close()


def test_whoever_only_reads_leaves_what_it_cannot_read_in_place(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path)
    saved.save(1, {"x": jnp.arange(3)}, {})
    saved.close()

    def exhausted(state):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    template, warnings = {"x": jnp.zeros(3, jnp.int32)}, []
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "checksum", exhausted)
        again = Checkpoints(tmp_path, warn=warnings.append)
        assert again.restore(template, {}) is None
        again.close()
    assert "RESOURCE_EXHAUSTED" in warnings[0]
    again = Checkpoints(tmp_path)
    assert again.restore(template, {}).step == 1
    again.close()
