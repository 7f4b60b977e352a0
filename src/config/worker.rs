//! The id that a worker keeps in its data directory.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::{Config, Error};
use crate::domain::WorkerId;

/// What this worker calls itself: `worker_id` of the configuration, else the id kept in `data_dir/worker_id`, which is
/// made on first use.
///
/// # Errors
/// Where the file can't be read or made, and where it holds something else than a worker id.
pub fn worker_id(config: &Config) -> Result<WorkerId, Error> {
    match &config.worker_id {
        Some(id) => Ok(id.clone()),
        None => kept(&config.data_dir),
    }
}

fn kept(data_dir: &Path) -> Result<WorkerId, Error> {
    let path = data_dir.join("worker_id");
    let failed = |source| Error::WorkerIdFile { path: path.clone(), source };
    match read(&path) {
        Ok(Some(id)) => return Ok(id),
        Ok(None) => return Err(Error::WorkerIdGarbage(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| failed(std::io::Error::other(error)))?;
    let id = random.iter().fold("worker-".to_owned(), |id, byte| format!("{id}{byte:02x}"));
    // Linked into place whole, so that nobody reads half an id and of two that start at once one wins.
    let draft = data_dir.join(format!("{id}.new"));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
        file.write_all(format!("{id}\n").as_bytes())?;
        file.sync_all()
    });
    let linked = written.and_then(|()| std::fs::hard_link(&draft, &path));
    let removed = std::fs::remove_file(&draft);
    match linked {
        Ok(()) => removed.and_then(|()| File::open(data_dir)?.sync_all()).map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    read(&path).map_err(failed)?.ok_or(Error::WorkerIdGarbage(path))
}

fn read(path: &Path) -> std::io::Result<Option<WorkerId>> {
    let mut text = Vec::new();
    // No worker id is longer; whatever else the file holds is not worth reading.
    File::open(path)?.take(1024).read_to_end(&mut text)?;
    Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim_ascii_end().parse().ok()))
}
