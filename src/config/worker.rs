//! What a worker makes up once and keeps in its data directory: its id, and a key for the forms of its page.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::Access;

use super::{Config, Error, Withheld};
use crate::crash::{self, Step};
use crate::domain::WorkerId;

/// What this worker calls itself: `worker_id` of the configuration, else the id kept in `data_dir/worker_id`, which is
/// made on first use.
///
/// # Errors
/// Where the file can't be read or made, and where it holds something else than a worker id.
pub fn worker_id(config: &Config) -> Result<WorkerId, Error> {
    match &config.worker_id {
        Some(id) => Ok(id.clone()),
        None => kept_id(&config.data_dir),
    }
}

/// What the forms of a page that nobody signs in to are recognized by, in `data_dir/http_key`, which is made on first use.
///
/// # Errors
/// Where the file can't be read or made, and where it holds something else than a key.
pub fn local_key(config: &Config) -> Result<String, Error> {
    let path = config.data_dir.join("http_key");
    let key = kept(&path, "key-", 32).map_err(|source| Error::KeyFile { path: path.clone(), source })?;
    if key.len() == "key-".len() + 64 { Ok(key) } else { Err(Error::KeyGarbage(path)) }
}

/// The id that [`worker_id`] would give, where it need not be made for that; `None` where no service has run here yet.
///
/// # Errors
/// Where the file can't be read, and where it holds something else than a worker id.
pub fn known_worker_id(config: &Config) -> Result<Option<WorkerId>, Error> {
    if let Some(id) = &config.worker_id {
        return Ok(Some(id.clone()));
    }
    let path = config.data_dir.join("worker_id");
    match read(&path) {
        Ok(id) => id.parse().map(Some).map_err(|_| Error::WorkerIdGarbage(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(match Withheld::on_the_way_to(&path, Access::READ_OK) {
            Some(source) => Error::Withheld { path, source },
            None => Error::WorkerIdFile { path, source },
        }),
    }
}

fn kept_id(data_dir: &Path) -> Result<WorkerId, Error> {
    let path = data_dir.join("worker_id");
    let id = kept(&path, "worker-", 8).map_err(|source| Error::WorkerIdFile { path: path.clone(), source })?;
    id.parse().map_err(|_| Error::WorkerIdGarbage(path))
}

/// The text that the file holds; one of `prefix` and so many random bytes is made where there is no file.
fn kept(path: &Path, prefix: &str, random_bytes: usize) -> io::Result<String> {
    match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        text => return text,
    }
    let data_dir = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let mut random = vec![0; random_bytes];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let text = random.iter().fold(prefix.to_owned(), |text, byte| format!("{text}{byte:02x}"));
    // Linked into place whole, so that nobody reads half a text and of two that start at once one wins.
    let draft = data_dir.join(format!("{prefix}{}.new", &text[text.len() - 16..]));
    crash::before(Step::WorkerIdDraft);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
        file.write_all(format!("{text}\n").as_bytes())?;
        file.sync_all()
    });
    crash::after(Step::WorkerIdDraft);
    crash::before(Step::WorkerIdLink);
    let linked = written.and_then(|()| std::fs::hard_link(&draft, path));
    crash::after(Step::WorkerIdLink);
    let removed = std::fs::remove_file(&draft);
    match linked {
        Ok(()) => {
            crash::before(Step::WorkerIdSync);
            removed.and_then(|()| File::open(data_dir)?.sync_all())?;
            crash::after(Step::WorkerIdSync);
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    read(path)
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    // Nothing that is kept so is longer; whatever else the file holds is not worth reading.
    File::open(path)?.take(1024).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned())
}
