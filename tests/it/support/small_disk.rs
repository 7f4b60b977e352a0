//! A disk that can be full or read-only, where the tests may mount one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::processes::say_skipped;

/// A small file system of its own, gone with this.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, and said so, where nothing can be mounted.
    pub fn mount(test: &str, path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        if !mounted(&["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "none"], &path) {
            say_skipped(test, "nothing can be mounted here (it takes root and CAP_SYS_ADMIN)");
            return None;
        }
        Some(Self(path))
    }

    /// The same files at another place, where they are read-only; this one must not be remounted for that while files on it
    /// are open.
    pub fn read_only_view(&self, path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        assert!(mounted(&["--bind", self.0.to_str().unwrap()], &path) && mounted(&["-o", "remount,ro,bind"], &path));
        Self(path)
    }

    /// Leaves no room, not even for the end of a page.
    pub fn fill(&self) {
        fs::write(self.0.join("ballast"), vec![0; 64 << 20]).unwrap_err();
    }

    pub fn clear(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }

    /// `ro` or `rw`.
    pub fn remount(&self, how: &str) {
        assert!(mounted(&["-o", &format!("remount,{how}")], &self.0), "what is open there for writing?");
    }
}

fn mounted(arguments: &[&str], path: &Path) -> bool {
    Command::new("mount").args(arguments).arg(path).output().is_ok_and(|output| output.status.success())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
