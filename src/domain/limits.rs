//! What a run may use of its machine.

/// The limits of one run, all its processes together; `None` means as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, page cache included.
    pub memory: Option<u64>,
    /// CPU time, in thousandths of a CPU.
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

impl Limits {
    /// Whether there is no limit at all.
    #[must_use]
    pub const fn is_unlimited(self) -> bool {
        self.memory.is_none() && self.cpu_millis.is_none() && self.pids.is_none()
    }

    /// The control group controllers that hold a run to these limits (cgroups(7), version 2).
    pub fn controllers(self) -> impl Iterator<Item = &'static str> {
        let wanted =
            [(self.memory.is_some(), "memory"), (self.cpu_millis.is_some(), "cpu"), (self.pids.is_some(), "pids")];
        wanted.into_iter().filter_map(|(wanted, name)| wanted.then_some(name))
    }
}
