"""A phone-like machine: arm64, 4 KiB pages, 384 MiB of RAM. Published models replay there, and an edge lives there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.device.device import DelegateMissing
from benchmarks.device.emulated import EmulatedDevice, MachineConfig
from benchmarks.device.replayed import last_json, replay_on
from benchmarks.device.runtime import Runtime, install_runtime
from contract.errors import IntegrityError
from contract.golden import fused_values, rankings_agree
from contract.manifest import MANIFEST_NAME, Manifest
from edge._replay import STEADY
from tests.device.conftest import RECIPES
from tests.device.there.sessions import sessions_of
from tests.device.there.variants import outputs_of
from tests.e2e.conftest import DAY_MS, WORLD, SmallLoop

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(900)]
MEMORY_MIB = 384
REPLAY_RSS_KB = 60e6 / 1024  # kB of /proc are KiB
EDGE_RSS_KB = 90e6 / 1024
THERE = Path(__file__).with_name("there")
# Starts LiteRT without its default delegates, as a build or a phone would that can't apply XNNPACK.
NO_DELEGATE = """
import functools
from ai_edge_litert import interpreter
plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
interpreter.Interpreter = functools.partial(interpreter.Interpreter, experimental_op_resolver_type=plain)
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[EmulatedDevice]:
    with EmulatedDevice.booted(MachineConfig(memory_mib=MEMORY_MIB)) as booted:
        yield booted


@pytest.fixture(scope="module")
def runtime(machine: EmulatedDevice) -> Runtime:
    return install_runtime(machine.device)


@pytest.fixture(scope="module")
def model(runtime: Runtime, default_model: Path) -> str:
    """Where the default preset's model lies on the device."""
    runtime.device.push(default_model, f"{runtime.device.root}/{default_model.name}")
    return default_model.name


def say_memory(what: str, kb: int) -> None:
    """Both units, since a target in MB is easily read as MiB."""
    print(f"peak RSS, {what}: {kb * 1024 / 1e6:.1f} MB ({kb / 1024:.1f} MiB)")


def test_it_is_what_it_says(machine: EmulatedDevice) -> None:
    print(f"ready after {machine.boot_s:.1f} s (target: 20 s on a machine that does nothing else)")
    told = machine.device.properties()
    assert machine.device.kind == "emulated-arm64"
    assert (told["abi"], told["page_size"]) == ("arm64-v8a", "4096")
    assert 0 < int(told["memory_kb"]) < MEMORY_MIB * 1024
    assert "asimddp" in told["cpu_features"].split()  # the int8 kernels of newer phones
    assert machine.device.logcat() == ""
    assert machine.device.run(["id", "-u"], timeout_s=60).stdout.strip() == "2000"  # no root


def test_a_trained_model_replays_its_golden_cases_in_little_memory(runtime: Runtime, small_loop: SmallLoop) -> None:
    runtime.device.push(small_loop.paths.cdn, f"{runtime.device.root}/cdn")
    replayed = replay_on(runtime, "cdn", timeout_s=300)
    assert replayed.report["dense_version"] == small_loop.first
    assert replayed.ok, replayed.problems()
    assert replayed.foreign == ()  # every library that ran came with the runtime
    say_memory("golden cases of the small loop's model", replayed.peak_rss_kb)
    assert replayed.peak_rss_kb <= REPLAY_RSS_KB


def test_the_default_preset_replays_past_an_eviction(runtime: Runtime, model: str) -> None:
    replayed = replay_on(runtime, model, timeout_s=300)
    assert replayed.ok, replayed.problems()
    assert sum("swipe)" in case["case"] for case in replayed.report["cases"]) > 50
    say_memory("golden cases of the default preset", replayed.peak_rss_kb)
    assert replayed.peak_rss_kb <= REPLAY_RSS_KB


def test_every_variant_gives_what_it_gives_here(
    runtime: Runtime, model: str, default_model: Path, tmp_path: Path
) -> None:
    """x86 against arm64, every variant of every graph: within its tolerance, and by XNNPACK."""
    runtime.device.push(THERE / "variants.py", f"{runtime.device.root}/variants.py")
    ran = runtime.python(["variants.py", model, "variants.npz"], timeout_s=300)
    assert ran.returncode == 0, ran.stderr
    runtime.device.pull(f"{runtime.device.root}/variants.npz", tmp_path / "variants.npz")
    there, here = np.load(tmp_path / "variants.npz"), outputs_of(str(default_model))
    assert set(there.files) == set(here)
    manifest = Manifest.from_bytes((default_model / MANIFEST_NAME).read_bytes())
    compared = 0
    for graph in manifest.graphs:
        for variant in graph.variants:
            name = f"{graph.name}/{graph.bucket} {variant.name}"
            assert there[f"{name} delegated"] == 1, f"{name} ran without XNNPACK"
            apart = max(
                float(np.abs(there[f"{name} {t.name}"] - here[f"{name} {t.name}"]).max()) for t in graph.outputs
            )
            assert apart <= variant.tolerance, name
            compared += 1
    assert compared > 20


