//! Taking one file or folder out of a wheel (zip) or a tarball (tar.gz).

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::cannot_write;
use crate::config::names::is_inside;

/// Writes the file `wanted` of an archive, or the files directly in the folder `wanted`, to `target`.
///
/// # Errors
/// Something that is no such archive, is truncated or lacks `wanted`, or a target that cannot be written.
pub fn extract(archive: &Path, wanted: &str, target: &Path) -> anyhow::Result<()> {
    let mut file = File::open(archive).context("cannot open the archive")?;
    let mut magic = [0; 2];
    file.read_exact(&mut magic).context("the archive is truncated")?;
    file.rewind().context("cannot read the archive")?;
    let n_files = match &magic {
        b"PK" => extract_zip(file, wanted, target)?,
        [0x1f, 0x8b] => extract_tar_gz(file, wanted, target)?,
        _ => bail!("neither a wheel (zip) nor a tarball (tar.gz)"),
    };
    ensure!(n_files > 0, "the archive holds no such file or folder; correct the key `file`");
    Ok(())
}

fn extract_zip(file: File, wanted: &str, target: &Path) -> anyhow::Result<usize> {
    let mut zip = zip::ZipArchive::new(file).context("not a valid zip file")?;
    let mut n_files = 0;
    for entry_idx in 0..zip.len() {
        let mut entry = zip.by_index(entry_idx).context("not a valid zip file")?;
        let name = entry.name().to_owned();
        if entry.is_file() && write_entry(&name, &mut entry, wanted, target)? {
            n_files += 1;
        }
    }
    Ok(n_files)
}

fn extract_tar_gz(file: File, wanted: &str, target: &Path) -> anyhow::Result<usize> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut n_files = 0;
    for entry in tar.entries().context("not a valid tar file")? {
        let mut entry = entry.context("not a valid tar file")?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type().is_file() && write_entry(&name, &mut entry, wanted, target)? {
            n_files += 1;
        }
    }
    Ok(n_files)
}

/// Writes an entry if it is `wanted` or lies directly in the folder `wanted`, and says whether it did.
fn write_entry(name: &str, content: &mut impl Read, wanted: &str, target: &Path) -> anyhow::Result<bool> {
    let path = if name == wanted {
        target.to_owned()
    } else if let Some(inner) = name.strip_prefix(wanted).and_then(|rest| rest.strip_prefix('/')) {
        // Only a plain name may become a path.
        if inner.contains('/') || !is_inside(inner) {
            return Ok(false);
        }
        std::fs::create_dir_all(target).with_context(|| cannot_write(target))?;
        target.join(inner)
    } else {
        return Ok(false);
    };
    let mut file = File::create(&path).with_context(|| cannot_write(&path))?;
    std::io::copy(content, &mut file).with_context(|| format!("`{name}`: cannot unpack to {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    /// A wheel as pip leaves it.
    pub(crate) fn zip_of(files: &[(&str, &str)]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, text) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// A tarball as npm leaves it.
    pub(crate) fn tar_gz_of(files: &[(&str, &str)]) -> Vec<u8> {
        let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gz);
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            // Set by hand: the crate refuses the hostile names that these tests need.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    const FILES: [(&str, &str); 9] = [
        ("p/data/b.txt", "bee"),
        ("p/data/a.txt", "ay"),
        ("p/data/deep/c.txt", "sea"),
        ("p/data/../evil", "x"),
        ("p/data/..", "x"),
        ("p/data//evil", "x"),
        ("p/data/..\\evil", "x"),
        ("p/data/c:evil", "x"),
        ("p/data2/d", "dee"),
    ];

    #[track_caller]
    fn extracted(archive: &[u8], wanted: &str) -> Result<Vec<(String, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("archive"), folder.path().join("out"));
        std::fs::write(&from, archive).unwrap();
        extract(&from, wanted, &to).map_err(|error| format!("{error:#}"))?;
        assert!(!folder.path().join("evil").exists());
        let files = if to.is_dir() { crate::assets::hashing::files_in(&to).unwrap() } else { vec![to] };
        let read = |path: &std::path::PathBuf| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap())
        };
        Ok(files.iter().map(read).collect())
    }

    #[test]
    fn a_file_or_the_files_of_a_folder_are_taken_out() {
        for archive in [zip_of(&FILES), tar_gz_of(&FILES)] {
            assert_eq!(extracted(&archive, "p/data/b.txt"), Ok(vec![("out".into(), "bee".into())]));
            let folder = vec![("a.txt".into(), "ay".into()), ("b.txt".into(), "bee".into())];
            assert_eq!(extracted(&archive, "p/data"), Ok(folder));
        }
    }

    #[test]
    fn a_link_in_an_archive_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gz);
        let mut link = |name: &str, kind, to: &Path| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            tar.append_link(&mut header, name, to).unwrap();
        };
        link("p/data/soft", tar::EntryType::Symlink, &outside.path().join("secret"));
        link("p/data/hard", tar::EntryType::Link, &outside.path().join("secret"));
        link("p/data/folder", tar::EntryType::Symlink, outside.path());
        let archive = tar.into_inner().unwrap().finish().unwrap();
        let nothing = "the archive holds no such file or folder; correct the key `file`";
        for wanted in ["p/data", "p/data/soft", "p/data/hard", "p/data/folder/secret"] {
            assert_eq!(extracted(&archive, wanted).unwrap_err(), nothing);
        }
    }

    #[test]
    fn bad_archives_say_what_is_wrong() {
        let missing = "the archive holds no such file or folder; correct the key `file`";
        assert_eq!(extracted(&zip_of(&FILES), "p/none").unwrap_err(), missing);
        assert_eq!(extracted(&tar_gz_of(&FILES), "p/dat").unwrap_err(), missing);
        assert_eq!(extracted(b"text", "p").unwrap_err(), "neither a wheel (zip) nor a tarball (tar.gz)");
        assert!(extracted(b"", "p").unwrap_err().starts_with("the archive is truncated: "));
        for archive in [zip_of(&FILES), tar_gz_of(&FILES)] {
            assert!(extracted(&archive[..archive.len() / 2], "p/data").is_err());
        }
    }
}
