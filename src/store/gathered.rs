//! The pages that a commit adds to SQLite's log, in one write instead of two for each.
//!
//! SQLite writes each page and the 24 bytes before it by themselves, some 35 calls for the end of a job and the claim of the next.
//! A file system of ours (a VFS, <https://www.sqlite.org/vfs.html>), through which the writing connection opens its log, gathers what
//! follows on what was written last, until the log is synced, read or cut. Everything else is the system's own file system's, and
//! so is the log for every other connection.
//!
//! It must be empty whenever somebody else may write the log, or know of what is in it. Settled by [`NEEDED`]: frames are
//! written by commits alone, which sync the log and only then say in the index beside it that there is more (`sqlite3WalFrames`
//! in SQLite's source). A transaction that wrote some before, for want of memory, and is taken back says nothing more to the log;
//! what was left of it here would later be written over the commits of others.

use std::ffi::{CStr, c_int, c_void};
use std::mem::size_of;
use std::sync::OnceLock;

use rusqlite::ffi::{
    SQLITE_IOERR, SQLITE_OK, SQLITE_OPEN_WAL, sqlite3_file, sqlite3_filename, sqlite3_int64, sqlite3_io_methods,
    sqlite3_vfs, sqlite3_vfs_find, sqlite3_vfs_register,
};

/// What the file system is called.
pub(super) const NAME: &CStr = c"callsheet-gathered";
/// What a connection through it has to be set to, before it writes anything.
pub(super) const NEEDED: &str = "PRAGMA synchronous = FULL; PRAGMA cache_spill = OFF";
/// Bytes that are gathered at most: the pages of some sixty changes.
const AT_MOST: usize = 128 << 10;

/// Makes the file system known to SQLite, under [`NAME`].
///
/// # Errors
/// SQLite has no file system of the system's own, or no memory.
#[expect(unsafe_code, reason = "rusqlite has no safe way to register a file system")]
pub(super) fn register() -> rusqlite::Result<()> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    let code = *REGISTERED.get_or_init(|| {
        // SAFETY: both may be called at any time; what is registered is never freed, and begins as a copy of what SQLite itself uses.
        unsafe {
            let system = system();
            let (Some(copied), Ok(own)) = (system.as_ref(), c_int::try_from(size_of::<LogFile>())) else {
                return SQLITE_IOERR;
            };
            let ours = sqlite3_vfs {
                szOsFile: copied.szOsFile + own,
                zName: NAME.as_ptr(),
                pNext: std::ptr::null_mut(),
                xOpen: Some(open),
                ..*copied
            };
            sqlite3_vfs_register(Box::into_raw(Box::new(ours)), 0)
        }
    });
    if code == SQLITE_OK { Ok(()) } else { Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)) }
}

/// What was written and is yet to reach the file.
#[derive(Default)]
struct Gathered {
    /// Where in the file it belongs.
    start: i64,
    bytes: Vec<u8>,
}

impl Gathered {
    /// Takes these bytes, where they follow and there is room for them.
    fn take(&mut self, bytes: &[u8], offset: i64) -> bool {
        let end = i64::try_from(self.bytes.len()).ok().and_then(|length| self.start.checked_add(length));
        let follows = self.bytes.is_empty() || end == Some(offset);
        if !follows || self.bytes.len() + bytes.len() > AT_MOST {
            return false;
        }
        if self.bytes.is_empty() {
            self.start = offset;
        }
        self.bytes.extend_from_slice(bytes);
        true
    }
}

