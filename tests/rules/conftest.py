from tests.core.conftest import without_annotations as without_annotations
