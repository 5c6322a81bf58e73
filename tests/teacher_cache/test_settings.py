"""Settings from flat values, and the messages of those that are refused."""

from pathlib import Path

import pytest
from pydantic import BaseModel, Field, field_validator

from teacher_cache.errors import UsageError
from teacher_cache.settings import LocalPlace, Place, PlaceOrText, flat_fields, from_flat, to_flat, validated


class Places(BaseModel):
    place: Place
    out: LocalPlace | None = None
    templates: PlaceOrText = "a {}."


def test_places_are_expanded_from_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    expected = Places(place="/home/me/a", out=Path("/home/me/b"), templates="/home/me/t.txt")
    for out in ("~/b", Path("~/b"), "file:///home/me/b"):
        assert from_flat(Places, {"place": Path("~/a"), "out": out, "templates": "~/t.txt"}) == expected
    assert Places.model_validate_json(expected.model_dump_json()) == expected
    assert Places.model_validate_json('{"place": "~/a", "out": "~/b", "templates": "~/t.txt"}') == expected
    assert Places(place="s3://bucket/a", templates="~ {}").templates == "~ {}"


def test_a_place_on_another_machine_and_the_home_of_nobody_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^--out 's3://b/a': expected a path on this machine, found the URL s3"
    ):
        from_flat(Places, {"place": "a", "out": "s3://b/a"})
    with pytest.raises(
        UsageError, match=r"^--place '~no-such-user/a': no user has the home folder ~no-such-us"
    ):
        from_flat(Places, {"place": "~no-such-user/a"})
    with pytest.raises(UsageError, match=r"^--place 3: Input should be a valid string$"):
        from_flat(Places, {"place": 3})


class Inner(BaseModel):
    length: int = Field(default=4, ge=1)


class Options(BaseModel):
    cache: Place
    other: Place | None = None
    metric: str = "accuracy"
    inner: Inner = Inner()

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric != "accuracy":
            raise ValueError("is none of accuracy")
        return metric


def test_flat_values_become_nested_settings_and_come_back() -> None:
    options = from_flat(Options, {"cache": Path("a"), "length": 7})
    assert (options.cache, options.inner.length) == ("a", 7)
    flat = {"cache": "a", "other": None, "metric": "accuracy", "length": 7}
    assert to_flat(options) == flat
    assert from_flat(Options, flat) == options
    assert list(flat_fields(Options)) == ["cache", "other", "metric", "length"]


def test_each_invalid_option_is_named_in_one_line() -> None:
    with pytest.raises(
        UsageError, match=r"^--cache: Field required; --length 0: Input should be greater than or equal to 1$"
    ):
        from_flat(Options, {"length": 0})


def test_an_unknown_name_suggests_a_near_one() -> None:
    with pytest.raises(UsageError, match=r"^no such setting: lenght \(did you mean length\?\)$"):
        from_flat(Options, {"cache": "a", "lenght": 2})


@pytest.mark.parametrize("value", ["a\0b", Path("a\nb"), ["fine", "a\x1bb"], "a\ud800b"])
def test_control_characters_are_refused(value: object) -> None:
    with pytest.raises(
        UsageError, match=r"^--cache .*a.*b.*: must not contain control characters$"
    ) as refused:
        from_flat(Options, {"cache": value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["caf\udce9.tar", Path("caf\udce9.tar"), ["fine", "caf\udce9.tar"]])
def test_a_name_that_is_not_utf8_is_refused_by_name(value: object) -> None:
    with pytest.raises(UsageError, match=r"^--cache: the name 'caf\\xe9\.tar' is not UTF-8; rename it$"):
        from_flat(Options, {"cache": value})


def test_messages_of_our_own_validators_have_no_prefix() -> None:
    with pytest.raises(UsageError, match=r"^--metric 'foo': is none of accuracy$"):
        validated(Options, {"cache": "a", "metric": "foo"})
