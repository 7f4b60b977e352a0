//! What is in the way to a file that this user may not look at, and whose it is.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::io::Errno;

/// A directory or a file that keeps this user out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    path: PathBuf,
    owner: u32,
    user: u32,
}

impl Withheld {
    /// The first directory on the way to `path` that this user may not enter, else `path` itself where it can't be used as
    /// `wanted`; `None` where nothing is in the way, and where there is no such path.
    #[must_use]
    pub fn on_the_way_to(path: &Path, wanted: Access) -> Option<Self> {
        let directories: Vec<&Path> = path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        let entered = directories.into_iter().rev().map(|directory| (directory, Access::EXEC_OK));
        entered.chain([(path, wanted)]).find(|(path, wanted)| access(*path, *wanted) == Err(Errno::ACCESS)).and_then(
            |(path, _)| {
                let owner = std::fs::metadata(path).ok()?.uid();
                Some(Self { path: path.to_owned(), owner, user: rustix::process::getuid().as_raw() })
            },
        )
    }
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, owner, user } = self;
        if owner == user {
            write!(f, "the rights of {} keep its owner out, who is user {user}", path.display())
        } else {
            write!(f, "{} belongs to user {owner}, and this is user {user}", path.display())
        }
    }
}

impl std::error::Error for Withheld {}
