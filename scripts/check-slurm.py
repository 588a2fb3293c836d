#!/usr/bin/env python3
"""An experiment on a real SLURM, of two nodes of one core on this machine, one of which is lost in the middle.

    apt-get install slurm-wlm munge
    scripts/check-slurm.py [PROGRAM]     # target/debug/experiments unless given

Starts munged, slurmctld and two slurmd in a temporary folder, on loopback, with whatever user it runs as, and no cgroups. Then:

1. the experiment runs in one process, undisturbed;
2. `submit` gives its three shares to the two nodes; a second `submit` is refused; the third share is cancelled;
3. once blocks are stored, the node of the first share is lost: its slurmd, slurmstepd and task are killed. SLURM finds out and runs
   the share again on the other node, where it must go on behind a stored block;
4. `submit` again runs the share that was cancelled, and that one alone; `collect` makes the whole;
5. its records are those of the undisturbed run, bit for bit, times aside.

All daemons are stopped at the end, whatever happens. Skipped, in one line, where SLURM is not installed.
"""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DAEMONS = ["munged", "slurmctld", "slurmd"]
NODES = ["a", "b"]
SECONDS_IN_ALL = 230

# Five groups of cells that share work: full precision, and each grid under each draw of the calibration.
EXPERIMENT = f"""
question = "Is an experiment on a cluster the one at home?"
extends = "{ROOT}/configs/quickstart.toml"

[calibration]
dataset = {{ bundled = {{ split = "calibration", n_documents = 400 }} }}
sampling = {{ random_crops = {{ n_sequences = 16, seed = 42 }} }}
seq_len = 512
draws = 2
propagation = "full_precision"

[grids]
bits = [3, 2]
granularity = [{{ per_group = 128 }}]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f16"

[[evaluations]]
[evaluations.perplexity]
dataset = {{ bundled = {{ split = "test", n_documents = 200 }} }}
protocol = {{ gptq = {{ seq_len = 512 }} }}
max_windows = 8
"""

PROFILE = """
cpus = 1
memory = "1G"
time = "10"
max_tasks = 3
setup = ["echo \\"share $SLURM_ARRAY_TASK_ID on $SLURMD_NODENAME, run again ${SLURM_RESTART_COUNT:-0} times\\""]
"""

SLURM_CONF = """
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A task that runs again waits until what it was started with has expired: two minutes, unless told otherwise.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
KillWait=2
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
NodeName=a NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=main Nodes=a,b Default=YES MaxTime=INFINITE State=UP
"""

START = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - START:5.1f} s] {text}", flush=True)


def fail(text):
    sys.exit(f"check-slurm: {text}")


def wait_for(what, is_so):
    """The first true value of `is_so()`."""
    while not (value := is_so()):
        if time.monotonic() - START > SECONDS_IN_ALL:
            fail(f"waited in vain: {what}")
        time.sleep(0.2)
    return value


def output_of(*command):
    """What a command prints; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


# ---------------------------------------------------------------------------------------------------------------------------
# The cluster.


class Cluster:
    def __init__(self, folder):
        self.folder, self.daemons = folder, {}
        with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [server.getsockname()[1] for server in with_port]
        for server in with_port:
            server.close()
        for name in ["state", "spool-a", "spool-b"]:
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        conf = folder / "slurm.conf"
        host = socket.gethostname().split(".")[0]
        conf.write_text(SLURM_CONF.format(host=host, ports=ports, user=getpass.getuser(), folder=folder))
        # By this, everything that the cluster starts is known again.
        os.environ["SLURM_CONF"] = str(conf)

    def start(self):
        at = self.folder
        files = [f"--{name}-file={at}/munge.{name}" for name in ["key", "pid", "log", "seed"]]
        # A folder in /tmp is one that others may write to, which munged only warns of with --force.
        self.daemon("munged", "--foreground", "--force", f"--socket={at}/munge.socket", *files)
        wait_for("munged listens", (at / "munge.socket").exists)
        self.daemon("slurmctld", "-D", "-i")
        for node in NODES:
            self.daemon("slurmd", "-D", "-N", node, name=f"slurmd-{node}")
        wait_for("two nodes are idle", lambda: output_of("sinfo", "--noheader", "--format=%D %t") == "2 idle\n")

    def daemon(self, program, *options, name=None):
        name = name or program
        log = open(self.folder / f"{name}.log", "wb")
        self.daemons[name] = subprocess.Popen([program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def lose(self, node):
        """Kills the node's slurmd and all that runs on it, as a machine that loses its power does."""
        self.daemons[f"slurmd-{node}"].kill()
        tasks = [pid for pid, environment in self.processes() if f"SLURMD_NODENAME={node}" in environment]
        # The task's slurmstepd first, which would tell of its end.
        for pid in [*{parent_of(pid) for pid in tasks} - {0, 1}, *tasks]:
            kill(pid)
        return len(tasks)

    def processes(self):
        """Tasks and steps of this cluster: number and environment."""
        own = f"SLURM_CONF={os.environ['SLURM_CONF']}"
        known = {os.getpid(), *(daemon.pid for daemon in self.daemons.values())}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if own in environment and int(folder.name) not in known:
                yield int(folder.name), environment

    def stop(self):
        output_of("timeout", "5", "scancel", "--quiet", f"--user={getpass.getuser()}")
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid, _ in self.processes():
            kill(pid)


def parent_of(pid):
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


# ---------------------------------------------------------------------------------------------------------------------------
# The experiment.


