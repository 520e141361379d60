"""Counting the products of a graph: known cases by hand, the encoder's against torch's own counter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.flops import Floor, Product, products_of, total_flops
from contract.errors import InputError
from convert.encoder_graph import encoder_graph
from training.kuaiformer import KuaiFormer, KuaiFormerConfig


def model_of(nodes: list[Any], inputs: dict[str, list[Any]], output: str, **constants: np.ndarray) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "test", values, [out], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


class TestCount:
    def test_a_weight_makes_one_product_of_all_rows(self) -> None:
        model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["b", 7, 5]}, "y", w=floats(5, 3))
        assert products_of(model, 4) == Counter({Product(1, 28, 5, 3): 1})
        assert total_flops(products_of(model, 4)) == 2 * 4 * 7 * 5 * 3

    def test_two_inputs_make_one_product_a_row(self) -> None:
        node = helper.make_node("MatMul", ["x", "z"], ["y"])
        model = model_of([node], {"x": ["b", 2, 7, 5], "z": ["b", 1, 5, 3]}, "y")
        assert products_of(model, 4) == Counter({Product(8, 7, 5, 3): 1})

    def test_the_same_product_twice(self) -> None:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
        model = model_of(nodes, {"x": ["b", 6]}, "y", w=floats(6, 6))
        assert products_of(model, 3) == Counter({Product(1, 3, 6, 6): 2})

    @pytest.mark.parametrize("turned", [0, 1])
    def test_gemm(self, turned: int) -> None:
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=turned)
        weight = floats(3, 5) if turned else floats(5, 3)
        assert products_of(model_of([node], {"x": ["b", 5]}, "y", w=weight), 2) == Counter({Product(1, 2, 5, 3): 1})

    def test_attention(self) -> None:
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=4)
        shapes = {"q": ["b", 9, 32], "k": ["b", 11, 32], "v": ["b", 11, 32]}
        found = products_of(model_of([node], shapes, "y"), 2)
        assert found == Counter({Product(8, 9, 8, 11): 1, Product(8, 9, 11, 8): 1})
        assert total_flops(found) == 2 * 2 * 2 * 9 * 11 * 32

    def test_what_is_no_product_counts_nothing(self) -> None:
        model = model_of([helper.make_node("Mul", ["x", "x"], ["y"])], {"x": ["b", 500]}, "y")
        assert total_flops(products_of(model, 8)) == 0

    def test_an_open_shape_is_refused(self) -> None:
        nodes = [helper.make_node("Reshape", ["x", "s"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
        model = model_of(nodes, {"x": ["b", 6]}, "y", w=floats(6, 6))
        model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, [2]))
        with pytest.raises(InputError, match="stays open"):
            products_of(model, 3)


class TestEncoder:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_by_hand(self, batch: int) -> None:
        """Windows 4 + 4, 3 raw, 2 queries, width 8, hidden 6, 2 heads, 2 layers, R input columns."""
        config = KuaiFormerConfig(
            width=8,
            heads=2,
            layers=2,
            hidden=6,
            interests=2,
            windows=(4, 4),
            latest=3,
            video_width=4,
            attribute_width=2,
        )
        row = config.spec().width("history_rows")
        encoder = KuaiFormer(config, config.spec()).eval().encoder
        first = min((row + 1) * 8 + 8 * 6 * 2, (row + 1) * 6 * 2)  # one by one, or folded into gate and up
        tokens = 11 * (first + 6 * 8 + (row + 1) * 8)
        windows = 8 * (4 * 8 * 8 + 2 * 8 * 6) + 2 * 4 * 4 * 8 * 2 + 2 * 8 * (8 + 6) + 2 * 6 * 8
        whole = 7 * (4 * 8 * 8 + 3 * 8 * 6) + 2 * 7 * 7 * 8
        last = 7 * 2 * 8 * 8 + 2 * (2 * 8 * 8 + 3 * 8 * 6) + 2 * 2 * 7 * 8
        out = 2 * 8 * 8
        want = 2 * batch * (tokens + windows + whole + last + out)
        assert total_flops(products_of(encoder_graph(encoder, row), batch)) == want

    @pytest.mark.parametrize("rows", [2, 64])
    def test_beside_torch(self, rows: int) -> None:
        """What is served needs less than what is trained, for narrow rows and wide ones; encoder_graph.py tells why."""
        from torch.utils.flop_counter import FlopCounterMode

        sizes = {"width": 32, "heads": 2, "layers": 2, "hidden": 80, "interests": 4, "windows": (16, 8), "latest": 8}
        config = KuaiFormerConfig(**sizes, video_width=rows, attribute_width=rows)
        row = config.spec().width("history_rows")
        encoder = KuaiFormer(config, config.spec()).eval().encoder.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            encoder(torch.zeros(1, 32, row), torch.ones(1, 32))
        served = total_flops(products_of(encoder_graph(encoder, row), 1))
        assert 0.6 < served / counter.get_total_flops() < 1.0


class TestFloor:
    def test_it_grows_with_the_work(self) -> None:
        torch.set_num_threads(1)
        small, large = (Floor({Product(1, 16 * n, 64 * n, 64 * n): 2, Product(4, 9, 8, 9): 1}) for n in (1, 6))
        assert 0.0 < small.seconds() < large.seconds()

    def test_it_counts_every_product(self) -> None:
        product = Product(1, 64, 256, 256)
        floor = Floor({product: 3})
        calls = floor._calls[product]
        assert len(calls) == 2  # torch and onnxruntime, the quicker one counts
        floor._calls[product] = [(lambda: None, 1)]
        assert floor.seconds() < 1e-3
        assert len(Floor({product: 1}, bfloat16=True)._calls[product]) == 1

    def test_the_libraries_multiply_the_same(self) -> None:
        for product in (Product(1, 5, 7, 3), Product(4, 5, 7, 3)):
            shape = (product.m, product.n) if product.batch == 1 else (product.batch, product.m, product.n)
            results = [call() for call, _ in Floor({product: 1})._calls[product]]
            assert tuple(results[0].shape) == results[1][0].shape == shape
