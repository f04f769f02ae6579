"""`python -m vtune_jax` is `vtune-jax`."""

import sys

from vtune_jax.cli.main import main

sys.exit(main())
