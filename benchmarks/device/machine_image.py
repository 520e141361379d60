"""The files an emulated arm64 device boots from: a Debian kernel and an initrd that holds adbd, mksh and toybox.

The tree has no Python and no libc but Debian's own for adbd: what runs there is what was pushed. Programs stand where
Android has them (/system/bin), the shell user is uid 2000, /data is a disk of its own.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.device.cache import built
from benchmarks.device.debian import extract_tree, run_tool, tool

SUITE = "trixie"  # the first Debian whose main section has adbd, a 16 KiB kernel and toybox together
USERLAND = ("adbd", "mksh", "toybox")
KERNELS = {4096: "linux-image-cloud-arm64", 16384: "linux-image-arm64-16k"}  # bytes of a page -> package
MODULES = ("virtio_blk", "virtio_net", "virtio_rng", "ext4")
RECIPE_VERSION = 3  # to be raised with every change of what this file makes
MODEL = "emulated arm64 device (Linux, real adbd)"
SHELL_UID = 2000  # Android's AID_SHELL
# The applets that Android links to its toybox, as far as the driver or a person at `adb shell` wants them.
APPLETS = (
    "cat chmod chown cmp comm cp cut date dd df dirname dmesg du echo env expand expr fallocate false file find "
    "free getconf grep gunzip gzip head hostname id ifconfig insmod kill ln ls lsmod md5sum mkdir mkfifo mknod "
    "mktemp mount mv netstat nice nohup nproc od paste pgrep pidof pkill poweroff printenv printf ps pwd readlink "
    "realpath renice rm rmdir sed seq setsid sha256sum sleep sort split stat strings su sync sysctl tail tar "
    "taskset tee timeout top touch tr true truncate umount uname uniq uptime usleep vmstat wc which whoami xargs "
    "xxd yes zcat"
)

GETPROP = f"""#!/system/bin/sh
# Stand-in for Android's getprop: the few properties that a driver reads.
case "$1" in
ro.product.cpu.abi) echo arm64-v8a ;;
ro.product.model) echo "{MODEL}" ;;
ro.build.fingerprint) echo "kir-edge/emulated-arm64/debian-{SUITE}:$(uname -r)" ;;
ro.kir.emulated) echo 1 ;;
sys.boot_completed) echo 1 ;;
*) echo ;;
esac
"""

# adbd listens on port 5555 = 0x15B3. Only then is the device ready: connecting earlier makes adb wait for long.
INIT = """#!/system/bin/sh
export PATH=/system/bin HOME=/data/local/tmp TMPDIR=/data/local/tmp LANG=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
while read module; do insmod /modules/$module; done < /modules/order
n=0
while [ ! -e /sys/class/net/eth0 -o ! -b /dev/vda ] && [ $n -lt 200 ]; do sleep 0.1; n=$((n+1)); done
mount -t ext4 -o noatime /dev/vda /data
ifconfig lo up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
hostname emulated-arm64
chmod 666 /dev/null /dev/ptmx /dev/urandom /dev/random /dev/zero
chmod 1777 /dev/shm
su -p -s /system/bin/sh -c "export PATH=/system/bin TMPDIR=/data/local/tmp ADBD_PORT=5555; exec /usr/sbin/adbd" shell &
until grep -q ':15B3 ' /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.05; done
read up rest < /proc/uptime
echo "KIR-READY uptime $up page $(getconf PAGESIZE)"
wait
poweroff -f
"""


def machine_image(page_bytes: int, log: Callable[[str], None]) -> Path:
    """Folder with `kernel` and `initrd` for one page size, built now or before."""
    recipe = {
        "version": RECIPE_VERSION,
        "suite": SUITE,
        "packages": [*USERLAND, KERNELS[page_bytes]],
        "files": [INIT, GETPROP, APPLETS],
        "modules": MODULES,
    }
    return built(f"machine-{page_bytes // 1024}k", recipe, lambda folder: _make(folder, page_bytes, log), log)


def _make(folder: Path, page_bytes: int, log: Callable[[str], None]) -> None:
    tree, kernel_tree = folder / "tree", folder / "kernel-tree"
    log(f"  downloading the userland: {', '.join(USERLAND)} (Debian {SUITE}, arm64)")
    extract_tree(SUITE, USERLAND, tree)
    log(f"  downloading the kernel: {KERNELS[page_bytes]}")
    extract_tree(SUITE, [KERNELS[page_bytes]], kernel_tree)
    (kernel,) = kernel_tree.glob("boot/vmlinuz-*")
    shutil.copy(kernel, folder / "kernel")
    _add_modules(kernel_tree, kernel.name.removeprefix("vmlinuz-"), tree / "modules")
    _arrange(tree)
    _pack(tree, folder / "initrd")
    shutil.rmtree(tree)
    shutil.rmtree(kernel_tree)


def _add_modules(kernel_tree: Path, version: str, target: Path) -> None:
    """The modules of MODULES with what they depend on, decompressed, and the order to load them in."""
    run_tool(["depmod", "-b", str(kernel_tree), version])
    paths: list[Path] = []
    for module in MODULES:
        shown = run_tool(["modprobe", "-d", str(kernel_tree), "-S", version, "--show-depends", module])
        lines = [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]  # else: builtin
        paths += [Path(line) for line in lines if Path(line) not in paths]
    target.mkdir()
    names = []
    for path in paths:
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        names.append(path.name.removesuffix(".xz"))
        (target / names[-1]).write_bytes(content)
    (target / "order").write_text("".join(f"{name}\n" for name in names))


def _arrange(tree: Path) -> None:
    """Android's places and users; documents, package lists and what else only fills memory go."""
    for folder in ("usr/share", "var", "etc/apt", "usr/lib/aarch64-linux-gnu/gconv", "dev", "usr/lib/klibc"):
        shutil.rmtree(tree / folder, ignore_errors=True)
    for folder in ("system/bin", "data", "proc", "sys", "dev", "tmp", "etc"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    programs = tree / "system" / "bin"
    for shell in (programs / "sh", tree / "usr" / "bin" / "sh"):  # Debian's adbd was patched to look in /bin
        shell.symlink_to("/usr/bin/mksh-static")  # as on a phone, and each start is cheaper
    (programs / "toybox").symlink_to("/usr/bin/toybox")
    for name in APPLETS.split():
        (programs / name).symlink_to("toybox")
    for path, text in ((programs / "getprop", GETPROP), (tree / "init", INIT)):
        path.write_text(text)
        path.chmod(0o755)
    users = {"root": 0, "shell": SHELL_UID}
    passwd = [f"{name}:x:{uid}:{uid}::/data/local/tmp:/system/bin/sh\n" for name, uid in users.items()]
    (tree / "etc" / "passwd").write_text("".join(passwd))
    (tree / "etc" / "group").write_text("".join(f"{name}:x:{uid}:\n" for name, uid in users.items()))


def _pack(tree: Path, target: Path) -> None:
    """The tree as a compressed cpio archive, which a kernel unpacks into memory."""
    names = b"".join(bytes(path.relative_to(tree)) + b"\0" for path in sorted(tree.rglob("*")))
    command = [tool("cpio"), "--create", "--null", "--format=newc", "--quiet", "--owner=0:0"]  # whoever builds it
    archive = subprocess.run(command, cwd=tree, input=names, capture_output=True, check=True).stdout
    target.write_bytes(gzip.compress(archive, compresslevel=1))