/// A log as SQLite has it from us; the system's own file follows it in memory.
#[repr(C)]
struct LogFile {
    seen: sqlite3_file,
    gathered: *mut Gathered,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // Without what only a database file needs, shared memory and mappings.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// The file system that SQLite uses where it is told of none.
#[expect(unsafe_code, reason = "SQLite's own list")]
fn system() -> *mut sqlite3_vfs {
    // SAFETY: it may be called at any time.
    unsafe { sqlite3_vfs_find(std::ptr::null()) }
}

/// The system's own file, and what it can do.
///
/// # Safety
/// The file was opened by [`open`] as a log.
#[expect(unsafe_code, reason = "SQLite's files are places in its memory")]
unsafe fn real(file: *mut sqlite3_file) -> (*mut sqlite3_file, sqlite3_io_methods) {
    // SAFETY: there is room for it behind ours, by the size that was registered, and `open` has had it opened.
    unsafe {
        let real = file.byte_add(size_of::<LogFile>());
        (real, *(*real).pMethods)
    }
}

/// Writes what was gathered. Nothing of it is kept where that fails: SQLite takes the transaction back.
///
/// # Safety
/// As for [`real`].
#[expect(unsafe_code, reason = "SQLite's files are places in its memory")]
unsafe fn flush(file: *mut sqlite3_file) -> c_int {
    // SAFETY: `open` has put it there, and SQLite uses a file from one thread at a time.
    let gathered = unsafe { &mut *(*file.cast::<LogFile>()).gathered };
    if gathered.bytes.is_empty() {
        return SQLITE_OK;
    }
    // SAFETY: by this function's own condition.
    let (real, methods) = unsafe { real(file) };
    let code = match (methods.xWrite, c_int::try_from(gathered.bytes.len())) {
        // SAFETY: these are so many bytes, of the file that this method is of.
        (Some(write), Ok(length)) => unsafe { write(real, gathered.bytes.as_ptr().cast(), length, gathered.start) },
        _ => SQLITE_IOERR,
    };
    gathered.bytes.clear();
    code
}

#[expect(unsafe_code, reason = "called by SQLite (https://www.sqlite.org/c3ref/vfs.html)")]
unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let system = system();
    // SAFETY: the arguments are SQLite's, for a file of a size that fits both; `real` is behind ours.
    unsafe {
        let Some(open) = system.as_ref().and_then(|system| system.xOpen) else { return SQLITE_IOERR };
        if flags & SQLITE_OPEN_WAL == 0 {
            return open(system, name, file, flags, flags_out);
        }
        let real = file.byte_add(size_of::<LogFile>());
        (*real).pMethods = std::ptr::null();
        let code = open(system, name, real, flags, flags_out);
        // Closed, whatever the code, where it has methods.
        if (*real).pMethods.is_null() {
            (*file).pMethods = std::ptr::null();
        } else {
            let gathered = Box::into_raw(Box::<Gathered>::default());
            file.cast::<LogFile>().write(LogFile { seen: sqlite3_file { pMethods: &METHODS }, gathered });
        }
        code
    }
}

#[expect(unsafe_code, reason = "called by SQLite (https://www.sqlite.org/c3ref/io_methods.html)")]
unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once, and does not use it after that.
    unsafe {
        // What was not synced was not committed.
        drop(Box::from_raw((*file.cast::<LogFile>()).gathered));
        let (real, methods) = real(file);
        methods.xClose.map_or(SQLITE_IOERR, |close| close(real))
    }
}

#[expect(unsafe_code, reason = "called by SQLite (https://www.sqlite.org/c3ref/io_methods.html)")]
unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite gives so many bytes.
    unsafe {
        let Ok(size) = usize::try_from(length) else { return SQLITE_IOERR };
        let all = std::slice::from_raw_parts(bytes.cast::<u8>(), size);
        let gathered = (*file.cast::<LogFile>()).gathered;
        if (*gathered).take(all, offset) {
            return SQLITE_OK;
        }
        let flushed = flush(file);
        if flushed != SQLITE_OK || (*gathered).take(all, offset) {
            return flushed;
        }
        let (real, methods) = real(file);
        methods.xWrite.map_or(SQLITE_IOERR, |write| write(real, bytes, length, offset))
    }
}

/// A method that is the system's own, before which what was gathered is written or not.
macro_rules! passed_on {
    ($($name:ident = $method:ident($($argument:ident: $kind:ty),*), flushed: $flushed:literal;)+) => {$(
        #[expect(unsafe_code, reason = "called by SQLite (https://www.sqlite.org/c3ref/io_methods.html)")]
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $argument: $kind)*) -> c_int {
            // SAFETY: the arguments are SQLite's, for a method of the file that `open` has had opened.
            unsafe {
                let flushed = if $flushed { flush(file) } else { SQLITE_OK };
                if flushed != SQLITE_OK {
                    return flushed;
                }
                let (real, methods) = real(file);
                methods.$method.map_or(SQLITE_IOERR, |method| method(real $(, $argument)*))
            }
        }
    )+};
}

