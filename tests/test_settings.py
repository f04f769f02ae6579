import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vtune_jax import settings
from vtune_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fast:
    name: Literal["fast"] = "fast"
    label: str = ""
    rate: float = 1.0

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow:
    name: Literal["slow"] = "slow"
    label: str = ""
    patience: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 10
    kind: Literal["a", "b"] = "a"
    flag: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    title: str
    shares: tuple[float, ...] = ()
    inner: Inner = Inner()
    methods: tuple[Fast | Slow, ...] = (Fast(), Slow())


def load(tmp_path, text, *overrides):
    path = tmp_path / "x.toml"
    path.write_text(text)
    return settings.load(Outer, path, overrides)


WHOLE = """
title = "t"
shares = [1, 0.5]
[inner]
steps = 20
kind = "b"
[[methods]]
name = "slow"
label = "mine"
patience = 9
"""


def test_a_file_becomes_the_nested_dataclasses(tmp_path):
    assert load(tmp_path, WHOLE) == Outer(
        title="t", shares=(1.0, 0.5), inner=Inner(steps=20, kind="b"), methods=(Slow(label="mine", patience=9),)
    )


configs = st.builds(
    Outer,
    title=st.text(max_size=20),
    shares=st.lists(st.floats(-3e38, 3e38), max_size=3).map(tuple),
    inner=st.builds(Inner, steps=st.integers(-(2**60), 2**60), kind=st.sampled_from("ab"), flag=st.booleans()),
    methods=st.lists(
        st.one_of(st.builds(Fast, rate=st.floats(0, 3e38)), st.builds(Slow, label=st.text(max_size=5))), min_size=1
    ).map(tuple),
)


