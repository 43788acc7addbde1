"""The code that the entries of a pool take is imported ahead, whatever is wrong with some of them."""

import logging

import pytest

from deployments import entries
from deployments.entries import import_code


def test_the_code_of_every_family_is_imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(entries.importlib, "import_module", imported.append)
    source = {"path": "/nowhere"}
    models = [
        {"name": "a", "task": "feature-extraction", "source": source},
        {"name": "b", "task": "feature-extraction", "source": source},
        {"name": "c", "task": "image-classification", "source": source},
        {"name": "wrong", "task": "image-classification", "engine": "nobody's", "source": source},
        "not even an entry",
    ]
    import_code({"models": models})
    assert imported == ["deployments.engines.image_classification", "deployments.engines.sentence_embedding"]


@pytest.mark.parametrize("user_config", [None, [], {}, {"models": 3}])
def test_a_configuration_that_cannot_be_read_imports_nothing(user_config: object) -> None:
    import_code(user_config)


def test_code_that_cannot_be_imported_is_left_to_the_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(module: str) -> None:
        raise ImportError(f"no {module} here")

    monkeypatch.setattr(entries.importlib, "import_module", fail)
    with caplog.at_level(logging.WARNING):
        import_code({"models": [{"name": "a", "task": "fill-mask", "source": {"path": "/nowhere"}}]})
    assert "no deployments.engines.fill_mask here" in caplog.text
