"""The feature spec: round trips, the fingerprint, and what a spec refuses to be."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import SpecError
from contract.features import DENSE_FEATURES, DENSE_WIDTHS, KEY_FEATURES
from contract.spec import GROUPS, KNOWN, FeatureSpec, Field
from contract.specs import kir_spec, kuaiformer_spec, ranker_spec
from contract.user_profile import AUTHORS_MAX
from contract.vocabulary import TAGS_MAX

SHIPPED = [kir_spec(), ranker_spec(), kuaiformer_spec()]
names = st.text(string.ascii_lowercase + "_é", min_size=1, max_size=8)
TABLE_WIDTHS = {"video": 16, "author": 8, "tag": 4}


@st.composite
def fields(draw, name: str) -> Field:
    table = draw(st.sampled_from(["", *TABLE_WIDTHS]))
    return Field(
        name=name,
        feature=draw(names),
        block=("rows" if table else "dense") + draw(st.sampled_from("ab")),
        group=draw(st.sampled_from(GROUPS)),
        known=draw(st.sampled_from(KNOWN)),
        encoding="served" if table else "dense",
        width=TABLE_WIDTHS.get(table) or draw(st.integers(1, 20)),
        table=table,
        max_len=draw(st.integers(1, 4)),
        doc=draw(st.text(max_size=10)),
    )


@st.composite
def specs(draw) -> FeatureSpec:
    chosen = draw(st.lists(names, unique=True, max_size=6))
    return FeatureSpec(draw(names), tuple(draw(fields(name)) for name in chosen))


@given(specs())
def test_json_gives_back_the_spec(spec) -> None:
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.fingerprint == spec.fingerprint
    assert len(spec.fingerprint) == 16


@given(specs(), st.data())
def test_the_fingerprint_ignores_docs_and_nothing_else(spec, data) -> None:
    if not spec.fields:
        return
    place = data.draw(st.integers(0, len(spec.fields) - 1))
    field = spec.fields[place]

    def with_field(changed: Field) -> FeatureSpec:
        return replace(spec, fields=(*spec.fields[:place], changed, *spec.fields[place + 1 :]))

    assert with_field(replace(field, doc=field.doc + "!")).fingerprint == spec.fingerprint
    for change in ({"name": field.name + "x" * 9}, {"feature": field.feature + "2"}, {"max_len": field.max_len + 1}):
        assert with_field(replace(field, **change)).fingerprint != spec.fingerprint
    assert replace(spec, name=spec.name + "2").fingerprint != spec.fingerprint
    if len(spec.fields) > 1:
        assert replace(spec, fields=spec.fields[::-1]).fingerprint != spec.fingerprint, "order is part of it"


@given(specs())
def test_columns_tile_each_block(spec) -> None:
    assert [f for b in spec.blocks for f in (c.field for c in spec.columns(b))] == sorted(
        spec.fields, key=lambda f: spec.blocks.index(f.block)
    )
    for block in spec.blocks:
        end = 0
        for column in spec.columns(block):
            assert column.slice == slice(end, end + column.field.width)
            end = column.slice.stop
        assert spec.width(block) == end
    assert spec.width("nowhere") == 0
    assert spec.columns("nowhere") == ()


@given(specs())
def test_dropping_fields(spec) -> None:
    assert spec.without([]) == spec
    assert spec.without([f.name for f in spec.fields]).fields == ()
    bare = spec.without_served()
    assert bare.tables == {}
    assert bare == spec.without([f.name for f in spec.fields if f.table])
    with pytest.raises(SpecError, match="NoSuchField"):
        spec.without(["NoSuchField"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(json_values)
def test_no_json_but_a_spec_is_parsed(data) -> None:
    with pytest.raises(SpecError):
        FeatureSpec.from_json(data)


@given(st.dictionaries(st.sampled_from(["name", "fields", "format", "more"]), json_values), st.data())
def test_hostile_specs_give_a_spec_error_or_a_spec(data, draw) -> None:
    data["format"] = "kir-spec/1"
    if draw.draw(st.booleans()):
        field = SHIPPED[0].to_json()["fields"][0]
        key = draw.draw(st.sampled_from(sorted(field)))
        data["fields"] = [{**field, key: draw.draw(json_values)}]
    try:
        spec = FeatureSpec.from_json(data)
    except SpecError:
        return
    assert len(spec.fingerprint) == 16


FIELD = Field("a", "video_id", "rows", "video", "page", "served", 8, table="video")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"known": "later"}, "known"),
        ({"group": "weather"}, "group"),
        ({"encoding": "sparse"}, "encoding"),
        ({"width": 0}, "width"),
        ({"max_len": 0}, "max_len"),
        ({"table": ""}, "table"),
        ({"encoding": "dense"}, "table"),
    ],
)
def test_fields_refuse_what_makes_no_sense(change, message) -> None:
    with pytest.raises(SpecError, match=message):
        replace(FIELD, **change)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (FIELD, "unique"),
        (replace(FIELD, name="b", width=9), "one width"),
        (Field("b", "hour", "rows", "user", "page", "dense", 24), "mixes"),
    ],
)
def test_specs_refuse_fields_that_contradict_each_other(other, message) -> None:
    with pytest.raises(SpecError, match=message):
        FeatureSpec("x", (FIELD, other))


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: s.name)
def test_shipped_specs_name_features_that_exist(spec) -> None:
    for field in spec.fields:
        if field.encoding == "dense":
            assert field.feature in DENSE_FEATURES
            assert field.width == DENSE_WIDTHS[field.feature]
        else:
            assert field.feature in KEY_FEATURES
            assert field.max_len == {"tags": TAGS_MAX, "recent_authors": AUTHORS_MAX}.get(field.feature, 1)


def test_watched_tokens_hold_watch_features_only() -> None:
    """A watched token's keys and values are cached: nothing now-relative may enter it."""
    for field in kir_spec().fields:
        if field.block.startswith("watched"):
            assert field.known == "watch", field.name
    assert {field.group for field in kir_spec().fields} == set(GROUPS), "all five groups"


def test_shipped_fingerprints_differ() -> None:
    assert len({spec.fingerprint for spec in [*SHIPPED, kir_spec(video=32), kir_spec().without_served()]}) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 10**9}, "out of range"),
        ({"max_len": 65}, "out of range"),
        ({"width": 2.5}, "must be int"),
        ({"width": True}, "must be int"),
        ({"name": ["user_id"]}, "must be str"),
        ({"doc": 7}, "must be str"),
    ],
)
def test_a_field_of_another_type_or_size_is_refused(change: dict[str, Any], words: str) -> None:
    data = kir_spec().to_json()
    data["fields"][0].update(change)
    with pytest.raises(SpecError, match=words):
        FeatureSpec.from_json(data)


def test_a_spec_of_ten_thousand_fields_is_refused_at_once() -> None:
    data = kir_spec().to_json()
    data["fields"] = [data["fields"][0] | {"name": f"f{n}"} for n in range(10_000)]
    with pytest.raises(SpecError, match="too many fields"):
        FeatureSpec.from_json(data)
