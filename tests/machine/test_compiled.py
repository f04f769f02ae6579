import jax

from vtune_jax.machine.compiled import keep_compiled


def test_the_users_own_compilation_cache_is_respected():
    own = jax.config.values["jax_compilation_cache_dir"]
    assert own is not None
    keep_compiled()
    assert jax.config.values["jax_compilation_cache_dir"] == own
