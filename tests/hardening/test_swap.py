# SPDX-License-Identifier: Apache-2.0
"""What is said of swap, for made-up systems: none, on disks, encrypted, in memory, forbidden to the
cgroup; and locking, with room for it and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import check_python, linux_only

from pyccmem.hardening import swap

pytestmark = linux_only

HEAD = "Filename Type Size Used Priority\n"


class System:
    """A root directory with what the kernel tells of swap. `number` is a device that exists, since
    only root can make nodes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.add("proc/swaps", HEAD)
        self.add("proc/self/cgroup", "0::/\n")

    def add(self, path: str, text: str) -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def swap_file(self, device: str, **files: str) -> None:
        """Adds a file as swap, on a file system on `device`, whose folder in /sys has `files`."""
        place = self.add("swap file", "")
        number = place.stat().st_dev
        self.add("proc/swaps", HEAD + "/swap\\040file file 1000 0 -2\n")
        folder = self.device(device, **files)
        link = self.root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)

    def device(self, name: str, **files: str) -> Path:
        folder = self.root / "sys/devices" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            self.add(f"sys/devices/{name}/{file.replace('__', '/')}", text)
        return folder

    def consists_of(self, name: str, *parts: Path) -> None:
        for part in parts:
            link = self.root / "sys/devices" / name / "slaves" / part.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(part)

    def kinds(self) -> list[str]:
        return [area.kind for area in swap.areas(str(self.root))]

    def active(self) -> bool:
        return swap.swap(str(self.root)).active


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_no_swap(system: System) -> None:
    assert system.kinds() == [] and system.active()


def test_a_disk_in_the_clear(system: System) -> None:
    system.swap_file("sda1")
    assert system.kinds() == ["plain"] and not system.active()
    assert "dm-crypt" in swap.swap(str(system.root)).remedy


def test_an_encrypted_disk(system: System) -> None:
    system.swap_file("dm-3", dm__uuid="CRYPT-PLAIN-swap\n", dm__name="swap\n")
    assert system.kinds() == ["encrypted"] and system.active()


@pytest.mark.parametrize(("uuid", "kind"), [("CRYPT-LUKS2-x", "encrypted"), ("LVM-x", "plain")])
def test_a_volume_is_as_what_it_consists_of(system: System, uuid: str, kind: str) -> None:
    system.swap_file("dm-4", dm__uuid="LVM-volume\n")
    crypt = system.device("dm-1", dm__uuid="CRYPT-LUKS2-a\n")
    system.consists_of("dm-4", crypt, system.device("dm-2", dm__uuid=uuid + "\n"))
    assert system.kinds() == [kind] and system.active() == (kind == "encrypted")


@pytest.mark.parametrize(("disk", "kind"), [("none", "zram"), ("/dev/sda2", "plain")])
def test_compressed_memory_and_what_it_may_write_to(system: System, disk: str, kind: str) -> None:
    system.swap_file("zram0", backing_dev=disk + "\n")
    assert system.kinds() == [kind] and system.active() == (kind == "zram")


def test_what_cannot_be_looked_at_is_unknown_and_not_called_safe(system: System) -> None:
    system.add("proc/swaps", HEAD + "/dev/gone partition 1000 0 -2\n")
    assert system.kinds() == ["unknown"] and not system.active()


def test_a_cgroup_that_may_not_swap(system: System) -> None:
    system.swap_file("sda1")
    system.add("proc/self/cgroup", "0::/system.slice/my.service\n")
    system.add("sys/fs/cgroup/system.slice/my.service/memory.swap.max", "max\n")
    assert not system.active()
    system.add("sys/fs/cgroup/system.slice/memory.swap.max", "0\n")
    assert system.active()


LIMITED = """
import os, resource, threading
import pyccmem
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
"""


def test_a_small_limit_is_not_used_up() -> None:
    """Locking would succeed in part, and later threads would fail."""
    out = check_python(
        LIMITED + "made = pyccmem.guard(swap='lock')\n"
        "threads = [threading.Thread(target=list) for _ in range(8)]\n"
        "[thread.start() for thread in threads]\n"
        "print(['64 KiB' in one for one in made.failures if 'swap' in one])\n"
    )
    assert out == "[True]\n"


def test_all_memory_is_locked_where_there_is_room() -> None:
    if not swap.can_lock():
        pytest.skip("this user may not lock all memory")
    out = check_python(
        "import pyccmem\nfrom pyccmem.hardening.swap import swap\n"
        "before = swap().detail\nmade = pyccmem.guard(swap='lock')\n"
        "print('locked' in before, 'all memory is locked' in swap().detail, len(made.failures))\n"
    )
    assert out.split() == ["False", "True", "0"]
