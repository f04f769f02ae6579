import jax.numpy as jnp

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