@given(config=configs)
@hypothesis_settings(max_examples=150, deadline=None)
def test_dumping_and_loading_gives_the_same_config(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(settings.dumps(config), encoding="utf-8")
    assert settings.load(Outer, path) == config


@pytest.mark.parametrize(
    ("override", "reached"),
    [
        ("inner.steps=7", lambda c: c.inner.steps == 7),
        ("inner.flag=true", lambda c: c.inner.flag is True),
        ("title=plain words", lambda c: c.title == "plain words"),
        ("shares=[0.25, 0.75]", lambda c: c.shares == (0.25, 0.75)),
        ("methods.mine.patience=1", lambda c: c.methods[0].patience == 1),
        ("methods.0.patience=2", lambda c: c.methods[0].patience == 2),
    ],
)
def test_every_field_can_be_overridden(tmp_path, override, reached):
    assert reached(load(tmp_path, WHOLE, override))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("titel = 1", (), "x.toml: unknown key 'titel'; did you mean 'title'\\?"),
        ('title = "t"\n[inner]\nstep = 3', (), "unknown key 'inner.step'; did you mean 'steps'\\?"),
        ("", (), "x.toml: 'title' is missing"),
        ("title = 3", (), "'title' is 3, a int. Fix: give a string"),
        ('title = "t"\n[inner]\nsteps = 2.5', (), "'inner.steps' is 2.5, a float. Fix: give a whole number"),
        ('title = "t"\n[inner]\nsteps = true', (), "'inner.steps' is True, a bool"),
        ('title = "t"\n[inner]\nflag = 1', (), "'inner.flag' is 1, a int. Fix: give true or false"),
        ('title = "t"\ninner = 3', (), "'inner' is 3, a int. Fix: give a table"),
        ('title = "t"\nshares = 3', (), "'shares' is 3, a int. Fix: give an array"),
        ('title = "t"\nshares = ["x"]', (), "'shares.0' is 'x', a str. Fix: give a number"),
        ('title = "t"\n[inner]\nkind = "c"', (), "'inner.kind' is 'c'. Fix: use one of 'a', 'b'"),
        ('title = "t"\n[[methods]]\nname = "fats"', (), "'methods.0.name' is 'fats'; did you mean 'fast'\\?"),
        ('title = "t"\n[[methods]]\nrate = 1.0', (), "'methods.0.name' is missing"),
        ('title = "t"\nmethods = [3]', (), "'methods.0' is 3, a int"),
        (
            'title = "t"\n[[methods]]\nname = "fast"\nrate = -1.0',
            (),
            r"\[methods.0\] rate must not be negative, got -1.0",
        ),
        ("title = \n", (), "is not valid TOML: .*line 1"),
        (WHOLE, ("inner.steps",), "the override 'inner.steps' is not KEY=VALUE"),
        (WHOLE, ("inner.stepz=3",), "unknown key 'inner.stepz'; did you mean 'steps'\\?"),
        (WHOLE, ("methods.mime.patience=3",), "finds no entry 'mime'; did you mean 'mine'\\?"),
        (WHOLE, ("title.x=3",), "goes into 'title', which is no table"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_fix(tmp_path, text, overrides, message):
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(refused.value)


def test_a_missing_file_lists_its_neighbours(tmp_path):
    (tmp_path / "near.toml").write_text("")
    with pytest.raises(UserError, match=r"no config file .*nothing.toml; there are .*near.toml"):
        settings.load(Outer, tmp_path / "nothing.toml")


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b'title = "\xff"')
    with pytest.raises(UserError, match="is not UTF-8"):
        settings.load(Outer, path)


def test_defaults_fill_what_the_file_leaves_out(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("")
    assert settings.load(Outer, path, defaults={"title": "file"}).title == "file"


def test_the_digest_is_the_same_in_another_process_and_differs_with_any_field():
    config = Outer(title="t")
    others = (Outer(title="u"), Outer(title="t", inner=Inner(steps=11)), Outer(title="t", shares=(1.0,)))
    assert len({settings.digest(value) for value in (config, *others)}) == 4
    program = (
        "import sys; sys.path.insert(0, 'tests'); import test_settings as t; "
        "print(t.settings.digest(t.Outer(title='t')))"
    )
    root = Path(__file__).parent.parent
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert said.stdout.strip() == settings.digest(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    method: object = settings.choice(lambda: (Fast, Slow), flat=True)
    nick: str = ""
    patience_s: float = settings.bookkeeping(1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Team:
    roles: tuple[Role, ...] = (Role(method=Fast()),)
    spare: object = settings.choice(lambda: (Fast, Slow), Slow())


def team(tmp_path, text, *overrides, **options):
    path = tmp_path / "team.toml"
    path.write_text(text)
    return settings.load(Team, path, overrides, **options)


ROLES = '[[roles]]\nname = "fast"\nrate = 2.0\nnick = "f"\n[[roles]]\nname = "slow"\nlabel = "s"\n'


def test_a_flat_choice_shares_its_parents_table(tmp_path):
    found = team(tmp_path, ROLES, "roles.fast.rate=3.0", "roles.s.nick=t", "roles.s.patience=5")
    assert found.roles == (Role(method=Fast(rate=3.0), nick="f"), Role(method=Slow(label="s", patience=5), nick="t"))
    again = team(tmp_path, settings.dumps(found))
    assert again == found
    assert "[roles.method]" not in settings.dumps(found)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("roles.fast.nik=x", r"unknown key 'roles.0.nik'; did you mean 'nick'\?"),
        ("roles.fast.rte=1.0", r"unknown key 'roles.0.rte'; did you mean 'rate'\?"),
        ("roles.fast.name=fats", r"'roles.0.name' is 'fats'; did you mean 'fast'\?"),
        ("roles.fast.rate=-1.0", r"\[roles.0\] rate must not be negative"),
        ("roles.fast.nick=1", "'roles.0.nick' is 1, a int. Fix: give a string"),
    ],
)
def test_mistakes_in_a_flat_choice_are_named_like_any_other(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        team(tmp_path, ROLES, override)


def test_a_choice_without_a_name_is_of_its_defaults_class(tmp_path):
    assert team(tmp_path, "[spare]\npatience = 9\n").spare == Slow(patience=9)
    assert team(tmp_path, '[spare]\nname = "fast"\n').spare == Fast()
    with pytest.raises(UserError, match="'roles.0.name' is missing"):
        team(tmp_path, "[[roles]]\nrate = 1.0\n")


def test_bookkeeping_counts_for_equality_but_not_for_the_digest():
    one, other = Role(method=Fast()), Role(method=Fast(), patience_s=9.0)
    assert one != other
    assert settings.digest(one) == settings.digest(other) != settings.digest(Role(method=Slow()))


def test_values_from_python_go_where_overrides_go(tmp_path):
    values = {"roles.fast.rate": 4, "spare": {"name": "slow", "patience": 2}}
    found = team(tmp_path, ROLES, values=values)
    assert found.roles[0].method.rate == 4.0
    assert found.spare == Slow(patience=2)


def test_every_config_in_the_repository_loads():
    from vtune_jax.experiment.load import load

    paths = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))
    assert paths
    for path in paths:
        assert load(path).name == path.stem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    name: str
    size: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Map:
    places: tuple[Place, ...] = (Place(name="v1.5"), Place(name="v1"))


def test_an_override_goes_through_a_name_with_dots(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text("".join(f'[[places]]\nname = "{name}"\n' for name in ("v1.5", "v1")))
    found = settings.load(Map, path, ("places.v1.5.size=2", "places.v1.size=3"))
    assert [place.size for place in found.places] == [2, 3]
    whole = settings.load(Map, path, ('places.v1.5={name="w", size=9}',))
    assert whole.places[0] == Place(name="w", size=9)


@pytest.mark.parametrize("key", ["places.\u00b2.size", "places.9.size", "places.v1.6.size", "places..size"])
def test_an_override_of_no_entry_is_one_line(tmp_path, key):
    path = tmp_path / "map.toml"
    path.write_text('[[places]]\nname = "v1"\n')
    with pytest.raises(UserError, match=r"finds no entry|is not KEY=VALUE|unknown key"):
        settings.load(Map, path, (f"{key}=1",))
