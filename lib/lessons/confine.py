"""What a process does to itself before it runs somebody else's code: namespaces, mounts, Landlock, seccomp, limits.

Linux on x86_64 or aarch64, through ctypes and nothing else. Every function raises OSError where the kernel refuses; the
order is that of `enter` (as the parent) and `confine` (as its child, the first process of the new PID namespace).
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from pathlib import Path

NEW = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # user, mount, PID, net, IPC, UTS
PDEATHSIG, NO_NEW_PRIVS, SECCOMP, CAPBSET_DROP, CAP_AMBIENT = 1, 38, 22, 24, 47  # of prctl
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, PRIVATE = 1, 2, 4, 8, (1 << 18) | (1 << 14)  # of mount; private is recursive
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, MOUNT_SETATTR = 444, 445, 446, 442  # the same on both machines
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15  # of Landlock
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
ABIS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # what each ABI can restrict

# What is refused: (on x86_64, on aarch64), None where there is no such call. Landlock knows no chmod, chown, times and
# extended attributes, and does not see what io_uring does; a socket could reach a daemon by the path of its socket.
REFUSED = {
    "fork vfork execve execveat": [(57, None), (58, None), (59, 221), (322, 281)],
    "ptrace process_vm_readv process_vm_writev kcmp": [(101, 117), (310, 270), (311, 271), (312, 272)],
    "pidfd_open pidfd_getfd pidfd_send_signal process_madvise": [(434, 434), (438, 438), (424, 424), (440, 440)],
    "mount umount2 pivot_root chroot": [(165, 40), (166, 39), (155, 41), (161, 51)],
    "unshare setns": [(272, 97), (308, 268)],
    "open_tree move_mount fsopen fsconfig fsmount fspick": [(n, n) for n in (428, 429, 430, 431, 432, 433)],
    "mount_setattr open_tree_attr quotactl_fd memfd_secret": [(n, n) for n in (442, 467, 443, 447)],
    "bpf perf_event_open userfaultfd fanotify_init": [(321, 280), (298, 241), (323, 282), (300, 262)],
    "add_key request_key keyctl": [(248, 217), (249, 218), (250, 219)],
    "socket shmget semget msgget mq_open": [(41, 198), (29, 194), (64, 190), (68, 186), (240, 180)],
    "kexec_load kexec_file_load init_module delete_module": [(246, 104), (320, 294), (175, 105), (176, 106)],
    "finit_module reboot swapon swapoff acct quotactl": [
        (313, 273),
        (169, 142),
        (167, 224),
        (168, 225),
        (163, 89),
        (179, 60),
    ],
    "settimeofday clock_settime adjtimex clock_adjtime": [(164, 170), (227, 112), (159, 171), (305, 266)],
    "sethostname setdomainname personality syslog": [(170, 161), (171, 162), (135, 92), (103, 116)],
    "iopl ioperm modify_ldt": [(172, None), (173, None), (154, None)],
    "name_to_handle_at open_by_handle_at migrate_pages": [(303, 264), (304, 265), (256, 238)],
    "chmod fchmod fchmodat fchmodat2 file_setattr": [(90, None), (91, 52), (268, 53), (452, 452), (469, 469)],
    "chown fchown lchown fchownat": [(92, None), (93, 55), (94, None), (260, 54)],
    "setxattr lsetxattr fsetxattr setxattrat": [(188, 5), (189, 6), (190, 7), (463, 463)],
    "removexattr lremovexattr fremovexattr removexattrat": [(197, 14), (198, 15), (199, 16), (466, 466)],
    "utime utimes futimesat utimensat": [(132, None), (235, None), (261, None), (280, 88)],
    "mknod mknodat": [(133, None), (259, 33)],
}
UNKNOWN = {"clone3": (435, 435), "io_uring": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)}
MEMFD, CLONE, PRCTL = (319, 279), (56, 220), (157, 167)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # the column above, and what seccomp calls it


def _libc():
    return ctypes.CDLL(None, use_errno=True)


def _call(what: str, function, *arguments) -> int:
    """Call a C function; OSError that says what was tried where it returns -1."""
    found = function(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if found == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return found


def supported() -> str | None:
    """Why this system cannot isolate at all (part of a sentence), before anything is tried; else None."""
    if sys.platform != "linux":
        return f"it needs Linux, and this is {platform.system()}"
    if platform.machine() not in MACHINES:
        return f"it knows x86_64 and aarch64, and this is {platform.machine()}"
    return None


# ----- the launcher
def enter() -> None:
    """Leave the user, mount, PID (for children), network, IPC and UTS namespaces; be user 1000 in the new ones."""
    uid, gid = os.geteuid(), os.getegid()
    libc = _libc()
    _call("unshare of namespaces", libc.unshare, NEW)
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError as error:
            raise OSError(error.errno, f"{name} of a new user namespace: {error.strerror}") from None
    end_with_parent()


def end_with_parent() -> None:
    """Be killed when the process that started this one ends."""
    if sys.platform == "linux":
        _call("prctl", _libc().prctl, PDEATHSIG, 9, 0, 0, 0)


# ----- its child
def confine(scratch: str, scratch_mb: int, read: list[str], write: list[str], devices: bool) -> None:
    """Everything but the limits, in the first process of the new PID namespace; there is no way back.

    scratch  an empty directory, over which a file system of scratch_mb in memory is laid; the one place to write
    read     files and directories that may be read (and mapped for execution); write: devices that may be written, too
    devices  is a GPU to be used? then shared memory without a name is allowed, which its driver needs
    """
    mounts(scratch, scratch_mb)
    os.chdir(scratch)
    _call("prctl", _libc().prctl, NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock(read, [*write, scratch])
    drop_capabilities()
    seccomp(devices)


def mounts(scratch: str, scratch_mb: int) -> None:
    """Everything read-only, then a /proc of this PID namespace and the scratch file system."""
    libc = _libc()
    _call("mount /", libc.mount, b"none", b"/", None, PRIVATE, None)
    attributes = struct.pack("<4Q", READ_ONLY | NO_SUID, 0, 0, 0)  # MOUNT_ATTR_* have the same values
    _call("mount_setattr", libc.syscall, MOUNT_SETATTR, -100, b"/", 0x8000, attributes, len(attributes))
    flags = NO_SUID | NO_DEV | NO_EXEC
    _call("mount /proc", libc.mount, b"proc", b"/proc", b"proc", flags, None)
    try:  # the processes and threads of this namespace, where the kernel counts them apart (6.14 and later)
        if tuple(map(int, platform.release().split(".")[:2])) >= (6, 14):
            Path("/proc/sys/kernel/pid_max").write_text("400")
    except (OSError, ValueError):
        pass
    _call("mount /proc", libc.mount, None, b"/proc", None, flags | 32 | READ_ONLY, None)  # 32: remount
    options = f"size={scratch_mb}m,nr_inodes=4096,mode=700".encode()
    _call("mount of the scratch directory", libc.mount, b"tmpfs", os.fsencode(scratch), b"tmpfs", flags, options)


def landlock(read: list[str], write: list[str]) -> None:
    """No file but these may be opened; and, where the kernel offers it, no TCP, signals or sockets to the outside."""
    libc = _libc()
    abi = _call("Landlock", libc.syscall, CREATE_RULESET, None, 0, 1)
    handled = ABIS[max(known for known in ABIS if known <= abi)]
    attributes = struct.pack("<3Q", handled, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _call("Landlock", libc.syscall, CREATE_RULESET, attributes, len(attributes), 0)
    reading = EXECUTE | READ_FILE | READ_DIR
    for path, rights in [(path, reading) for path in read] + [(path, handled & ~EXECUTE) for path in write]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rights &= handled if os.path.isdir(path) else handled & OF_FILES
        rule = struct.pack("<Qi", rights, place)
        _call(f"Landlock of {path}", libc.syscall, ADD_RULE, ruleset, 1, rule, 0)
        os.close(place)
    _call("Landlock", libc.syscall, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """None is left, and none can be had again."""
    libc = _libc()
    for capability in range(64):
        libc.prctl(CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    libc.prctl(CAP_AMBIENT, ctypes.c_ulong(4), 0, 0, 0)
    _call("capset", libc.capset, struct.pack("<Ii", 0x20080522, 0), bytes(24))


def seccomp(devices: bool = False) -> None:
    """Refuse the calls above; threads may be made, processes not."""
    column, machine = MACHINES[platform.machine()]
    refuse, allow, kill = 0x00050000, 0x7FFF0000, 0x80000000
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06

    def step(code, value, yes=0, no=0):
        return struct.pack("<HBBI", code, yes, no, value)

    program = [step(load, 4), step(equal, machine, 1, 0), step(end, kill), step(load, 0)]
    if column == 0:  # the x32 calls, which have numbers of their own
        program += [step(at_least, 0x40000000, 0, 1), step(end, refuse | errno.ENOSYS)]
    rules = [(pair[column], errno.EPERM) for pairs in REFUSED.values() for pair in pairs]
    rules += [(pair[column], errno.ENOSYS) for pair in UNKNOWN.values()]
    rules += [] if devices else [(MEMFD[column], errno.EPERM)]
    for number, error in rules:
        if number is not None:
            program += [step(equal, number, 0, 1), step(end, refuse | error)]
    denied, allowed = step(end, refuse | errno.EPERM), step(end, allow)
    # clone without CLONE_THREAD makes a process; prctl(PR_SET_PDEATHSIG) would outlive the launcher
    program += [step(equal, CLONE[column], 0, 4), step(load, 16), step(any_bit, 0x10000, 1, 0), denied, allowed]
    program += [step(equal, PRCTL[column], 0, 4), step(load, 16), step(equal, PDEATHSIG, 0, 1), denied, allowed]
    code = ctypes.create_string_buffer(b"".join([*program, allowed]))
    filters = struct.pack("@HP", len(program) + 1, ctypes.addressof(code))
    _call("seccomp", _libc().prctl, SECCOMP, 2, filters, 0, 0)


def limit(seconds: float, memory_mb: int | None, file_mb: int, files: int, threads: int | None) -> None:
    """Limits of the system for this process: None leaves one as it is. Never raises one that is lower already."""
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": files, "RLIMIT_FSIZE": file_mb << 20, "RLIMIT_CPU": int(seconds) + 1}
    wanted |= {"RLIMIT_AS": memory_mb << 20} if memory_mb else {}
    wanted |= {"RLIMIT_NPROC": threads} if threads else {}
    for name, value in wanted.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (value, value))
        except (OSError, ValueError):
            if name != "RLIMIT_AS":  # macOS does not know this one
                raise
