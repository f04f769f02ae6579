import jaxtyping
import pytest


@pytest.fixture
def without_annotations():
    """The package as users have it: the suite's checker of annotations would speak before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
