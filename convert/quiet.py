"""Silence around converters: torch, onnx2tf and the quantizer print bars and notices, from Python and from C++."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

from contract.errors import ConversionError, KirError

TAIL_CHARACTERS = 400

# (message pattern, category, reason)
_IGNORED = (
    (r"You are using the legacy TorchScript-based ONNX export", DeprecationWarning, "chosen: convert/onnx_export.py"),
    (r"The feature will be removed. Please remove usage", DeprecationWarning, "the same, from inside torch"),
    (r"Converting a tensor to a Python", Warning, "TracerWarning: sizes; parity at other inputs is checked"),
    (r"Using len to get tensor shape", Warning, "the same: shapes are fixed"),
    (r"Exporting a model to ONNX with a batch_size other than 1", UserWarning, "of recurrent nets: shapes are fixed"),
    (r"Warning: Enabling `experimental_preserve_all_tensors`", UserWarning, "how the quantizer looks for activations"),
    (r"\s*Warning: tf\.lite\.Interpreter is deprecated", UserWarning, "how TensorFlow's own calibration runs"),
)


@contextlib.contextmanager
def quiet(what: str) -> Iterator[None]:
    """Send descriptors 1 and 2, and Python's streams, to a scratch file.

    An exception becomes a ConversionError with that file's last lines.

    what: says in the error what was being done. Not for concurrent use in threads of one process.
    """
    level = logging.getLogger("torch.onnx").level
    with tempfile.TemporaryFile("w+b") as log:
        saved = _redirect(log.fileno())
        try:
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            with warnings.catch_warnings():
                for message, category, _ in _IGNORED:
                    warnings.filterwarnings("ignore", message=message, category=category)
                with open(log.fileno(), "a", closefd=False) as text, redirect_stdout(text), redirect_stderr(text):
                    yield
        except (KirError, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:  # onnx2tf leaves with sys.exit
            sys.stdout.flush()
            sys.stderr.flush()
            log.seek(0)
            tail = log.read().decode(errors="replace")[-TAIL_CHARACTERS:]
            raise ConversionError(f"{what} failed", got=f"{type(error).__name__}: {error} {tail}".strip()) from error
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
            _restore(saved)


def _redirect(target: int) -> tuple[int, int]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(target, 1)
    os.dup2(target, 2)
    return saved


def _restore(saved: tuple[int, int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for handle, number in zip(saved, (1, 2), strict=True):
        os.dup2(handle, number)
        os.close(handle)
