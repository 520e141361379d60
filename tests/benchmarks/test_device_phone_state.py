"""Heat, battery and cores of a phone, as its own commands tell them; what is absent is said to be."""

from __future__ import annotations

import json

import pytest

from benchmarks.device.phone_state import (
    NOT_AVAILABLE,
    PhoneState,
    big_cores,
    core_frequencies,
    cores_of,
    mask_of,
    parse_battery,
    parse_thermal,
    phone_state,
)
from contract.errors import InputError
from tests.benchmarks.device_fakes import BATTERY, FREQUENCIES, THERMAL, phone


class TestState:
    def test_what_a_phone_tells(self) -> None:
        with phone() as target:
            state = phone_state(target.device)
        assert state == PhoneState("none", {"CPU0": 44.25, "skin": 36.2}, 87, 30.1, "charging")
        assert state.remarks() == []

    def test_a_device_without_dumpsys(self) -> None:
        with phone(answers={}) as target:
            state = phone_state(target.device)
        assert state == PhoneState()
        assert json.loads(json.dumps(state.to_dict()))["thermal"] == NOT_AVAILABLE
        assert state.line() == "thermal status not available; battery not available, power: not available"
        assert state.remarks() == []

    def test_heat_and_a_low_battery_are_remarked(self) -> None:
        hot = {**parse_thermal(THERMAL.replace("Thermal Status: 0", "Thermal Status: 2"))}
        low = parse_battery(BATTERY.replace("level: 87", "level: 12"))
        remarks = PhoneState(**hot, **low).remarks()
        assert "moderate" in remarks[0]
        assert "12 %" in remarks[1]

    @pytest.mark.parametrize(("status", "power"), [(2, "charging"), (3, "battery"), (4, "battery"), (5, "full")])
    def test_power(self, status: int, power: str) -> None:
        assert parse_battery(BATTERY.replace("status: 2", f"status: {status}"))["power"] == power

    def test_another_scale_of_the_battery(self) -> None:
        assert parse_battery("  level: 30\r\n  scale: 60\r\n".replace("\r", ""))["battery_percent"] == 50

    @pytest.mark.parametrize("text", ["", "Can't find service: thermalservice", "Thermal Status: 77"])
    def test_a_service_that_says_nothing_of_use(self, text: str) -> None:
        assert parse_thermal(text) == {"temperatures_c": {}}
        assert parse_battery(text) == {}


class TestCores:
    def frequencies(self, answer: str) -> dict[int, int]:
        with phone(answers={"sh -c": answer}) as target:
            return core_frequencies(target.device)

    def test_the_slowest_cluster_is_left_out(self) -> None:
        assert big_cores(self.frequencies(FREQUENCIES)) == [4, 5, 6, 7]

    def test_cores_that_are_all_alike(self) -> None:
        assert big_cores({0: 1000, 1: 1000}) == []

    def test_without_cpufreq_nothing_is_pinned(self) -> None:
        assert big_cores(self.frequencies("")) == []

    @pytest.mark.parametrize(("pin", "cores"), [("none", []), ("f0", [4, 5, 6, 7]), ("1", [0]), ("big", [4, 5, 6, 7])])
    def test_words_and_masks(self, pin: str, cores: list[int]) -> None:
        with phone(answers={"sh -c": FREQUENCIES}) as target:
            found = cores_of(pin, target.device)
        assert found == cores
        assert mask_of(found) == ("" if not cores else pin if pin != "big" else "f0")

    @pytest.mark.parametrize("pin", ["large", "0", "-1", "xyz"])
    def test_anything_else_is_refused(self, pin: str) -> None:
        with phone() as target, pytest.raises(InputError, match="--pin"):
            cores_of(pin, target.device)
