"""Virtual-machine nodes: the user data a cloud API received, on a machine that really boots."""

from simcloud.vm.backend import FAULTS, MachineFault, Snapshot, VmNodes, build

__all__ = ["FAULTS", "MachineFault", "Snapshot", "VmNodes", "build"]