def results_in(folder):
    """What each cell came to, without what it cost."""
    results = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        outcome = record["outcome"].get("done") or fail(f"{folder}: {record['outcome']}")
        del outcome["cost"]
        for measurement in outcome["measurements"]:
            del measurement["seconds"]
        if outcome["quantization"]:
            # The hash of logs that have times in them.
            del outcome["quantization"]["blocks_sha256"]
        results[record["cell_id"]] = outcome
    return results


def n_lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def tasks_of(out):
    """SLURM's word on each share's task, by its number."""
    status = json.loads(run("status", out, "--json").stdout)
    return {int(share["share"].split("/")[0]): share["task"] or {} for share in status["shares"]}


def run(*arguments, expected=0):
    """The program's command, which must end as expected."""
    ran = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    if ran.returncode != expected:
        fail(f"{arguments} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return ran


def check(cluster, folder):
    os.chdir(folder)
    # A blank, which scripts must quote.
    out, home = Path("on a cluster"), Path("at home")
    Path("experiment.toml").write_text(EXPERIMENT)
    Path("slurm.toml").write_text(PROFILE)
    os.environ["AWQ_CACHE"] = str(folder / "cache at home")
    run("run", "experiment.toml", "--out", home, "--quiet")
    say(f"{n_lines(home / 'records.jsonl')} cells without SLURM")

    cluster.start()
    say(f"{output_of('sbatch', '--version').strip()}: munged, slurmctld and two slurmd are up")
    os.environ["AWQ_CACHE"] = str(folder / "cache of the cluster")
    submit = ["submit", "experiment.toml", "--profile", "slurm.toml", "--out", out]
    say(run(*submit).stdout.splitlines()[0])
    refused = run(*submit, expected=1).stderr
    if "is not at its end: shares 1 (" not in refused:
        fail(f"a second job was refused otherwise: {refused}")
    job = json.loads((out / "shares/submitted.json").read_text())["jobs"][0]["id"]
    subprocess.run(["scancel", f"{job}_3"], check=True)

    first = out / "shares/1-of-3"
    codes = folder / "cache of the cluster/codes"

    def is_in_the_middle():
        stored = [len(list(cell.glob("0*"))) for cell in codes.glob("*")]
        return len(stored) >= 2 and min(stored) >= 1 and tasks_of(out)[1].get("state") == "RUNNING"

    wait_for("blocks of the first share are stored", is_in_the_middle)
    node = tasks_of(out)[1]["detail"].split()[-1]
    if n_lines(first / "records.jsonl") > 0:
        fail("the first share has scored a cell already: this check asks for a longer experiment")
    lost = time.monotonic()
    say(f"node {node} is lost with {cluster.lose(node)} processes of the first share, blocks stored: no record yet")

    def runs_again():
        task = tasks_of(out)[1]
        return task.get("state") == "RUNNING" and task["detail"].split()[-1] != node

    wait_for("the share runs again", runs_again)
    say(f"the share runs again on another node, {time.monotonic() - lost:.0f} s later")
    # SLURM forgets a task that was cancelled before it began.
    ended = (None, "CANCELLED", "COMPLETED")
    wait_for("the job ends", lambda: all(task.get("state") in ended for task in tasks_of(out).values()))
    print(run("status", out).stdout, end="")
    log = (out / "shares/1-of-3.log").read_text()
    if "run again 1 times" not in log or "go on behind block" not in log:
        fail(f"the first share did not go on behind a stored block:\n{log}")
    say(next(line for line in log.splitlines() if "go on behind block" in line))

    run("collect", out, expected=1)
    say(run(*submit).stdout.splitlines()[0])
    jobs = json.loads((out / "shares/submitted.json").read_text())["jobs"]
    if [job["shares"] for job in jobs] != [[1, 2, 3], [3]]:
        fail(f"other shares were submitted: {jobs}")
    wait_for("the second job ends", lambda: tasks_of(out)[3].get("state") == "COMPLETED")
    run("collect", out)
    if "every cell has its numbers" not in run(*submit).stdout:
        fail("a finished experiment was submitted again")

    undisturbed, disturbed = results_in(home), results_in(out)
    if undisturbed != disturbed:
        others = [cell for cell in undisturbed if undisturbed[cell] != disturbed.get(cell)]
        fail(f"not the records of the undisturbed run: cells {others}")
    say(f"{len(disturbed)} cells, codes and every number as without SLURM")


def main():
    os.environ["PATH"] += ":/usr/sbin:/usr/local/sbin"
    missing = [name for name in [*DAEMONS, "sbatch", "squeue"] if shutil.which(name) is None]
    if missing:
        print(f"check-slurm: skipped, {', '.join(missing)} not found (apt-get install slurm-wlm munge)")
        return
    if not Path(PROGRAM).is_file():
        fail(f"{PROGRAM}: no such program; cargo build -p experiments")
    # Ends through the lines that stop the daemons.
    signal.signal(signal.SIGTERM, lambda *_: fail("ended by a signal"))
    folder = Path(tempfile.mkdtemp(prefix="check-slurm-"))
    cluster = Cluster(folder)
    is_well = False
    try:
        check(cluster, folder)
        is_well = True
    finally:
        cluster.stop()
        if is_well:
            shutil.rmtree(folder)
        else:
            print(f"check-slurm: logs of daemons and tasks are in {folder}", file=sys.stderr)


if __name__ == "__main__":
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    PROGRAM = str(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else target / "debug/experiments")
    main()
