"""The Android project as text, which needs no SDK: versions, flags, workflow, scripts, and Kotlin's brackets."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import contract.vocabulary
from contract.golden import FORMAT as GOLDEN_FORMAT
from contract.manifest import MANIFEST_FORMAT, MANIFEST_NAME, Manifest
from edge._replay import _session_tolerance
from tests.android.jvm import ANDROID

CATALOGUE = (ANDROID / "gradle" / "libs.versions.toml").read_text()
VERSIONS = tomllib.loads(CATALOGUE)
MODULES = ("core", "pages", "model", "app", "benchmark")
KOTLIN = sorted(ANDROID.rglob("*.kt")) + sorted(ANDROID.rglob("*.kts"))
WORKFLOW = ANDROID / "ci" / "android.yml"


def script(module: str) -> str:
    return (ANDROID / module / "build.gradle.kts").read_text()


class TestGradle:
    def test_every_module_is_included_and_has_sources(self) -> None:
        settings = (ANDROID / "settings.gradle.kts").read_text()
        assert re.findall(r'":(\w+)"', settings) == list(MODULES)
        for module in MODULES:
            folder = ANDROID / module / "src"
            assert [*folder.rglob("*.java"), *folder.rglob("*.kt")], module

    def test_every_version_library_and_plugin_of_the_catalogue_is_used(self) -> None:
        scripts = "".join(script(module) for module in MODULES) + (ANDROID / "build.gradle.kts").read_text()
        for name in VERSIONS["libraries"]:
            assert f"libs.{name.replace('-', '.')}" in scripts, name
        for name in VERSIONS["plugins"]:
            assert f"libs.plugins.{name.replace('-', '.')}" in scripts, name
        entries = [*VERSIONS["libraries"].values(), *VERSIONS["plugins"].values()]
        refs = {entry["version"]["ref"] for entry in entries}
        for version in set(VERSIONS["versions"]) - refs:
            assert f"libs.versions.{version}." in scripts, version

    def test_scripts_name_only_what_the_catalogue_has(self) -> None:
        known = {f"libs.{name.replace('-', '.')}" for name in VERSIONS["libraries"]}
        known |= {f"libs.plugins.{name.replace('-', '.')}" for name in VERSIONS["plugins"]}
        known |= {f"libs.versions.{name}" for name in VERSIONS["versions"]}
        for path in ANDROID.rglob("*.gradle.kts"):
            for named in re.findall(r"\blibs\.[\w.]+", path.read_text()):
                assert re.sub(r"\.get$", "", named) in known, f"{path.name}: {named}"

    def test_a_reason_stands_beside_every_version(self) -> None:
        lines = CATALOGUE.partition("[versions]")[2].partition("[libraries]")[0].strip().splitlines()
        assert len(lines) == len(VERSIONS["versions"])
        assert [line for line in lines if len(line.partition("#")[2].strip()) < 10] == []

    def test_the_runtime_is_the_one_that_goldens_are_made_with(self, repository: Path) -> None:
        project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
        assert f"ai-edge-litert=={VERSIONS['versions']['litert']}" in project["dependencies"]

    def test_the_least_android_is_litert_s(self) -> None:
        assert VERSIONS["versions"]["minSdk"] == "24"
        for module in ("model", "app", "benchmark"):
            assert "minSdk = libs.versions.minSdk.get().toInt()" in script(module)

    @pytest.mark.parametrize("module", ["app", "benchmark"])
    def test_what_makes_an_apk_maps_models_and_16_kib_libraries(self, module: str) -> None:
        text = script(module)
        assert 'noCompress += "tflite"' in text
        assert re.search(r"jniLibs \{[^}]*useLegacyPackaging = false", text)
        assert 'assets.directories += rootDir.resolve("model-assets").path' in text

    def test_the_plain_modules_know_no_android(self) -> None:
        for module in ("core", "pages"):
            assert "`java-library`" in script(module)
            assert "android" not in script(module)
            for path in (ANDROID / module / "src").rglob("*.java"):
                assert not re.search(r"^import (android|androidx|kotlin)\b", path.read_text(), re.MULTILINE), path.name

    def test_core_needs_the_jdk_alone(self) -> None:
        assert "dependencies" not in script("core")
        for path in (ANDROID / "core" / "src" / "main").rglob("*.java"):
            imports = re.findall(r"^import (?:static )?(\w+)\.", path.read_text(), re.MULTILINE)
            assert set(imports) <= {"java"}, path.name

    def test_the_benchmark_measures_release_code_by_its_own_runner(self) -> None:
        text = script("benchmark")
        assert 'testBuildType = "release"' in text
        assert '"androidx.benchmark.junit4.AndroidBenchmarkRunner"' in text

    def test_the_wrapper_has_the_gradle_that_agp_wants(self) -> None:
        properties = (ANDROID / "gradle" / "wrapper" / "gradle-wrapper.properties").read_text()
        (version,) = re.findall(r"gradle-([\d.]+)-bin\.zip", properties)
        assert version in WORKFLOW.read_text()
        assert VERSIONS["versions"]["agp"].startswith("9.4")
        assert version == "9.6.0"  # of AGP 9.4


class TestContract:
    def test_vocabulary_is_python_s(self) -> None:
        text = (ANDROID / "core/src/main/java/kir/edge/core/Vocabulary.java").read_text()
        for name in ("SIGNALS", "PXTR_HEADS", "NETWORKS", "DECODERS"):
            (words,) = re.findall(rf"{name} =\s*list\(([^)]*)\)", text)
            assert tuple(re.findall(r'"(\w+)"', words)) == getattr(contract.vocabulary, name), name
        assert f"MASK_VALUE = {contract.vocabulary.MASK_VALUE}f" in text

    def test_formats_are_python_s(self) -> None:
        model = ANDROID / "model/src/main/kotlin/kir/edge/android"
        assert f'"{MANIFEST_FORMAT}"' in (model / "PublishedModel.kt").read_text()
        assert f'"{GOLDEN_FORMAT}"' in (model / "GoldenReplay.kt").read_text()

    @pytest.mark.parametrize(
        "told", [None, {}, {"scores_max_abs": 2e-5}, {"scores_max_abs": 2e-3}, {"scores_max_abs": 9.0}]
    )
    def test_a_session_s_tolerance_is_python_s(self, told: dict[str, float] | None, tiny_cdn: Path) -> None:
        """The app's expression, read from its text and worked out beside `kir replay`'s."""
        model = ANDROID / "model/src/main/kotlin/kir/edge/android"
        text = (model / "GoldenReplay.kt").read_text()
        (expression,) = re.findall(r"private val tolerance =\s*(.+)", text)
        (steady,) = re.findall(r"const val STEADY = (\S+)", text)
        (path,) = re.findall(
            r'sessionToFloatWhole: Double =\s*manifest\.optJSONObject\("(\w+)"\)\?\.optJSONObject\("(\w+)"\)\s*'
            r'\?\.optDouble\("(\w+)", Double\.POSITIVE_INFINITY\) \?: Double\.POSITIVE_INFINITY',
            (model / "PublishedModel.kt").read_text(),
        )
        manifest = Manifest.from_bytes((tiny_cdn / "models" / "kir-a" / MANIFEST_NAME).read_bytes())
        manifest = replace(manifest, verification={} if told is None else {"session_to_float_whole": told})
        verification = {"verification": manifest.verification}
        session = verification.get(path[0], {}).get(path[1], {}).get(path[2], math.inf)

        def shipped(*names: str) -> float:
            return max(graph.variant().tolerance for graph in manifest.graphs if graph.name in names)

        names = {"minOf": min, "maxOf": max, "shipped": shipped, "STEADY": float(steady)}
        found = eval(expression, {"published": SimpleNamespace(sessionToFloatWhole=session), **names})
        assert found == _session_tolerance(manifest)

    def test_the_proto_is_the_repository_s(self, repository: Path) -> None:
        assert 'srcDir(rootDir.resolve("../contract/proto"))' in script("pages")
        (included,) = re.findall(r'include\("([^"]+)"\)', script("pages"))
        assert (repository / "contract" / "proto" / included).is_file()

    def test_every_field_that_the_decoder_reads_is_in_the_proto(self, repository: Path) -> None:
        """javalite names a getter after its field: getVideoIdsList of video_ids."""
        proto = (repository / "contract" / "proto" / "kir" / "v1" / "page.proto").read_text()
        fields = set(re.findall(r"^\s*(?:repeated |optional )?[\w.]+ (\w+) = \d+;", proto, re.MULTILINE))
        decoder = (ANDROID / "pages/src/main/java/kir/edge/pages/PageDecoder.java").read_text()
        getters = set(re.findall(r"\.get([A-Z]\w*)\(", decoder)) - {"Message", "Float"}
        for getter in getters:
            snake = re.sub(r"(?<!^)([A-Z])", r"_\1", getter).lower()
            assert snake in fields or re.sub(r"_(list|count)$", "", snake) in fields, getter
        assert len(getters) > 20


def workflow() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the dev extra")
    return yaml.safe_load(WORKFLOW.read_text())


class TestWorkflow:
    def test_every_job_lets_the_runner_use_kvm_and_imports_the_model_first(self) -> None:
        jobs = workflow()["jobs"]
        assert set(jobs) == {"emulator", "benchmark-runs", "managed-devices"}
        for name, job in jobs.items():
            assert job["runs-on"] == "ubuntu-latest"
            assert job["timeout-minutes"] <= 60
            told = [step.get("run", "") + step.get("uses", "") for step in job["steps"]]
            kvm = next(i for i, text in enumerate(told) if "99-kvm4all.rules" in text)
            assert "udevadm trigger --name-match=kvm" in told[kvm]
            imported = next(i for i, text in enumerate(told) if "importModel" in text)
            tested = next(i for i, step in enumerate(job["steps"]) if "AndroidTest" in str(step))
            assert kvm < tested, name
            assert imported < tested, name

    def test_emulators_are_x86_64_from_the_least_android_to_the_newest(self) -> None:
        job = workflow()["jobs"]["emulator"]
        levels = [entry["api"] for entry in job["strategy"]["matrix"]["include"]]
        assert levels[:3] == [VERSIONS["versions"]["minSdk"], "30", "34"]
        assert float(levels[-1]) >= float(VERSIONS["versions"]["compileSdk"])
        assert job["strategy"]["matrix"]["include"][-1]["target"].endswith("ps16k")
        for name in ("emulator", "benchmark-runs"):
            (runner,) = [s for s in workflow()["jobs"][name]["steps"] if "emulator-runner" in s.get("uses", "")]
            assert runner["uses"] == "reactivecircus/android-emulator-runner@v2"
            assert runner["with"]["arch"] == "x86_64"
            assert "-no-window" in runner["with"]["emulator-options"]

    def test_the_tasks_that_it_runs_are_those_of_the_build(self) -> None:
        text = WORKFLOW.read_text()
        assert ":app:connectedDebugAndroidTest" in text
        assert ":benchmark:connectedReleaseAndroidTest" in text
        (group,) = re.findall(r"groups \{\s*create\(\"(\w+)\"\)", script("app"))
        assert f":app:{group}GroupDebugAndroidTest" in text
        assert 'tasks.register<Sync>("importModel")' in (ANDROID / "build.gradle.kts").read_text()

    def test_managed_devices_are_of_levels_that_gradle_can_manage(self) -> None:
        levels = [int(level) for level in re.findall(r"apiLevel = (\d+)", script("app"))]
        assert len(levels) == 2
        assert min(levels) >= 27


class TestScripts:
    def test_the_test_lab_script_is_sound_shell(self) -> None:
        path = ANDROID / "ci" / "test-lab.sh"
        assert path.stat().st_mode & 0o111
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        # Beside the interpreter: `make test` runs the environment's Python without activating it.
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        shellcheck = shutil.which("shellcheck", path=search)
        assert shellcheck is not None, "shellcheck comes with the dev extra: make install"
        done = subprocess.run([shellcheck, "--severity=style", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_it_says_how_it_is_called_and_does_nothing_without(self) -> None:
        for arguments in ([], ["model", "oriole"], ["model", "oriole", "33", "--fast"]):
            command = ["bash", str(ANDROID / "ci" / "test-lab.sh"), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            assert done.returncode == 2
            assert done.stderr.startswith("usage: ")

    def test_the_apks_that_it_sends_are_those_that_gradle_makes(self) -> None:
        text = (ANDROID / "ci" / "test-lab.sh").read_text()
        for path in re.findall(r"^\s*\w+=(\w+/build/outputs/apk/\S+)$", text, re.MULTILINE):
            assert path.partition("/")[0] in MODULES
        assert "--type instrumentation" in text
        assert "--directories-to-pull /sdcard/Download" in text


# Comments, escapes, characters, and what opens or closes something, in the order in which they are tried.
TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|'(?:\\.|[^'\\])'|\\.|\$\{|[\"(){}\[\]]", re.DOTALL)
PARTNER = {")": ("(",), "]": ("[",), "}": ("{", "${")}


def unbalanced(text: str) -> str:
    """What has no partner in a Kotlin text, "" when all have; strings nest, with templates in them."""
    waiting: list[str] = []
    for token in TOKEN.findall(text):
        inside = bool(waiting) and waiting[-1] == '"'
        if token == '"':
            if inside:
                waiting.pop()
            else:
                waiting.append(token)
        elif token == "${" or (not inside and token in "([{"):
            waiting.append(token)
        elif not inside and token in PARTNER and (not waiting or waiting.pop() not in PARTNER[token]):
            return token
    return waiting[-1] if waiting else ""


class TestKotlin:
    @pytest.mark.parametrize("path", KOTLIN, ids=lambda path: path.relative_to(ANDROID).as_posix())
    def test_brackets_have_partners(self, path: Path) -> None:
        assert unbalanced(path.read_text()) == ""

    def test_a_lost_bracket_is_seen(self) -> None:
        text = (ANDROID / "model/src/main/kotlin/kir/edge/android/LiteRtGraphs.kt").read_text()
        at = text.rindex("}")
        assert unbalanced(text[:at] + text[at + 1 :]) == "{"
        assert unbalanced(text + ")") == ")"

    @pytest.mark.parametrize("path", [p for p in KOTLIN if p.suffix == ".kt"], ids=lambda path: path.stem)
    def test_a_file_lies_where_its_package_says_and_uses_what_it_imports(self, path: Path) -> None:
        text = path.read_text()
        (package,) = re.findall(r"^package ([\w.]+)$", text, re.MULTILINE)
        assert path.parent.as_posix().endswith(package.replace(".", "/"))
        for name in re.findall(r"^import [\w.]+\.(\w+)$", text, re.MULTILINE):
            assert len(re.findall(rf"\b{name}\b", text)) > 1, name

    def test_core_classes_that_kotlin_imports_are_public(self) -> None:
        core = ANDROID / "core/src/main/java/kir/edge/core"
        named = {n for p in KOTLIN for n in re.findall(r"^import kir\.edge\.core\.(\w+)$", p.read_text(), re.MULTILINE)}
        assert len(named) > 10
        for name in named:
            assert re.search(rf"^public (final )?(class|interface) {name}\b", (core / f"{name}.java").read_text(), re.M)

    def test_litert_is_called_only_as_its_2_3_0_source_has_it(self) -> None:
        """Members of CompiledModel, TensorBuffer and Environment that LiteRT 2.3.0 documents."""
        text = (ANDROID / "model/src/main/kotlin/kir/edge/android/LiteRtGraphs.kt").read_text()
        calls = set(re.findall(r"(?:compiled|CompiledModel|Environment|buffer)\.(\w+)\(", text))
        assert calls == {
            "createInputBuffer",
            "createOutputBuffer",
            "close",
            "Options",
            "CpuOptions",
            "create",
            "run",
            "readFloat",
        }


class TestReadme:
    TEXT = (ANDROID / "README.md").read_text()

    def test_every_task_and_file_that_it_names_is_there(self) -> None:
        for task in set(re.findall(r"gradle (?::\w+:)?(importModel|checkVectors)", self.TEXT)):
            assert any(f'"{task}"' in p.read_text() for p in ANDROID.rglob("*.gradle.kts")), task
        for module in re.findall(r":(\w+):\w+AndroidTest", self.TEXT):
            assert module in MODULES
        for path in ("ci/android.yml", "ci/test-lab.sh"):
            assert f"`{path}" in self.TEXT or f"{path} " in self.TEXT
            assert (ANDROID / path).is_file()

    def test_it_says_what_was_not_run(self) -> None:
        assert "**Not run here**, because" in self.TEXT
