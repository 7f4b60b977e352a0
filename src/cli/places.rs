//! What keeps a service from the directories that it needs, found by looking alone: `check` tells of it, and `serve` before it
//! begins.

use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::config::{Config, Withheld};
use crate::domain::database_url::DatabaseUrl;

/// What making a file in a directory takes.
const WRITING: Access = Access::WRITE_OK.union(Access::EXEC_OK);

/// Why a directory can't be used.
pub(super) struct Obstacle {
    /// The key of the configuration that names the directory.
    pub(super) key: &'static str,
    pub(super) message: String,
    pub(super) help: String,
}

/// Why this service can't use its data directory, or the one that its embedded database is in; `None` where it can, and where it
/// can make them.
pub(super) fn obstacle(config: &Config) -> Option<Obstacle> {
    let found = directory(&config.data_dir, "the data directory").map(|(message, help)| ("data_dir", message, help));
    let found = found.or_else(|| {
        let DatabaseUrl::Sqlite(file) = &config.database_url else { return None };
        let place = file.parent().filter(|place| !place.as_os_str().is_empty() && *place != config.data_dir)?;
        directory(place, "the database's directory").map(|(message, help)| ("database_url", message, help))
    });
    found.map(|(key, message, help)| Obstacle { key, message, help })
}

/// What is wrong with a directory, and what to do about it.
fn directory(path: &Path, what: &str) -> Option<(String, String)> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            Some((format!("{shown} is no directory"), "name a directory, or one that can be made".to_owned()))
        }
        Ok(_) => access(path, WRITING).err().map(|error| {
            let why = Withheld::on_the_way_to(path, WRITING).map_or(error.to_string(), |found| found.to_string());
            let help =
                format!("give this user the right to write: chmod u+rwx {shown} by its owner; or name another one");
            (format!("{what} {shown} can't be written to: {why}"), help)
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = path.ancestors().skip(1).find(|parent| parent.exists()).unwrap_or(Path::new("/"));
            if parent.is_dir() && access(parent, WRITING).is_ok() && !is_of_the_kernel(parent) {
                return None;
            }
            let message = format!("{what} {shown} does not exist and can't be made in {}", parent.display());
            Some((message, "make it, give this user the right to, or name another one".to_owned()))
        }
        Err(error) => {
            let why =
                Withheld::on_the_way_to(path, Access::READ_OK).map_or(error.to_string(), |found| found.to_string());
            Some((format!("can't look at {what} {shown}: {why}"), "check its path and its rights".to_owned()))
        }
    }
}

/// Whether nothing can be made here, whatever the rights say: a file system in which the kernel shows itself, by the magic
/// numbers of statfs(2).
fn is_of_the_kernel(path: &Path) -> bool {
    const PROC: u64 = 0x9fa0;
    const SYSFS: u64 = 0x6265_6572;
    const DEBUGFS: u64 = 0x6462_6720;
    const TRACEFS: u64 = 0x7472_6163;
    const SECURITYFS: u64 = 0x7363_6673;
    let kind = rustix::fs::statfs(path).ok().and_then(|found| u64::try_from(found.f_type).ok());
    kind.is_some_and(|kind| [PROC, SYSFS, DEBUGFS, TRACEFS, SECURITYFS].contains(&kind))
}
