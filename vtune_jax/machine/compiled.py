"""Compiled programs kept on disk, so that a later process need not compile them again."""

import os
import warnings
from pathlib import Path


def keep_compiled() -> None:
    """Tells JAX to keep compiled programs in the user's cache folder, unless he has chosen another folder.

    The folder is `vtune_jax` in `$XDG_CACHE_HOME`, or in `~/.cache`. All programs are kept: a small run
    has hundreds that take a tenth of a second each.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtune_jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # On a full disk, or where a killed process left an entry half written, a program is compiled again, and nothing is
    # said of it. jax could lock and bound the folder, but then an entry without its time of use, left by a kill, would
    # end all writing.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
