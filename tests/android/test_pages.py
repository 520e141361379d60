"""The Java page decoder beside Python's, over the same bytes. protoc and protobuf's runtime are Debian's: the app's are
newer, and its generated code has the same getters.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.page import Page, encode_page, parse_page
from contract.v1 import page_pb2 as pb
from tests.android import jvm
from tests.edge import tiny_page

PROTOBUF = Path("/usr/share/java/protobuf.jar")
ABSENT = shutil.which("protoc") is None or not PROTOBUF.is_file()
pytestmark = [
    jvm.needs_jdk,
    pytest.mark.slow,
    pytest.mark.skipif(ABSENT, reason="apt-get install libprotobuf-java protobuf-compiler"),
]


@pytest.fixture(scope="module")
def decoder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Class path of the decoder, its generated code, and `DecodePages`."""
    generated, out = tmp_path_factory.mktemp("generated"), tmp_path_factory.mktemp("classes")
    proto = repository / "contract" / "proto"
    command = ["protoc", f"--java_out={generated}", "-I", str(proto), "kir/v1/page.proto"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jvm.compile_java(jvm.sources("main"), out)
    jvm.compile_java(generated.rglob("*.java"), out, [PROTOBUF], lint="none")
    ours = [*(jvm.ANDROID / "pages" / "src").rglob("*.java"), Path(__file__).with_name("DecodePages.java")]
    jvm.compile_java(ours, out, [out, PROTOBUF])
    return [out, PROTOBUF]


def decoded(decoder: list[Path], pages: list[bytes], folder: Path) -> list[str]:
    for number, page in enumerate(pages):
        (folder / f"{number}.page").write_bytes(page)
    done = jvm.run_java(decoder, "DecodePages", *(folder / f"{number}.page" for number in range(len(pages))))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def numbers(text: str) -> np.ndarray[Any, Any]:
    return np.array([float(word) for word in text.split(",")])


def test_every_column_is_python_s(decoder: list[Path], tmp_path: Path) -> None:
    pages = [
        tiny_page.make_page(range(101, 109)),
        tiny_page.make_page(range(200, 203), watched=(101, 102), encoding="float16", soft_ttl_ms=1, hard_ttl_ms=2**29),
        tiny_page.make_page([5, 2**63 - 1], status="no_live_version", hour=-1),
    ]
    raw = [encode_page(page).SerializeToString() for page in pages]
    for page, line in zip(map(parse_page, raw), decoded(decoder, raw, tmp_path), strict=True):
        words = line.split(" ")
        assert words[:4] == [page.page_id, page.dense_version, page.spec_fingerprint, page.rows_status]
        times = (page.rows_revision, page.soft_ttl_ms, page.hard_ttl_ms)
        user = (page.user_activity, page.user_register_days, page.hour)
        assert words[4:10] == [str(value) for value in (*times, *user)]
        check_columns(page, words[10:])


def check_columns(page: Page, words: list[str]) -> None:
    c = page.candidates
    np.testing.assert_array_equal(numbers(words[0]).astype(np.float32), page.user_profile)
    for word, column in zip(words[1:4], (c.video_id, c.author_id, c.tags), strict=True):
        assert [int(one) for one in word.split(",")] == column.astype(np.int64).ravel().tolist()
    for word, column in zip(words[4:6], (c.duration_ms, c.upload_age_days), strict=True):
        assert [int(one) for one in word.split(",")] == column.tolist()
    np.testing.assert_array_equal(numbers(words[6]).astype(np.float32), c.pxtr.ravel())


def spoilt(change: str) -> bytes:
    """A sound page with one thing wrong."""
    message = encode_page(tiny_page.make_page(range(101, 105)))
    columns, tables, indexes = message.candidates, message.row_tables, message.row_indexes
    single = next(index for index in indexes if not index.counts and index.owner == pb.ROW_OWNER_CANDIDATE)
    changes: dict[str, Any] = {
        "heads": lambda: columns.pxtr_heads.reverse(),
        "tag counts": lambda: columns.tag_counts.__setitem__(0, 4),
        "tags": lambda: columns.tags.append(1),
        "pxtr": lambda: setattr(columns, "pxtr", columns.pxtr[4:]),
        "presence": lambda: setattr(columns, "pxtr_present", b"\2" + columns.pxtr_present[1:]),
        "rows status": lambda: setattr(message, "rows_status", 99),
        "encoding": lambda: setattr(tables[0], "encoding", 99),
        "owner": lambda: setattr(single, "owner", 99),
        "row past int32": lambda: single.rows.__setitem__(0, 2**32 - 1),
        "duration past int32": lambda: columns.duration_ms.__setitem__(0, 2**32 - 1),
        "ttl": lambda: setattr(message, "soft_ttl_ms", 2**32 - 1),
        "revision": lambda: setattr(message, "rows_revision", 2**64 - 1),
        "profile": lambda: message.user.profile.append(0.5),
    }
    changes[change]()
    return message.SerializeToString()


def test_what_python_refuses_is_refused(decoder: list[Path], tmp_path: Path) -> None:
    names = (
        *("heads", "tag counts", "tags", "pxtr", "presence", "rows status", "encoding", "owner", "row past int32"),
        *("duration past int32", "ttl", "revision", "profile"),
    )
    pages = [b"\xff\xff", bytes((4 << 20) + 1), *(spoilt(name) for name in names)]
    assert decoded(decoder, pages, tmp_path) == ["refused"] * len(pages)
