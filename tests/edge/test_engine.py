"""Engine and graph runner: tensors by name, contracts checked, XNNPACK applied for sure, padding and buckets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import manifest as m
from contract.delegation import left_outside
from contract.errors import InputError, IntegrityError, NoModelError
from contract.vocabulary import MASK_VALUE
from edge import Engine, InstalledModel
from edge._engine import Memory, PageState, Past
from edge._graph import GraphRunner
from tests.convert.tiny_tflite import ROWS, WIDTH, Net
from tests.edge import tiny_model
from tests.edge.tiny_model import BUCKETS, L1, SPEC, D, G, K, P, T, V

Open = Callable[[str], InstalledModel]


def random_page(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {
        "user_rows": (1, SPEC.width("user_rows")),
        "user_dense": (1, SPEC.width("user_dense")),
        "candidate_rows": (n, SPEC.width("candidate_rows")),
        "candidate_dense": (n, SPEC.width("candidate_dense")),
    }
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def random_memory(n_watched: int, seed: int = 1) -> Memory:
    rng = np.random.default_rng(seed)
    memory = np.zeros((1, L1, 4 * D), np.float32)
    memory[0, : n_watched + 1] = rng.normal(0, 1, (n_watched + 1, 4 * D))
    mask = np.full((1, L1), MASK_VALUE, np.float32)
    mask[0, : n_watched + 1] = 0
    since = np.zeros((1, L1), np.float32)
    since[0, 1 : n_watched + 1] = 0.3
    return Memory(memory, mask, since, 2 * since)


def swipe(engine: Engine, page: PageState, memory: Memory) -> Any:
    dense = np.ones((1, SPEC.width("swipe_dense")), np.float32)
    return engine.swipe(page, memory, dense, np.zeros((1, page.bucket, SPEC.width("candidate_swipe")), np.float32))


class TestEngine:
    def test_it_knows_its_sizes(self, engine: Engine) -> None:
        assert engine.buckets == list(BUCKETS)
        assert engine.watch_buckets == [1, 3]
        assert (engine.capacity, engine.planes, engine.width) == (L1 - 1, G, D)
        assert engine.variant == "float32"
        assert engine.fusion_T.tolist() == [1.0, 0.5, 0.25, 2.0]
        assert engine.delegated

    @pytest.mark.parametrize(("n", "bucket"), [(1, 4), (4, 4), (5, 8), (8, 8)])
    def test_the_smallest_bucket_that_fits(self, engine: Engine, n: int, bucket: int) -> None:
        assert engine.bucket_for(n) == bucket
        assert engine.page(random_page(n)).bucket == bucket

    def test_above_the_largest_bucket(self, engine: Engine) -> None:
        with pytest.raises(InputError, match=r"largest bucket.*got 9"):
            engine.page(random_page(9))

    @pytest.mark.parametrize("n", range(1, 9))
    def test_scores_do_not_depend_on_padding(self, engine: Engine, n: int) -> None:
        blocks = random_page(8)
        memory = random_memory(3)
        every = swipe(engine, engine.page(blocks), memory)
        first = {name: block[:n] for name, block in blocks.items()}
        some = swipe(engine, engine.page(first), memory)
        assert some.shape == (n, T)
        np.testing.assert_allclose(some, every[:n], atol=1e-5)

    def test_a_page_leaves_nothing_for_the_next(self, engine: Engine) -> None:
        small = swipe(engine, engine.page(random_page(2)), random_memory(2))
        engine.page(random_page(4, seed=9))
        again = swipe(engine, engine.page(random_page(2)), random_memory(2))
        np.testing.assert_array_equal(small, again)

    def test_results_are_the_callers_own(self, engine: Engine) -> None:
        page = engine.page(random_page(4))
        query = page.outputs["query"].copy()
        engine.page(random_page(4, seed=3))
        np.testing.assert_array_equal(page.outputs["query"], query)

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_watching_together_is_watching_one_by_one(self, engine: Engine, n: int) -> None:
        rng = np.random.default_rng(2)
        rows = rng.normal(0, 1, (n, SPEC.width("watched_rows"))).astype(np.float32)
        dense = rng.normal(0, 1, (n, SPEC.width("watched_dense"))).astype(np.float32)
        past = np.zeros((1, G, L1, D), np.float32)
        mask = np.full((1, L1), MASK_VALUE, np.float32)
        together, memory = (out.copy() for out in engine.watch(rows, dense, 1, Past(past, mask)))
        assert together.shape == (G, n, D)
        for i in range(n):
            new, memory_new = engine.watch(rows[i : i + 1], dense[i : i + 1], 1 + i, Past(past, mask))
            np.testing.assert_allclose(new[:, 0], together[:, i], atol=1e-5)
            np.testing.assert_allclose(memory_new[0], memory[i], atol=1e-5)
            past[0, :, 1 + i], mask[0, 1 + i] = new[:, 0], 0

    def test_a_list_that_grows_is_the_list_given_whole(self, engine: Engine) -> None:
        """The graph keeps the slots before and is given the new one alone; another list is given whole again."""
        rng = np.random.default_rng(5)
        n = 4
        rows = rng.normal(0, 1, (n, SPEC.width("watched_rows"))).astype(np.float32)
        dense = rng.normal(0, 1, (n, SPEC.width("watched_dense"))).astype(np.float32)

        def grow(fresh: bool) -> list[Any]:
            past = Past(np.zeros((1, G, L1, D), np.float32), np.full((1, L1), MASK_VALUE, np.float32))
            found = []
            for i in range(n):
                if fresh:
                    past = Past(past.planes.copy(), past.mask.copy())
                new, memory = engine.watch(rows[i : i + 1], dense[i : i + 1], i, past)
                past.planes[0, :, i : i + 1], past.mask[0, i] = new, 0.0
                found.append((new.copy(), memory.copy()))
            return found

        for kept, whole in zip(grow(fresh=False), grow(fresh=True), strict=True):
            for one, other in zip(kept, whole, strict=True):
                np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("between", ["nothing", "another token", "another past"])
    def test_a_token_prepared_for_is_the_token_given_whole(self, engine: Engine, between: str) -> None:
        """Whatever ran meanwhile: what the graph no longer holds is given again."""
        rng = np.random.default_rng(6)
        rows = rng.normal(0, 1, (2, 1, SPEC.width("watched_rows"))).astype(np.float32)
        dense = rng.normal(0, 1, (2, 1, SPEC.width("watched_dense"))).astype(np.float32)
        planes = rng.normal(0, 1, (1, G, L1, D)).astype(np.float32)
        mask = np.full((1, L1), MASK_VALUE, np.float32)
        mask[0, :2] = 0.0
        past, mark = Past(planes, mask), object()
        want = [out.copy() for out in engine.watch(rows[0], dense[0], 2, Past(planes, mask))]
        engine.prepare_watch(rows[0], 2, past, mark)
        if between == "another token":
            engine.watch(rows[1], dense[1], 3, past)
        elif between == "another past":
            engine.watch(rows[0], dense[1], 2, Past(2 * planes, mask))
        for got, whole in zip(engine.watch(rows[0], dense[0], 2, past, mark), want, strict=True):
            np.testing.assert_array_equal(got, whole)

    def test_too_many_watched_at_once(self, engine: Engine) -> None:
        block = np.zeros((4, SPEC.width("watched_dense")), np.float32)
        with pytest.raises(InputError, match="more watched videos"):
            engine.watch(block, block, 0, Past(block, block))

    def test_placing_nothing_is_swiping(self, engine: Engine) -> None:
        page, memory = engine.page(random_page(6)), random_memory(4)
        dense = np.ones((1, SPEC.width("swipe_dense")), np.float32)
        now = np.zeros((1, 8, SPEC.width("candidate_swipe")), np.float32)
        placed, mask = np.zeros((1, K, P, V), np.float32), np.full((1, K, P), MASK_VALUE, np.float32)
        found = engine.place(page, memory, dense, now, placed, mask)
        assert found.shape == (K, 6, T)
        for beam in found:
            np.testing.assert_allclose(beam, engine.swipe(page, memory, dense, now), atol=1e-5)
        placed[0, 1, 0], mask[0, 1, 0] = page.placed_kv[0, 2], 0
        other = engine.place(page, memory, dense, now, placed, mask)
        np.testing.assert_allclose(other[0], found[0], atol=1e-6)
        assert np.abs(other[1] - found[1]).max() > 1e-3

    def test_reference_scores_are_the_whole_net(self, engine: Engine) -> None:
        rng = np.random.default_rng(4)
        n, blocks = 5, random_page(5)
        blocks["watched_rows"] = rng.normal(0, 1, (1, SPEC.width("watched_rows"))).astype(np.float32)
        blocks["watched_dense"] = rng.normal(0, 1, (1, SPEC.width("watched_dense"))).astype(np.float32)
        mask = np.full((1, L1), MASK_VALUE, np.float32)
        mask[0, 0] = 0
        past = np.zeros((1, G, L1, D), np.float32)
        _, memory_new = engine.watch(
            blocks["watched_rows"], blocks["watched_dense"], 0, Past(past, np.full_like(mask, MASK_VALUE))
        )
        memory = np.zeros((1, L1, 4 * D), np.float32)
        memory[0, :1] = memory_new
        since, behind = np.zeros((2, 1, L1), np.float32)
        dense = np.ones((1, SPEC.width("swipe_dense")), np.float32)
        now = rng.normal(0, 1, (1, 8, SPEC.width("candidate_swipe"))).astype(np.float32)
        halves = engine.swipe(engine.page(blocks), Memory(memory, mask, since, behind), dense, now)
        now_blocks = {"memory_mask": mask, "since": since, "behind": behind}
        now_blocks |= {"swipe_dense": dense, "candidate_swipe": now[0, :n]}
        np.testing.assert_allclose(halves, engine.reference_scores({**blocks, **now_blocks}), atol=1e-5)


def spoilt(model: InstalledModel, **changes: Any) -> InstalledModel:
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, **changes))


def graphs_with(model: InstalledModel, name: str, change: Callable[[m.Graph], m.Graph]) -> tuple[m.Graph, ...]:
    return tuple(change(g) if g.name == name else g for g in model.manifest.graphs)


class TestRefusals:
    def test_a_tensor_of_another_name(self, published: Open) -> None:
        model = published("kir-a")

        def rename(graph: m.Graph) -> m.Graph:
            first, *rest = graph.inputs
            return dataclasses.replace(graph, inputs=(dataclasses.replace(first, name="quarry"), *rest))

        with pytest.raises(NoModelError, match=r"swipe/N4.*input tensors.*quarry"):
            Engine(spoilt(model, graphs=graphs_with(model, "swipe", rename)))

    def test_a_tensor_of_another_shape(self, published: Open) -> None:
        model = published("kir-a")

        def reshape(graph: m.Graph) -> m.Graph:
            return dataclasses.replace(graph, outputs=(m.Tensor("scores", (1, 4, 3)),))

        with pytest.raises(NoModelError, match=r"swipe/N4.*output tensors.*scores"):
            Engine(spoilt(model, graphs=graphs_with(model, "swipe", reshape)))

    def test_a_tensor_of_another_type(self, published: Open) -> None:
        model = published("kir-a")

        def retype(graph: m.Graph) -> m.Graph:
            return dataclasses.replace(
                graph, outputs=tuple(dataclasses.replace(t, dtype="int8") for t in graph.outputs)
            )

        with pytest.raises(NoModelError, match="int8"):
            Engine(spoilt(model, graphs=graphs_with(model, "page", retype)))

    @pytest.mark.parametrize("name", ["page", "watch", "swipe"])
    def test_a_missing_graph(self, published: Open, name: str) -> None:
        model = published("kir-a")
        with pytest.raises(NoModelError):
            Engine(spoilt(model, graphs=tuple(g for g in model.manifest.graphs if g.name != name)))

    def test_no_graph_for_one_video(self, published: Open) -> None:
        model = published("kir-a")
        graphs = tuple(g for g in model.manifest.graphs if g.bucket != "T1")
        with pytest.raises(NoModelError, match="one video"):
            Engine(spoilt(model, graphs=graphs))

    @pytest.mark.parametrize("capacity", [None, 0, 5, "6"])
    def test_an_unusable_capacity(self, published: Open, capacity: object) -> None:
        with pytest.raises(NoModelError, match="capacity L"):
            Engine(spoilt(published("kir-a"), capacities={"L": capacity}))

    def test_a_missing_place_graph_is_told_on_use(self, published: Open) -> None:
        model = published("kir-a")
        engine = Engine(spoilt(model, graphs=tuple(g for g in model.manifest.graphs if g.name != "place")))
        page, memory = engine.page(random_page(2)), random_memory(1)
        zero = np.zeros((1, 1), np.float32)
        with pytest.raises(NoModelError, match=r"place/N4"):
            engine.place(page, memory, zero, zero, zero, zero)

    def test_damaged_bytes(self, cdn: Path) -> None:
        model = InstalledModel.open_published(cdn / "models" / "kir-a")
        file = model.manifest.graph("page", "N4").variant().file
        model.paths[file].write_bytes(b"not a model")
        with pytest.raises(IntegrityError, match=file):
            Engine(model)

    def test_bytes_that_are_no_model(self, published: Open) -> None:
        graph = published("kir-a").manifest.graph("page", "N4")
        with pytest.raises(NoModelError, match=r"page/N4.*does not load"):
            GraphRunner(b"TFL3" * 100, graph)


class TestDelegate:
    def test_without_xnnpack_it_refuses(self, published: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        model = published("kir-a")
        graph = model.manifest.graph("page", "N4")
        content = model.read(graph.variant().file)
        without_delegate(monkeypatch)
        with pytest.raises(NoModelError, match="without XNNPACK"):
            GraphRunner(content, graph)
        allowed = GraphRunner(content, graph, allow_no_delegate=True)
        assert not allowed.delegated

    def test_both_give_the_same(self, published: Open, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        without_delegate(monkeypatch)
        plain = Engine(published("kir-a"), allow_no_delegate=True)
        assert not plain.delegated
        blocks = random_page(4)
        np.testing.assert_allclose(plain.page(blocks).outputs["query"], engine.page(blocks).outputs["query"], atol=1e-5)


def partly_delegated(outside: int, inside: int) -> tuple[bytes, m.Graph]:
    """x -> `outside` open-ended SLICEs, which XNNPACK leaves out -> `inside` MULs, which it takes -> y."""
    net, at = Net(), "x"
    net.tensor("x", (1, ROWS, WIDTH))
    net.tensor("from", (3,), "int32", value=np.zeros(3))
    net.tensor("size", (3,), "int32", value=np.array((1, -1, WIDTH)))
    for number in range(outside):
        net.tensor(f"slice{number}", (1, ROWS, WIDTH))
        at = net.operator("SLICE", (at, "from", "size"), f"slice{number}", "SliceOptions")
    for number in range(inside):
        name = "y" if number == inside - 1 else f"mul{number}"
        net.tensor(name, (1, ROWS, WIDTH))
        at = net.operator("MUL", (at, at), name, "MulOptions")
    sides = [(m.Tensor(name, (1, ROWS, WIDTH)),) for name in "xy"]
    return net.bytes(["x"], ["y"]), m.Graph("swipe", "N4", sides[0], sides[1], (), "float32")


class TestPartlyDelegated:
    @pytest.mark.parametrize(
        ("outside", "inside", "told", "runs"),
        [
            (2, 1, 0, False),
            (2, 1, 1, False),
            (2, 1, 2, True),
            (2, 1, 3, True),  # here XNNPACK takes more than there
            (2, 1, None, True),  # a manifest older than the count
            (1, 9, 0, True),  # a tenth of the graph
            (2, 17, 0, False),
            (106, 1, 0, False),
        ],
    )
    def test_more_outside_than_where_it_was_made_is_refused(
        self, outside: int, inside: int, told: int | None, runs: bool
    ) -> None:
        content, graph = partly_delegated(outside, inside)
        if runs:
            assert GraphRunner(content, graph, left_out=told).delegated
            return
        with pytest.raises(NoModelError, match=f"{outside} of {outside + inside} operators outside"):
            GraphRunner(content, graph, left_out=told)
        accepted = GraphRunner(content, graph, left_out=told, allow_no_delegate=True)
        assert not accepted.delegated
        accepted.try_out()

    def test_the_engine_asks_for_what_the_manifest_tells(self, published: Open) -> None:
        model = published("kir-a")
        engine = Engine(model)
        nodes = engine.load_graph("page", "N4")._interpreter._get_ops_details()
        outside = len(left_outside(nodes))
        assert outside > 2  # TensorFlow wrote ADD_N, which XNNPACK does not take

        def told(count: int) -> InstalledModel:
            def tell(graph: m.Graph) -> m.Graph:
                (variant,) = graph.variants
                return dataclasses.replace(
                    graph, variants=(dataclasses.replace(variant, verification={"left_out": count}),)
                )

            return spoilt(model, graphs=graphs_with(model, "page", tell))

        assert Engine(told(outside)).delegated
        with pytest.raises(NoModelError, match=r"page/N.*leaves too much"):
            Engine(told(0))
        assert not Engine(told(0), allow_no_delegate=True).delegated


def without_delegate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on a device where XNNPACK can't start: plain kernels, no error (shared/reference/on-device.md)."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES

    def make(**kwargs: Any) -> Interpreter:
        return Interpreter(**kwargs, experimental_op_resolver_type=plain)

    monkeypatch.setattr("edge._graph.Interpreter", make)


def test_runner_keeps_given_and_own_inputs_apart(published: Open) -> None:
    model = published("kir-a")
    graph = model.manifest.graph("page", "N4")
    runner = GraphRunner(model.read(graph.variant().file), graph)
    zero = runner.run()["query"]
    given = np.ones_like(runner.inputs["user_dense"])
    other = runner.run({"user_dense": given})["query"]
    assert np.abs(other - zero).max() > 1e-3
    np.testing.assert_array_equal(runner.run()["query"], zero)
    assert runner.inputs["user_dense"].max() == 0


class TestWhatAGraphHolds:
    @pytest.fixture
    def runner(self, published: Open) -> GraphRunner:
        model = published("kir-a")
        graph = model.manifest.graph("page", "N4")
        return GraphRunner(model.read(graph.variant().file), graph)

    def test_inputs_outlive_a_run(self, runner: GraphRunner) -> None:
        runner.try_out()
        assert runner.keeps_inputs
        mark = object()
        assert not runner.holds("all", mark)
        runner.give({name: np.ones_like(value) for name, value in runner.inputs.items()})
        first = runner.invoke()["query"].copy()
        assert runner.holds("all", mark)
        np.testing.assert_array_equal(runner.invoke()["query"], first)

    def test_another_mark_is_given_again(self, runner: GraphRunner) -> None:
        runner.try_out()
        runner.holds("all", object())
        assert not runner.holds("all", object())

    def test_what_could_not_be_given_is_not_held(self, runner: GraphRunner) -> None:
        runner.try_out()
        mark = object()
        runner.holds("all", mark)
        with pytest.raises(ValueError, match="imension"):
            runner.give({"user_dense": np.ones((1, 1), np.float32)})
        assert not runner.holds("all", mark)

    def test_where_inputs_do_not_last_nothing_is_held(self, runner: GraphRunner) -> None:
        mark = object()
        runner.holds("all", mark)
        assert not runner.holds("all", mark)

    def test_a_whole_run_forgets_what_was_held(self, runner: GraphRunner) -> None:
        runner.try_out()
        mark = object()
        runner.holds("all", mark)
        runner.run()
        assert not runner.holds("all", mark)

    def test_a_part_is_written_where_it_stands(self, runner: GraphRunner) -> None:
        zero = runner.run()["query"]
        runner.inputs["user_dense"][0, :2] = 1.0
        part = runner.invoke()["query"].copy()
        whole = np.zeros_like(runner.inputs["user_dense"])
        whole[0, :2] = 1.0
        np.testing.assert_array_equal(part, runner.run({"user_dense": whole})["query"])
        assert np.abs(part - zero).max() > 0

    def test_what_a_run_gives_is_the_callers_own(self, runner: GraphRunner) -> None:
        first = runner.run()["query"]
        kept = first.copy()
        runner.run({name: np.ones_like(value) for name, value in runner.inputs.items()})
        np.testing.assert_array_equal(first, kept)

    def test_of_a_growing_list_it_lacks_what_joined(self, runner: GraphRunner) -> None:
        runner.try_out()
        mark = object()
        assert runner.lacks("list", mark, 2) == -1
        assert runner.lacks("list", mark, 5) == 2
        assert runner.lacks("list", mark, 5) == 5
        assert runner.lacks("list", object(), 3) == -1

    def test_where_inputs_do_not_last_a_list_is_lacked_whole(self, runner: GraphRunner) -> None:
        mark = object()
        runner.lacks("list", mark, 2)
        assert runner.lacks("list", mark, 3) == -1

    def test_tensors_that_move_are_refused(self, runner: GraphRunner) -> None:
        """Arrays over LiteRT's memory are bound once: a graph whose tensors move would be read where they were."""
        runner.outputs["query"] = runner.outputs["query"].copy()
        with pytest.raises(NoModelError, match=r"page/N4.*moves its tensors.*query"):
            runner.try_out()


def test_tiny_model_sizes_are_the_manifests(published: Open) -> None:
    manifest = published("kir-a").manifest
    assert manifest.capacities["N"] == list(tiny_model.BUCKETS)
    assert {g.name for g in manifest.graphs} == {"page", "watch", "swipe", "place", "whole"}
