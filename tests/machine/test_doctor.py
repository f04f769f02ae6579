import pytest

from vtune_jax.machine import doctor


def test_a_sound_installation_passes_every_check(capsys):
    assert doctor.main() == 0
    said = capsys.readouterr().out
    assert "jax" in said
    assert "a compiled product" in said


@pytest.mark.parametrize(
    ("backend", "present", "advice"),
    [("cpu", "cuda", "pip install -e '.[cuda]'"), ("cpu", "tpu", "pip install -e '.[tpu]'")],
)
def test_an_unused_accelerator_is_named_with_the_command(monkeypatch, backend, present, advice):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    check = doctor.missing_accelerator(backend, present)
    assert not check.good
    assert advice in check.advice


def test_an_environment_variable_that_hides_the_accelerator_is_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "unset JAX_PLATFORMS" in doctor.missing_accelerator("cpu", "cuda").advice


@pytest.mark.parametrize(("backend", "present"), [("gpu", "cuda"), ("cpu", "")])
def test_nothing_is_said_where_nothing_is_missing(backend, present):
    assert doctor.missing_accelerator(backend, present) is None


def test_a_missing_package_fails_with_the_command(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert doctor.main() == 1
    assert "NO  no-such-package" in capsys.readouterr().out
