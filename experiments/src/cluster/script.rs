//! [`Script`]: the array of tasks as sbatch takes it.
//!
//! Paths stand in lines of shell only, where they can be quoted: sbatch is called in the folder of the shares, and what its own
//! lines name lies there.

use std::path::Path;

use anyhow::Context;
use itertools::Itertools as _;

use super::name_of;
use crate::config::profile::SlurmProfile;

/// What a job is made of.
#[derive(Clone, Debug)]
pub struct Script<'a> {
    /// What each task gets.
    pub profile: &'a SlurmProfile,
    /// What SLURM calls it.
    pub job_name: &'a str,
    /// The shares to run, from 1, in order.
    pub shares: &'a [usize],
    /// Of how many.
    pub n_shares: usize,
    /// Where the shares' folders are; absolute, as all paths.
    pub folder: &'a Path,
    /// The experiment.
    pub experiment: &'a Path,
    /// This program.
    pub program: &'a Path,
    /// Where relative paths of the experiment begin.
    pub place: &'a Path,
    /// Variables of the environment that must not depend on what a node has.
    pub environment: &'a [(&'a str, &'a Path)],
    /// Options of `run` beside experiment, folder, share and threads.
    pub options: &'a [String],
}

impl Script<'_> {
    /// The script.
    ///
    /// # Errors
    /// A path that is no text.
    pub fn text(&self) -> anyhow::Result<String> {
        let Self { profile, n_shares, .. } = self;
        let at_once = profile.max_at_once.map_or_else(String::new, |n| format!("%{n}"));
        let mut options = vec![
            format!("--job-name={}", self.job_name),
            format!("--array={}{at_once}", ranges(self.shares)),
            "--requeue".to_owned(),
            "--open-mode=append".to_owned(),
            format!("--output={}.log", name_of("%a", *n_shares)),
            "--nodes=1".to_owned(),
            "--ntasks=1".to_owned(),
            format!("--cpus-per-task={}", profile.cpus),
            format!("--mem={}", profile.memory.get()),
            format!("--time={}", profile.time.get()),
        ];
        options.extend(profile.partition.as_ref().map(|partition| format!("--partition={}", partition.get())));
        options.extend(profile.account.as_ref().map(|account| format!("--account={}", account.get())));
        options.extend(profile.gpus.map(|n| format!("--gres=gpu:{n}")));
        options.extend(profile.options.iter().map(|option| option.get().to_owned()));
        let options = options.iter().map(|option| format!("#SBATCH {option}\n")).join("");
        let setup = profile.setup.iter().map(|line| format!("{}\n", line.get())).join("");
        let environment = self.environment.iter().map(|(name, path)| Ok(format!("export {name}={}\n", quoted(path)?)));
        let environment = environment.collect::<anyhow::Result<Vec<_>>>()?.concat();
        let more = self.options.iter().map(|option| Ok(format!(" {}", quoted(Path::new(option))?)));
        let more = more.collect::<anyhow::Result<Vec<_>>>()?.concat();
        Ok(format!(
            r#"#!/bin/bash
# Written by `experiments submit`: a share of an experiment for each task. It is submitted from its own folder.
{options}
set -e
cd {place}
{setup}{environment}# In place of this shell, so that signals reach it. Run again, it goes on from its records and stored blocks.
exec {program} run {experiment} --shard "$SLURM_ARRAY_TASK_ID/{n_shares}" \
    --out {folder}/"{share}" --threads {threads}{more}
"#,
            place = quoted(self.place)?,
            program = quoted(self.program)?,
            experiment = quoted(self.experiment)?,
            folder = quoted(self.folder)?,
            share = name_of("$SLURM_ARRAY_TASK_ID", *n_shares),
            threads = profile.cpus,
        ))
    }
}

/// A path or a word as shell takes it.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text =
        path.to_str().with_context(|| format!("{}: not UTF-8; rename it for use in a script", path.display()))?;
    let quoted = shlex::try_quote(text);
    Ok(quoted.with_context(|| format!("{text:?}: cannot stand in a script; rename it"))?.into_owned())
}

/// `1-3,5` of ascending numbers.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|before, after| before + 1 == *after);
    let range = |run: &[usize]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    runs.map(range).join(",")
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn paths_and_options_reach_the_program_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("it's a \"place\" $HOME `no` %a");
        fs::create_dir(&place).unwrap();
        let program = place.join("a program");
        fs::write(&program, "#!/bin/sh\npwd\necho \"$AWQ_CACHE\"\nprintf '%s\\n' \"$@\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let profile = folder.path().join("profile.toml");
        fs::write(&profile, "cpus = 3\nmemory = \"1G\"\ntime = \"5\"\ngpus = 2\nmax_tasks = 9\n").unwrap();
        let script = Script {
            profile: &SlurmProfile::read(&profile).unwrap(),
            job_name: "name",
            shares: &[4],
            n_shares: 9,
            folder: &place.join("shares"),
            experiment: &place.join("experiment.toml"),
            program: &program,
            place: &place,
            environment: &[("AWQ_CACHE", &place.join("cache"))],
            options: &["--assets".to_owned(), "/an 'asset'".to_owned()],
        };
        let text = script.text().unwrap();
        assert!(text.contains("#SBATCH --array=4\n") && text.contains("#SBATCH --gres=gpu:2\n"), "{text}");
        let named = text.lines().filter(|line| line.starts_with("#SBATCH") && line.contains("place"));
        assert_eq!(named.count(), 0, "a path that sbatch would read: {text}");
        let ran = Command::new("bash").arg("-c").arg(&text).env("SLURM_ARRAY_TASK_ID", "4").output().unwrap();
        let here = fs::canonicalize(&place).unwrap().display().to_string();
        let place = place.display();
        let expected = format!(
            "{here}\n{place}/cache\nrun\n{place}/experiment.toml\n--shard\n4/9\n--out\n{place}/shares/4-of-9\n--threads\n3\n\
             --assets\n/an 'asset'\n"
        );
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected);
        let nul = Script { options: &["a\0b".to_owned()], ..script };
        assert!(nul.text().unwrap_err().to_string().contains("cannot stand in a script; rename it"));
    }

    #[test]
    fn neighbouring_numbers_are_a_range() {
        assert_eq!(ranges(&[1, 2, 3, 5, 8, 9]), "1-3,5,8-9");
        assert_eq!(ranges(&[4]), "4");
    }
}
