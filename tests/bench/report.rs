//! The table and its JSON, and what the kernel counts.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// What was measured, printed as it comes.
pub(super) struct Report {
    machine: String,
    rows: Vec<Value>,
}

impl Report {
    pub(super) fn new(machine: String) -> Self {
        println!("machine: {machine}");
        Self { machine, rows: Vec::new() }
    }

    /// A figure, with what it is a ratio of where it is one.
    pub(super) fn add(
        &mut self,
        database: &'static str,
        what: &str,
        value: f64,
        unit: &'static str,
        ratio: Option<(f64, String)>,
    ) {
        let beside = ratio.as_ref().map_or_else(String::new, |(ratio, of)| format!("  {ratio:.2} {of}"));
        println!("{database:<11} {what:<46} {value:>10.2} {unit}{beside}");
        let ratio = ratio.map(|(ratio, of)| json!({ "ratio": ratio, "of": of }));
        self.rows.push(json!({ "database": database, "what": what, "value": value, "unit": unit, "ratio": ratio }));
    }

    pub(super) fn percentiles(&mut self, database: &'static str, what: &str, mut milliseconds: Vec<f64>) {
        milliseconds.sort_by(f64::total_cmp);
        let last = milliseconds.len().saturating_sub(1) as f64;
        for (name, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
            let value = milliseconds.get((last * share).round() as usize).copied().unwrap_or_default();
            self.add(database, &format!("{what}, {name}"), value, "ms", None);
        }
    }

    pub(super) fn write(&self, path: &Path) {
        let json = json!({ "machine": self.machine, "figures": self.rows });
        fs::write(path, format!("{json:#}\n")).expect("the JSON can be written");
    }
}

/// A control group that counts the CPU time of a service and of everything that it starts: nothing else counts shims, which
/// the kernel reaps.
pub(super) struct Account(PathBuf);

impl Account {
    /// `None` where this process may not make one.
    pub(super) fn open(pid: u32) -> Option<Self> {
        // Of version 1, or of version 2.
        ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"].into_iter().find_map(|tree| {
            let group = Path::new(tree).join(format!("callsheet-bench-{pid}"));
            fs::create_dir(&group).ok()?;
            let account = Self(group);
            fs::write(account.0.join("cgroup.procs"), pid.to_string()).ok()?;
            account.milliseconds().map(|_| account)
        })
    }

    pub(super) fn milliseconds(&self) -> Option<f64> {
        if let Ok(nanoseconds) = fs::read_to_string(self.0.join("cpuacct.usage")) {
            return nanoseconds.trim().parse::<f64>().ok().map(|spent| spent / 1e6);
        }
        let stat = fs::read_to_string(self.0.join("cpu.stat")).ok()?;
        let microseconds = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        microseconds.trim().parse::<f64>().ok().map(|spent| spent / 1e3)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // It goes where the last of its processes has ended.
        fs::remove_dir(&self.0).ok();
    }
}

pub(super) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime, the 14th and 15th field of proc_pid_stat(5), in clock ticks.
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}

pub(super) fn resident_mib(pid: u32) -> f64 {
    sizes(pid, "status", &["VmRSS:"]) / 1024.0
}

/// In KiB; `None` where the process is gone.
pub(super) fn private_and_proportional(pid: u32) -> Option<(f64, f64)> {
    let private = sizes(pid, "smaps_rollup", &["Private_Clean:", "Private_Dirty:"]);
    let proportional = sizes(pid, "smaps_rollup", &["Pss:"]);
    (proportional > 0.0).then_some((private, proportional))
}

/// The lines of a file of `/proc/<pid>` that begin so, added up, in KiB.
fn sizes(pid: u32, file: &str, names: &[&str]) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| names.iter().find_map(|name| line.strip_prefix(name)));
    lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).sum()
}
