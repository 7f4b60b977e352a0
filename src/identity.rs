//! Which start of its worker a service is, and whether its worker's name is another service's.
//!
//! A worker's runs are in its data directory, so a service that took another one's name would find none of the runs that
//! the tables say are its own, and think them lost while they run. The data directory therefore remembers the last starts
//! from it, and a name whose living owner was started from another one is refused. One whose owner is gone may be used again,
//! by a worker that is a new one: what the last one has left open goes on under another name, until its leases are over.

use std::io::{self, Write as _};
use std::path::Path;

use crate::crash::{self, Step};
use crate::domain::Timestamp;
use crate::store::WorkerRow;

const FILE: &str = "incarnations";
/// As many as may have begun to start and been killed before they had registered, one after the other.
const KEPT: usize = 16;

/// The starts that a data directory remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Starts {
    /// It was used by a release that remembered none.
    Unknown,
    /// The names of the last ones, oldest first; none where it is new.
    Known(Vec<String>),
}

impl Starts {
    /// Reads what `data_dir` remembers.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub fn of(data_dir: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(data_dir.join(FILE)) {
            Ok(text) => Ok(Self::Known(text.lines().map(ToOwned::to_owned).collect())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Err(_) if data_dir.join("runs").try_exists()? => Ok(Self::Unknown),
            Err(_) => Ok(Self::Known(Vec::new())),
        }
    }

    /// Whether this worker, as it stands in the tables, is a living service that was started from another data directory.
    #[must_use]
    pub fn is_another(&self, worker: &WorkerRow, now: Timestamp) -> bool {
        match self {
            Self::Unknown => false,
            Self::Known(_) => worker.is_live(now) && self.displaces(worker),
        }
    }

    /// Whether this worker's name was last used from another data directory, so that its open runs are not here.
    #[must_use]
    pub fn displaces(&self, worker: &WorkerRow) -> bool {
        matches!(self, Self::Known(known) if !known.contains(&worker.incarnation))
    }

    /// Remembers one more, to be called before it is registered: a start that is killed in between is known all the same.
    ///
    /// # Errors
    /// Where the file can't be written.
    pub fn remember(self, data_dir: &Path, incarnation: &str) -> io::Result<()> {
        let mut known = if let Self::Known(known) = self { known } else { Vec::new() };
        known.push(incarnation.to_owned());
        let last = known.split_off(known.len().saturating_sub(KEPT));
        crash::before(Step::Incarnation);
        // Renamed into place: half a file would forget the start before.
        let new = data_dir.join(format!("{FILE}.new"));
        let mut file = std::fs::File::create(&new)?;
        file.write_all((last.join("\n") + "\n").as_bytes())?;
        std::fs::rename(new, data_dir.join(FILE))?;
        crash::after(Step::Incarnation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::labels::Labels;

    fn worker(incarnation: &str, state: &str) -> WorkerRow {
        WorkerRow {
            worker_id: "w".to_owned(),
            incarnation: incarnation.to_owned(),
            hostname: "h".to_owned(),
            version: "v".to_owned(),
            state: state.to_owned(),
            started_time: Timestamp::from_unix_millis(0),
            heartbeat_time: Timestamp::from_unix_millis(0),
            drain_requested_time: None,
            drain_requested_by: None,
            labels: Labels::default(),
            address: None,
            runs: 0,
        }
    }

    #[test]
    fn only_a_living_worker_of_another_directory_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let now = Timestamp::from_unix_millis(1000);
        let starts = Starts::of(path).unwrap();
        assert!(starts.is_another(&worker("a", "ACTIVE"), now));
        assert!(!starts.is_another(&worker("a", "STOPPED"), now));
        assert!(!starts.is_another(&worker("a", "ACTIVE"), now.plus(Duration::from_secs(60))));
        starts.remember(path, "a").unwrap();
        // The next one was killed before it had registered.
        Starts::of(path).unwrap().remember(path, "b").unwrap();
        let starts = Starts::of(path).unwrap();
        assert!(!starts.is_another(&worker("a", "ACTIVE"), now));
        assert!(starts.is_another(&worker("c", "ACTIVE"), now));
        assert!(starts.displaces(&worker("c", "STOPPED")) && !starts.displaces(&worker("b", "STOPPED")));
        for n in 0..40 {
            Starts::of(path).unwrap().remember(path, &n.to_string()).unwrap();
        }
        let Starts::Known(known) = Starts::of(path).unwrap() else { panic!("it is known") };
        assert_eq!((known.len(), known.last().unwrap().as_str()), (KEPT, "39"));
    }

    #[test]
    fn a_directory_of_an_earlier_release_takes_its_own_for_its_own() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("runs")).unwrap();
        let starts = Starts::of(directory.path()).unwrap();
        assert!(!starts.is_another(&worker("a", "ACTIVE"), Timestamp::from_unix_millis(0)));
    }
}