passed_on! {
    read = xRead(bytes: *mut c_void, length: c_int, offset: sqlite3_int64), flushed: true;
    truncate = xTruncate(size: sqlite3_int64), flushed: true;
    sync = xSync(flags: c_int), flushed: true;
    file_size = xFileSize(size: *mut sqlite3_int64), flushed: true;
    lock = xLock(level: c_int), flushed: false;
    unlock = xUnlock(level: c_int), flushed: false;
    check_reserved_lock = xCheckReservedLock(reserved: *mut c_int), flushed: false;
    file_control = xFileControl(operation: c_int, argument: *mut c_void), flushed: false;
    sector_size = xSectorSize(), flushed: false;
    device_characteristics = xDeviceCharacteristics(), flushed: false;
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rusqlite::{Connection, OpenFlags};

    use super::*;

    fn connection(path: &Path) -> Connection {
        register().unwrap();
        let connection = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), NAME).unwrap();
        let settings = "PRAGMA page_size = 2048; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0";
        connection.execute_batch(&format!("{settings}; {NEEDED}")).unwrap();
        connection
    }

    fn sum(connection: &Connection) -> (i64, i64) {
        connection
            .query_row("SELECT count(*), CAST(total(a * length(b)) AS integer) FROM t", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap()
    }

    #[test]
    fn only_what_follows_is_gathered_and_only_so_much() {
        let mut gathered = Gathered::default();
        assert!(gathered.take(b"one", 100));
        assert!(gathered.take(b"two", 103));
        assert!(!gathered.take(b"three", 105));
        assert!(!gathered.take(b"three", 107));
        assert!(!gathered.take(&vec![0; AT_MOST], 106));
        assert!(gathered.take(&vec![0; AT_MOST - 6], 106));
        assert_eq!((gathered.start, gathered.bytes.len()), (100, AT_MOST));
    }

    /// By the kernel's own count of this thread's calls.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_commit_of_many_pages_is_one_write() {
        let directory = tempfile::tempdir().unwrap();
        let writes = || {
            let counts = fs::read_to_string("/proc/thread-self/io").unwrap();
            let count = counts.lines().find_map(|line| line.strip_prefix("syscw: "));
            count.unwrap().parse::<u32>().unwrap()
        };
        let of_a_commit = |connection: &Connection| {
            connection
                .execute_batch("CREATE TABLE t (a, b); BEGIN; INSERT INTO t VALUES (1, zeroblob(40000))")
                .unwrap();
            let before = writes();
            connection.execute_batch("COMMIT").unwrap();
            writes() - before
        };
        assert_eq!(of_a_commit(&connection(&directory.path().join("ours.db"))), 1);
        let plain = Connection::open(directory.path().join("plain.db")).unwrap();
        plain.execute_batch("PRAGMA page_size = 2048; PRAGMA journal_mode = WAL").unwrap();
        assert!(of_a_commit(&plain) > 40);
    }

    /// More than its cache holds, which stays in memory all the same; parts of it are taken back.
    #[test]
    fn what_is_gathered_is_read_back_and_is_there_after_a_death() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let ours = connection(&path);
        ours.execute_batch("PRAGMA cache_size = 5; CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)").unwrap();
        let insert = |from: i64, to: i64, size: i64| {
            for a in from..to {
                ours.execute("INSERT OR REPLACE INTO t VALUES (?1, randomblob(?2))", [a, size]).unwrap();
            }
        };
        let other = Connection::open(&path).unwrap();
        for round in 0..3 {
            ours.execute_batch("BEGIN").unwrap();
            insert(0, 150, 1000 + round);
            ours.execute_batch("SAVEPOINT s").unwrap();
            insert(100, 300, 1500);
            assert_eq!(sum(&ours).0, 300);
            ours.execute_batch("ROLLBACK TO s").unwrap();
            insert(140, 200, 700 + round);
            let before = (sum(&ours), sum(&other));
            ours.execute_batch("COMMIT").unwrap();
            assert_eq!((sum(&ours), sum(&other)), (before.0, before.0));
            assert_ne!(before.0, before.1);
        }
        ours.execute_batch("BEGIN").unwrap();
        insert(0, 300, 2000);
        // As they are left by a process that is killed.
        let recovered = copied(directory.path());
        ours.execute_batch("ROLLBACK").unwrap();
        insert(1000, 1010, 10);
        let (rows, total) = sum(&recovered);
        assert_eq!(rows, 200);
        assert_eq!(sum(&ours), (rows + 10, total + 10 * (1000..1010).sum::<i64>()));
        assert_eq!(sum(&other), sum(&ours));
        ours.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        assert_eq!(fs::metadata(directory.path().join("a.db-wal")).unwrap().len(), 0);
        assert_eq!(sum(&other), sum(&ours));
    }

    /// What the files hold now, as after a death.
    fn copied(directory: &Path) -> Connection {
        for suffix in ["", "-wal"] {
            let place = |name: &str| directory.join(format!("{name}.db{suffix}"));
            fs::copy(place("a"), place("b")).unwrap();
        }
        let copied = Connection::open(directory.join("b.db")).unwrap();
        assert_eq!(copied.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
        copied
    }

    /// A transaction that is larger than the cache by so much and so little that some of it would be left where it is gathered.
    #[test]
    fn nothing_of_what_was_taken_back_is_written_over_what_others_have_committed() {
        for rows in (800..1000).step_by(10) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("a.db");
            let ours = connection(&path);
            ours.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB); PRAGMA wal_checkpoint(PASSIVE)")
                .unwrap();
            ours.execute_batch("BEGIN IMMEDIATE").unwrap();
            for a in 0..rows {
                ours.execute("INSERT INTO t VALUES (?1, randomblob(1800))", [a]).unwrap();
            }
            ours.execute_batch("ROLLBACK").unwrap();
            let other = Connection::open(&path).unwrap();
            for a in 1..=3 {
                other.execute("INSERT INTO t VALUES (?1, 'x')", [a]).unwrap();
            }
            assert_eq!((sum(&ours), sum(&other)), ((3, 6), (3, 6)), "{rows}");
            ours.execute_batch("INSERT INTO t VALUES (4, 'x')").unwrap();
            assert_eq!((sum(&copied(directory.path())), sum(&other)), ((4, 10), (4, 10)), "{rows}");
        }
    }
}
