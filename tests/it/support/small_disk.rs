//! A disk that can be full or read-only, where the tests may mount one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::processes::say_skipped;

/// A small file system of its own, gone with this.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, and said so, where nothing can be mounted.
    pub fn mount(test: &str, path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "none"])
            .arg(&path)
            .output();
        if !mount.is_ok_and(|output| output.status.success()) {
            say_skipped(test, "nothing can be mounted here (it takes root and CAP_SYS_ADMIN)");
            return None;
        }
        Some(Self(path))
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
        let mounted = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0).output();
        assert!(mounted.as_ref().is_ok_and(|output| output.status.success()), "{mounted:?}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
