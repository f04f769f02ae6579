import subprocess
import sys

import vtune_jax.data


def test_every_public_name_can_be_had():
    for name in vtune_jax.data.__all__:
        assert getattr(vtune_jax.data, name).__name__ == name
        assert name in dir(vtune_jax.data)


def test_reading_and_preparing_in_worker_processes_load_neither_jax_nor_grain():
    modules = ("mixture.gather", "tokens.rows", "tokens.packing", "tokens.array_record", "corpora.prepare")
    imports = "; ".join(f"import vtune_jax.data.{module}" for module in modules)
    program = f"import sys; {imports}; print(sorted({{'jax', 'grain', 'flax'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