def test_the_golden_session_runs_alike_with_every_variant(
    runtime: Runtime, model: str, default_model: Path, tmp_path: Path
) -> None:
    """Shipped or not: x86 against arm64 over the whole session, within what `kir replay` would allow the variant: three
    graphs' tolerance, and no more than rounding costs its session altogether."""
    runtime.device.push(THERE / "sessions.py", f"{runtime.device.root}/sessions.py")
    ran = runtime.python(["sessions.py", model, "sessions.npz"], timeout_s=600)
    assert ran.returncode == 0, ran.stderr
    runtime.device.pull(f"{runtime.device.root}/sessions.npz", tmp_path / "sessions.npz")
    there, here = np.load(tmp_path / "sessions.npz"), sessions_of(str(default_model))
    assert set(there.files) == set(here)
    manifest = Manifest.from_bytes((default_model / MANIFEST_NAME).read_bytes())
    weights_T = np.array([manifest.fusion.get(task, 0.0) for task in manifest.tasks], np.float32)
    for name in RECIPES:
        swipes = [key for key in here if key.startswith(f"{name} ")]
        assert len(swipes) > 50
        cost = max(float(np.abs(here[key] - here[f"float32 {key.split()[1]}"]).max()) for key in swipes)
        graphs = 3 * max(
            variant.tolerance
            for graph in manifest.graphs
            for variant in graph.variants
            if graph.name in ("page", "watch", "swipe") and variant.name == name
        )
        tolerance = min(graphs, max(STEADY, cost))
        apart = max(float(np.abs(there[key] - here[key]).max()) for key in swipes)
        print(f"golden session, {name}: at most {apart:.1e} from x86, allowed {tolerance:.1e}")
        assert apart <= tolerance, name
        values = tolerance * float(np.abs(weights_T).sum()) / 4  # a sigmoid's slope is at most 1/4
        for key in swipes:
            want, got = (fused_values(side[key], weights_T) for side in (here, there))
            assert rankings_agree(want, got, values), key


def test_a_graph_without_xnnpack_is_refused_by_name(runtime: Runtime, model: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_DELEGATE)
    runtime.device.push(tmp_path / "sitecustomize.py", f"{runtime.device.root}/plain/sitecustomize.py")
    path = f"{runtime.device.root}/plain:{runtime.environment()['PYTHONPATH']}"
    with pytest.raises(DelegateMissing, match="XNNPACK was not applied"):
        replay_on(runtime, model, timeout_s=300, env={"PYTHONPATH": path})


def test_a_damaged_file_is_named(runtime: Runtime, default_model: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(default_model, tmp_path / "damaged"))
    path = max(damaged.glob("*.tflite"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    runtime.device.push(damaged, f"{runtime.device.root}/damaged")
    shipped = Manifest.from_bytes((damaged / MANIFEST_NAME).read_bytes()).graphs
    assert path.name in {graph.variant().file for graph in shipped}
    with pytest.raises(IntegrityError, match=path.name):
        replay_on(runtime, "damaged", timeout_s=300)


def test_a_phones_life_against_the_server_here(
    runtime: Runtime,
    small_loop: SmallLoop,
    serve: Callable,
    wait_for: Callable,
    tmp_path: Path,
) -> None:
    """Page, swipes, feedback into Parquet, a new model, and back to the old one: all through `adb reverse`."""
    from contract.parquet import read_events
    from convert.bundle import add_rows
    from convert.publish import publish

    paths = small_loop.copy_serving(tmp_path / "own")
    add_rows(paths.bundle, small_loop.paths.checkpoint("kir-2"))
    server = serve(paths, "--events", str(tmp_path / "events"))
    device, swipes = runtime.device, 12
    for port in (server.grpc_port, server.http_port):
        device.reverse(port, port)
    device.push(small_loop.paths.root_json, f"{device.root}/root.json")
    device.push(THERE / "phone.py", f"{device.root}/phone.py")
    now_ms = WORLD.start_ms + WORLD.days * DAY_MS + 10 * 3_600_000
    told = f'{{"grpc": "{server.grpc_address}", "cdn": "{server.http_url}", "user": 3, '
    told += f'"swipes": {swipes}, "now_ms": {now_ms}}}'

    def arrived() -> bool:
        assert not life.done(), life.result()
        folder = tmp_path / "events"
        return bool(list(folder.glob("*.parquet"))) and len(read_events(folder)) >= swipes

    with ThreadPoolExecutor(1) as pool:
        life = pool.submit(runtime.python, ["phone.py", told], timeout_s=400)
        wait_for(arrived, 200)
        publish(small_loop.paths.model("kir-2"), paths.cdn, keys=small_loop.paths.keys)
        heard = last_json(life.result(), device.serial)
    assert heard["started"] == "no_model"
    assert (heard["first"], heard["second"]) == (small_loop.first, small_loop.second)
    assert heard["sent"]
    for part, version in (
        ("choices", small_loop.first),
        ("after_update", small_loop.second),
        ("after_rollback", small_loop.first),
    ):
        assert {(chooser, dense) for _, chooser, dense in heard[part]} == {("model", version)}, part
    assert heard["restarted"] == ""
    assert heard["stays"] is None  # what was rolled back does not come again by itself
    events = read_events(tmp_path / "events")
    assert events["video_id"].tolist()[:swipes] == [video_id for video_id, _, _ in heard["choices"]]
    say_memory("whole edge", heard["peak_rss_kb"])
    assert heard["peak_rss_kb"] <= EDGE_RSS_KB
