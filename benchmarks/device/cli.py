"""`kir device`: the emulated arm64 device (Linux, real adbd), and what else adb has.

kir device build                    # once: kernels, adbd, the runtime; two minutes, 150 MB down
kir device start                    # boots one in the background and prints its serial
kir device list
kir device stop                     # those that were started so, or the one named

One minute, CPU: kir device start && kir device list && kir device stop
"""

from __future__ import annotations

import argparse
import sys

from contract.errors import InputError

PAGES_KIB = (4, 16)
MEMORY_MIB = 512
LEAST_MEMORY_MIB = 256  # what kernel, initrd, adbd and one Python with LiteRT take, and some room


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    build = jobs.add_parser("build", help="download and build what is missing, once")
    build.add_argument(
        "--pages", type=int, choices=PAGES_KIB, nargs="+", default=[*PAGES_KIB], help="page sizes, KiB (default: both)"
    )
    start = jobs.add_parser("start", help="boot an emulated device in the background; it builds what is missing")
    start.add_argument("--pages", type=int, choices=PAGES_KIB, default=4, help="page size, KiB (default: %(default)s)")
    start.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB", help="RAM (default: %(default)s)")
    start.add_argument("--icount", action="store_true", help="one core whose clock counts instructions, 1 ns each")
    stop = jobs.add_parser("stop", help="end emulated devices and delete what they wrote")
    stop.add_argument("serial", nargs="?", help="which one (default: all that `kir device start` started)")
    jobs.add_parser("list", help="emulated devices that run, and what the adb server has")


def run_device(args: argparse.Namespace) -> int:
    """Do the job; 0 when it is done, KirError otherwise."""
    jobs = {"build": _build, "start": _start, "stop": _stop, "list": _list}
    jobs[args.job](args)
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _build(args: argparse.Namespace) -> None:
    from benchmarks.device.data_image import data_image
    from benchmarks.device.machine_image import machine_image

    for pages in args.pages:
        print(machine_image(pages * 1024, _log))
    print(data_image(_log))


def _start(args: argparse.Namespace) -> None:
    from benchmarks.device.adb import adb_for
    from benchmarks.device.emulated import MachineConfig, start
    from benchmarks.device.machine_image import MODEL

    if args.memory < LEAST_MEMORY_MIB:
        raise InputError("--memory is too small to boot", got=args.memory, allowed=f"from {LEAST_MEMORY_MIB} MiB")
    config = MachineConfig(args.pages * 1024, args.memory, args.icount)
    machine = start(config, _log, keep=True)
    print(f"{machine.running.serial}  {MODEL}, {_what(args.pages, args.memory, args.icount)}")
    print(f"ready after {machine.boot_s:.1f} s; end it with: kir device stop {machine.running.serial}")
    port = machine.running.adb_port
    print(f"adb's own commands: ANDROID_ADB_SERVER_PORT={port} {adb_for(port)} shell")


def _stop(args: argparse.Namespace) -> None:
    from benchmarks.device.device import NoDevice
    from benchmarks.device.running import running_devices

    # Without a name those that nobody else's process holds: a test run ends its own.
    running = [one for one in running_devices() if (one.kept if args.serial is None else one.serial == args.serial)]
    if args.serial is not None and not running:
        raise NoDevice("no emulated device of this serial runs", got=args.serial, fix="`kir device list` shows them")
    for one in running:
        one.end()
        print(f"{one.serial}  ended")
    if not running:
        print("no emulated device runs that was started to be kept")


def _list(args: argparse.Namespace) -> None:
    from benchmarks.device.find import kind_listed, list_devices
    from benchmarks.device.running import running_devices

    emulated = {one.serial: one for one in running_devices()}
    found = list_devices()
    for serial, (port, state) in found.items():
        one = emulated.get(serial)
        about = f"emulated-arm64, {_what(one.page_bytes // 1024, one.memory_mib, one.icount)}" if one else ""
        print(f"{serial}  {state}  {about or kind_listed(serial, port, state)}")
    if not found:
        print("none; connect a phone with USB debugging on, or run: kir device start")


def _what(pages_kib: int, memory_mib: int, icount: bool) -> str:
    clock = ", clock counts instructions" if icount else ""
    return f"{pages_kib} KiB pages, {memory_mib} MiB{clock}"
